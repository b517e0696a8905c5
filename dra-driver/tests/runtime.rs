//! The plugin of the container runtime, against a stand-in for one: what becomes of containers,
//! whoever is slow, away or hostile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use accelpool_dra_driver::{
    config::NriConfig,
    driver::Driver,
    node::Observed,
    nri::{NriSnapshot, NriStatus},
};
use accelpool_kubelet_double::Kubelet;
use accelpool_proto::nri::{
    CdiDevice, Container, LinuxContainer, LinuxCpu, LinuxPodSandbox, LinuxResources, PodSandbox,
};
use accelpool_runtime_double::{Generation, Options, Records, Runtime};
use tokio::io::AsyncWriteExt as _;

use crate::common::{Bench, GPU_0, GPU_1, POD_UID, Setup, eventually, result, uid_of};

const GENERATIONS: [Generation; 3] = [Generation::First, Generation::Paged, Generation::Dedicated];

/// A node whose runtime takes plugins.
struct Node {
    runtime: Runtime,
    driver: Driver,
    kubelet: Kubelet,
    bench: Bench,
}

impl Node {
    async fn start(generation: Generation) -> Self {
        let setup = Setup { exposure: "both", ..Setup::default() };
        Self::start_with(setup, |options| options.generation = generation).await
    }

    async fn start_with(setup: Setup, change: impl FnOnce(&mut Options)) -> Self {
        let mut bench = Bench::new(setup).await;
        bench.daemon.change(|node| node.pools[0].align_cpus = true);
        let socket = socket(&bench);
        let exempt_namespaces = ["monitoring".to_owned()].into();
        bench.nri = Some(NriConfig { socket: socket.clone(), exempt_namespaces });
        let mut options = Options::new(socket);
        change(&mut options);
        let runtime = Runtime::start(options, Records::default()).unwrap();
        let kubelet = bench.kubelet();
        let driver = bench.driver(POD_UID).await;
        kubelet.log.wait_for("accelpool.dev registered", 1).await;
        runtime.wait_for("95-accelpool synchronized", 1).await;
        Self { runtime, driver, kubelet, bench }
    }

    fn counters(&self) -> NriSnapshot {
        self.driver.nri.counters.snapshot()
    }

    /// Waits until the driver knows of so many leases.
    async fn wait_known(&self, leases: usize) {
        let mut observed = self.driver.observed.clone();
        let known = |observed: &Observed| {
            observed.snapshot.as_ref().is_some_and(|snapshot| snapshot.leases.len() == leases)
        };
        observed.wait_for(known).await.unwrap();
    }

    /// A claim of the whole `device`, prepared for a pod that the runtime has made.
    async fn claimed(&self, name: &str, device: &str) -> PodSandbox {
        let pod = self.bench.claim(name, &[result("r", device)]);
        let leases = self.bench.daemon.claims().len() + 1;
        self.kubelet.claims.prepare(&pod).await.unwrap();
        self.wait_known(leases).await;
        let pod = sandbox("team", name);
        self.runtime.run_pod(pod.clone()).await;
        pod
    }
}

fn socket(bench: &Bench) -> PathBuf {
    bench.folder.path().join("nri.sock")
}

fn sandbox(namespace: &str, name: &str) -> PodSandbox {
    PodSandbox {
        id: format!("sandbox-{name}"),
        name: name.to_owned(),
        uid: format!("pod-{name}"),
        namespace: namespace.to_owned(),
        linux: Some(LinuxPodSandbox { cgroup_parent: format!("/kubepods/pod-{name}") }),
    }
}

/// A container of `pod` with this environment.
fn container(pod: &PodSandbox, env: &[&str]) -> Container {
    Container {
        id: format!("container-{}", pod.name),
        pod_sandbox_id: pod.id.clone(),
        name: "main".to_owned(),
        env: env.iter().map(|&entry| entry.to_owned()).collect(),
        linux: Some(LinuxContainer {
            cgroups_path: format!("/kubepods/pod-{}/main", pod.name),
            ..LinuxContainer::default()
        }),
        ..Container::default()
    }
}

/// One that was given `device` for the claim with the pod's name: as the kubelet asks for it, and
/// with what CDI puts there.
fn granted(pod: &PodSandbox, device: &str, env: &[&str]) -> Container {
    let uid = uid_of(&pod.name);
    let cdi_name = format!("{uid}-r-{device}");
    let variable = cdi_name.to_ascii_uppercase().replace('-', "_");
    let mut container = container(pod, env);
    container.env.push(format!("ACCELPOOL_GRANT_{variable}=portion=whole"));
    container.cdi_devices = vec![CdiDevice { name: format!("accelpool.dev/claim={cdi_name}") }];
    container
}

fn cpus(container: &Container) -> (String, String) {
    let resources = container.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
    let LinuxCpu { cpus, mems } = resources.cpu.unwrap_or_default();
    (cpus, mems)
}

fn near(cpus: &str, mems: &str) -> (String, String) {
    (cpus.to_owned(), mems.to_owned())
}

const NOWHERE: (String, String) = (String::new(), String::new());

/// The events of this reason, as `namespace/pod note`.
fn events(bench: &Bench, reason: &str) -> Vec<String> {
    let events = bench.api.list("events").into_iter().filter(|event| event["reason"] == reason);
    let words = events.map(|event| {
        let text = |at: &str| event.pointer(at).and_then(|it| it.as_str()).unwrap().to_owned();
        format!("{}/{} {}", text("/regarding/namespace"), text("/regarding/name"), text("/note"))
    });
    words.collect()
}

/// An image that asks for everything gets nothing, and its pod is told.
#[tokio::test]
async fn what_was_not_granted_is_taken_away_and_told() {
    for generation in GENERATIONS {
        let node = Node::start(generation).await;
        let pod = sandbox("team", "miner");
        node.runtime.run_pod(pod.clone()).await;
        let asked = ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all", "AMD_VISIBLE_DEVICES=0"];
        let made = node.runtime.create(container(&pod, &asked)).await.unwrap();
        assert_eq!(made.env, ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void"], "{generation:?}");

        let told = || events(&node.bench, "DevicesNotGranted");
        eventually("the pod is told", || !told().is_empty()).await;
        let told = told().concat();
        assert!(told.starts_with("team/miner container main asks for accelerators by"), "{told}");
        assert!(
            told.contains("NVIDIA_VISIBLE_DEVICES=\"all\", AMD_VISIBLE_DEVICES=\"0\""),
            "{told}"
        );
        assert_eq!((node.counters().containers, node.counters().attempts), (1, 1));
        assert_eq!(cpus(&made), NOWHERE);
        let (_, page) = common::get(node.driver.http.unwrap(), "/metrics").await;
        assert!(page.contains("accelpool_nri_attempts_total{node=\"worker-1\"} 1"), "{page}");
    }
}

#[tokio::test]
async fn who_watches_over_devices_keeps_its_variables() {
    let node = Node::start(Generation::Dedicated).await;
    // Those of the configuration, and the driver's own.
    for namespace in ["monitoring", "accelpool"] {
        let pod = sandbox(namespace, namespace);
        node.runtime.run_pod(pod.clone()).await;
        let env = ["NVIDIA_VISIBLE_DEVICES=all"];
        let made = node.runtime.create(container(&pod, &env)).await.unwrap();
        assert_eq!(made.env, env);
    }
    assert_eq!(node.counters().attempts, 0);
}

/// A grant is what its claim says, not what its image says; and nobody is blamed.
#[tokio::test]
async fn who_has_a_grant_gets_that_and_the_cpus_beside_it() {
    for generation in GENERATIONS {
        let node = Node::start(generation).await;
        let pod = node.claimed("train", GPU_1).await;
        let asked = granted(&pod, GPU_1, &["NVIDIA_VISIBLE_DEVICES=all"]);
        let made = node.runtime.create(asked).await.unwrap();
        assert_eq!(made.env[1], "NVIDIA_VISIBLE_DEVICES=void", "{generation:?}");
        assert_eq!(cpus(&made), near("4-7", "1"), "{generation:?}");
        let NriSnapshot { attempts, attempts_granted, alignments, late, .. } = node.counters();
        assert_eq!((attempts, attempts_granted, alignments, late), (0, 1, 1, 0));
        assert_eq!(events(&node.bench, "DevicesNotGranted"), [""; 0]);
    }
}

#[tokio::test]
async fn cpus_that_somebody_chose_stay() {
    let node = Node::start(Generation::Dedicated).await;
    let pod = node.claimed("pinned", GPU_1).await;
    let mut asked = granted(&pod, GPU_1, &[]);
    let cpu = Some(LinuxCpu { cpus: "0".to_owned(), mems: String::new() });
    let resources = Some(LinuxResources { cpu, ..LinuxResources::default() });
    asked.linux.as_mut().unwrap().resources = resources;
    let made = node.runtime.create(asked).await.unwrap();
    assert_eq!(cpus(&made), near("0", ""));

    node.bench.daemon.change(|node| node.pools[0].align_cpus = false);
    let pod = node.claimed("anywhere", GPU_0).await;
    let changed = node.driver.nri.counters.snapshot();
    let made = node.runtime.create(granted(&pod, GPU_0, &[])).await.unwrap();
    assert_eq!(cpus(&made), NOWHERE);
    assert_eq!(changed.alignments, 0);
}

/// An extended resource has no pod in its lease: the kubelet tells whose it is, where the
/// runtime shows no CDI devices.
#[tokio::test]
async fn the_kubelet_tells_whose_an_extended_resource_is() {
    let node = Node::start(Generation::Paged).await;
    let gpu = "accelpool.dev/gpu";
    node.kubelet.extended.wait_for(gpu, |devices| devices.len() == 2).await;
    let ids = node.kubelet.extended.allocate(("team", "p"), "main", gpu, 1).await.unwrap();
    node.wait_known(1).await;
    let (_, cdi_name) = ids[0].split_once('=').unwrap();
    let variable = cdi_name.to_ascii_uppercase().replace('-', "_");
    let env = [&*format!("ACCELPOOL_GRANT_{variable}=x"), "NVIDIA_VISIBLE_DEVICES=all"];

    let pod = sandbox("team", "p");
    node.runtime.run_pod(pod.clone()).await;
    let made = node.runtime.create(container(&pod, &env)).await.unwrap();
    assert_eq!(cpus(&made), near("4-7", "1"), "the last device is the preferred one");

    // Another pod writes the same variable into its own environment.
    node.kubelet.extended.begin_pod("team", "thief");
    let thief = sandbox("team", "thief");
    node.runtime.run_pod(thief.clone()).await;
    let made = node.runtime.create(container(&thief, &env)).await.unwrap();
    assert_eq!(cpus(&made), NOWHERE);
    assert_eq!((node.counters().alignments, node.counters().forgeries), (1, 1));
}

/// A slow daemon delays the container, but the plugin is not cut off; what was left is done
/// once the daemon answers.
#[tokio::test]
async fn a_slow_daemon_does_not_get_the_plugin_cut_off() {
    let node = Node::start(Generation::Dedicated).await;
    let pod = node.claimed("train", GPU_1).await;
    node.bench.daemon.hold();
    let asked = granted(&pod, GPU_1, &["NVIDIA_VISIBLE_DEVICES=all"]);
    let id = asked.id.clone();
    let made = node.runtime.create(asked).await.unwrap();
    assert_eq!(made.env[1], "NVIDIA_VISIBLE_DEVICES=void", "what can be done is done");
    assert_eq!(cpus(&made), NOWHERE);
    assert_eq!(node.counters().late, 1);
    node.runtime.start_container(&id).await;
    node.bench.daemon.let_go();
    node.runtime.wait_for("updated container-train", 1).await;
    let after = node.runtime.container(&id).unwrap();
    assert_eq!(cpus(&after), near("4-7", ""), "memory stays where it is");
    assert!(!node.runtime.log().concat().contains("cut off"), "{:#?}", node.runtime.log());
}

/// The daemon is away: what it said last holds for variables, containers are made.
#[tokio::test]
async fn containers_are_made_while_the_daemon_is_away() {
    let mut node = Node::start(Generation::Dedicated).await;
    let pod = node.claimed("train", GPU_1).await;
    node.bench.daemon.kill();
    let made =
        node.runtime.create(granted(&pod, GPU_1, &["NVIDIA_VISIBLE_DEVICES=all"])).await.unwrap();
    assert_eq!(made.env[1], "NVIDIA_VISIBLE_DEVICES=void");
    node.runtime.start_container(&made.id).await;
    node.bench.daemon.resume();
    node.runtime.wait_for("updated container-train", 1).await;
    assert_eq!(cpus(&node.runtime.container(&made.id).unwrap()), near("4-7", ""));
}

/// Whose business a variable is, only the daemon knows; until it has said so, nothing is taken.
#[tokio::test]
async fn without_a_word_of_the_daemon_nothing_is_taken_away() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.daemon.kill();
    bench.nri = Some(NriConfig { socket: socket(&bench), exempt_namespaces: BTreeSet::new() });
    let runtime = Runtime::start(Options::new(socket(&bench)), Records::default()).unwrap();
    let driver = bench.driver(POD_UID).await;
    runtime.wait_for("95-accelpool synchronized", 1).await;
    let pod = sandbox("team", "early");
    let env = ["NVIDIA_VISIBLE_DEVICES=all"];
    let made = runtime.create(container(&pod, &env)).await.unwrap();
    assert_eq!(made.env, env);
    let counters = driver.nri.counters.snapshot();
    assert_eq!((counters.attempts, counters.attempts_undecided), (0, 1));
}

/// The kubelet asks for a device whose lease the driver has not heard of: it waits a moment, and
/// does the rest afterwards.
#[tokio::test]
async fn a_claim_that_is_prepared_later_is_not_forgotten() {
    let node = Node::start(Generation::Dedicated).await;
    let pod = sandbox("team", "train");
    node.runtime.run_pod(pod.clone()).await;
    let made = node.runtime.create(granted(&pod, GPU_1, &[])).await.unwrap();
    assert_eq!(cpus(&made), NOWHERE);
    assert_eq!(node.counters().late, 1);
    node.runtime.start_container(&made.id).await;
    let pod = node.bench.claim("train", &[result("r", GPU_1)]);
    node.kubelet.claims.prepare(&pod).await.unwrap();
    node.runtime.wait_for("updated container-train", 1).await;
    assert_eq!(cpus(&node.runtime.container(&made.id).unwrap()), near("4-7", ""));
}

/// Containers that were made while the plugin was away are put right when it comes.
#[tokio::test]
async fn a_restarted_plugin_finds_what_it_missed() {
    let node = Node::start(Generation::Dedicated).await;
    let pod = node.claimed("train", GPU_1).await;
    let Node { runtime, driver, kubelet, bench } = node;
    driver.drain().await;
    runtime.wait_for("a connection ended", 1).await;
    let made = runtime.create(granted(&pod, GPU_1, &[])).await.unwrap();
    assert_eq!(cpus(&made), NOWHERE, "nobody was there");
    runtime.start_container(&made.id).await;

    let _driver = bench.driver(POD_UID).await;
    runtime.wait_for("updated container-train", 1).await;
    assert_eq!(cpus(&runtime.container(&made.id).unwrap()), near("4-7", ""));
    drop(kubelet);
}

#[tokio::test]
async fn a_restarted_runtime_is_found_again() {
    let node = Node::start(Generation::Dedicated).await;
    let pod = node.claimed("train", GPU_1).await;
    node.runtime.create(granted(&pod, GPU_1, &[])).await.unwrap();
    let Node { runtime, driver, bench, .. } = node;
    let records = runtime.records();
    drop(runtime);
    let mut status = driver.nri.status.clone();
    status.wait_for(|status| matches!(status, NriStatus::Absent { .. })).await.unwrap();
    let runtime = Runtime::start(Options::new(socket(&bench)), records).unwrap();
    runtime.wait_for("95-accelpool synchronized", 1).await;
    let connected = NriStatus::Connected { runtime: "double v0.0.0".to_owned() };
    status.wait_for(|status| *status == connected).await.unwrap();
    let pod = sandbox("team", "next");
    let made = runtime.create(container(&pod, &["NVIDIA_VISIBLE_DEVICES=all"])).await.unwrap();
    assert_eq!(made.env, ["NVIDIA_VISIBLE_DEVICES=void"]);
    assert_eq!(driver.nri.counters.snapshot().registrations, 2);
}

/// Two instances live side by side during an update: what the first has changed, the second
/// leaves.
#[tokio::test]
async fn two_instances_are_not_in_conflict() {
    let node = Node::start(Generation::Dedicated).await;
    let _second = node.bench.driver("22222222-2222-4222-8222-222222222222").await;
    node.runtime.wait_for("95-accelpool synchronized", 2).await;
    let pod = node.claimed("train", GPU_1).await;
    let made =
        node.runtime.create(granted(&pod, GPU_1, &["NVIDIA_VISIBLE_DEVICES=all"])).await.unwrap();
    assert_eq!(cpus(&made), near("4-7", "1"));
    assert!(made.env.contains(&"NVIDIA_VISIBLE_DEVICES=void".to_owned()));
}

/// More than fits into one message, in pages and, from the oldest runtimes, all at once.
#[tokio::test]
async fn a_node_full_of_containers_is_taken_in() {
    for (generation, page_len) in [(Generation::Dedicated, 100), (Generation::First, 0)] {
        let mut bench = Bench::new(Setup::default()).await;
        bench.nri = Some(NriConfig { socket: socket(&bench), exempt_namespaces: BTreeSet::new() });
        let options = Options { generation, ..Options::new(socket(&bench)) };
        let first = Runtime::start(options.clone(), Records::default()).unwrap();
        for index in 0..1500 {
            let pod = sandbox("team", &format!("p{index}"));
            first.run_pod(pod.clone()).await;
            let env = format!("X={}", "x".repeat(1500));
            first.create(granted(&pod, GPU_0, &[&env])).await.unwrap();
        }
        let records = first.records();
        drop(first);
        let runtime = Runtime::start(Options { page_len, ..options }, records).unwrap();
        let driver = bench.driver(POD_UID).await;
        runtime.wait_for("95-accelpool synchronized", 1).await;
        assert_eq!(driver.nri.counters.snapshot().overflows, 0);
    }
}

/// Whatever answers on the socket, the driver lives, and finds the runtime when it is there.
#[tokio::test]
async fn a_hostile_socket_is_survived() {
    let mut bench = Bench::new(Setup::default()).await;
    let socket = socket(&bench);
    bench.nri = Some(NriConfig { socket: socket.clone(), exempt_namespaces: BTreeSet::new() });
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let driver = bench.driver(POD_UID).await;
    let frame = |connection: u32, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        [&connection.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
    };
    let garbage = [
        Vec::new(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        frame(1, &[0xff; 10]),
        frame(2, &[0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0xff, 0xff]),
        frame(1, &[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]).repeat(500),
    ];
    for bytes in &garbage {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    drop(listener);
    let runtime = Runtime::start(Options::new(socket), Records::default()).unwrap();
    runtime.wait_for("95-accelpool synchronized", 1).await;
    assert_eq!(driver.nri.counters.snapshot().registrations, 1);
}

/// A runtime without plugins keeps nothing else from working, and is reported.
#[tokio::test]
async fn no_runtime_is_reported_and_nothing_else() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.nri = Some(NriConfig { socket: socket(&bench), exempt_namespaces: BTreeSet::new() });
    let kubelet = bench.kubelet();
    let driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    let pod = bench.claim("train", &[result("r", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let mut status = driver.nri.status.clone();
    let absent = |status: &NriStatus| matches!(status, NriStatus::Absent { why } if why.contains("No such file"));
    status.wait_for(absent).await.unwrap();
    let (_, page) = common::get(driver.http.unwrap(), "/status").await;
    assert!(page.contains(r#""state": "absent""#), "{page}");
    assert!(page.contains(r#""check": "container-runtime""#), "{page}");
    assert!(page.contains(r#""ready": true"#), "{page}");
    let (_, page) = common::get(driver.http.unwrap(), "/metrics").await;
    assert!(page.contains("accelpool_nri_connected{node=\"worker-1\"} 0"), "{page}");
}

#[tokio::test]
async fn a_plugin_that_is_off_connects_to_nothing() {
    let bench = Bench::new(Setup::default()).await;
    let driver = bench.driver(POD_UID).await;
    let (_, page) = common::get(driver.http.unwrap(), "/status").await;
    assert!(page.contains(r#""state": "off""#) && page.contains(r#""findings": []"#), "{page}");
}

/// The double itself cuts off who is late: else the tests above would prove nothing.
#[tokio::test]
async fn the_runtime_cuts_off_who_is_late() {
    let change = |options: &mut Options| options.request_timeout = Duration::from_millis(1);
    let bench = Bench::new(Setup::default()).await;
    let mut options = Options::new(socket(&bench));
    change(&mut options);
    let runtime = Runtime::start(options, Records::default()).unwrap();
    let stream = tokio::net::UnixStream::connect(socket(&bench)).await.unwrap();
    let (caller, driven) = accelpool_nri::connect(stream, accelpool_nri::Role::Plugin, Silent);
    tokio::spawn(driven);
    let request = accelpool_proto::nri::RegisterPluginRequest {
        plugin_name: "silent".to_owned(),
        plugin_idx: "00".to_owned(),
        nri_version: String::new(),
    };
    let method = (accelpool_nri::RUNTIME_SERVICE, "RegisterPlugin");
    let minute = Duration::from_mins(1);
    caller.call::<accelpool_proto::nri::Empty>(method, &request, minute).await.unwrap();
    runtime.wait_for("cut off 00-silent after Configure", 1).await;
}

struct Silent;

impl accelpool_nri::Service for Silent {
    async fn call(&self, _: accelpool_nri::Request) -> Result<Vec<u8>, accelpool_nri::Status> {
        std::future::pending().await
    }
}
