//! What a container runtime waits for: `CreateContainer` to the real driver beside a real daemon,
//! and beside it, on the same connection, a call that the driver has next to nothing to do for.
//!
//! A runtime makes one container after the other and cuts a plugin off that takes 2 s. The driver
//! answers within half of that whatever happens, which is measured with a daemon that is stopped.

use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use accelpool_benches::{
    Report, Timing,
    node::{Daemon, Home, ONE_HEAP, build, share},
};
use accelpool_cluster_double::ApiServer;
use accelpool_proto::{
    node::{Binding, PrepareClaimRequest, binding::Subject},
    nri::{CdiDevice, Container, LinuxContainer, LinuxPodSandbox, PodSandbox},
};
use accelpool_runtime_double::{Options, Records, Runtime};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

/// A hundredth of what the runtime waits.
const CREATE_BUDGET: Duration = Duration::from_millis(20);

/// When the runtime would cut the plugin off.
const CUT_OFF: Duration = Duration::from_secs(2);

const DEVICE: &str = "gpu-0000-1b-00-0";

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let mut report = Report::begin();
    runtime.block_on(measure(&mut report));
    report.end()
}

async fn measure(report: &mut Report) {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let api = ApiServer::start(accelpool_cluster_double::Options::default()).await;
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "bench", "uid": "node-uid" },
    }));
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let socket = root.path().join("nri.sock");
    let containers = Runtime::start(Options::new(socket), Records::default()).expect("it listens");
    let _driver = Driver::start(&daemon, &api, root.path());
    containers.wait_for("95-accelpool synchronized", 1).await;
    let held = prepare(&daemon, "held", "pod-bench").await;
    // What the daemon has not bound to the pod: there is something to do for it.
    let unbound = prepare(&daemon, "unbound", "pod-other").await;
    let pod = sandbox();
    let runs = report.runs(1000);

    let mut times = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        containers.run_pod(pod.clone()).await;
        times.push(began.elapsed());
    }
    let floor = Timing::of(times);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    report.note("a call for nothing, median", milliseconds(floor.median), "ms");
    report.note("a call for nothing, p99", milliseconds(floor.p99), "ms");
    let all = "NVIDIA_VISIBLE_DEVICES=all";
    let kinds = [
        ("a container without a grant", container("plain", "", ""), runs),
        ("one that asks for everything", container("asks", all, ""), runs),
        // For each of these the daemon is asked.
        ("one that holds a share", container("holds", all, &held), report.runs(100)),
    ];
    for (name, container, runs) in kinds {
        let made = create(&containers, &container, runs).await;
        report.time_line(&format!("{name}, median"), made.median, CREATE_BUDGET);
        // A busy machine's pauses are in it, as they are in the call for nothing.
        report.note(&format!("{name}, p99"), milliseconds(made.p99), "ms");
    }
    let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("process ids are small"));
    kill(pid, Signal::SIGSTOP).expect("it is our child");
    let made = create(&containers, &container("late", "", &unbound), report.runs(3)).await;
    kill(pid, Signal::SIGCONT).expect("it is our child");
    report.time_line("the daemon is stopped, worst", made.p99, CUT_OFF);
    assert!(
        !containers.log().iter().any(|line| line.contains("cut off")),
        "{:?}",
        containers.log()
    );
}

/// Prepares a share for a pod; its CDI id.
async fn prepare(daemon: &Daemon, claim: &str, pod: &str) -> String {
    let subject = Some(Subject::Workload(pod.to_owned()));
    let request = PrepareClaimRequest {
        bindings: vec![Binding { subject, ..Binding::default() }],
        ..share(claim, DEVICE, 1 << 30, 100)
    };
    let lease = daemon.client().prepare_claim(request).await.expect("there is room");
    lease.into_inner().lease.expect("it is told").allocations.remove(0).cdi_id
}

async fn create(containers: &Runtime, container: &Container, runs: usize) -> Timing {
    let mut times = Vec::with_capacity(runs);
    for run in 0..runs {
        let container = Container { id: format!("{}-{run}", container.name), ..container.clone() };
        let id = container.id.clone();
        let began = Instant::now();
        containers.create(container).await.expect("it is made");
        times.push(began.elapsed());
        containers.remove(&id).await;
    }
    Timing::of(times)
}

fn sandbox() -> PodSandbox {
    PodSandbox {
        id: "sandbox".to_owned(),
        name: "bench".to_owned(),
        uid: "pod-bench".to_owned(),
        namespace: "team".to_owned(),
        linux: Some(LinuxPodSandbox { cgroup_parent: "/kubepods/pod-bench".to_owned() }),
    }
}

fn container(name: &str, variable: &str, cdi_id: &str) -> Container {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Container {
        pod_sandbox_id: "sandbox".to_owned(),
        name: name.to_owned(),
        env: ["PATH=/bin".to_owned()].into_iter().chain(some(variable)).collect(),
        cdi_devices: some(cdi_id).into_iter().map(|name| CdiDevice { name }).collect(),
        linux: Some(LinuxContainer {
            cgroups_path: "/kubepods/pod-bench/main".to_owned(),
            ..LinuxContainer::default()
        }),
        ..Container::default()
    }
}

/// A real `accelpool-dra` that runs until it is dropped.
struct Driver(Child);

impl Driver {
    fn start(daemon: &Daemon, api: &ApiServer, root: &Path) -> Self {
        let config = root.join("dra.toml");
        let socket = daemon.socket().display().to_string();
        let (folder, nri) =
            (root.display().to_string(), root.join("nri.sock").display().to_string());
        let text = format!(
            "node_socket = {socket:?}\nkubelet_root = {folder:?}\n[nri]\nsocket = {nri:?}\n"
        );
        fs::write(&config, text).expect("the folder takes files");
        let mut command = Command::new(build("accelpool-dra-driver", "accelpool-dra"));
        command.args(["--node-name", "bench", "--pod-uid", "bench", "--api-server", api.url()]);
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let (name, value) = ONE_HEAP;
        command.env(name, value);
        Self(command.spawn().expect("accelpool-dra can be run"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself; the figures are taken by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
