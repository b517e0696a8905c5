//! Claims, status and events against a double of the API server.

mod common;

use std::collections::BTreeMap;

use accelpool_cluster::{
    ClaimReference, Condition, DeviceStatus, Event, EventRecorder, ReadClaimError, Regarding,
    Severity,
};
use accelpool_cluster_double::{ApiServer, Fault, Options, Rule, Verb};
use serde_json::{Value, json};

use crate::common::connect;

fn claim(uid: &str) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "namespace": "lab", "name": "train", "uid": uid },
        "status": {
            "allocation": { "devices": { "results": [
                { "request": "gpu", "driver": "accelpool.dev", "pool": "accelpool.dev/worker-1",
                  "device": "gpu-0", "shareID": "11111111-0000-4000-8000-000000000000",
                  "consumedCapacity": { "memory": "20Gi", "compute": "250" } },
                { "request": "nic", "driver": "nic.example.com", "pool": "p", "device": "nic-0" },
            ] } },
            "reservedFor": [{ "resource": "pods", "name": "train-0", "uid": "p-0" }],
            "devices": [{ "driver": "nic.example.com", "pool": "p", "device": "nic-0" }],
        },
    })
}

fn reference(uid: &str) -> ClaimReference {
    ClaimReference { namespace: "lab".into(), name: "train".into(), uid: uid.into() }
}

fn ready(device: &str) -> DeviceStatus {
    DeviceStatus {
        pool: "accelpool.dev/worker-1".into(),
        device: device.into(),
        share_id: Some("11111111-0000-4000-8000-000000000000".into()),
        conditions: vec![Condition {
            kind: "Ready",
            holds: Some(true),
            reason: "Prepared",
            message: "prepared".into(),
            since_unix_ms: 0,
        }],
        data: BTreeMap::from([("memoryEnforcement".into(), "kernel".into())]),
    }
}

#[tokio::test]
async fn a_claim_is_read_with_its_uid() {
    let server = ApiServer::start(Options::default()).await;
    server.put(claim("u-1"));
    let cluster = connect(&server).await;
    let view = cluster.claim("lab", "train", "u-1").await.expect("the claim is there");
    assert_eq!(view.results.len(), 1);
    assert_eq!(view.pods[0].name, "train-0");
    let replaced = cluster.claim("lab", "train", "u-0").await.expect_err("it is another claim");
    assert!(matches!(replaced, ReadClaimError::Replaced { .. }), "{replaced}");
    let missing = cluster.claim("lab", "other", "u-1").await.expect_err("there is none");
    assert!(matches!(missing, ReadClaimError::NotFound { .. }), "{missing}");
    for error in [replaced, missing] {
        assert!(!error.is_transient(), "{error}");
    }
}

#[tokio::test]
async fn names_cannot_lead_elsewhere() {
    let server = ApiServer::start(Options::default()).await;
    let cluster = connect(&server).await;
    for (namespace, name) in [("lab", "../../x"), ("a/b", "c"), ("", "c"), ("lab", "c?watch=1")] {
        let refused = cluster.claim(namespace, name, "u").await.expect_err("no such name");
        assert!(matches!(refused, ReadClaimError::Name(_)), "{refused}");
    }
    assert_eq!(server.calls(), []);
}

#[tokio::test]
async fn trouble_that_may_pass_is_told_from_trouble_that_stays() {
    let server = ApiServer::start(Options::default()).await;
    server.put(claim("u-1"));
    let cluster = connect(&server).await;
    for (fault, transient) in [
        (Fault::Refuse(500), true),
        (Fault::Refuse(503), true),
        (Fault::Refuse(429), true),
        (Fault::CutAfter, true),
        (Fault::Refuse(403), false),
        (Fault::Refuse(400), false),
    ] {
        server.fail(Some(Verb::Get), fault, 1);
        let error = cluster.claim("lab", "train", "u-1").await.expect_err("a fault");
        assert_eq!(error.is_transient(), transient, "{fault:?}: {error}");
    }
    let gone = server.url().to_owned();
    drop(server);
    let error = cluster.claim("lab", "train", "u-1").await.expect_err("nobody listens");
    assert!(error.is_transient(), "{gone}: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let server = ApiServer::start(Options::default()).await;
    let cluster = connect(&server).await;
    server.fail(None, Fault::Hang, usize::MAX);
    let error = cluster.claim("lab", "train", "u-1").await.expect_err("no answer");
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn the_status_of_other_drivers_is_kept() {
    let server = ApiServer::start(Options::default()).await;
    server.put(claim("u-1"));
    let cluster = connect(&server).await;
    for _ in 0..2 {
        cluster.set_device_status(&reference("u-1"), &[ready("gpu-0")]).await.expect("allowed");
    }
    let stored = server.get("resourceclaims", "lab", "train").expect("the claim");
    let devices = stored["status"]["devices"].as_array().expect("a list");
    assert_eq!(devices.len(), 2, "{devices:#?}");
    assert_eq!(devices[0]["driver"], "nic.example.com");
    assert_eq!(devices[1]["data"], json!({ "memoryEnforcement": "kernel" }));
    assert_eq!(devices[1]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_status_is_refused_for_another_claim_and_a_device_that_is_not_in_it() {
    let server = ApiServer::start(Options::default()).await;
    server.put(claim("u-2"));
    let cluster = connect(&server).await;
    let error = cluster.set_device_status(&reference("u-1"), &[ready("gpu-0")]).await;
    let error = error.expect_err("the claim was replaced").to_string();
    assert_eq!(error, "claim lab/train is gone or was replaced");
    let error = cluster.set_device_status(&reference("u-2"), &[ready("gpu-9")]).await;
    assert!(error.is_err(), "the device is not allocated");
}

#[tokio::test]
async fn a_status_needs_the_right_to_speak_for_the_driver() {
    let rule = |resource: &str, verb: &str, names: &[&str]| Rule {
        api_groups: vec!["resource.k8s.io".into()],
        resources: vec![resource.into()],
        verbs: vec![verb.into()],
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let status = rule("resourceclaims/status", "patch", &[]);
    let driver = rule("resourceclaims/driver", "associated-node:patch", &["accelpool.dev"]);
    for (rules, allowed) in [(vec![status.clone()], false), (vec![status, driver], true)] {
        let server = ApiServer::start(Options { rules: Some(rules), ..Options::default() }).await;
        server.put(claim("u-1"));
        let cluster = connect(&server).await;
        let written = cluster.set_device_status(&reference("u-1"), &[ready("gpu-0")]).await;
        assert_eq!(written.is_ok(), allowed, "{written:?}");
    }
}

#[tokio::test]
async fn events_are_told_once_and_in_their_namespace() {
    let server = ApiServer::start(Options::default()).await;
    let cluster = connect(&server).await;
    let recorder = EventRecorder::spawn(cluster.clone());
    let event = Event {
        regarding: Regarding::from(&reference("u-1")),
        severity: Severity::Warning,
        reason: "PrepareFailed",
        action: "Prepare",
        note: "x".repeat(5000),
        trace_id: None,
    };
    for _ in 0..10 {
        recorder.record(event.clone());
    }
    recorder.record(Event { regarding: Regarding::Node, ..event });
    let sent = async {
        while cluster.counters().snapshot().events_sent < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(common::PATIENCE, sent).await.expect("both are sent");
    let events = server.list("events");
    let namespaces: Vec<&Value> = events.iter().map(|one| &one["metadata"]["namespace"]).collect();
    assert_eq!(namespaces, ["default", "lab"]);
    for event in &events {
        assert_eq!(event["note"].as_str().map(str::len), Some(1024));
        assert_eq!(event["reportingController"], "accelpool.dev");
        assert!(event["eventTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
    }
    assert_eq!(events[1]["regarding"]["uid"], "u-1");
    assert_eq!(cluster.counters().snapshot().events_dropped, 9);
}

#[tokio::test]
async fn a_flood_of_events_is_cut_off() {
    let server = ApiServer::start(Options::default()).await;
    let cluster = connect(&server).await;
    let recorder = EventRecorder::spawn(cluster.clone());
    for number in 0..1000 {
        let regarding = Regarding::Pod {
            namespace: "lab".into(),
            name: format!("pod-{number}"),
            uid: format!("p-{number}"),
        };
        let (note, trace_id) = ("no".to_owned(), None);
        let severity = Severity::Normal;
        recorder.record(Event { regarding, severity, reason: "R", action: "A", note, trace_id });
    }
    let done = async {
        loop {
            let counters = cluster.counters().snapshot();
            if counters.events_sent + counters.events_dropped == 1000 {
                return counters;
            }
            tokio::task::yield_now().await;
        }
    };
    let counters = tokio::time::timeout(common::PATIENCE, done).await.expect("all are decided");
    assert!(counters.events_sent < 500, "{counters:?}");
}
