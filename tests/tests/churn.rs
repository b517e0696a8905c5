//! Pods come and go at random on the real programs, while daemon, driver, kubelet and API server
//! are restarted under them: nothing is lost meanwhile, and nothing is left in the end.
//!
//! `ACCELPOOL_CHURN_MINUTES=30` walks that long instead of the few steps that are always walked,
//! and prints what it has seen each minute; in the last third nothing is restarted, so that memory
//! that grows can be seen. `ACCELPOOL_CHURN_SEED` chooses another history.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use accelpool_cluster::DRIVER_NAME;
use accelpool_cluster_double::{ApiServer, Fault, Options as ServerOptions};
use accelpool_kubelet_double::{Kubelet, Options, Pod, PodClaim};
use accelpool_tests::{
    Daemon, Home, LONG, driver,
    rules::Picture,
    walk::{Dice, number, resident_kib},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const NODE: &str = "worker-1";
const POOL: &str = "accelpool.dev/worker-1";
const GPU: &str = "accelpool.dev/gpu";
const REGISTERED: &str = "accelpool.dev registered";

/// The devices of `dgx-h100`: the first two are offered as an extended resource, two serve shares,
/// two partitions, two are had whole.
const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];
const SHARES_OF_A_DEVICE: usize = 4;
const PARTITIONS_OF_A_DEVICE: usize = 7;

/// What is always walked.
const STEPS: u64 = 60;
const SEED: u64 = 20_261_124;

/// Out of so many steps of a long walk one restarts something.
const CALM: u64 = 10;

fn gpu(index: usize) -> String {
    format!("gpu-0000-{}-00-0", BUSES[index])
}

/// A process that ends with its owner.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A place on the node that the scheduler gives to one pod at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Share {
        device: usize,
        index: usize,
    },
    Partition {
        device: usize,
        start: usize,
    },
    Whole {
        device: usize,
    },
    /// Which one the kubelet chooses.
    Extended {
        index: usize,
    },
}

/// All places, each of which can be taken beside all others. What extended resources hold is given
/// back only half a minute after its pod, so they are left to long walks.
fn places(long: bool) -> Vec<Place> {
    let shares = |device| (0..SHARES_OF_A_DEVICE).map(move |index| Place::Share { device, index });
    let parts =
        |device| (0..PARTITIONS_OF_A_DEVICE).map(move |start| Place::Partition { device, start });
    let extended = (0..if long { 2 } else { 0 }).map(|index| Place::Extended { index });
    extended
        .chain((2..4).flat_map(shares))
        .chain((4..6).flat_map(parts))
        .chain((6..8).map(|device| Place::Whole { device }))
        .collect()
}

#[derive(Debug, Default)]
struct Counts {
    steps: u64,
    pods: u64,
    ended: u64,
    restarts: BTreeMap<&'static str, u64>,
}

struct Node {
    home: Home,
    daemon: Option<Daemon>,
    driver: Option<Program>,
    kubelet: Option<Kubelet>,
    api: Arc<ApiServer>,
    options: Options,
    root: TempDir,
    instances: u64,
    dice: Dice,
    places: Vec<Place>,
    /// The pods that are there, by place, and whether they run.
    pods: BTreeMap<Place, (Pod, bool)>,
    counts: Counts,
}

impl Node {
    async fn start(seed: u64, long: bool) -> Self {
        let home = Home::new("dgx-h100");
        let text = fs::read_to_string(home.config()).unwrap();
        let pools = format!(
            "\n[[pool]]\nname = \"plugin\"\nexpose = \"device-plugin\"\ndevices = [{:?}, {:?}]\n\
             [[pool]]\nname = \"rest\"\n",
            gpu(0),
            gpu(1)
        );
        fs::write(home.config(), text.replace("level = \"debug,", "level = \"warn,") + &pools)
            .unwrap();
        let api = Arc::new(ApiServer::start(ServerOptions::default()).await);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
        }));
        let root = tempfile::tempdir().unwrap();
        let mut options = Options::new(root.path());
        let wiped = Arc::clone(&api);
        options.wipe = Arc::new(move |_| wiped.wipe_slices(NODE));
        let mut node = Self {
            daemon: Some(start_daemon(&home)),
            home,
            driver: None,
            kubelet: None,
            api,
            options,
            root,
            instances: 0,
            dice: Dice(seed),
            places: places(long),
            pods: BTreeMap::new(),
            counts: Counts::default(),
        };
        node.kubelet = Some(Kubelet::start(node.options.clone()).unwrap());
        node.kubelet().extended.begin_pod("accelpool", "driver");
        node.start_driver();
        node.kubelet().log.wait_for(REGISTERED, 1).await;
        node
    }

    fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    fn start_driver(&mut self) {
        let config = self.root.path().join("dra.toml");
        let (socket, root) = (self.home.socket(), self.root.path().display().to_string());
        let socket = socket.display().to_string();
        let text =
            format!("node_socket = {socket:?}\nkubelet_root = {root:?}\nnri.enabled = false\n");
        fs::write(&config, text).unwrap();
        let uid = format!("instance-{}", self.instances);
        let mut command = Command::new(driver());
        command.args(["--node-name", NODE, "--pod-uid", &uid, "--api-server", self.api.url()]);
        command.args(["--pod-namespace", "accelpool", "--pod-name", "driver"]);
        command.arg("--config").arg(config).stdout(Stdio::null());
        command.stderr(Stdio::null());
        self.driver = Some(Program(command.spawn().unwrap()));
    }

    /// Does something to the node.
    async fn restart(&mut self) {
        let before = self.kubelet().log.count(REGISTERED);
        let what = match self.dice.below(6) {
            0 => {
                self.daemon.take().unwrap().kill();
                self.daemon = Some(start_daemon(&self.home));
                "daemon killed"
            }
            1 => {
                drop(self.driver.take());
                self.start_driver();
                self.kubelet().log.wait_for(REGISTERED, before + 1).await;
                "driver killed"
            }
            2 => {
                // An update: the next instance is there before the last one is told to end.
                let mut last = self.driver.take().unwrap();
                self.instances += 1;
                self.start_driver();
                self.kubelet().log.wait_for(REGISTERED, before + 1).await;
                let id = Pid::from_raw(last.0.id().cast_signed());
                kill(id, Signal::SIGTERM).unwrap();
                let ended = tokio::task::spawn_blocking(move || last.0.wait().unwrap());
                assert!(ended.await.unwrap().success(), "an instance that is updated ends well");
                "driver updated"
            }
            3 => {
                self.options.records = self.kubelet.take().unwrap().stop();
                self.kubelet = Some(Kubelet::start(self.options.clone()).unwrap());
                self.kubelet().extended.begin_pod("accelpool", "driver");
                for (pod, _) in self.pods.values() {
                    self.kubelet().extended.begin_pod("team", &pod.name);
                }
                self.kubelet().log.wait_for(REGISTERED, before + 1).await;
                "kubelet restarted"
            }
            4 => {
                self.api.fail(None, Fault::Refuse(503), 5);
                "API server away"
            }
            _ => {
                self.api.wipe_slices(NODE);
                "slices wiped"
            }
        };
        *self.counts.restarts.entry(what).or_default() += 1;
    }

    async fn step(&mut self, restarts: u64) {
        self.counts.steps += 1;
        if self.dice.below(CALM) < restarts {
            self.restart().await;
        } else if self.dice.below(100) < 45 {
            self.end_one().await;
        } else {
            self.start_one().await;
        }
        // The double keeps what was asked until somebody looks.
        drop(self.api.take_calls());
    }

    async fn start_one(&mut self) {
        let chosen = usize::try_from(self.dice.below(self.places.len() as u64)).unwrap();
        let place = self.places[chosen].clone();
        // A pod that does not run yet is the kubelet's next try.
        let known = self.pods.get(&place).cloned();
        let (pod, runs) = known.unwrap_or_else(|| (self.new_pod(&place), false));
        let runs = runs || self.admit(&place, &pod).await;
        self.pods.insert(place, (pod, runs));
    }

    fn new_pod(&mut self, place: &Place) -> Pod {
        self.counts.pods += 1;
        let name = format!("p{}", self.counts.pods);
        let result = match place {
            Place::Extended { .. } => {
                return Pod {
                    namespace: "team".into(),
                    uid: name.clone(),
                    name,
                    claims: Vec::new(),
                };
            }
            Place::Share { device, .. } => {
                let mut result = whole(&gpu(*device));
                let number = self.counts.pods;
                result["shareID"] = json!(format!("00000000-0000-4000-8000-{number:012}"));
                result["consumedCapacity"] = json!({ "memory": "20Gi", "compute": "250" });
                result
            }
            Place::Partition { device, start } => {
                whole(&format!("{}-mig-1g-10gb-{start}", gpu(*device)))
            }
            Place::Whole { device } => whole(&gpu(*device)),
        };
        let claim = self.api.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "namespace": "team", "name": name },
            "spec": { "devices": {} },
            "status": {
                "allocation": { "devices": { "results": [result], "config": [] } },
                "reservedFor": [{ "resource": "pods", "name": name, "uid": name }],
            },
        }));
        let uid = claim["metadata"]["uid"].as_str().unwrap().to_owned();
        let claim = PodClaim { name: name.clone(), uid, drivers: vec![DRIVER_NAME.to_owned()] };
        Pod { namespace: "team".into(), uid: name.clone(), name, claims: vec![claim] }
    }

    /// True if the pod runs now.
    async fn admit(&self, place: &Place, pod: &Pod) -> bool {
        if let Place::Extended { .. } = place {
            let asked = self.kubelet().extended.allocate(("team", &pod.name), "main", GPU, 1).await;
            return asked.is_ok();
        }
        self.kubelet().claims.prepare(pod).await.is_ok()
    }

    async fn end_one(&mut self) {
        let count = self.pods.len() as u64;
        if count == 0 {
            return;
        }
        let index = usize::try_from(self.dice.below(count)).unwrap();
        let place = self.pods.keys().nth(index).unwrap().clone();
        self.end_pod(&place).await;
    }

    async fn end_pod(&mut self, place: &Place) {
        let (pod, _) = self.pods.remove(place).unwrap();
        self.counts.ended += 1;
        if let Place::Extended { .. } = place {
            self.kubelet().extended.end_pod("team", &pod.name);
            return;
        }
        // As the kubelet does: until it works.
        let ended = async {
            while self.kubelet().claims.unprepare(&pod).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, ended).await.unwrap_or_else(|_| panic!("{} does not end", pod.name));
        self.api.remove("resourceclaims", "team", &pod.name);
    }

    fn specs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.cdi()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What runs has its specs, and what is no pod's has none.
    fn check(&self) {
        let specs = self.specs();
        let spec_of = |pod: &Pod| format!("accelpool.dev-claim_{}.json", pod.claims[0].uid);
        for (place, (pod, runs)) in &self.pods {
            if *runs && !pod.claims.is_empty() {
                assert!(specs.contains(&spec_of(pod)), "{place:?}: {} has no spec", pod.name);
            }
        }
        let claims = self.pods.values().filter(|(pod, _)| !pod.claims.is_empty());
        let known: Vec<String> = claims.map(|(pod, _)| spec_of(pod)).collect();
        let of_claims = specs.iter().filter(|spec| !spec.contains("_dp-"));
        let orphans: Vec<_> = of_claims.filter(|spec| !known.contains(spec)).collect();
        assert_eq!(orphans, [""; 0], "specs of no pod");
    }

    fn report(&self, began: Instant) {
        let resident = |id| resident_kib(id).unwrap_or(0);
        let Counts { steps, pods, ended, restarts } = &self.counts;
        println!(
            "{:>5} s: {steps} steps, {pods} pods, {ended} ended, {} there, {} specs; resident: \
             daemon {} KiB, driver {} KiB; {restarts:?}",
            began.elapsed().as_secs(),
            self.pods.len(),
            self.specs().len(),
            resident(self.daemon.as_ref().unwrap().id()),
            resident(self.driver.as_ref().unwrap().0.id()),
        );
    }

    async fn end(mut self) {
        for place in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.end_pod(&place).await;
        }
        // What extended resources hold goes when no pod has had it for half a minute.
        let gone = async {
            while !self.specs().is_empty() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(timeout(LONG, gone).await.is_ok(), "specs are left: {:?}", self.specs());
        let (home, daemon) = (&self.home, self.daemon.as_ref().unwrap());
        let picture = thread::scope(|scope| {
            scope.spawn(|| Picture::take(home, &daemon.client())).join().unwrap()
        });
        assert_eq!(picture.faults(), [""; 0]);
        assert_eq!((picture.leases.len(), picture.partitions.len()), (0, 0));
        assert_eq!(picture.hardware, []);
        assert!(self.kubelet().claims.is_empty(), "the kubelet knows of claims still");
        assert_eq!(self.api.list("resourceclaims").len(), 0);
    }
}

/// Starts a daemon from within a runtime, which its client must not be called in.
fn start_daemon(home: &Home) -> Daemon {
    thread::scope(|scope| scope.spawn(|| home.start()).join()).unwrap()
}

fn whole(device: &str) -> Value {
    json!({ "request": "gpu", "driver": DRIVER_NAME, "pool": POOL, "device": device })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_is_left() {
    // The dice would never leave 0.
    let seed = number("ACCELPOOL_CHURN_SEED").unwrap_or(SEED).max(1);
    let minutes = number("ACCELPOOL_CHURN_MINUTES");
    let mut node = Node::start(seed, minutes.is_some()).await;
    let began = Instant::now();
    match minutes {
        None => {
            for _ in 0..STEPS {
                node.step(3).await;
                node.check();
            }
            assert!(node.counts.pods > STEPS / 6, "{:?}", node.counts);
            assert!(node.counts.restarts.len() > 4, "{:?}", node.counts);
        }
        Some(minutes) => {
            let whole = Duration::from_secs(minutes * 60);
            let mut reported = 0;
            while began.elapsed() < whole {
                let stormy = began.elapsed() < whole * 2 / 3;
                node.step(u64::from(stormy)).await;
                node.check();
                if began.elapsed().as_secs() / 60 > reported {
                    reported = began.elapsed().as_secs() / 60;
                    node.report(began);
                }
            }
        }
    }
    node.report(began);
    node.end().await;
}
