//! What the kubelet asks of the driver for claims, and nothing else.
//!
//! Every claim of a call is worked on at once, and calls for different pods do not wait for
//! each other: the daemon commits together what arrives together. Trouble that passes is
//! waited out here, since the kubelet asks again only after 60 to 90 s. Nothing is kept:
//! claims are read from the API server, leases are the daemon's.

mod ask;
mod prepare;
mod service;

use std::{collections::HashMap, sync::Arc, time::Duration};

use accelpool_cluster::{ClaimReference, Cluster, EventRecorder};
use accelpool_proto::{
    node::SpanKind,
    trace::{Span, TraceContext},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

pub(crate) use self::ask::{published_name, scheduled_share_id};
pub use self::{
    ask::AskError,
    service::{V1, V1beta1},
};
use crate::{
    calls::CallTimes,
    node::{Node, Observed},
    otel::Tracer,
    sequence::Sequences,
};

/// How long trouble is waited out. The kubelet gives up after 45 s, and then shows its own
/// message in the place of ours.
pub const BUDGET: Duration = Duration::from_secs(40);

/// More claims than the pods of a node have; what has more is no kubelet's call.
const CLAIMS_MAX: usize = 1024;

/// How many claims are read from the API server at once. A burst of pods needs no more to
/// keep the daemon busy, and many nodes may see such a burst together.
pub const READERS: usize = 32;

/// Prepares and unprepares claims.
#[derive(Clone)]
pub struct Claims {
    /// Where claims are read.
    pub cluster: Cluster,
    /// Where they are prepared.
    pub node: Node,
    /// The node, as last seen: a change is a reason to try again.
    pub observed: watch::Receiver<Observed>,
    /// Where failures are told, for whoever looks at the claim.
    pub events: EventRecorder,
    /// Keeps the calls for one claim in order.
    pub sequences: Sequences,
    /// Bounds what is asked of the API server at once: [`READERS`] permits.
    pub readers: Arc<Semaphore>,
    /// How long trouble is waited out: [`BUDGET`].
    pub budget: Duration,
    /// Where calls are counted.
    pub calls: CallTimes,
    /// The label of pods whose value says who is billed, if one does.
    pub agent_label: Option<String>,
    /// Where calls are traced.
    pub tracer: Tracer,
}

/// A device that is ready for the claim's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PreparedDevice {
    pub request: String,
    pub pool: String,
    pub device: String,
    pub share_id: Option<String>,
    pub cdi_id: String,
}

/// The answers of one call, by claim UID; an error is for the pod's owner to read.
pub type Answers<T> = HashMap<String, Result<T, String>>;

impl Claims {
    /// Prepares the claims of one call. When the call is given up, so are the tries.
    pub async fn prepare(
        &self,
        claims: Vec<ClaimReference>,
        caller: Option<TraceContext>,
    ) -> Answers<Vec<PreparedDevice>> {
        let deadline = Instant::now() + self.budget;
        let call = self.tracer.begin(caller, "NodePrepareResources");
        let work = move |this: Self, claim, span| async move {
            this.prepare_one(claim, deadline, span).await
        };
        self.each(claims, call, "prepare", work).await
    }

    /// Unprepares the claims of one call.
    pub async fn unprepare(
        &self,
        claims: Vec<ClaimReference>,
        caller: Option<TraceContext>,
    ) -> Answers<()> {
        let deadline = Instant::now() + self.budget;
        let call = self.tracer.begin(caller, "NodeUnprepareResources");
        let work = move |this: Self, claim, span| async move {
            this.release_one(claim, deadline, span).await
        };
        self.each(claims, call, "unprepare", work).await
    }

    /// Runs `work` for all claims at once and answers for every one of them.
    async fn each<T, Work>(
        &self,
        claims: Vec<ClaimReference>,
        mut call: Span,
        name: &'static str,
        work: impl Fn(Self, ClaimReference, Span) -> Work,
    ) -> Answers<T>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, String>> + Send + 'static,
    {
        if claims.len() > CLAIMS_MAX {
            let error = format!("{} claims in one call: at most {CLAIMS_MAX}", claims.len());
            call.fail(&error);
            return claims.into_iter().map(|claim| (claim.uid, Err(error.clone()))).collect();
        }
        let mut tasks = JoinSet::new();
        let mut answers: Answers<T> = HashMap::with_capacity(claims.len());
        for claim in claims {
            let uid = claim.uid.clone();
            // Stands if the task dies; also keeps a claim that is named twice to one answer.
            let unfinished = Err("the driver failed to answer: see its log".to_owned());
            if answers.insert(uid.clone(), unfinished).is_none() {
                let mut span = call.child(name, SpanKind::Internal);
                span.set("accelpool.claim.uid", &claim.uid);
                span.set("accelpool.claim.name", &claim.name);
                span.set("k8s.namespace.name", &claim.namespace);
                let work = work(self.clone(), claim, span);
                tasks.spawn(async move { (uid, work.await) });
            }
        }
        while let Some(finished) = tasks.join_next().await {
            match finished {
                Ok((uid, answer)) => {
                    answers.insert(uid, answer);
                }
                Err(error) => tracing::error!(%error, "a claim's task died"),
            }
        }
        if let Some(error) = answers.values().find_map(|answer| answer.as_ref().err()) {
            call.fail(error);
        }
        answers
    }
}
