//! Extended resources: what the device plugin offers, to whom, and how it gets it back
//! (`kubernetes.md` 3 and 10, rows 34 to 41).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::fs;

use accelpool_cluster_double::Verb;
use accelpool_kubelet_double::{Devices, Kubelet};
use accelpool_proto::node as wire;
use serde_json::json;
use tonic::Code;

use crate::common::{
    Bench, GPU_0, GPU_1, NODE, POD_UID, Setup, eventually, gpu, result, runtime::events, taint,
    uid_of,
};

const GPU: &str = "accelpool.dev/gpu";
const SHARE: &str = "accelpool.dev/gpu-share";
const SMALL: &str = "accelpool.dev/mig-1g.10gb.me";

fn exposed() -> Setup {
    Setup { exposure: "both", ..Setup::default() }
}

fn healthy(devices: &Devices) -> Vec<&str> {
    devices.iter().filter(|(_, device)| device.healthy).map(|(id, _)| id.as_str()).collect()
}

async fn wait_healthy(kubelet: &Kubelet, resource: &str, expected: &[&str]) {
    kubelet.extended.wait_for(resource, |devices| healthy(devices) == expected).await;
}

/// Rows 34, 35 and 41: it serves before it registers, under a valid name, with the NUMA node
/// where there is one.
#[tokio::test]
async fn whole_devices_are_offered() {
    let devices = vec![gpu(GPU_0, Some(1)), gpu(GPU_1, None)];
    let (_bench, kubelet, _driver) = Bench::running(Setup { devices, ..exposed() }).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let devices = kubelet.extended.devices(GPU);
    assert_eq!(devices[GPU_0].numa_nodes, [1]);
    assert_eq!(devices[GPU_1].numa_nodes, [0_i64; 0], "unknown is not node 0, nor -1");
    assert_eq!(kubelet.extended.allocatable(SHARE), 0, "no pool asks for shares");
}

#[tokio::test]
async fn what_is_exposed_to_dra_alone_is_not_offered() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    eventually("slices are published", || !bench.api.list("resourceslices").is_empty()).await;
    assert_eq!(kubelet.extended.allocatable(GPU), 0);
    assert_eq!(kubelet.log.count("device plugin:"), 0);
}

/// Row 36: the answer has the CDI id of each device, and the ledger knows of them.
#[tokio::test]
async fn a_container_is_given_devices_through_the_ledger() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", GPU, 2).await.unwrap();
    let mut expected =
        [GPU_0, GPU_1].map(|gpu| format!("accelpool.dev/claim=dp-{gpu}-device-{gpu}"));
    expected.sort();
    let mut ids = ids;
    ids.sort();
    assert_eq!(ids, expected);
    let lease = bench.daemon.lease_of(&format!("dp-{GPU_0}")).unwrap();
    assert_eq!(lease.labels["accelpool.dev/surface"], "device-plugin");
    assert_eq!(lease.labels["accelpool.dev/resource"], GPU);
    assert_eq!(lease.labels["accelpool.dev/device-id"], GPU_0);
    // What its own claims hold stays healthy: the pod is fine.
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
}

/// The daemon's planner says which devices go well together.
#[tokio::test]
async fn the_daemon_prefers() {
    let (_bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    assert_eq!(ids, [format!("accelpool.dev/claim=dp-{GPU_1}-device-{GPU_1}")]);
}

/// Who takes a device that also serves shares takes all of these with it. The daemon of this bench
/// prefers the last device, so that its word alone would choose the wrong one.
#[tokio::test]
async fn devices_that_serve_shares_as_well_are_taken_last() {
    const GPU_2: &str = "gpu-0000-52-00-0";
    let devices = vec![gpu(GPU_0, None), gpu(GPU_1, None), gpu(GPU_2, None)];
    let setup = Setup { exposure: "device-plugin", replicas: 2, devices, ..exposed() };
    let bench = Bench::new(setup).await;
    bench.daemon.change(|node| {
        let mut plain = node.pools[0].clone();
        plain.name = "plain".into();
        node.devices[0].pool.clone_from(&plain.name);
        plain.devices = vec![GPU_0.into()];
        node.pools[0].devices.remove(0);
        node.pools.push(plain);
    });
    let kubelet = bench.kubelet();
    let _driver = bench.driver(POD_UID).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1, GPU_2]).await;
    let share = |gpu: &str, index: u32| format!("{gpu}-share-{index}");
    let shares = [share(GPU_1, 0), share(GPU_1, 1), share(GPU_2, 0), share(GPU_2, 1)];
    let [a, b, c, d] = &shares;
    wait_healthy(&kubelet, SHARE, &[a, b, c, d].map(String::as_str)).await;

    let id = |gpu: &str| format!("accelpool.dev/claim=dp-{gpu}-device-{gpu}");
    let first = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    assert_eq!(first, [id(GPU_0)], "the one that serves nothing else");
    wait_healthy(&kubelet, SHARE, &[a, b, c, d].map(String::as_str)).await;
    // Two shares fill one device, so that the other stays whole.
    kubelet.extended.allocate(("team", "q"), "main", SHARE, 1).await.unwrap();
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_2]).await;
    kubelet.extended.allocate(("team", "r"), "main", SHARE, 1).await.unwrap();
    let last = kubelet.extended.allocate(("team", "s"), "main", GPU, 1).await.unwrap();
    assert_eq!(last, [id(GPU_2)]);
    wait_healthy(&kubelet, SHARE, &[a, b]).await;
}

/// DESIGN section 4: what one way of asking holds, the other does not offer.
#[tokio::test]
async fn what_a_claim_holds_is_withdrawn() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    wait_healthy(&kubelet, GPU, &[GPU_1]).await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
}

/// Row 31 from the other side: a race between the two is refused with a reason.
#[tokio::test]
async fn a_race_is_refused_and_never_granted_twice() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    bench.daemon.refuse(Code::FailedPrecondition, "AP0103", 1);
    let error = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap_err();
    assert!(error.contains("cannot be had"), "{error}");
    assert!(error.contains("(AP0103)") && error.contains("create the pod anew"), "{error}");
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// Row 40: a call of `Allocate` that hangs would stop the admission of every pod.
#[tokio::test]
async fn an_allocation_outlives_a_restart_of_the_daemon_but_does_not_hang() {
    let (mut bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    bench.daemon.kill();
    // While the daemon is away the last list stands.
    assert_eq!(kubelet.extended.allocatable(GPU), 2);
    let (allocated, ()) =
        tokio::join!(kubelet.extended.allocate(("team", "p"), "main", GPU, 2), async {
            kubelet.log.wait_for("Allocate accelpool.dev/gpu", 1).await;
            bench.daemon.resume();
        });
    allocated.unwrap();

    bench.daemon.hold();
    kubelet.extended.end_pod("team", "p");
    let error = kubelet.extended.allocate(("team", "q"), "main", GPU, 1).await.unwrap_err();
    assert!(error.contains("the daemon has not answered in time"), "{error}");
}

/// A container that asks for the same again, as one after an init container does.
#[tokio::test]
async fn allocating_again_answers_as_before() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let first = kubelet.extended.allocate(("team", "p"), "init", GPU, 1).await.unwrap();
    kubelet.extended.end_pod("team", "p");
    let second = kubelet.extended.allocate(("team", "q"), "main", GPU, 1).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(bench.daemon.claims().len(), 1);
}

/// Row 37: the kubelet starts anew, deletes every socket, and is found at once.
#[tokio::test]
async fn it_registers_again_with_a_new_kubelet() {
    let (mut bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    bench.options.records = kubelet.stop();
    for round in 2..4 {
        drop(bench.kubelet()); // one that does not even live to see us
        let kubelet = bench.kubelet();
        wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
        let folder = bench.root().join("device-plugins");
        let sockets = fs::read_dir(folder).unwrap().count();
        assert_eq!(sockets, 2, "the kubelet's and one for the resource, round {round}");
        let other = kubelet.extended.allocate(("team", "q"), "main", GPU, 1).await.unwrap();
        assert_ne!(other, ids, "what the first pod has is written down");
    }
}

/// users-ask 18: a driver that starts while the daemon is away reports as soon as it is back,
/// and pods keep what they have.
#[tokio::test]
async fn a_new_driver_reports_what_the_ledger_knows() {
    let (bench, kubelet, driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    driver.drain().await;
    // Row 39: without its plugin nothing of the resource can be had.
    wait_healthy(&kubelet, GPU, &[]).await;
    let _driver = bench.driver(POD_UID).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    kubelet.extended.end_pod("team", "p");
    let again = kubelet.extended.allocate(("team", "q"), "main", GPU, 1).await.unwrap();
    assert_eq!(again, ids);
}

/// A daemon that was just started lists only what its vendors have told it so far.
#[tokio::test]
async fn devices_that_are_not_heard_yet_are_not_gone() {
    let (mut bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let slices = || bench.api.list("resourceslices");
    eventually("slices are published", || !slices().is_empty()).await;
    let before = slices();

    bench.daemon.kill();
    let mut devices = Vec::new();
    bench.daemon.change(|node| {
        node.complete = false;
        devices = std::mem::take(&mut node.devices);
    });
    bench.daemon.resume();
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    let (prepared, ()) = tokio::join!(kubelet.claims.prepare(&pod), async {
        eventually("the daemon does not know the device", || bench.daemon.count("prepare") > 1)
            .await;
        assert_eq!(bench.api.list("resourceslices"), before);
        assert_eq!(kubelet.extended.allocatable(GPU), 2);
        bench.daemon.change(|node| {
            node.devices = devices;
            node.complete = true;
        });
    });
    prepared.unwrap();
    wait_healthy(&kubelet, GPU, &[GPU_1]).await;
}

/// An update: the old instance's end makes the kubelet think the resource is gone.
#[tokio::test]
async fn an_update_keeps_the_resource() {
    let (bench, kubelet, old) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    let registered = "device plugin: accelpool.dev/gpu registered";
    let _new = bench.driver("22222222-2222-4222-8222-222222222222").await;
    kubelet.log.wait_for(registered, 2).await;
    old.drain().await;
    kubelet.log.wait_for(registered, 3).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    kubelet.extended.allocate(("team", "p"), "main", GPU, 2).await.unwrap();
}

/// Row 38.
#[tokio::test]
async fn a_faulty_device_is_not_offered() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    bench.daemon.change(|node| {
        node.devices[0].taints = vec![taint("reset-required", "NoSchedule", "xid-95")];
        node.devices[1].taints = vec![taint("throttled", "None", "hot")];
    });
    wait_healthy(&kubelet, GPU, &[GPU_1]).await;
    bench.daemon.change(|node| node.devices[1].present = false);
    wait_healthy(&kubelet, GPU, &[]).await;
    let error = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap_err();
    assert!(error.contains("no healthy devices present"), "{error}");
    bench.daemon.change(|node| node.devices[0].taints.clear());
    wait_healthy(&kubelet, GPU, &[GPU_0]).await;
}

#[tokio::test]
async fn shares_are_replicas() {
    let setup = Setup { replicas: 4, devices: vec![gpu(GPU_0, Some(0))], ..exposed() };
    let (bench, kubelet, _driver) = Bench::running(setup).await;
    let id = |index| format!("{GPU_0}-share-{index}");
    let all: Vec<String> = (0..4).map(id).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    wait_healthy(&kubelet, SHARE, &all).await;
    kubelet.extended.allocate(("team", "p"), "main", SHARE, 1).await.unwrap();
    let lease = bench.daemon.lease_of(&format!("dp-{GPU_0}-share-0")).unwrap();
    let Some(wire::allocation::Portion::Share(share)) = &lease.allocations[0].portion else {
        panic!("{lease:?}")
    };
    assert_eq!((share.memory_bytes, share.compute_permille), (20 << 30, 250));
    // A device of which a share is held is not offered whole.
    wait_healthy(&kubelet, GPU, &[]).await;

    // A claim of the scheduler's takes half of the rest: as many replicas go.
    let mut half = common::share("s", GPU_0, "aaaaaaaa-0000-4000-8000-000000000001");
    half["consumedCapacity"] = json!({ "memory": "40Gi", "compute": "500" });
    let pod = bench.claim("a", &[half]);
    kubelet.claims.prepare(&pod).await.unwrap();
    wait_healthy(&kubelet, SHARE, &all[..2]).await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    wait_healthy(&kubelet, SHARE, &all).await;
}

#[tokio::test]
async fn partitions_are_offered_by_profile() {
    let mut device = gpu(GPU_0, Some(0));
    let profile = wire::Profile {
        name: "1g.10gb+me".into(),
        memory_bytes: 10 << 30,
        compute_permille: 142,
        size: 1,
        starts: vec![0, 1],
        instances_max: 1,
        ..wire::Profile::default()
    };
    device.partitioning = Some(wire::Partitioning {
        scheme: "mig".into(),
        slices: 8,
        uniform: false,
        profiles: vec![profile],
    });
    let bench = Bench::new(Setup { devices: vec![device], ..exposed() }).await;
    let name = |start: u32| format!("{GPU_0}-mig-1g-10gb-me-{start}");
    let partition = |start: u32, state: &str, claim: &str| wire::Partition {
        name: name(start),
        device: GPU_0.into(),
        profile: "1g.10gb+me".into(),
        start,
        size: 1,
        state: state.into(),
        claim: claim.into(),
        ..wire::Partition::default()
    };
    bench.daemon.change(|node| {
        node.partitions = vec![partition(0, "free", ""), partition(1, "free", "")];
    });
    let kubelet = bench.kubelet();
    let _driver = bench.driver(POD_UID).await;
    wait_healthy(&kubelet, SMALL, &[&name(0), &name(1)]).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", SMALL, 1).await.unwrap();
    let held = name(1); // what the stand-in prefers
    assert_eq!(ids, [format!("accelpool.dev/claim=dp-{held}-device-{held}")]);
    // The daemon says what its partition takes away from the others.
    bench.daemon.change(|node| {
        let claim = format!("dp-{}", name(1));
        node.partitions = vec![partition(0, "blocked", ""), partition(1, "exists", &claim)];
    });
    wait_healthy(&kubelet, SMALL, &[&name(1)]).await;
    wait_healthy(&kubelet, GPU, &[]).await;
    bench.daemon.change(|node| {
        node.partitions = vec![partition(0, "free", ""), partition(1, "exists", &uid_of("x"))];
    });
    wait_healthy(&kubelet, SMALL, &[&name(0)]).await;
}

/// The protocol has no call that gives a device back: the driver asks who has it.
#[tokio::test]
async fn what_no_pod_has_is_given_back() {
    let (bench, kubelet, _driver) = Bench::running(Setup {
        pace: accelpool_dra_driver::driver::Pace {
            reclaim_interval: std::time::Duration::from_millis(20),
            reclaim_grace: std::time::Duration::from_millis(200),
            ..accelpool_dra_driver::driver::Pace::default()
        },
        ..exposed()
    })
    .await;
    kubelet.extended.begin_pod("accelpool", "driver");
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    kubelet.extended.allocate(("team", "q"), "main", GPU, 1).await.unwrap();
    assert_eq!(bench.daemon.claims().len(), 2);
    kubelet.extended.end_pod("team", "p");
    eventually("the first pod's is given back", || bench.daemon.claims().len() == 1).await;
    // A kubelet that does not know its own pods yet is not believed.
    kubelet.extended.end_pod("accelpool", "driver");
    kubelet.extended.end_pod("team", "q");
    let asked = kubelet.extended.lists();
    eventually("it is asked many times", || kubelet.extended.lists() > asked + 20).await;
    assert_eq!(bench.daemon.claims(), [format!("dp-{GPU_0}")]);
    kubelet.extended.begin_pod("accelpool", "driver");
    eventually("the second one's is given back", || bench.daemon.claims().is_empty()).await;
    // What claims of the scheduler hold is the kubelet's to unprepare.
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    kubelet.extended.end_pod("team", "p");
    eventually("only the claim's stays", || bench.daemon.claims() == [uid_of("a")]).await;
}

fn api_pod(bench: &Bench, name: &str, uid: &str, annotations: &serde_json::Value) {
    bench.api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "team", "name": name, "uid": uid, "annotations": annotations },
        "spec": { "nodeName": NODE },
    }));
}

/// Without plugins of the container runtime: the kubelet says which pod, the API server which UID
/// its cgroup is named by, and the claim is bound before the container is made.
#[tokio::test]
async fn a_pod_is_bound_before_its_container_is_made() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    api_pod(&bench, "p", "uid-p", &json!({}));
    // A static pod's cgroup has the kubelet's name of it.
    api_pod(&bench, "static", "uid-mirror", &json!({ "kubernetes.io/config.mirror": "abcd" }));
    for (pod, uid) in [("p", "uid-p"), ("static", "abcd")] {
        let ids = kubelet.extended.allocate(("team", pod), "main", GPU, 1).await.unwrap();
        let claim = ids[0].split(['=']).nth(1).unwrap().split("-device-").next().unwrap();
        assert_eq!(bench.daemon.lease_of(claim).unwrap().bindings, []);
        kubelet.extended.pre_start(("team", pod), "main", GPU).await.unwrap();
        assert_eq!(bench.daemon.count(&format!("bind {claim} to workload {uid}")), 1);
        kubelet.extended.pre_start(("team", pod), "main", GPU).await.unwrap();
        assert_eq!(bench.daemon.lease_of(claim).unwrap().bindings.len(), 1, "made again");
    }
}

/// Where the gate refuses, a container that could open nothing is not made, and says why; where
/// it does not, it is.
#[tokio::test]
async fn a_pod_that_cannot_be_bound_is_held_back_only_where_the_gate_enforces() {
    let (bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    kubelet.extended.allocate(("team", "gone"), "main", GPU, 1).await.unwrap();
    kubelet.extended.pre_start(("team", "gone"), "main", GPU).await.unwrap();

    bench.daemon.change(|node| node.pools[0].gate = "enforce".into());
    let mut refused = String::new();
    // The driver hears of the mode in its own time.
    while refused.is_empty() {
        let started = kubelet.extended.pre_start(("team", "gone"), "main", GPU).await;
        refused = started.err().unwrap_or_default();
    }
    assert!(refused.contains("cannot be let use its devices"), "{refused}");
    assert!(refused.contains("failed to read pod team/gone"), "{refused}");
    assert_eq!(bench.daemon.count("bind"), 0);
}

/// A restart of the daemon between `Allocate` and the container's start is waited out.
#[tokio::test]
async fn binding_outlives_a_restart_of_the_daemon() {
    let (mut bench, kubelet, _driver) = Bench::running(exposed()).await;
    wait_healthy(&kubelet, GPU, &[GPU_0, GPU_1]).await;
    bench.daemon.change(|node| node.pools[0].gate = "enforce".into());
    api_pod(&bench, "p", "uid-p", &json!({}));
    kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    bench.daemon.kill();
    let (started, ()) =
        tokio::join!(kubelet.extended.pre_start(("team", "p"), "main", GPU), async {
            kubelet.log.wait_for("PreStartContainer", 1).await;
            bench.daemon.resume();
        });
    started.unwrap();
    assert_eq!(bench.daemon.count(&format!("bind dp-{GPU_1} to workload uid-p")), 1);
}

/// What the gate refused is told to the pod's owner: once, with the devices and what to do.
#[tokio::test]
async fn the_owner_of_a_pod_is_told_what_the_gate_refused() {
    let (bench, _kubelet, _driver) = Bench::running(Setup::default()).await;
    api_pod(&bench, "greedy", "uid-greedy", &json!({}));
    eventually("the driver follows denials", || bench.daemon.watchers_of_denials() > 0).await;
    let denial = |workload: &str, device: &str, pid: u32| wire::Denial {
        denied: true,
        pid,
        workload: workload.into(),
        device: device.into(),
        number: "c 195:0".into(),
        ..wire::Denial::default()
    };
    for pid in 0..10 {
        bench.daemon.deny(denial("uid-greedy", GPU_0, pid));
        bench.daemon.deny(denial("uid-nobody", GPU_0, pid));
        bench.daemon.deny(denial("", GPU_0, pid));
    }
    eventually("it is told", || !events(&bench, "DeviceRefused").is_empty()).await;
    let told = events(&bench, "DeviceRefused");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("team/greedy the device gate refused this pod to open "),
        "{told:?}"
    );
    assert!(
        told[0].contains(GPU_0) && told[0].contains("give the pod a ResourceClaim"),
        "{told:?}"
    );
    let event = &bench.api.list("events").pop().unwrap();
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["uid"], "uid-greedy");
    // Of ten thousand tries of a pod that nobody knows, the API server is asked seldom.
    let asked = bench.api.calls().into_iter();
    let asked = asked.filter(|call| call.resource == "pods" && call.verb == Verb::List).count();
    assert!(asked <= 3, "{asked} lists");
}
