//! Events: short words for whoever looks at a claim, a pod or the node.
//!
//! Never waited for and never certain: what a tenant can trigger is limited, what repeats is
//! said once in a while, and what does not fit the queue is dropped and counted.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use kube::core::{Request, params::PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    cluster::{CallError, Cluster, within_deadline},
    counters::Counters,
    device_status::{ClaimReference, FIELD_OWNER, cut},
    pace::{RateLimit, dice},
};

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who it is about.
    pub regarding: Regarding,
    /// Whether somebody should look.
    pub severity: Severity,
    /// In one word, such as `PrepareFailed`.
    pub reason: &'static str,
    /// What was being done, in one word, such as `Prepare`.
    pub action: &'static str,
    /// In a sentence; cut to 1024 bytes.
    pub note: String,
    /// The trace of what was being done, if there is one; it does not make an event another.
    pub trace_id: Option<String>,
}

/// Who an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Regarding {
    Claim {
        namespace: String,
        name: String,
        uid: String,
    },
    Pod {
        namespace: String,
        name: String,
        uid: String,
    },
    /// The node this driver runs on.
    Node,
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Severity {
    Normal,
    Warning,
}

impl From<&ClaimReference> for Regarding {
    fn from(claim: &ClaimReference) -> Self {
        let ClaimReference { namespace, name, uid } = claim.clone();
        Self::Claim { namespace, name, uid }
    }
}

/// Takes events and sends them in its own time. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Event>,
    counters: Arc<Counters>,
}

/// Where an event names the trace of what was being done.
const TRACE_ANNOTATION: &str = "accelpool.dev/trace-id";
/// The API's limit on a note.
const NOTE_LEN_MAX: usize = 1024;
/// 110 pods, each with a claim or two, may fail together.
const QUEUE_LEN: usize = 256;
/// One for each pod of a full node at once, then one each second.
const BURST: u32 = 110;
const INTERVAL: Duration = Duration::from_secs(1);
/// The same words about the same object are not repeated sooner.
const REPEAT_AFTER: Duration = Duration::from_mins(5);
/// Recent words remembered; beyond that the oldest are forgotten.
const RECENT_MAX: usize = 512;

impl EventRecorder {
    /// Starts a task that sends events until the last recorder is dropped.
    #[must_use]
    pub fn spawn(cluster: Cluster) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_LEN);
        let counters = Arc::clone(&cluster.counters);
        tokio::spawn(send_all(cluster, inbox));
        Self { queue, counters }
    }

    /// Queues an event, or drops it if the queue is full.
    pub fn record(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.counters.events_dropped.add(1);
        }
    }
}

async fn send_all(cluster: Cluster, mut inbox: mpsc::Receiver<Event>) {
    let mut filter = Filter::default();
    while let Some(event) = inbox.recv().await {
        if !filter.admits(&event, Instant::now()) {
            cluster.counters.events_dropped.add(1);
            continue;
        }
        let body = body(&event, &cluster, Timestamp::now(), dice());
        match cluster.create_event(&event, &body).await {
            Ok(()) => cluster.counters.events_sent.add(1),
            Err(error) => {
                cluster.counters.events_dropped.add(1);
                tracing::debug!(error = %error, reason = event.reason, "event not sent");
            }
        }
    }
}

/// Decides which events are sent.
struct Filter {
    limit: RateLimit,
    recent: HashMap<(Regarding, &'static str, String), Instant>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { limit: RateLimit::new(INTERVAL, BURST), recent: HashMap::new() }
    }
}

impl Filter {
    fn admits(&mut self, event: &Event, now: Instant) -> bool {
        let key = (event.regarding.clone(), event.reason, cut(&event.note, NOTE_LEN_MAX));
        self.recent.retain(|_, sent| now.duration_since(*sent) < REPEAT_AFTER);
        if self.recent.contains_key(&key) || !self.limit.try_take(now) {
            return false;
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.clear();
        }
        self.recent.insert(key, now);
        true
    }
}

impl Cluster {
    async fn create_event(&self, event: &Event, body: &Value) -> Result<(), CallError> {
        let namespace = namespace_of(&event.regarding);
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let data = body.to_string().into_bytes();
        let request = Request::new(path).create(&PostParams::default(), data);
        let request = request.map_err(kube::Error::BuildRequest)?;
        within_deadline(self.client.request_text(request)).await.map(|_| ())
    }
}

fn namespace_of(regarding: &Regarding) -> &str {
    match regarding {
        Regarding::Claim { namespace, .. } | Regarding::Pod { namespace, .. } => namespace,
        Regarding::Node => "default",
    }
}

fn body(event: &Event, cluster: &Cluster, now: Timestamp, dice: u64) -> Value {
    let namespace = namespace_of(&event.regarding);
    let (regarding, name) = match &event.regarding {
        Regarding::Claim { namespace, name, uid } => (
            json!({
                "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
                "namespace": namespace, "name": name, "uid": uid,
            }),
            name,
        ),
        Regarding::Pod { namespace, name, uid } => (
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "namespace": namespace, "name": name, "uid": uid,
            }),
            name,
        ),
        // The kubelet's own events carry the node's name for its UID, and `kubectl describe`
        // looks for that.
        Regarding::Node => (
            json!({ "apiVersion": "v1", "kind": "Node", "name": cluster.node, "uid": cluster.node }),
            &cluster.node,
        ),
    };
    let severity = match event.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    // Unique without asking: two drivers may tell of one claim at once.
    let suffix = format!("{:x}{dice:08x}", now.as_microsecond());
    let stem: String = name.chars().take(200).collect();
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "namespace": namespace,
            "name": format!("{stem}.{suffix}"),
            "annotations": event.trace_id.as_ref().map(|id| json!({ TRACE_ANNOTATION: id })),
        },
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        "type": severity,
        "reason": event.reason,
        "action": event.action,
        "note": cut(&event.note, NOTE_LEN_MAX),
        "regarding": regarding,
        "reportingController": cluster.driver,
        "reportingInstance": cut(&format!("{FIELD_OWNER}-{}", cluster.node), 128),
    })
}
