//! The node: one task that owns its state, and the handle through which it is asked.
//!
//! Start-up goes in one order, and the types keep it: replay the ledger, hear the vendors,
//! bring the node in line, and only then is there a [`Node`] to serve.

mod apply;
mod history;
mod observe;
mod owner;
mod request;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use accelpool_ledger::{CommitError, Ledger, Replayed};
use accelpool_model::{
    Binding, BootId, Claim, ClaimId, Lease, Pool, TaintEffect, Topology, VendorName,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::{
    apply::ApplyError,
    history::{Event, EventKind},
    owner::now_ms,
    request::{NodeError, State},
};
use self::{
    apply::Tools,
    owner::{Owner, Parts},
    request::{Notice, Request},
};
use crate::{
    audit::{self, Asker},
    cdi::SpecFolder,
    fault_point::FaultPoints,
    gate::Keeper,
    mps::{Mps, MpsLaunch},
    trace::Spans,
    turns,
    worker::Worker,
};

/// The kubelet's default pod limit is 110; each pod prepares in one request.
const REQUESTS_MAX: usize = 128;
/// Each device tells at most one in seconds.
const MPS_EVENTS_MAX: usize = 16;
/// How long the start waits for vendors, and again for repairs, before it serves without.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// What a node is started from.
pub struct Start {
    /// This boot of the host.
    pub boot: BootId,
    /// The pools of the configuration.
    pub pools: Vec<Pool>,
    /// The host.
    pub topology: Topology,
    /// The vendors' workers.
    pub workers: Vec<Worker>,
    /// How often vendors are asked what they see.
    pub observe_interval: Duration,
    /// The ledger, open.
    pub ledger: Ledger,
    /// What the ledger held.
    pub replayed: Replayed,
    /// Where CDI specs go.
    pub specs: SpecFolder,
    /// The device gate.
    pub gate: Keeper,
    /// Time-slicing.
    pub turns: turns::Keeper,
    /// Where what it does is traced.
    pub spans: Spans,
    /// How NVIDIA's MPS is run, where a pool asks for it.
    pub mps: Option<MpsLaunch>,
    /// The audit log, open.
    pub audit: audit::Log,
    /// Where tests stop the daemon.
    pub faults: FaultPoints,
}

/// A handle to the running node. Cloned freely.
#[derive(Clone)]
pub struct Node {
    requests: mpsc::Sender<Request>,
    revision: watch::Receiver<u64>,
    workers: Arc<BTreeMap<VendorName, Worker>>,
    /// For whom it asks; by itself, the daemon.
    by: Asker,
    spans: Spans,
}

/// The node's owner, running. It ends when every [`Node`] is dropped, or when the ledger
/// cannot be written; aborting it is the crash of a process.
pub type Running = JoinHandle<Result<(), CommitError>>;

impl Start {
    /// Brings the node in line with its ledger; it serves when this returns.
    pub async fn run(self) -> Result<(Node, Running), CommitError> {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let (notify, notices) = mpsc::channel(REQUESTS_MAX);
        let (revision, revisions) = watch::channel(0);
        let (epoch, epochs) = watch::channel(0);
        let workers: BTreeMap<VendorName, Worker> =
            self.workers.into_iter().map(|worker| (worker.vendor().clone(), worker)).collect();
        let mut watchers = tokio::task::JoinSet::new();
        for worker in workers.values() {
            let (interval, epochs) = (self.observe_interval, epochs.clone());
            watchers.spawn(observe::watch(worker.clone(), interval, epochs, notify.clone()));
        }
        let mps = self.mps.map(|launch| {
            let (events, mut happened) = mpsc::channel(MPS_EVENTS_MAX);
            let notify = notify.clone();
            watchers.spawn(async move {
                while let Some(event) = happened.recv().await {
                    if notify.send(Notice::Mps(event)).await.is_err() {
                        return;
                    }
                }
            });
            Mps::new(launch, events)
        });
        let mut owner = Owner::new(Parts {
            boot: self.boot,
            pools: self.pools.into(),
            topology: Arc::new(self.topology),
            workers: workers.clone(),
            ledger: self.ledger,
            audit: self.audit,
            replayed: self.replayed,
            tools: Tools {
                specs: self.specs,
                mps,
                gate: self.gate,
                turns: self.turns,
                faults: self.faults,
            },
            inbox,
            notices,
            notify,
            revision,
            epoch,
            spans: self.spans.clone(),
        });
        owner.start(START_PATIENCE).await?;
        let running = tokio::spawn(async move {
            // The watchers end with the owner, also when it is aborted.
            let _watchers = watchers;
            owner.run().await
        });
        let workers = Arc::new(workers);
        let (by, spans) = (Asker::default(), self.spans);
        Ok((Node { requests, revision: revisions, workers, by, spans }, running))
    }
}

impl Node {
    /// The same node, asked by somebody.
    #[must_use]
    pub fn asked_by(&self, by: Asker) -> Self {
        Self { by, ..self.clone() }
    }

    /// Where what it does is traced.
    #[must_use]
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Prepares a claim; durable when it answers.
    pub async fn prepare(&self, claim: Claim) -> Result<Lease, NodeError> {
        self.prepare_for(claim, Vec::new()).await
    }

    /// Prepares a claim for the processes of some cgroups, beside those it was prepared for
    /// before; durable when it answers.
    pub async fn prepare_for(
        &self,
        claim: Claim,
        bindings: Vec<Binding>,
    ) -> Result<Lease, NodeError> {
        let by = self.by.clone();
        self.ask(|reply| Request::Prepare { claim, bindings, by, reply }).await
    }

    /// Lets the processes of more cgroups use a prepared claim; durable when it answers.
    pub async fn bind(&self, claim: ClaimId, bindings: Vec<Binding>) -> Result<Lease, NodeError> {
        let by = self.by.clone();
        self.ask(|reply| Request::Bind { claim, bindings, by, reply }).await
    }

    /// Has it on record that a claim was not bound, since its cgroup is not there. The answer is
    /// what whoever asked is to be told: that, or that the daemon ends.
    pub(crate) async fn refuse_binding(&self, claim: ClaimId, error: NodeError) -> NodeError {
        let (by, told) = (self.by.clone(), error.clone());
        let refused: Result<(), _> =
            self.ask(|reply| Request::RefuseBinding { claim, error, by, reply }).await;
        refused.err().unwrap_or(told)
    }

    /// Tells that the gate came or went, or what was found about a claim's processes.
    pub(crate) async fn tell_gate(&self, told: Option<(ClaimId, EventKind, String)>) {
        // An owner that has ended keeps no story.
        let _ = self.requests.send(Request::Gate { told }).await;
    }

    /// Tells that the cgroups of some bindings of a claim are gone for good.
    pub(crate) async fn tell_gone(&self, claim: ClaimId, bindings: Vec<Binding>) {
        // An owner that has ended keeps no bindings.
        let _ = self.requests.send(Request::Gone { claim, bindings }).await;
    }

    /// Takes over how the pools of the configuration are now: what they say of the gate alone may
    /// differ. The state that is read afterwards has it.
    pub(crate) async fn set_pools(&self, pools: Arc<[Pool]>) -> Result<(), NodeError> {
        let (reply, taken) = oneshot::channel();
        let request = Request::Pools { pools, reply };
        self.requests.send(request).await.map_err(|_| NodeError::Draining)?;
        taken.await.map_err(|_| NodeError::Draining)
    }

    /// Puts what a claim's processes did into its story.
    pub(crate) async fn tell_violation(&self, claim: ClaimId, message: String) {
        // An owner that has ended keeps no story.
        let _ = self.requests.send(Request::Violated { claim, message }).await;
    }

    /// Releases a claim; false if there was nothing to release.
    pub async fn release(&self, claim: ClaimId) -> Result<bool, NodeError> {
        let by = self.by.clone();
        self.ask(|reply| Request::Release { claim, by, reply }).await
    }

    /// Puts an operator's taint on a device.
    pub async fn taint(
        &self,
        device: String,
        effect: TaintEffect,
        reason: String,
    ) -> Result<(), NodeError> {
        let by = self.by.clone();
        self.ask(|reply| Request::Taint { device, effect, reason, by, reply }).await
    }

    /// Takes a taint off a device.
    pub async fn untaint(&self, device: String, key: String) -> Result<(), NodeError> {
        let by = self.by.clone();
        self.ask(|reply| Request::Untaint { device, key, by, reply }).await
    }

    /// The node's state, with the story of `claim` if one is asked about.
    pub async fn read(&self, claim: Option<ClaimId>) -> Result<State, NodeError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Read { claim, reply };
        self.requests.send(request).await.map_err(|_| NodeError::Draining)?;
        answer.await.map_err(|_| NodeError::Draining)
    }

    /// Takes no more claims, and answers when the steps in hand have ended.
    pub async fn drain(&self) {
        let (reply, drained) = oneshot::channel();
        if self.requests.send(Request::Drain { reply }).await.is_ok() {
            // An owner that ended has nothing in hand.
            let _ = drained.await;
        }
    }

    /// Tells of each change of the node's state by its revision.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// The vendors' workers, by adapter.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<VendorName, Worker> {
        &self.workers
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(request::Reply<T>) -> Request,
    ) -> Result<T, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| NodeError::Draining)?;
        answer.await.map_err(|_| NodeError::Draining)?
    }
}
