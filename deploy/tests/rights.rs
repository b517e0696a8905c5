//! The driver's rights against what it really asks of an API server that enforces them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use accelpool_cluster::{
    ApiServer as Address, ClaimReference, Cluster, ClusterConfig, DRIVER_NAME, DeviceStatus, Event,
    EventRecorder, NodeState, PodReference, PublishStatus, Publisher, Regarding, Severity,
};
use accelpool_cluster_double::{ApiServer, Fault, Options, Rule, Verb};
use accelpool_deploy::object;
use accelpool_proto::node as wire;
use serde_json::json;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(30);

fn rules() -> Vec<Rule> {
    let rules = object("ClusterRole", "accelpool-dra")["rules"].clone();
    serde_json::from_value(rules).expect("the rules of a ClusterRole")
}

fn device(index: usize, sharing_group: &str) -> wire::Device {
    wire::Device {
        name: format!("gpu-{index}"),
        uuid: format!("uuid-{index}"),
        vendor: "sim".to_owned(),
        kind: "gpu".to_owned(),
        memory_bytes: 80 << 30,
        pool: sharing_group.to_owned(),
        present: true,
        ..wire::Device::default()
    }
}

fn state(devices: usize, revision: u64) -> Arc<NodeState> {
    let pool = wire::Pool {
        name: "all".to_owned(),
        exposure: "dra".to_owned(),
        sharing: "any".to_owned(),
        devices: Vec::new(),
        ..wire::Pool::default()
    };
    let state = wire::WatchNodeResponse {
        revision,
        devices: (0..devices).map(|index| device(index, "all")).collect(),
        pools: vec![pool],
        ..wire::WatchNodeResponse::default()
    };
    Arc::new(NodeState::from_wire(&state))
}

async fn published(publisher: &Publisher, revision: u64) {
    let mut progress = publisher.status();
    let reached = progress.wait_for(
        |status| matches!(status, PublishStatus::Published { revision: at, .. } if *at == revision),
    );
    let reached = tokio::time::timeout(PATIENCE, reached).await.is_ok();
    assert!(reached, "{:?}", *publisher.status().borrow());
}

/// Everything that the driver ever asks: slices made, changed, deleted, made again; a claim
/// read; its status written; an event sent.
async fn ask_everything(server: &ApiServer) {
    server.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
    server.put(json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "namespace": "lab", "name": "train", "uid": "u-1" },
        "status": { "allocation": { "devices": { "results": [
            { "request": "r", "driver": DRIVER_NAME, "pool": "p", "device": "gpu-0" }] } } },
    }));
    let config = ClusterConfig {
        server: Address::Url(server.url().to_owned()),
        driver: DRIVER_NAME.to_owned(),
        node: "n1".to_owned(),
    };
    let cluster = Cluster::connect(config).await.expect("the double's URL is valid");
    let observed = watch::Sender::new(Some(state(65, 1)));
    let publisher = Publisher::spawn(cluster.clone(), observed.subscribe());
    published(&publisher, 1).await;
    server.fail(Some(Verb::Update), Fault::Refuse(409), 1); // a conflict: it looks again
    observed.send_replace(Some(state(64, 2))); // one page less: a slice is deleted, the other changed
    published(&publisher, 2).await;

    cluster.claim("lab", "train", "u-1").await.expect("a claim may be read");
    server.put(json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "lab", "name": "train-0", "uid": "p-1" } }));
    let pod = PodReference { name: "train-0".into(), uid: "p-1".into() };
    cluster.pod_labels("lab", &pod).await.expect("a pod may be read");
    cluster.pods_on_node().await.expect("the node's pods may be listed");
    let status = DeviceStatus {
        pool: "p".to_owned(),
        device: "gpu-0".to_owned(),
        share_id: None,
        conditions: Vec::new(),
        data: [("memoryEnforcement".to_owned(), "none".to_owned())].into(),
    };
    let claim = ClaimReference { namespace: "lab".into(), name: "train".into(), uid: "u-1".into() };
    cluster.set_device_status(&claim, &[status]).await.expect("its status may be written");
    let event = Event {
        regarding: Regarding::from(&claim),
        severity: Severity::Normal,
        reason: "Tested",
        action: "Test",
        note: "tested".to_owned(),
        trace_id: None,
    };
    EventRecorder::spawn(cluster.clone()).record(event);
    let sent = async {
        while cluster.counters().snapshot().events_sent == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, sent).await.expect("an event may be sent");
}

#[tokio::test]
async fn the_rights_suffice_and_none_is_idle() {
    let server = ApiServer::start(Options { rules: Some(rules()), ..Options::default() }).await;
    ask_everything(&server).await;
    let used: BTreeSet<(String, String)> = server
        .calls()
        .into_iter()
        .map(|call| (call.resource, call.verb.as_str().to_owned()))
        .collect();
    // The double asks for these itself, as the API server does since 1.36. `update` is for
    // a server whose server-side apply is turned off for the claim's status.
    let otherwise = [
        ("resourceclaims/status", "update"),
        ("resourceclaims/driver", "associated-node:update"),
        ("resourceclaims/driver", "associated-node:patch"),
    ];
    for rule in rules() {
        for (resource, verb) in
            rule.resources.iter().flat_map(|one| rule.verbs.iter().map(move |verb| (one, verb)))
        {
            let asked = used.contains(&(resource.clone(), verb.clone()));
            let known = otherwise.contains(&(resource.as_str(), verb.as_str()));
            assert!(asked || known, "the right to {verb} {resource} is not needed");
        }
    }
}

#[tokio::test]
async fn each_right_is_needed() {
    let all = rules();
    let status = |rules: Vec<Rule>| async move {
        let server = ApiServer::start(Options { rules: Some(rules), ..Options::default() }).await;
        server.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
        let config = ClusterConfig {
            server: Address::Url(server.url().to_owned()),
            driver: DRIVER_NAME.to_owned(),
            node: "n1".to_owned(),
        };
        let cluster = Cluster::connect(config).await.expect("the double's URL is valid");
        let states = watch::Sender::new(Some(state(1, 1)));
        let publisher = Publisher::spawn(cluster, states.subscribe());
        let mut progress = publisher.status();
        let decided = progress.wait_for(|status| !matches!(status, PublishStatus::Waiting(_)));
        let decided = tokio::time::timeout(PATIENCE, decided).await;
        decided.expect("it is decided").expect("it publishes").clone()
    };
    for missing in ["list", "watch", "create"] {
        let mut fewer = all.clone();
        for rule in fewer.iter_mut().filter(|rule| rule.resources == ["resourceslices"]) {
            rule.verbs.retain(|verb| verb != missing);
        }
        // Without `watch` the first list is published; the rest shows that rules are enforced.
        if missing != "watch" {
            let found = status(fewer).await;
            assert!(matches!(found, PublishStatus::Failing(_)), "{missing}: {found:?}");
        }
    }
    assert!(!matches!(status(all).await, PublishStatus::Failing(_)));
}

#[test]
fn nothing_is_allowed_by_a_star_and_no_secret_is_named() {
    for rule in rules() {
        let words = [&rule.api_groups, &rule.resources, &rule.verbs, &rule.resource_names];
        assert!(words.into_iter().flatten().all(|word| !word.contains('*')), "{rule:?}");
        assert!(!rule.resources.iter().any(|resource| resource.contains("secret")), "{rule:?}");
    }
}
