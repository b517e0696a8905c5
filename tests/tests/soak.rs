//! Churn of claims, processes and faults under scrapes: the sums hold at every look, a released
//! claim leaves no series, and memory stays flat.
//!
//! `ACCELPOOL_SOAK_SECONDS=1800` goes on for so long, `ACCELPOOL_SOAK_FIRST=41` begins with that
//! seed.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::{Duration, Instant},
};

use accelpool_cluster_double::{ApiServer, Options};
use accelpool_proto::node::GetMetricsResponse;
use accelpool_tests::{
    Client, Daemon, Driver, Home,
    prometheus::get,
    requests::{claim, named, share},
    tenants::{Proc, of_pod},
    wait_for,
    walk::{Dice, number, resident_kib},
};
use serde_json::json;

const NODE: &str = "worker-1";
const GIB: u64 = 1 << 30;
/// The last is held whole, the others by sharers.
const DEVICES: [&str; 4] =
    ["gpu-0000-1b-00-0", "gpu-0000-43-00-0", "gpu-0000-52-00-0", "gpu-0000-61-00-0"];
const CLAIMS_MAX: usize = 24;
/// Forms of the page, as clients ask for them.
const PAGES: [(&str, &str); 4] = [
    ("/metrics", ""),
    ("/metrics", "application/openmetrics-text;version=1.0.0"),
    (
        "/metrics",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    ),
    ("/metrics?compat=dcgm", ""),
];
const HANG: &str = "[[call]]\nid = \"stuck\"\nmethod = \"sample\"\ntimes = 1000000\nhang = true\n";
/// What is written down of the daemon's day, and what an allocator keeps, may still grow.
const GROWTH_MAX: u64 = 8 << 20;

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    resident_kib(pid).expect("the process runs") * 1024
}

/// Resident memory of the three programs.
#[derive(Clone, Copy)]
struct Memory {
    daemon: u64,
    worker: u64,
    driver: u64,
}

struct Churn {
    home: Home,
    proc: Proc,
    daemon: Daemon,
    client: Client,
    driver: Driver,
    dice: Dice,
    /// Claims that are held, each with its pod and its process's line for the script.
    held: BTreeMap<String, (u32, String)>,
    /// Names are never used twice: what is kept of one that is gone would show.
    made: u32,
    scrapes: u64,
    bytes: usize,
}

impl Churn {
    fn step(&mut self) {
        // A call that hangs is given up after seconds, so most of the time none may.
        match self.dice.below(1000) {
            0 => self.hang(),
            1..=400 => self.prepare(),
            401..=700 => self.release(),
            701..=800 => self.stranger(),
            _ => self.script(""),
        }
        let (path, accept) = PAGES[usize::try_from(self.dice.below(4)).expect("it is small")];
        let (status, page) = get(self.driver.address(), path, accept);
        // Before the first reading the compatible page has nothing to tell.
        let full = !page.is_empty() || path.contains("compat");
        assert!(status == 200 && full, "{path} {accept}: {status}");
        (self.scrapes, self.bytes) = (self.scrapes + 1, page.len());
        sums(&self.client.metrics().expect("the daemon answers"));
    }

    /// Writes the script: who runs what.
    fn script(&self, more: &str) {
        let mut script: String = self.held.values().map(|(_, line)| line.as_str()).collect();
        script += more;
        self.home.script(&script);
    }

    fn prepare(&mut self) {
        if self.held.len() >= CLAIMS_MAX {
            return self.release();
        }
        self.made += 1;
        let (name, pod) = (format!("c{}", self.made), self.made);
        let at = usize::try_from(self.dice.below(4)).expect("it is small");
        let device = DEVICES[at];
        let wanted = match at {
            3 => named("gpu", device),
            _ => share("gpu", device, 8 * GIB, 100),
        };
        // Where there is no room it is refused, which is part of the churn.
        if self.client.prepare(of_pod(claim(&name, vec![wanted]), pod)).is_err() {
            return;
        }
        self.proc.add(pod, pod);
        let permille = 10 + self.dice.below(80);
        let line = format!(
            "[[process]]\npid = {pid}\ndevice = \"{device}\"\nmemory = \"{gib}Gi\"\n\
             compute_permille = {permille}\nencoder_permille = {permille}\n",
            pid = pod,
            gib = 1 + self.dice.below(4),
        );
        self.held.insert(name, (pod, line));
        self.script("");
    }

    fn release(&mut self) {
        let count = u64::try_from(self.held.len()).expect("they are few");
        if count == 0 {
            return;
        }
        let at = usize::try_from(self.dice.below(count)).expect("it is small");
        let name = self.held.keys().nth(at).cloned().expect("it is held");
        let (pod, _) = self.held.remove(&name).expect("it is held");
        self.script("");
        self.client.release(&name).expect("it can be released");
        self.proc.remove(pod);
    }

    /// A process that holds nothing.
    fn stranger(&self) {
        let line = format!(
            "[[process]]\npid = 4000000\ndevice = \"{}\"\nmemory = \"1Gi\"\ncompute_permille = 5\n",
            DEVICES[0]
        );
        self.script(&line);
    }

    /// The vendor's library hangs until the next change of the script.
    fn hang(&self) {
        self.script(HANG);
    }

    fn memory(&self) -> Memory {
        // A worker that is being started anew is one that is not there.
        let worker = wait_for("a worker", || {
            let status = |pid: &u32| fs::metadata(format!("/proc/{pid}/status")).is_ok();
            self.daemon.workers().into_iter().find(status)
        });
        Memory {
            daemon: resident(self.daemon.id()),
            worker: resident(worker),
            driver: resident(self.driver.id()),
        }
    }

    /// Everything is released, and nothing of it is left.
    fn end(&mut self) {
        self.script("");
        while !self.held.is_empty() {
            self.release();
        }
        self.script("");
        wait_for("figures without claims", || {
            let metrics = self.client.metrics().expect("the daemon answers");
            sums(&metrics);
            // All that was used is told as released: it was measured while it was held.
            let used = metrics.devices.iter().any(|it| it.busy_released_ns.unwrap_or(0) > 0);
            let gone = metrics.allocations.is_empty() && metrics.agents.is_empty();
            (used && gone).then_some(())
        });
        wait_for("a page without claims", || {
            let (_, page) = get(self.driver.address(), "/metrics", "");
            let of_claim = |line: &str| line.contains("claim_uid=") || line.contains("agent=");
            (!page.lines().any(of_claim)).then_some(())
        });
    }
}

/// Holders, released and unattributed are the device: memory, compute and every engine.
fn sums(metrics: &GetMetricsResponse) {
    for device in &metrics.devices {
        let own: Vec<_> =
            metrics.allocations.iter().filter(|it| it.device == device.device).collect();
        if let (Some(used), Some(rest)) =
            (device.memory_used_bytes, device.memory_unattributed_bytes)
        {
            let held: u64 = own.iter().filter_map(|it| it.memory_used_bytes).sum();
            assert_eq!(held + rest, used, "memory: {metrics:?}");
        }
        if let Some(busy) = device.busy_ns {
            let parts = [device.busy_unattributed_ns, device.busy_released_ns];
            let rest: u64 = parts.into_iter().flatten().sum();
            let held: u64 = own.iter().filter_map(|it| it.busy_ns).sum();
            assert_eq!(held + rest, busy, "compute: {metrics:?}");
        }
        for (engine, busy) in &device.engine_busy_ns {
            let of = |engines: &HashMap<String, u64>| engines.get(engine).copied().unwrap_or(0);
            let held: u64 = own.iter().map(|it| of(&it.engine_busy_ns)).sum();
            let rest = of(&device.engine_unattributed_ns) + of(&device.engine_released_ns);
            assert_eq!(held + rest, *busy, "{engine}: {metrics:?}");
        }
    }
}

#[test]
fn churn_leaves_nothing_behind() {
    let length = Duration::from_secs(number("ACCELPOOL_SOAK_SECONDS").unwrap_or(6));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (home, proc) = (Home::new("dgx-h100"), Proc::new());
    home.sample_every(100, proc.path());
    let daemon = home.start();
    let client = daemon.client();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let api = runtime.block_on(ApiServer::start(Options::default()));
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
    }));
    let driver = Driver::start(&home, folder.path(), NODE, api.url());
    let dice = Dice(number("ACCELPOOL_SOAK_FIRST").unwrap_or(20_261_124).max(1));
    let held = BTreeMap::new();
    let mut churn =
        Churn { home, proc, daemon, client, driver, dice, held, made: 0, scrapes: 0, bytes: 0 };
    println!(
        "| s | claims made | scrapes | page, bytes | daemon, KiB | worker, KiB | driver, KiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    let begun = Instant::now();
    let (mut rows, mut due) = (Vec::new(), Duration::ZERO);
    while begun.elapsed() < length {
        churn.step();
        if begun.elapsed() >= due {
            due += (length / 30).max(Duration::from_millis(200));
            let Memory { daemon, worker, driver } = churn.memory();
            println!(
                "| {} | {} | {} | {} | {} | {} | {} |",
                begun.elapsed().as_secs(),
                churn.made,
                churn.scrapes,
                churn.bytes,
                daemon / 1024,
                worker / 1024,
                driver / 1024
            );
            rows.push(Memory { daemon, worker, driver });
        }
    }
    assert!(churn.made > 0 && churn.scrapes > 0, "nothing was done");
    churn.end();
    // Worn in after a third; from then on it may not grow.
    let third = rows.len() / 3;
    let worn_in = rows.get(third).copied().expect("a row was written");
    let last = rows.last().copied().expect("a row was written");
    for (who, before, after) in [
        ("daemon", worn_in.daemon, last.daemon),
        ("worker", worn_in.worker, last.worker),
        ("driver", worn_in.driver, last.driver),
    ] {
        assert!(after <= before + GROWTH_MAX, "{who} grew from {before} to {after} bytes");
    }
    let workers = churn.daemon.workers();
    assert!(workers.len() <= 1, "workers are left over: {workers:?}");
}
