//! Turns on a stand-in for a GPU: real tenants with the real shim, the real arbiter, an engine
//! that takes the time that kernels claim. How exact shares are, how soon the next one is served
//! when the holder is killed, and what a real-time tenant waits for.
//!
//! Shares over 10 s: 1 point (DESIGN, section 8). A killed holder: 50 ms. Real-time p99: the
//! same request alone, measured in the same run, times 1.3, and the longest wait for the window
//! and a kernel. On a loaded machine the engine and its tenants wait for a processor, too.

use std::{
    fs,
    os::fd::AsRawFd,
    process::{Command, ExitCode},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use accelpool_arbiter::{Arbiter, ArmedDevice, Arming, Settings};
use accelpool_benches::{Report, Timing, node::build};
use accelpool_cuda_engine::{
    Engine,
    machine::{DeviceProfile, Machine},
    suite::{self, standin},
};
use accelpool_model::{DeviceUuid, MemoryBytes, ShareClass};
use accelpool_shim::{
    gate::Grant,
    layout::ControlPage,
    mapping::{Access, Mapping},
};
use accelpool_turns::TurnWeight;
use tempfile::TempDir;

const UUID: &str = "GPU-5f1a4e3c-0000-4000-8000-000000000000";
/// What a hand-over of the stand-in costs beside the software.
const SWITCH_NS: u64 = 50_000;
const KILLS: usize = 20;

fn main() -> ExitCode {
    let mut report = Report::begin();
    let node = Node::new();
    for weights in [&[1, 1][..], &[3, 1], &[1, 2, 4], &[1, 2, 3, 4], &[1; 6], &[1; 8]] {
        let [longest, worst] = share_error(&report, &node, weights);
        report.line(&format!("share error over 10 s, {weights:?}"), longest, 1.0, "points");
        report.line("  over the worst second of them", worst, 3.0, "points");
    }
    let kills: Vec<Duration> = (0..report.runs(KILLS)).map(|_| next_after_kill(&node)).collect();
    let kills = Timing::of(kills);
    report.time_line("holder killed -> next granted, median", kills.median, FIFTY_MS);
    report.time_line("holder killed -> next granted, p99", kills.p99, FIFTY_MS);

    let count = report.runs(300);
    let alone = realtime(&node, count, false);
    let beside = realtime(&node, count, true);
    report.note("real-time request of 2 ms alone, p99", alone, "ms");
    // The window of 0.3 ms, a kernel of 0.2 ms, the switch.
    report.line("the same beside two batch tenants, p99", beside, alone * 1.3 + 0.6, "ms");
    report.end()
}

const FIFTY_MS: Duration = Duration::from_millis(50);

struct Node {
    folder: TempDir,
    engine: Engine,
    arbiter: Arbiter,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::copy(standin(), folder.path().join("libcuda.so.1")).expect("it can be copied");
        let device = DeviceProfile { switch_ns: SWITCH_NS, ..DeviceProfile::new(UUID) };
        let machine = Machine { devices: vec![device] };
        let engine = Engine::start(machine, &folder.path().join("engine.sock"));
        let settings = Settings {
            policy: accelpool_turns::Settings::default(),
            admit: Arc::new(|_, _| true),
            witness: None,
        };
        let arbiter = Arbiter::start(&folder.path().join("turns"), settings);
        Self {
            engine: engine.expect("the engine starts"),
            arbiter: arbiter.expect("the arbiter starts"),
            folder,
        }
    }

    fn tenant(&self, name: &str, weight: u32, class: ShareClass) -> Tenant<'_> {
        let uuid: DeviceUuid = UUID.parse().expect("an identity");
        let (quota, reserve) = (MemoryBytes::from_gib(4), MemoryBytes::from_gib(1));
        let folder = self.arbiter.arm(&Arming {
            claim: name.parse().expect("a claim"),
            devices: vec![ArmedDevice { uuid, quota, reserve }],
            class,
            weight: TurnWeight::try_from(weight).expect("a small weight"),
            cap: None,
            host: None,
        });
        let folder = folder.expect("the claim is armed");
        let mut command = Command::new(build("accelpool-cuda-standin", "cuda-tenant"));
        command
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("LD_PRELOAD", accelpool_shim_cuda::BUILT_AT)
            .env("ACCELPOOL_TURNS", &folder)
            .env("ACCELPOOL_CUDA_STANDIN", self.engine.socket());
        let mut process = suite::Tenant::spawn(command);
        process.must("start 0");
        let page = fs::File::open(folder.join("ctrl")).expect("an armed claim has a page");
        let page = Mapping::of_file(page.as_raw_fd(), Access::Read).expect("it is a page");
        Tenant { node: self, name: name.to_owned(), process, page }
    }

    fn busy_ns(&self, tenant: &Tenant<'_>) -> u64 {
        let pid = tenant.process.pid();
        let all = self.engine.processes(0);
        all.iter().find(|it| it.pid == pid).map_or(0, |it| it.busy_ns)
    }
}

struct Tenant<'a> {
    node: &'a Node,
    name: String,
    process: suite::Tenant,
    page: Mapping<ControlPage>,
}

impl Tenant<'_> {
    fn holds_the_turn(&self) -> bool {
        let grant = Grant(self.page.devices[0].grant.load(Ordering::Acquire));
        grant.may_submit() && grant.has(Grant::EXCLUSIVE)
    }
}

impl Drop for Tenant<'_> {
    fn drop(&mut self) {
        let _ = self.process.child.kill();
        let _ = self.process.child.wait();
        let claim = self.name.parse().expect("it was one before");
        self.node.arbiter.disarm(&claim).expect("its folder can be removed");
    }
}

/// The largest difference between what a tenant was owed and what the engine did for it: over the
/// whole time, and in any second of it.
fn share_error(report: &Report, node: &Node, weights: &[u32]) -> [f64; 2] {
    let seconds = if report.is_judged() { 10 } else { 1 };
    let mut tenants: Vec<Tenant<'_>> = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| node.tenant(&format!("t{index}"), *weight, ShareClass::Normal))
        .collect();
    for tenant in &mut tenants {
        tenant.process.send("burn 200 600000");
    }
    thread::sleep(Duration::from_secs(1)); // all of them are under way
    let look = || tenants.iter().map(|it| node.busy_ns(it)).collect::<Vec<_>>();
    let mut looks = vec![look()];
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        looks.push(look());
    }
    let error = |from: &[u64], to: &[u64]| {
        let did: Vec<u64> = to.iter().zip(from).map(|(now, then)| now - then).collect();
        let (all, owed): (u64, u32) = (did.iter().sum(), weights.iter().sum());
        #[expect(clippy::cast_precision_loss, reason = "a share in points")]
        let off = |(did, weight): (&u64, &u32)| {
            (*did as f64 / all as f64 - f64::from(*weight) / f64::from(owed)).abs() * 100.0
        };
        did.iter().zip(weights).map(off).fold(0.0, f64::max)
    };
    let worst = looks.windows(2).map(|pair| error(&pair[0], &pair[1])).fold(0.0, f64::max);
    [error(&looks[0], &looks[seconds]), worst]
}

/// From the kill of the holder until another one's gate is open.
fn next_after_kill(node: &Node) -> Duration {
    let mut holder = node.tenant("holder", 1, ShareClass::Normal);
    let mut next = node.tenant("next", 2, ShareClass::Normal);
    for tenant in [&mut holder, &mut next] {
        tenant.process.send("burn 200 600000");
    }
    let until = Instant::now() + Duration::from_secs(30);
    while !holder.holds_the_turn() || next.holds_the_turn() {
        assert!(Instant::now() < until, "no turn in half a minute");
        thread::yield_now();
    }
    let start = Instant::now();
    holder.process.child.kill().expect("a child can be killed");
    let granted =
        |it: &Tenant<'_>| Grant(it.page.devices[0].grant.load(Ordering::Acquire)).may_submit();
    while !granted(&next) {
        assert!(Instant::now() < until, "nobody is granted after the kill");
        thread::yield_now();
    }
    start.elapsed()
}

/// The 99th percentile of requests of 2 ms, in milliseconds.
fn realtime(node: &Node, count: usize, beside: bool) -> f64 {
    let mut tenant = node.tenant("realtime", 1, ShareClass::Realtime);
    let mut batch: Vec<Tenant<'_>> = (0..if beside { 2 } else { 0 })
        .map(|index| node.tenant(&format!("batch{index}"), 1, ShareClass::Normal))
        .collect();
    for tenant in &mut batch {
        tenant.process.send("burn 200 600000");
    }
    thread::sleep(Duration::from_millis(200));
    let answer = tenant.process.must(&format!("pace 2000 {count} 10000"));
    let p99: u32 = answer.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("three figures");
    f64::from(p99) / 1000.0
}
