//! What the suites share: nodes as the daemon describes them, and a driver beside a double.

#![allow(dead_code, reason = "each suite uses its part")]

use std::{sync::Arc, time::Duration};

use accelpool_cluster::{
    ApiServer as Address, Cluster, ClusterConfig, DRIVER_NAME, NodeState, PublishStatus, Publisher,
};
use accelpool_cluster_double::{ApiServer, Options};
use accelpool_proto::node as wire;
use k8s_openapi::api::resource::v1::ResourceSliceSpec;
use serde_json::json;
use tokio::sync::watch;

pub(crate) mod nodes;

pub(crate) const NODE: &str = "worker-1";

/// Far beyond what anything here takes: it only ends a test that would hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A publisher that runs against a double.
pub(crate) struct Bench {
    pub(crate) server: ApiServer,
    pub(crate) cluster: Cluster,
    pub(crate) states: watch::Sender<Option<Arc<NodeState>>>,
    pub(crate) publisher: Publisher,
}

pub(crate) fn node_object(uid: &str) -> serde_json::Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": uid } })
}

pub(crate) async fn connect(server: &ApiServer) -> Cluster {
    let config = ClusterConfig {
        server: Address::Url(server.url().to_owned()),
        driver: DRIVER_NAME.to_owned(),
        node: NODE.to_owned(),
    };
    Cluster::connect(config).await.expect("the double's URL is valid")
}

impl Bench {
    /// Starts a publisher for `state` and waits until it has published.
    pub(crate) async fn publishing(options: Options, state: &wire::WatchNodeResponse) -> Self {
        let bench = Self::started(options, Some(state)).await;
        bench.published(state.revision).await;
        bench
    }

    pub(crate) async fn started(options: Options, state: Option<&wire::WatchNodeResponse>) -> Self {
        let server = ApiServer::start(options).await;
        server.put(node_object("node-uid-1"));
        let cluster = connect(&server).await;
        let state = state.map(|state| Arc::new(NodeState::from_wire(state)));
        let states = watch::Sender::new(state);
        let publisher = Publisher::spawn(cluster.clone(), states.subscribe());
        Self { server, cluster, states, publisher }
    }

    pub(crate) fn say(&self, state: &wire::WatchNodeResponse) {
        self.states.send_replace(Some(Arc::new(NodeState::from_wire(state))));
    }

    /// Waits until `revision` is published.
    pub(crate) async fn published(&self, revision: u64) -> PublishStatus {
        let wanted = |status: &PublishStatus| matches!(status, PublishStatus::Published { revision: at, .. } if *at >= revision);
        self.status(wanted).await
    }

    pub(crate) async fn status(&self, wanted: impl FnMut(&PublishStatus) -> bool) -> PublishStatus {
        let mut progress = self.publisher.status();
        let reached = tokio::time::timeout(PATIENCE, progress.wait_for(wanted)).await;
        let last = self.publisher.status().borrow().clone();
        reached.unwrap_or_else(|_| panic!("still {last:?}")).expect("it publishes").clone()
    }

    /// Waits until `holds` is true of the slices on the double.
    pub(crate) async fn slices_are(&self, holds: impl Fn(&[ResourceSliceSpec]) -> bool) {
        let waiting = async {
            while !holds(&self.slices()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(reached.is_ok(), "still {:#?}", self.slices());
    }

    pub(crate) fn slices(&self) -> Vec<ResourceSliceSpec> {
        let spec = |slice: &serde_json::Value| serde_json::from_value(slice["spec"].clone());
        let slices = self.server.list("resourceslices");
        slices.iter().map(|slice| spec(slice).expect("a slice")).collect()
    }

    /// The writes on slices since the last question, as `create 00000 at 1`.
    pub(crate) fn writes(&self) -> Vec<String> {
        let calls = self.server.take_calls().into_iter();
        let writes = calls.filter(|call| call.resource == "resourceslices" && !call.dry_run);
        let line = |call: accelpool_cluster_double::Call| match call.verb.as_str() {
            "get" | "list" | "watch" => None,
            verb if call.name.is_empty() => Some(verb.to_owned()),
            verb => Some(format!("{verb} {}", &call.name[..5])),
        };
        writes.filter_map(line).collect()
    }
}
