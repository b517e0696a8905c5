//! The plugin of the container runtime, against a stand-in for one: what becomes of containers,
//! whoever is slow, away or hostile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use accelpool_dra_driver::{
    config::NriConfig,
    node::Observed,
    nri::{NriSnapshot, NriStatus},
};
use accelpool_proto::nri::{CdiDevice, Container, LinuxCpu, LinuxPodSandbox, LinuxResources};
use accelpool_runtime_double::{Generation, Options, Records, Runtime};
use tokio::io::AsyncWriteExt as _;

use crate::common::{
    Bench, GPU_0, GPU_1, POD_UID, Setup, eventually, result,
    runtime::{NOWHERE, Node, container, cpus, events, granted, near, sandbox, socket},
    uid_of,
};

const GENERATIONS: [Generation; 3] = [Generation::First, Generation::Paged, Generation::Dedicated];

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
    let bound = format!("bind {} to cgroup /kubepods/pod-p", node.bench.daemon.claims()[0]);
    assert_eq!(node.bench.daemon.count(&bound), 1, "before its first process");

    // Another pod writes the same variable into its own environment.
    node.kubelet.extended.begin_pod("team", "thief");
    let thief = sandbox("team", "thief");
    node.runtime.run_pod(thief.clone()).await;
    let made = node.runtime.create(container(&thief, &env)).await.unwrap();
    assert_eq!(cpus(&made), NOWHERE);
    assert_eq!((node.counters().alignments, node.counters().forgeries), (1, 1));
    assert_eq!(node.bench.daemon.count("bind"), 1);
}

/// The kubelet prepares a claim once, for the first of the pods that share it. The second is
/// bound when its container is made.
#[tokio::test]
async fn a_pod_that_shares_a_claim_later_is_bound() {
    let node = Node::start(Generation::Dedicated).await;
    let first = node.claimed("train", GPU_1).await;
    node.runtime.create(granted(&first, GPU_1, &[])).await.unwrap();
    assert_eq!(node.bench.daemon.count("bind"), 0, "it was bound when it was prepared");

    let mut second = sandbox("team", "second");
    second.linux =
        Some(LinuxPodSandbox { cgroup_parent: "kubepods-burstable-podsecond.slice".to_owned() });
    node.runtime.run_pod(second.clone()).await;
    let asked = Container { name: "b".to_owned(), ..granted(&first, GPU_1, &[]) };
    let asked = Container { id: "b".to_owned(), pod_sandbox_id: second.id.clone(), ..asked };
    node.runtime.create(asked.clone()).await.unwrap();
    let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podsecond.slice";
    let bound = format!("bind {} to cgroup {path}", uid_of("train"));
    assert_eq!(node.bench.daemon.count(&bound), 1, "{:?}", node.bench.daemon.calls());
    let mut observed = node.driver.observed.clone();
    let known = |observed: &Observed| {
        let lease = observed.snapshot.as_ref().and_then(|snapshot| snapshot.leases.first());
        lease.is_some_and(|lease| lease.bindings.len() == 2)
    };
    observed.wait_for(known).await.unwrap();
    node.runtime.create(Container { id: "c".to_owned(), ..asked }).await.unwrap();
    assert_eq!(node.counters().bindings, 1, "once for a pod");
}

/// Where the kernel limits device memory, the container of a share is made with its limit; one
/// that holds a whole device has none.
#[tokio::test]
async fn a_share_is_made_with_the_kernels_limit() {
    let node = Node::start(Generation::Dedicated).await;
    let limit = "drm/0000:03:00.0/vram0 21474836480";
    node.bench.daemon.set_unified("dmem.max", limit);
    let share = common::share("r", GPU_1, "aaaaaaaa-0000-4000-8000-000000000001");
    let pod = node.bench.claim("part", &[share]);
    node.kubelet.claims.prepare(&pod).await.unwrap();
    node.wait_known(1).await;
    let pod = sandbox("team", "part");
    node.runtime.run_pod(pod.clone()).await;
    let lease = node.bench.daemon.lease_of(&uid_of("part")).unwrap();
    let mut asked = container(&pod, &[]);
    asked.cdi_devices = vec![CdiDevice { name: lease.allocations[0].cdi_id.clone() }];
    let unified = |made: &Container| {
        let resources = made.linux.clone().and_then(|linux| linux.resources);
        resources.map(|resources| resources.unified).unwrap_or_default()
    };
    let made = node.runtime.create(asked).await.unwrap();
    assert_eq!(unified(&made), [("dmem.max".to_owned(), limit.to_owned())].into());
    let told = node.bench.daemon.lease_of(&uid_of("part")).unwrap();
    assert_eq!(told.bindings.len(), 1, "bound once, when it was prepared");

    // A limit that comes later, as with a driver that was loaded anew, reaches it too, once.
    node.runtime.start_container(&made.id).await;
    let later = "drm/0000:03:00.0/vram0 10737418240";
    node.bench.daemon.set_unified("dmem.max", later);
    node.bench.daemon.change(|node| node.revision += 1);
    node.runtime.wait_for("updated container-part", 1).await;
    let changed = node.runtime.container(&made.id).unwrap();
    assert_eq!(unified(&changed), [("dmem.max".to_owned(), later.to_owned())].into());

    let pod = node.claimed("train", GPU_0).await;
    let made = node.runtime.create(granted(&pod, GPU_0, &[])).await.unwrap();
    assert!(unified(&made).is_empty(), "{made:?}");
    assert_eq!(node.counters().late, 0);
    let updates = node.runtime.log().iter().filter(|line| line.contains("updated ")).count();
    assert_eq!(updates, 1, "{:#?}", node.runtime.log());
}

/// Bound by the last moment before the first process, if not by the first.
#[tokio::test]
async fn what_could_not_be_bound_is_bound_before_the_first_process() {
    let node = Node::start(Generation::Dedicated).await;
    let first = node.claimed("train", GPU_1).await;
    let second = sandbox("team", "second");
    node.runtime.run_pod(second.clone()).await;
    let asked = Container {
        id: "b".to_owned(),
        pod_sandbox_id: second.id.clone(),
        ..granted(&first, GPU_1, &[])
    };
    node.bench.daemon.hold();
    node.runtime.create(asked).await.unwrap();
    assert_eq!(node.bench.daemon.count("bind"), 0);
    node.bench.daemon.let_go();
    node.runtime.start_container("b").await;
    let bound = format!("bind {} to cgroup /kubepods/pod-second", uid_of("train"));
    assert!(node.bench.daemon.count(&bound) >= 1, "{:?}", node.bench.daemon.calls());
    assert!(!node.runtime.log().concat().contains("cut off"), "{:#?}", node.runtime.log());
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

/// The runtime's plugin binds a pod when its container is made, and the kubelet's call before
/// that asks nobody. Once the runtime is away, that call is the only one that can.
#[tokio::test]
async fn what_the_plugin_binds_is_not_bound_twice() {
    let Node { runtime, driver, kubelet, bench } = Node::start(Generation::Dedicated).await;
    let resource = "accelpool.dev/gpu";
    kubelet.extended.wait_for(resource, |devices| !devices.is_empty()).await;
    bench.api.put(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "team", "name": "p", "uid": "uid-p" },
        "spec": { "nodeName": common::NODE },
    }));
    kubelet.extended.allocate(("team", "p"), "main", resource, 1).await.unwrap();
    let mut status = driver.nri.status.clone();
    assert!(matches!(&*status.borrow_and_update(), NriStatus::Connected { .. }));
    kubelet.extended.pre_start(("team", "p"), "main", resource).await.unwrap();
    assert_eq!(bench.daemon.count("bind"), 0);
    drop(runtime);
    status.wait_for(|status| matches!(status, NriStatus::Absent { .. })).await.unwrap();
    kubelet.extended.pre_start(("team", "p"), "main", resource).await.unwrap();
    assert_eq!(bench.daemon.count("bind"), 1);
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
