//! Claims that are not what the kubelet takes them for: gone, replaced, of another node, written by
//! somebody hostile, or dated by a clock that is wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use accelpool_cluster::DRIVER_NAME;
use serde_json::json;
use tonic::Code;

use crate::common::{Bench, GPU_0, Setup, claim_object, eventually, pod, result, share, uid_of};

const SHARE_1: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const SHARE_2: &str = "aaaaaaaa-0000-4000-8000-000000000002";

/// Row 9.
#[tokio::test]
async fn an_unknown_claim_is_released_with_success() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    bench.daemon.refuse(Code::InvalidArgument, "AP0100", 1);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap_err();
    bench.api.remove("resourceclaims", "team", "a");
    kubelet.claims.unprepare(&pod).await.unwrap();

    // A UID that could never be one was never prepared.
    let strange = common::pod("b", &[("b", "../../etc")]);
    let error = kubelet.claims.prepare(&strange).await.unwrap_err();
    assert!(error.contains("claim UID is not valid"), "{error}");
    kubelet.claims.unprepare(&strange).await.unwrap();
}

/// Row 32, and a claim replaced behind the kubelet's back.
#[tokio::test]
async fn a_replaced_claim_is_not_prepared() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let old = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.api.put(claim_object("a", "new-uid", &[result("gpu", GPU_0)], &json!([])));
    let error = kubelet.claims.prepare(&old).await.unwrap_err();
    assert!(error.contains("was replaced"), "{error}");
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

#[tokio::test]
async fn a_claim_that_is_gone_is_not_prepared() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    bench.api.remove("resourceclaims", "team", "a");
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    assert!(error.contains("claim team/a does not exist"), "{error}");
    assert_eq!(bench.daemon.calls(), [""; 0], "the daemon is not asked");
    kubelet.claims.unprepare(&pod).await.unwrap();
}

/// Row 32: the kubelet keeps the new claim waiting until the old one is unprepared, whose object in
/// the API server is another one by then.
#[tokio::test]
async fn a_claim_of_the_same_name_comes_after_the_first() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let old = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&old).await.unwrap();
    let new_uid = uid_of("new");
    bench.api.put(claim_object("a", &new_uid, &[result("gpu", GPU_0)], &json!([])));
    let new = pod("next", &[("a", &new_uid)]);
    let error = kubelet.claims.prepare(&new).await.unwrap_err();
    assert!(error.contains("still exists"), "{error}");
    kubelet.claims.unprepare(&old).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0], "the one that the kubelet named, not the new one");
    kubelet.claims.prepare(&new).await.unwrap();
    assert_eq!(bench.daemon.claims(), [new_uid]);
}

/// Whatever a tenant writes into its claim, only that claim fails, and in few words.
#[tokio::test]
async fn hostile_parameters_fail_their_own_claim_alone() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let kind = |mut parameters: serde_json::Value| {
        parameters["apiVersion"] = json!("accelpool.dev/v1alpha1");
        parameters["kind"] = json!("ShareConfig");
        parameters
    };
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let hostile = [
        ("large", kind(json!({ "weight": 1, "x": "y".repeat(10 * 1024) }))),
        ("deep", kind(json!({ "weight": deep }))),
        ("unknown", kind(json!({ "__proto__": { "weight": 1 } }))),
        ("type", kind(json!({ "weight": "1000" }))),
        ("huge", kind(json!({ "weight": 1e300 }))),
        ("no-kind", json!({})),
    ];
    for (name, parameters) in hostile {
        let config = json!([{ "source": "FromClaim", "requests": [], "opaque": {
            "driver": DRIVER_NAME, "parameters": parameters,
        } }]);
        bench.claim_with(name, &[share("s", GPU_0, SHARE_1)], &config);
        let good = format!("beside-{name}");
        bench.claim(&good, &[share("s", GPU_0, SHARE_2)]);
        let pair = pod(name, &[(&good, &uid_of(&good)), (name, &uid_of(name))]);
        let error = kubelet.claims.prepare(&pair).await.unwrap_err();
        assert!(error.contains("the claim's configuration 0 is not valid"), "{name}: {error}");
        assert!(error.len() < 600, "{name}: {error}");
        assert_eq!(bench.daemon.claims(), [uid_of(&good)], "{name}");
        kubelet.claims.unprepare(&pair).await.unwrap();
    }
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// A clock that was set back or far ahead, here or on the daemon's side, changes what is printed
/// and nothing else: waits are counted by a clock that nobody sets.
#[tokio::test]
async fn times_that_make_no_sense_are_survived() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    for (name, since) in [("past", 0), ("future", u64::MAX), ("edge", 253_402_300_800_000)] {
        bench.daemon.change(|node| {
            let mut taint = common::taint("throttled", "None", "hot");
            taint.since_unix_ms = since;
            node.devices[0].taints = vec![taint];
        });
        let pod = bench.claim(name, &[result("gpu", GPU_0)]);
        kubelet.claims.prepare(&pod).await.unwrap();
        bench.daemon.set_since(&uid_of(name), since);
        let ready = || {
            let claim = bench.api.get("resourceclaims", "team", name).unwrap();
            claim["status"]["devices"][0]["conditions"][0]["status"] == "True"
        };
        eventually(&format!("the status is written ({name})"), ready).await;
        kubelet.claims.unprepare(&pod).await.unwrap();
    }
    let published = || {
        let slices = bench.api.list("resourceslices");
        slices.iter().any(|slice| slice["spec"]["devices"][0]["taints"][0]["value"] == "hot")
    };
    eventually("the taint is published", published).await;
}

#[tokio::test]
async fn a_device_of_another_node_is_refused() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let mut elsewhere = result("gpu", GPU_0);
    elsewhere["pool"] = json!("accelpool.dev/worker-2");
    let error = kubelet.claims.prepare(&bench.claim("a", &[elsewhere])).await.unwrap_err();
    assert!(
        error.contains("is not on this node, whose pool is `accelpool.dev/worker-1`"),
        "{error}"
    );
}
