//! Random histories of pods, with restarts of everything: whatever happens, what a pod was
//! given is held by its claim alone, and in the end nothing is held at all.
//!
//! `ACCELPOOL_SOAK_SEEDS=1000` walks that many histories instead of the few that are always
//! walked, `ACCELPOOL_SOAK_FIRST=41` from that seed on: the way to one that has failed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use accelpool_cluster_double::Fault;
use accelpool_dra_driver::driver::{Driver, Pace};
use accelpool_kubelet_double::{Kubelet, Pod};

use crate::common::{Bench, Setup, gpu, result, uid_of};

/// Fewer than pods, so that they get into each other's way.
const DEVICES: u64 = 4;
const PODS_MAX: usize = 8;
const STEPS: usize = 80;

/// A sequence that follows from its seed (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct History {
    bench: Bench,
    kubelet: Option<Kubelet>,
    driver: Option<Driver>,
    /// The pods that are there, with the device of those that run.
    pods: BTreeMap<String, (Pod, Option<String>)>,
    dice: Dice,
    names: u64,
    instances: u64,
    /// How many pods have run: a history in which none does would prove nothing.
    ran: usize,
}

#[tokio::test]
async fn nothing_is_held_twice_or_for_ever() {
    for seed in seeds() {
        let mut history = History::begin(seed).await;
        for step in 0..STEPS {
            let what = history.step().await;
            history.check(&format!("seed {seed}, step {step}: {what}"));
        }
        history.end().await;
    }
}

/// The seeds of this run; none is 0, which the dice would never leave.
fn seeds() -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
    };
    let (first, count) = (number("ACCELPOOL_SOAK_FIRST"), number("ACCELPOOL_SOAK_SEEDS"));
    if (first, count) == (None, None) {
        return vec![1, 7, 20_261_123];
    }
    let first = first.unwrap_or(1).max(1);
    (first..).take(usize::try_from(count.unwrap_or(1)).unwrap()).collect()
}

fn device(index: u64) -> String {
    format!("gpu-000{index}")
}

impl History {
    async fn begin(seed: u64) -> Self {
        // Short: a pod whose device is held by another is not what this waits for.
        let pace = Pace { claim_budget: Duration::from_millis(150), ..Pace::default() };
        let devices = (0..DEVICES).map(|index| gpu(&device(index), None)).collect();
        let (bench, kubelet, driver) =
            Bench::running(Setup { devices, pace, ..Setup::default() }).await;
        Self {
            bench,
            kubelet: Some(kubelet),
            driver: Some(driver),
            pods: BTreeMap::new(),
            dice: Dice(seed),
            names: 0,
            instances: 0,
            ran: 0,
        }
    }

    async fn step(&mut self) -> &'static str {
        match self.dice.below(20) {
            0 => self.restart_kubelet().await,
            1 => self.restart_driver().await,
            2 => self.update_driver().await,
            3 => {
                self.bench.daemon.kill();
                self.bench.daemon.resume();
                "the daemon starts again"
            }
            4 => {
                self.bench.api.fail(None, Fault::Refuse(503), 3);
                "the API server refuses a while"
            }
            5 => {
                self.bench.api.fail(None, Fault::CutAfter, 1);
                "the API server cuts a connection"
            }
            6..=10 => self.end_pod().await,
            11..=12 => self.try_again().await,
            _ => self.start_pod().await,
        }
    }

    async fn start_pod(&mut self) -> &'static str {
        if self.pods.len() >= PODS_MAX {
            return "no room for another pod";
        }
        self.names += 1;
        let name = format!("p{}", self.names);
        let device = device(self.dice.below(DEVICES));
        let pod = self.bench.claim(&name, &[result("gpu", &device)]);
        let running = self.kubelet().claims.prepare(&pod).await.is_ok();
        self.ran += usize::from(running);
        self.pods.insert(name, (pod, running.then_some(device)));
        "a pod starts"
    }

    /// The kubelet's next try for a pod that does not run yet.
    async fn try_again(&mut self) -> &'static str {
        let waiting = self.pods.iter().find(|(_, (_, device))| device.is_none());
        let Some((name, (pod, _))) = waiting.map(|(name, pod)| (name.clone(), pod.clone())) else {
            return "no pod waits";
        };
        let claim = self.bench.api.get("resourceclaims", "team", &name).unwrap();
        let result = &claim["status"]["allocation"]["devices"]["results"][0];
        let device = result["device"].as_str().unwrap().to_owned();
        if self.kubelet().claims.prepare(&pod).await.is_ok() {
            self.pods.insert(name, (pod, Some(device)));
        }
        "a pod is tried again"
    }

    async fn end_pod(&mut self) -> &'static str {
        let count = self.pods.len() as u64;
        if count == 0 {
            return "no pod to end";
        }
        let index = usize::try_from(self.dice.below(count)).unwrap();
        let name = self.pods.keys().nth(index).unwrap().clone();
        let (pod, _) = self.pods.remove(&name).unwrap();
        // The claim may be gone before the kubelet is done with it.
        if self.dice.below(2) == 0 {
            self.bench.api.remove("resourceclaims", "team", &name);
        }
        self.unprepare(&pod).await;
        "a pod ends"
    }

    /// As the kubelet does: until it works.
    async fn unprepare(&self, pod: &Pod) {
        let mut last = Ok(());
        for _ in 0..100 {
            last = self.kubelet().claims.unprepare(pod).await;
            if last.is_ok() {
                return;
            }
        }
        panic!("{} does not end: {last:?}", pod.name);
    }

    async fn restart_kubelet(&mut self) -> &'static str {
        let before = self.kubelet().log.count("accelpool.dev registered");
        self.bench.options.records = self.kubelet.take().unwrap().stop();
        let kubelet = self.bench.kubelet();
        kubelet.log.wait_for("accelpool.dev registered", before + 1).await;
        self.kubelet = Some(kubelet);
        "the kubelet starts again"
    }

    async fn restart_driver(&mut self) -> &'static str {
        let before = self.kubelet().log.count("accelpool.dev registered");
        self.driver.take().unwrap().drain().await;
        self.instances += 1;
        self.driver = Some(self.bench.driver(&format!("pod-uid-{}", self.instances)).await);
        self.kubelet().log.wait_for("accelpool.dev registered", before + 1).await;
        "the driver starts again"
    }

    async fn update_driver(&mut self) -> &'static str {
        let before = self.kubelet().log.count("accelpool.dev registered");
        self.instances += 1;
        let next = self.bench.driver(&format!("pod-uid-{}", self.instances)).await;
        self.kubelet().log.wait_for("accelpool.dev registered", before + 1).await;
        self.driver.replace(next).unwrap().drain().await;
        "the driver is updated"
    }

    fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    fn check(&self, context: &str) {
        for (pod, held) in self.pods.values() {
            let Some(device) = held else { continue };
            let lease = self.bench.daemon.lease_of(&pod.claims[0].uid);
            let held = lease.map(|lease| lease.allocations[0].device.clone());
            assert_eq!(held.as_ref(), Some(device), "{context}: {} runs", pod.name);
            let answered = self.kubelet().claims.devices("team", &pod.name);
            assert!(answered.iter().all(|found| found.device == *device), "{context}");
        }
        let known: Vec<String> = self.pods.keys().map(|name| uid_of(name)).collect();
        let orphan = self.bench.daemon.claims().into_iter().find(|claim| !known.contains(claim));
        assert_eq!(orphan, None, "{context}: a lease without a pod");
    }

    async fn end(mut self) {
        assert!(self.ran > STEPS / 10, "{} pods ran", self.ran);
        for (pod, _) in std::mem::take(&mut self.pods).into_values() {
            self.unprepare(&pod).await;
        }
        assert_eq!(self.bench.daemon.claims(), [""; 0]);
        self.driver.take().unwrap().drain().await;
    }
}
