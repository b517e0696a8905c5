//! One claim, from the kubelet's call to its answer.
//!
//! Each try reads the claim, asks the daemon, and is repeated while the trouble may pass and
//! time is left. A call to the daemon is never broken off: it runs on by itself and keeps
//! the claim's order, so that whatever comes next for the claim finds it done.

use std::{sync::Arc, time::Duration};

use accelpool_cluster::{ClaimReference, ClaimView, Event, ReadClaimError, Regarding, Severity};
use accelpool_model::{Chain, ClaimId};
use accelpool_proto::{
    node::{Lease, SpanKind},
    trace::{Here, Span as TraceSpan},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tracing::{Instrument as _, Span, field::Empty};

use super::{
    AskError, Claims, PreparedDevice,
    ask::{devices_of, request_for},
};
use crate::{
    calls::{Call, Outcome},
    labels,
    node::{NodeError, Observed, Trouble},
    otel::name_trace,
    sequence::Sequence,
};

/// The wait before the next try, at first and at most. A change of the node ends it early.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Why a claim is not prepared or not released.
#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error("claim UID is not valid")]
    Uid(#[source] accelpool_model::NameError),
    #[error(transparent)]
    Read(#[from] ReadClaimError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("claim {claim} cannot be {done} on this node")]
    Node { claim: String, done: &'static str, source: NodeError },
    #[error("the devices of this node are not known yet: the daemon accelpoold starts or is away")]
    NoState,
    #[error("claim {0} was unprepared while it was being prepared")]
    Stale(String),
    #[error("the driver's own task died")]
    Task(#[source] tokio::task::JoinError),
    #[error("the daemon accelpoold has not finished in time")]
    Slow,
}

impl ClaimError {
    /// True if a later try may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Read(error) => error.is_transient(),
            Self::Node { source, .. } => match source.trouble() {
                Trouble::Away | Trouble::Busy => true,
                Trouble::Final => false,
            },
            Self::NoState | Self::Slow => true,
            Self::Uid(_) | Self::Ask(_) | Self::Stale(_) | Self::Task(_) => false,
        }
    }

    /// What the pod's owner can do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::Read(error) if error.is_transient() => {
                "nothing to do: the kubelet tries again within 90 s, once the API server answers"
            }
            Self::Read(ReadClaimError::Config { .. }) => {
                "correct the configuration, then create the claim and the pod anew"
            }
            Self::Read(ReadClaimError::Call { .. }) => {
                "ask the cluster's administrator to check the permissions of accelpool-dra"
            }
            Self::Read(_) | Self::Uid(_) | Self::Stale(_) => {
                "delete the pod; a new one gets a claim that is current"
            }
            Self::Ask(AskError::ForeignPool { .. }) => {
                "delete the pod, so that the scheduler allocates a device of its node"
            }
            Self::Ask(AskError::AdminOnly { .. }) => {
                "delete the pod; let its claim select devices by their `form`, as the device \
                 classes of accelpool do, or ask for `adminAccess`"
            }
            Self::Node { source, .. } => match source.trouble() {
                Trouble::Away => NODE_AWAY,
                Trouble::Busy => {
                    "the kubelet tries again within 90 s; if it stays, delete the pod, so that \
                     the scheduler chooses another device, or end the claim that holds this one"
                }
                Trouble::Final => {
                    "delete the pod and change what its claim asks for, or let the \
                     administrator look at this node's device with `accelpool explain`"
                }
            },
            Self::NoState | Self::Slow => NODE_AWAY,
            Self::Ask(_) | Self::Task(_) => {
                "the kubelet tries again within 90 s; report it if it stays"
            }
        }
    }
}

/// How a call ended, as far as this node is to blame.
fn outcome<T>(result: &Result<T, ClaimError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(ClaimError::Task(_)) => Outcome::Failed,
        Err(error) if error.is_transient() => Outcome::Failed,
        Err(_) => Outcome::Refused,
    }
}

const NODE_AWAY: &str = "the kubelet tries again within 90 s; if it stays, ask the administrator \
                         to look at accelpoold on this node";

impl Claims {
    #[tracing::instrument(name = "prepare", skip_all, fields(claim = %claim.uid, trace = Empty))]
    pub(super) async fn prepare_one(
        self,
        claim: ClaimReference,
        deadline: Instant,
        span: TraceSpan,
    ) -> Result<Vec<PreparedDevice>, String> {
        let started = std::time::Instant::now();
        let trace_id = name_trace(span.here());
        let prepared = self.prepare_until(&claim, deadline, span.here()).await;
        self.calls.observe(Call::Prepare, outcome(&prepared), started, span.here());
        let why = ("PrepareFailed", "Prepare");
        let answer = prepared.map_err(|error| self.explain(&claim, &error, why, trace_id));
        span.end(&answer);
        answer
    }

    #[tracing::instrument(name = "unprepare", skip_all, fields(claim = %claim.uid, trace = Empty))]
    pub(super) async fn release_one(
        self,
        claim: ClaimReference,
        deadline: Instant,
        span: TraceSpan,
    ) -> Result<(), String> {
        if claim.uid.parse::<ClaimId>().is_err() {
            return Ok(()); // such a claim was never prepared
        }
        let sequence = self.sequences.unprepare(&claim.uid);
        let started = std::time::Instant::now();
        let (here, trace_id) = (span.here(), name_trace(span.here()));
        let tries = || self.try_release(&claim, &sequence, here);
        let released = self.persist(deadline, tries).await;
        self.calls.observe(Call::Unprepare, outcome(&released), started, here);
        let why = ("UnprepareFailed", "Unprepare");
        let answer = released.map_err(|error| self.explain(&claim, &error, why, trace_id));
        span.end(&answer);
        answer
    }

    async fn prepare_until(
        &self,
        reference: &ClaimReference,
        deadline: Instant,
        here: &Here,
    ) -> Result<Vec<PreparedDevice>, ClaimError> {
        reference.uid.parse::<ClaimId>().map_err(ClaimError::Uid)?;
        let sequence = self.sequences.prepare(&reference.uid);
        let claim = self.persist(deadline, || self.try_read(reference, here)).await?;
        if claim.results.is_empty() {
            return Ok(Vec::new());
        }
        let lease = self.persist(deadline, || self.try_prepare(&claim, &sequence, here)).await?;
        Ok(devices_of(&claim, &lease)?)
    }

    /// Tries until it works, until it cannot, or until `deadline`.
    async fn persist<T, Try: Future<Output = Result<T, ClaimError>>>(
        &self,
        deadline: Instant,
        tries: impl Fn() -> Try,
    ) -> Result<T, ClaimError> {
        let mut observed = self.observed.clone();
        let mut retry = RETRY_FIRST;
        let mut last = ClaimError::Slow;
        loop {
            observed.mark_unchanged();
            match timeout_at(deadline, tries()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) if !error.is_transient() => return Err(error),
                Ok(Err(error)) => last = error,
                Err(_) => return Err(last),
            }
            tracing::debug!(error = %Chain(&last), "trying again");
            if Instant::now() + retry >= deadline {
                return Err(last);
            }
            wait(retry, &mut observed).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn try_read(&self, claim: &ClaimReference, here: &Here) -> Result<ClaimView, ClaimError> {
        let ClaimReference { namespace, name, uid } = claim;
        // Never closed; without a permit the read would only be less orderly.
        let _permit = self.readers.acquire().await.ok();
        let span = here.child("read claim", SpanKind::Client);
        let read = self.cluster.claim(namespace, name, uid).await;
        span.end(&read);
        Ok(read?)
    }

    async fn try_prepare(
        &self,
        claim: &ClaimView,
        sequence: &Arc<Sequence>,
        here: &Here,
    ) -> Result<Lease, ClaimError> {
        let snapshot = self.observed.borrow().snapshot.clone().ok_or(ClaimError::NoState)?;
        let mut request = request_for(claim, &self.cluster.pool_name(), &snapshot.state)?;
        request.labels.extend(self.agent_of(claim).await);
        let permit = sequence.permit().await;
        if !sequence.is_current() {
            return Err(ClaimError::Stale(claim.uid.clone()));
        }
        let (node, here) = (self.node.clone(), here.clone());
        let call = async move {
            let lease = node.prepare(request, &here).await;
            drop(permit);
            lease
        };
        let lease = tokio::spawn(call.instrument(Span::current())).await;
        match lease.map_err(ClaimError::Task)? {
            Err(source) if source.is_changed() => {
                self.on_record(claim).ok_or_else(|| not_prepared(claim, source))
            }
            // A daemon that was just started has not heard all vendors yet.
            Err(source) if source.is_unknown_device() && !self.observed.borrow().complete => {
                Err(ClaimError::NoState)
            }
            lease => lease.map_err(|source| not_prepared(claim, source)),
        }
    }

    /// Who is billed, where a label of the claim's first pod says so: a label of the lease. That
    /// it cannot be read keeps no pod from starting; then the pod is billed.
    async fn agent_of(&self, claim: &ClaimView) -> Option<(String, String)> {
        let (key, pod) = (self.agent_label.as_ref()?, claim.pods.first()?);
        match self.cluster.pod_labels(&claim.namespace, pod).await {
            Ok(labels) => {
                let agent = labels.get(key).filter(|agent| !agent.is_empty())?;
                Some((labels::AGENT.to_owned(), agent.clone()))
            }
            Err(error) => {
                let error = Chain(&error);
                tracing::warn!(%error, label = key, "the pod is billed: its label is not known");
                None
            }
        }
    }

    /// The claim's lease, if it is prepared. An allocation cannot change while a claim has
    /// its UID, so a lease with other requests was made by a driver of another version, which
    /// asked for the same in other words.
    fn on_record(&self, claim: &ClaimView) -> Option<Lease> {
        let snapshot = self.observed.borrow().snapshot.clone()?;
        let lease = snapshot.leases.iter().find(|lease| lease.claim == claim.uid)?;
        (lease.state == "prepared" && devices_of(claim, lease).is_ok()).then(|| lease.clone())
    }

    async fn try_release(
        &self,
        claim: &ClaimReference,
        sequence: &Arc<Sequence>,
        here: &Here,
    ) -> Result<(), ClaimError> {
        let permit = sequence.permit().await;
        let (node, here) = (self.node.clone(), here.clone());
        let uid = claim.uid.clone();
        let call = async move {
            let released = node.release(&uid, &here).await;
            drop(permit);
            released
        };
        let released = tokio::spawn(call.instrument(Span::current())).await;
        released.map_err(ClaimError::Task)?.map_err(|source| {
            let claim = format!("{}/{}", claim.namespace, claim.name);
            ClaimError::Node { claim, done: "released", source }
        })
    }

    /// The text that the kubelet puts into the pod's event; the claim gets one as well.
    fn explain(
        &self,
        claim: &ClaimReference,
        error: &ClaimError,
        (reason, action): (&'static str, &'static str),
        trace_id: Option<String>,
    ) -> String {
        let note = format!("{}: {}", Chain(error), error.advice());
        tracing::warn!(error = note, "claim failed");
        self.events.record(Event {
            regarding: Regarding::from(claim),
            severity: Severity::Warning,
            reason,
            action,
            note: note.clone(),
            trace_id,
        });
        note
    }
}

fn not_prepared(claim: &ClaimView, source: NodeError) -> ClaimError {
    let claim = format!("{}/{}", claim.namespace, claim.name);
    ClaimError::Node { claim, done: "prepared", source }
}

/// Waits for `retry` to pass, or, after the first moment, for the node to change. A node that
/// changes all the time is not asked all the time.
async fn wait(retry: Duration, observed: &mut watch::Receiver<Observed>) {
    sleep(RETRY_FIRST).await;
    tokio::select! {
        () = sleep(retry.saturating_sub(RETRY_FIRST)) => {}
        Ok(()) = observed.changed() => {}
    }
}
