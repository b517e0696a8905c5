//! Claims between the kubelet and the daemon: what every answer must have, and what must
//! never happen (`kubernetes.md` 2.1 and 10).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::time::Duration;

use accelpool_cluster::DRIVER_NAME;
use accelpool_cluster_double::{Fault, Verb};
use accelpool_dra_driver::driver::{Driver, Pace};
use accelpool_kubelet_double::{DraVersion, Kubelet};
use accelpool_proto::node::{Enforcements, allocation::Portion};
use serde_json::json;
use tonic::Code;

use crate::common::{Bench, GPU_0, GPU_1, Setup, eventually, pod, result, share, uid_of};

const SHARE_1: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const SHARE_2: &str = "aaaaaaaa-0000-4000-8000-000000000002";

#[tokio::test]
async fn a_pod_is_given_its_device_and_gives_it_back() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();

    let devices = kubelet.claims.devices("team", "a");
    let [device] = devices.as_slice() else { panic!("{devices:?}") };
    assert_eq!((device.pool.as_str(), device.device.as_str()), (common::POOL, GPU_0));
    assert_eq!(device.requests, ["gpu"]);
    assert_eq!(device.cdi_ids, [format!("accelpool.dev/claim={}-gpu-{GPU_0}", uid_of("a"))]);
    let lease = bench.daemon.lease_of(&uid_of("a")).unwrap();
    assert!(matches!(lease.allocations[0].portion, Some(Portion::Whole(_))));
    assert_eq!(lease.labels["accelpool.dev/surface"], "dra");
    assert_eq!(lease.labels["accelpool.dev/namespace"], "team");
    assert_eq!(lease.labels["accelpool.dev/name"], "a");
    assert_eq!(lease.labels["accelpool.dev/pod"], "a");

    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// Rows 2 and 1: v1 stands first, so share ids arrive.
#[tokio::test]
async fn shares_are_told_apart() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    assert_eq!(kubelet.plugins.of(DRIVER_NAME).unwrap().version, DraVersion::V1);
    let pod = bench.claim("a", &[share("s", GPU_0, SHARE_1), share("s", GPU_0, SHARE_2)]);
    kubelet.claims.prepare(&pod).await.unwrap();

    let devices = kubelet.claims.devices("team", "a");
    let ids: Vec<_> = devices.iter().map(|device| device.share_id.as_deref()).collect();
    assert_eq!(ids, [Some(SHARE_1), Some(SHARE_2)]);
    assert_ne!(devices[0].cdi_ids, devices[1].cdi_ids, "each share is injected as itself");
    let lease = bench.daemon.lease_of(&uid_of("a")).unwrap();
    let Some(Portion::Share(held)) = &lease.allocations[0].portion else { panic!("{lease:?}") };
    assert_eq!((held.memory_bytes, held.compute_permille), (20 << 30, 250));
    assert_eq!((held.weight, held.class.as_str()), (100, "normal"));
}

#[tokio::test]
async fn a_share_of_everything_is_the_whole_device() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let mut all = share("s", GPU_0, SHARE_1);
    all["consumedCapacity"] = json!({ "memory": "80Gi", "compute": "1k" });
    kubelet.claims.prepare(&bench.claim("a", &[all])).await.unwrap();
    let lease = bench.daemon.lease_of(&uid_of("a")).unwrap();
    assert!(matches!(lease.allocations[0].portion, Some(Portion::Whole(_))), "{lease:?}");
    assert_eq!(kubelet.claims.devices("team", "a")[0].share_id.as_deref(), Some(SHARE_1));
}

#[tokio::test]
async fn configuration_reaches_the_daemon() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let config = |source: &str, parameters| {
        let opaque = json!({ "driver": DRIVER_NAME, "parameters": parameters });
        json!({ "source": source, "requests": [], "opaque": opaque })
    };
    let header = |mut parameters: serde_json::Value| {
        parameters["apiVersion"] = json!("accelpool.dev/v1alpha1");
        parameters["kind"] = json!("ShareConfig");
        parameters
    };
    let config = json!([
        config("FromClass", header(json!({ "weight": 7, "class": "idle" }))),
        config("FromClaim", header(json!({ "weight": 300 }))),
    ]);
    let pod = bench.claim_with("a", &[share("s", GPU_0, SHARE_1)], &config);
    kubelet.claims.prepare(&pod).await.unwrap();
    let lease = bench.daemon.lease_of(&uid_of("a")).unwrap();
    let Some(Portion::Share(held)) = &lease.allocations[0].portion else { panic!("{lease:?}") };
    assert_eq!((held.weight, held.class.as_str()), (300, "idle"));

    let wrong = json!([{ "source": "FromClaim", "requests": [], "opaque": {
        "driver": DRIVER_NAME, "parameters": header(json!({ "weight": 0 })),
    } }]);
    let pod = bench.claim_with("b", &[share("s", GPU_0, SHARE_2)], &wrong);
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    assert!(error.contains("`weight` is 0: use a whole number from 1 to 1000"), "{error}");
    assert!(error.contains("correct the configuration"), "{error}");
    assert_eq!(bench.daemon.count(&format!("prepare {}", uid_of("b"))), 0);
}

/// Row 11.
#[tokio::test]
async fn a_subrequest_is_answered_by_its_base() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu/big", GPU_0), result("other", GPU_1)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let ids = kubelet.claims.cdi_ids("team", "a", "gpu");
    assert_eq!(ids, [format!("accelpool.dev/claim={}-gpu-{GPU_0}", uid_of("a"))]);
    assert_eq!(kubelet.claims.cdi_ids("team", "a", "").len(), 2);
}

/// Row 12: vendor, class and device as the runtime wants them.
#[tokio::test]
async fn cdi_ids_are_well_formed_and_a_devices_own() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let results =
        [share("s", GPU_0, SHARE_1), share("s", GPU_0, SHARE_2), share("t", GPU_0, SHARE_1)];
    kubelet.claims.prepare(&bench.claim("a", &results)).await.unwrap();
    let devices = kubelet.claims.devices("team", "a");
    let first: std::collections::BTreeSet<_> =
        devices.iter().map(|device| device.cdi_ids[0].clone()).collect();
    assert_eq!(first.len(), 3, "health is shown under the first id, so no two may share it");
    for id in first {
        let (kind, device) = id.split_once('=').unwrap();
        assert_eq!(kind, "accelpool.dev/claim");
        assert!(device.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:".contains(c)), "{id}");
    }
}

#[tokio::test]
async fn only_this_drivers_results_count() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let other = json!({ "request": "nic", "driver": "nic.example", "pool": "p", "device": "eth0" });
    let pod = bench.claim("a", &[other.clone(), result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    assert_eq!(kubelet.claims.devices("team", "a").len(), 1);

    let pod = bench.claim("b", &[other]);
    kubelet.claims.prepare(&pod).await.unwrap();
    assert_eq!(kubelet.claims.devices("team", "b"), []);
    assert_eq!(bench.daemon.claims(), [uid_of("a")]);
}

/// Rows 6 and 7: every claim of the call is answered, whatever becomes of the others.
#[tokio::test]
async fn each_claim_fails_for_itself() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    bench.claim("good", &[result("gpu", GPU_0)]);
    bench.claim("bad", &[result("gpu", "gpu-9999-00-00-0")]);
    let both = pod("both", &[("good", &uid_of("good")), ("bad", &uid_of("bad"))]);
    let error = kubelet.claims.prepare(&both).await.unwrap_err();
    assert!(error.contains("failed for claim bad"), "{error}");
    assert!(error.contains("device gpu-9999-00-00-0 is not on this node (AP0101)"), "{error}");
    assert!(error.contains("delete the pod"), "{error}");
    assert_eq!(kubelet.claims.devices("team", "good").len(), 1);
    assert_eq!(bench.daemon.claims(), [uid_of("good")]);
    // What failed is unprepared with the rest, and that is a success.
    kubelet.claims.unprepare(&both).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// Row 10: after a restart of the kubelet the same claim is prepared again.
#[tokio::test]
async fn preparing_again_answers_as_before() {
    let (mut bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    bench.options.records = kubelet.stop();

    let kubelet = bench.kubelet();
    kubelet.log.wait_for("accelpool.dev registered", 2).await;
    kubelet.claims.prepare(&pod).await.unwrap();
    let devices = kubelet.claims.devices("team", "a");
    assert_eq!(devices.len(), 2, "the kubelet appends");
    assert_eq!(devices[0], devices[1]);
    assert_eq!(bench.daemon.claims(), [uid_of("a")]);
}

/// A driver of another version may have asked for the same in other words.
#[tokio::test]
async fn a_lease_of_an_older_driver_stays_good() {
    let (mut bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    bench.options.records = kubelet.stop();
    let kubelet = bench.kubelet();
    kubelet.log.wait_for("accelpool.dev registered", 2).await;
    bench.daemon.refuse(Code::AlreadyExists, "AP0108", 1);
    kubelet.claims.prepare(&pod).await.unwrap();
    let devices = kubelet.claims.devices("team", "a");
    assert_eq!(devices[0], devices[1]);

    // Without a lease to fall back on it is what it says.
    let other = bench.claim("b", &[result("gpu", GPU_1)]);
    bench.daemon.refuse(Code::AlreadyExists, "AP0108", 1);
    let error = kubelet.claims.prepare(&other).await.unwrap_err();
    assert!(error.contains("(AP0108)"), "{error}");
}

#[tokio::test]
async fn admin_access_holds_nothing() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    kubelet.claims.prepare(&bench.claim("a", &[result("gpu", GPU_0)])).await.unwrap();
    let mut look = result("look", GPU_0);
    look["adminAccess"] = json!(true);
    kubelet.claims.prepare(&bench.claim("b", &[look])).await.unwrap();
    let lease = bench.daemon.lease_of(&uid_of("b")).unwrap();
    assert!(matches!(lease.allocations[0].portion, Some(Portion::Admin(_))), "{lease:?}");
}

/// The entry beside each device that no holder is in the way of, and no other claim may have.
#[tokio::test]
async fn who_looks_is_answered_and_shown_under_the_entrys_name() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let entry = format!("{GPU_0}-admin");
    kubelet.claims.prepare(&bench.claim("a", &[result("gpu", GPU_0)])).await.unwrap();
    let mut look = result("look", &entry);
    let error = kubelet.claims.prepare(&bench.claim("b", &[look.clone()])).await.unwrap_err();
    assert!(error.contains("is for claims with `adminAccess` alone"), "{error}");
    assert!(error.contains("select devices by their `form`"), "{error}");

    look["adminAccess"] = json!(true);
    let monitor = bench.claim("c", &[look]);
    kubelet.claims.prepare(&monitor).await.unwrap();
    let devices = kubelet.claims.devices("team", "c");
    assert_eq!((devices.len(), &devices[0].device), (1, &entry));
    kubelet.plugins.health.wait_for((DRIVER_NAME, common::POOL, &entry), "Healthy").await;
    let written = || {
        let claim = bench.api.get("resourceclaims", "team", "c").unwrap();
        claim["status"]["devices"][0]["device"] == json!(entry)
    };
    eventually("the claim's status names the entry", written).await;
    kubelet.claims.unprepare(&monitor).await.unwrap();
    assert_eq!(bench.daemon.claims(), [uid_of("a")]);
}

/// Row 31: the scheduler has given a device anew before its last pod was unprepared.
#[tokio::test]
async fn a_neighbour_that_still_releases_is_waited_for() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    bench.daemon.lease("neighbour", GPU_0);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    let (prepared, ()) = tokio::join!(kubelet.claims.prepare(&pod), async {
        eventually("the neighbour is in the way", || bench.daemon.count("prepare") > 1).await;
        bench.daemon.release("neighbour");
    });
    prepared.unwrap();
    assert_eq!(bench.daemon.claims(), [uid_of("a")]);
}

/// Row 8: the answer comes before the kubelet gives up, and says what to do.
#[tokio::test]
async fn trouble_that_stays_is_told_in_time() {
    let setup = Setup {
        pace: Pace { claim_budget: Duration::from_millis(300), ..Pace::default() },
        ..Setup::default()
    };
    let (bench, kubelet, _driver) = Bench::running(setup).await;
    bench.daemon.lease("neighbour", GPU_0);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    assert!(error.contains("is held by claim neighbour (AP0103)"), "{error}");
    assert!(error.contains("the kubelet tries again within 90 s"), "{error}");
    assert!(bench.daemon.count("prepare") > 1);
    // The kubelet's next try finds the device free.
    bench.daemon.release("neighbour");
    kubelet.claims.prepare(&pod).await.unwrap();
}

#[tokio::test]
async fn a_demand_that_cannot_be_met_is_final() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    bench.daemon.refuse(Code::FailedPrecondition, "AP0107", 1);
    let error =
        kubelet.claims.prepare(&bench.claim("a", &[result("gpu", GPU_0)])).await.unwrap_err();
    assert!(error.contains("(AP0107)"), "{error}");
    assert_eq!(bench.daemon.count("prepare"), 1);
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.api.fail(Some(Verb::Get), Fault::Refuse(503), 3);
    kubelet.claims.prepare(&pod).await.unwrap();

    let forbidden = bench.claim("b", &[result("gpu", GPU_1)]);
    bench.api.fail(Some(Verb::Get), Fault::Refuse(403), 1);
    let error = kubelet.claims.prepare(&forbidden).await.unwrap_err();
    assert!(error.contains("403") && error.contains("permissions"), "{error}");
    kubelet.claims.prepare(&forbidden).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_starts_again_is_waited_for() {
    let (mut bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.daemon.kill();
    let (prepared, ()) = tokio::join!(kubelet.claims.prepare(&pod), async {
        kubelet.log.wait_for("NodePrepareResources", 1).await;
        bench.daemon.resume();
    });
    prepared.unwrap();

    bench.daemon.kill();
    let (released, ()) = tokio::join!(kubelet.claims.unprepare(&pod), async {
        kubelet.log.wait_for("NodeUnprepareResources", 1).await;
        bench.daemon.resume();
    });
    released.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// users-ask 23: a prepare that was given up must not succeed after its unprepare.
#[tokio::test]
async fn a_late_result_is_undone() {
    let (bench, kubelet, _driver) = impatient_calls().await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.daemon.hold();
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    assert!(error.contains("DeadlineExceeded"), "{error}");
    assert_eq!(bench.daemon.waiting(), 1, "the daemon still works for the first call");
    // The unprepare runs into its deadline as well, since it keeps behind the prepare.
    kubelet.claims.unprepare(&pod).await.unwrap_err();
    assert_eq!(bench.daemon.count("release"), 0);
    bench.daemon.let_go();
    eventually("the late prepare is done", || bench.daemon.waiting() == 0).await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

#[tokio::test]
async fn a_prepare_that_was_given_up_is_not_tried_again() {
    let (bench, kubelet, _driver) = impatient_calls().await;
    bench.daemon.lease("neighbour", GPU_0);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap_err();
    kubelet.claims.unprepare(&pod).await.unwrap();
    bench.daemon.release("neighbour");
    // Whatever still waited for the neighbour would have woken before this is done.
    let other = bench.claim("b", &[result("gpu", GPU_1)]);
    kubelet.claims.prepare(&other).await.unwrap();
    kubelet.claims.unprepare(&other).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// A kubelet that gives up after a fraction of its time.
async fn impatient_calls() -> (Bench, Kubelet, Driver) {
    let mut bench = Bench::new(Setup::default()).await;
    bench.options.times.call = Duration::from_millis(500);
    let kubelet = bench.kubelet();
    let driver = bench.driver(common::POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    (bench, kubelet, driver)
}

/// The e2e list: a call that was given up is made again and finds the work done.
#[tokio::test]
async fn a_second_try_waits_for_the_first() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.daemon.hold();
    let (first, second, ()) =
        tokio::join!(kubelet.claims.prepare(&pod), kubelet.claims.prepare(&pod), async {
            eventually("the daemon is asked", || bench.daemon.waiting() == 1).await;
            bench.daemon.let_go();
        });
    first.unwrap();
    second.unwrap();
    assert_eq!(bench.daemon.waiting_max(), 1, "calls for one claim come one after another");
    let devices = kubelet.claims.devices("team", "a");
    assert_eq!(devices[0], devices[1]);
}

#[tokio::test]
async fn enforcement_that_is_demanded_is_asked_for() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let parameters = json!({
        "apiVersion": "accelpool.dev/v1alpha1", "kind": "ShareConfig",
        "memoryEnforcement": "kernel",
    });
    let config = json!([{ "source": "FromClaim", "requests": ["s"],
        "opaque": { "driver": DRIVER_NAME, "parameters": parameters } }]);
    let pod = bench.claim_with("a", &[share("s", GPU_0, SHARE_1)], &config);
    kubelet.claims.prepare(&pod).await.unwrap();
    let asked = bench.daemon.asked(&uid_of("a")).requests[0].demand.clone();
    let expected =
        Enforcements { memory: "kernel".into(), compute: "none".into(), ..Enforcements::default() };
    assert_eq!(asked, Some(expected));
}

/// One pod each, all at once: nothing is lost, and the daemon sees them together.
#[tokio::test]
async fn a_hundred_and_ten_pods_at_once() {
    let devices: Vec<_> =
        (0..110).map(|index| common::gpu(&format!("gpu-{index:04}"), None)).collect();
    let (bench, kubelet, _driver) = Bench::running(Setup { devices, ..Setup::default() }).await;
    let pods: Vec<_> = (0..110)
        .map(|index| {
            bench.claim(&format!("p{index}"), &[result("gpu", &format!("gpu-{index:04}"))])
        })
        .collect();
    bench.daemon.hold();
    let claims = &kubelet.claims;
    let mut tasks = tokio::task::JoinSet::new();
    for pod in pods.clone() {
        let claims = std::sync::Arc::clone(claims);
        tasks.spawn(async move { claims.prepare(&pod).await });
    }
    eventually("all of them wait for the daemon at once", || bench.daemon.waiting() == 110).await;
    bench.daemon.let_go();
    while let Some(prepared) = tasks.join_next().await {
        prepared.unwrap().unwrap();
    }
    assert_eq!(bench.daemon.claims().len(), 110);
    for pod in pods {
        let claims = std::sync::Arc::clone(claims);
        tasks.spawn(async move { claims.unprepare(&pod).await });
    }
    while let Some(released) = tasks.join_next().await {
        released.unwrap().unwrap();
    }
    assert_eq!(bench.daemon.claims(), [""; 0]);
    assert_eq!(kubelet.plugins.of(DRIVER_NAME).unwrap().connections(), 1, "one connection for all");
}
