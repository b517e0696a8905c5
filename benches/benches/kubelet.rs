//! What the kubelet waits for: `NodePrepareResources` through both sockets, with the real
//! daemon's durable ledger, beside an empty call to the driver; the start of the driver until
//! its first slice; slices that come back after the kubelet has deleted them; the memory of both
//! programs.
//!
//! The budgets are what others take behind a real kubelet: the Go example driver 5.8 ms one
//! at a time, 28 ms with 30 pods at once, 1.1 s to its first slice. Its slices come back 30 to
//! 57 s after the kubelet's start; the budget is a second.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use accelpool_benches::{
    Report, Timing,
    node::{Daemon, Home, ONE_HEAP, build, profile},
    proportional_mib, resident_mib,
};
use accelpool_cluster_double::{ApiServer, Options, Verb};
use accelpool_proto::kubelet::{
    dra::v1::{self as wire, dra_plugin_client::DraPluginClient},
    registration::{InfoRequest, registration_client::RegistrationClient},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::UnixStream, runtime::Runtime, task::JoinSet};
use tonic::transport::{Channel, Endpoint};

const NODE: &str = "bench";
const DRIVER: &str = "accelpool.dev";
const POOL: &str = "accelpool.dev/bench";

/// The devices of `dgx-h100`.
const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];

/// The kubelet's default limit is 110 pods.
const CLAIMS: usize = 110;

const ONE_BUDGET: Duration = Duration::from_micros(5800);
const THIRTY_BUDGET: Duration = Duration::from_millis(28);
const SLICE_BUDGET: Duration = Duration::from_millis(1100);
const WIPE_BUDGET: Duration = Duration::from_secs(1);
/// DESIGN, section 8: both programs together, 8 devices, 100 leases. What they have in common is
/// counted once: the daemon and its worker are one program, and all share libraries.
const MEMORY_BUDGET_MIB: f64 = 40.0;
const LEASES: usize = 100;

/// The largest node that is looked at.
const WIDE_DEVICES: usize = 16;
const WIDE_PARTITIONS: usize = 57;

/// A driver that hangs would hang the bench.
const PATIENCE: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    let runtime = Runtime::new().expect("a runtime can be made");
    let _guard = runtime.enter();
    let mut report = Report::begin();
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let api = runtime.block_on(api_server());
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let driver = Driver::start(&daemon, &api, root.path());

    let slice = driver.first_slice_after(&api);
    report.time_line("start of the driver to its first slice", slice, SLICE_BUDGET);

    let mut registration = RegistrationClient::new(driver.dial("plugins_registry", "-reg.sock"));
    let empty = report.time(500, || {
        runtime.block_on(registration.get_info(InfoRequest {})).expect("the driver answers")
    });
    report.note("empty call, median", empty.median.as_secs_f64() * 1e3, "ms");

    let client = DraPluginClient::new(driver.dial(&format!("plugins/{DRIVER}"), ".sock"));
    let one = runtime.block_on(bursts(&client, 1, report.runs(200)));
    report.time_line("prepare, one at a time, median", one.median, ONE_BUDGET);
    report.note("prepare, one at a time, p99", one.p99.as_secs_f64() * 1e3, "ms");
    let thirty = runtime.block_on(bursts(&client, 30, report.runs(20)));
    report.time_line("prepare, 30 at once, median", thirty.median, THIRTY_BUDGET);
    report.note("prepare, 30 at once, p99", thirty.p99.as_secs_f64() * 1e3, "ms");
    let all = runtime.block_on(bursts(&client, CLAIMS, report.runs(5)));
    report.note("prepare, 110 at once, median", all.median.as_secs_f64() * 1e3, "ms");
    report.note("prepare, 110 at once, p99", all.p99.as_secs_f64() * 1e3, "ms");

    runtime.block_on(prepare(&client, LEASES));
    let all: Vec<_> =
        daemon.workers().into_iter().chain([daemon.id(), driver.child.id()]).collect();
    report.note("resident, the driver, 100 leases", driver.resident_mib(), "MiB");
    let apart: f64 = all.iter().copied().map(resident_mib).sum();
    report.note("resident, driver, daemon and worker", apart, "MiB");
    let together: f64 = all.into_iter().map(proportional_mib).sum();
    report.line("the same, common pages once", together, MEMORY_BUDGET_MIB, "MiB");
    report.time_line("8 devices: slices back after a wipe", wiped(&api), WIPE_BUDGET);
    drop(driver);
    wide(&mut report, &runtime);
    report.end()
}

/// The slices of a node with as many partitions as there are anywhere.
fn wide(report: &mut Report, runtime: &Runtime) {
    let home = Home::new(&wide_profile());
    let daemon = home.start();
    let api = runtime.block_on(api_server());
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let driver = Driver::start(&daemon, &api, root.path());
    // The device itself, and the entry for those who only look at it.
    let expected = WIDE_DEVICES * (WIDE_PARTITIONS + 2);
    let all = until(&api, |slices| devices_in(slices) == expected, driver.began);
    report.time_line("16 x 57: start to its last slice", all, SLICE_BUDGET);
    let creates = api.calls().into_iter().filter(|call| {
        call.verb == Verb::Create && call.resource == "resourceslices" && !call.dry_run
    });
    let slices = api.list("resourceslices");
    let bytes: usize = slices.iter().map(|slice| slice.to_string().len()).sum();
    let count = |count: usize| f64::from(u32::try_from(count).expect("it is small"));
    report.line("16 x 57: writes", count(creates.count()), count(slices.len()), "");
    report.note("16 x 57: text of all slices", count(bytes) / 1024.0, "KiB");
    report.note("16 x 57: resident, the driver", driver.resident_mib(), "MiB");
    report.time_line("16 x 57: slices back after a wipe", wiped(&api), WIPE_BUDGET);
}

/// Deletes all slices as a kubelet does that starts; how long until they are back.
fn wiped(api: &ApiServer) -> Duration {
    let before = devices_in(&api.list("resourceslices"));
    let began = Instant::now();
    api.wipe_slices(NODE);
    until(api, |slices| devices_in(slices) == before, began)
}

fn devices_in(slices: &[Value]) -> usize {
    slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array()).map(Vec::len).sum()
}

/// How long after `began` it holds of the slices.
fn until(api: &ApiServer, holds: impl Fn(&[Value]) -> bool, began: Instant) -> Duration {
    while !holds(&api.list("resourceslices")) {
        assert!(began.elapsed() < PATIENCE, "it does not come to hold of the slices");
        std::thread::sleep(Duration::from_micros(500));
    }
    began.elapsed()
}

/// Sixteen GPUs, each with 57 places for partitions.
fn wide_profile() -> String {
    let mut text = String::from(
        "[model.partitioning]\nscheme = \"mig\"\nslices = 8\nuuid_prefix = \"MIG-\"\n\
         inherit = \"all\"\nnodes = [{ path = \"nvidia-caps/nvidia-cap{n}\", first = 3 }]\n",
    );
    let rows = (0..8).map(|row| if row == 0 { 8 } else { 7 });
    for (row, starts) in rows.enumerate() {
        let starts: Vec<usize> = (0..starts).collect();
        let profile = format!(
            "\n[[model.partitioning.profile]]\nname = \"1g.{row}gb\"\nmemory = \"8Gi\"\n\
             compute_permille = 100\nsize = 1\nstarts = {starts:?}\ninstances_max = 8\n"
        );
        text.push_str(&profile);
    }
    profile(WIDE_DEVICES).replacen("\n[[device]]", &format!("\n{text}\n[[device]]"), 1)
}

/// An API server with a node and a claim to a share for each pod.
async fn api_server() -> ApiServer {
    let api = ApiServer::start(Options::default()).await;
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
    }));
    for index in 0..CLAIMS {
        let device = format!("gpu-0000-{}-00-0", BUSES[index % BUSES.len()]);
        let result = json!({
            "request": "gpu", "driver": DRIVER, "pool": POOL, "device": device,
            "shareID": uid(index),
            "consumedCapacity": { "memory": "5Gi", "compute": "70" },
        });
        api.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "namespace": "bench", "name": format!("c{index}"), "uid": uid(index) },
            "spec": { "devices": {} },
            "status": {
                "allocation": { "devices": { "results": [result], "config": [] } },
                "reservedFor": [],
            },
        }));
    }
    api
}

fn uid(index: usize) -> String {
    format!("00000000-0000-4000-8000-{index:012}")
}

/// Prepares `size` claims at once, each in a call of its own as the kubelet does, `runs`
/// times; the times of the calls.
async fn bursts(client: &DraPluginClient<Channel>, size: usize, runs: usize) -> Timing {
    let mut times = Vec::with_capacity(size * runs);
    for _ in 0..runs {
        times.extend(prepare(client, size).await);
        let claims = (0..size).map(claim).collect();
        let request = wire::NodeUnprepareResourcesRequest { claims };
        let answer = client.clone().node_unprepare_resources(request).await;
        let answers = answer.expect("the driver answers").into_inner().claims;
        assert!(answers.values().all(|answer| answer.error.is_empty()), "{answers:?}");
    }
    Timing::of(times)
}

/// Prepares `size` claims at once, each in a call of its own; the times of the calls.
async fn prepare(client: &DraPluginClient<Channel>, size: usize) -> Vec<Duration> {
    let mut calls = JoinSet::new();
    for index in 0..size {
        let mut client = client.clone();
        calls.spawn(async move {
            let began = Instant::now();
            let request = wire::NodePrepareResourcesRequest { claims: vec![claim(index)] };
            let answer = client.node_prepare_resources(request).await;
            let time = began.elapsed();
            let answers = answer.expect("the driver answers").into_inner().claims;
            for (uid, answer) in answers {
                assert_eq!((answer.error.as_str(), answer.devices.len()), ("", 1), "{uid}");
            }
            time
        });
    }
    calls.join_all().await
}

fn claim(index: usize) -> wire::Claim {
    wire::Claim { namespace: "bench".to_owned(), uid: uid(index), name: format!("c{index}") }
}

/// A real `accelpool-dra` that runs until it is dropped.
struct Driver {
    child: Child,
    root: PathBuf,
    began: Instant,
}

impl Driver {
    fn start(daemon: &Daemon, api: &ApiServer, root: &Path) -> Self {
        let config = root.join("dra.toml");
        let (socket, folder) = (daemon.socket().display().to_string(), root.display().to_string());
        let text = format!("node_socket = {socket:?}\nkubelet_root = {folder:?}\n");
        fs::write(&config, text).expect("the folder takes files");
        let mut command = Command::new(build("accelpool-dra-driver", "accelpool-dra"));
        command.args(["--node-name", NODE, "--pod-uid", "bench", "--api-server", api.url()]);
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let (name, value) = ONE_HEAP;
        command.env(name, value);
        let began = Instant::now();
        let child = command.spawn().expect("accelpool-dra can be run");
        Self { child, root: root.to_owned(), began }
    }

    /// Waits for the first slice with a device.
    fn first_slice_after(&self, api: &ApiServer) -> Duration {
        until(api, |slices| devices_in(slices) > 0, self.began)
    }

    /// A connection to the driver's socket in a folder.
    fn dial(&self, folder: &str, suffix: &str) -> Channel {
        let entries = fs::read_dir(self.root.join(folder)).expect("the driver made the folder");
        let mut paths = entries.map(|entry| entry.expect("entries can be read").path());
        let path = paths.find(|path| path.to_string_lossy().ends_with(suffix));
        let path = path.expect("the driver made its socket");
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://driver").connect_with_connector_lazy(connector)
    }

    fn resident_mib(&self) -> f64 {
        resident_mib(self.child.id())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself; the figures are taken by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
