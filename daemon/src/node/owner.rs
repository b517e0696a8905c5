//! The one task that owns the node's state. Nothing else changes leases, taints or inventory.
//!
//! It works in rounds. A round takes everything that has arrived, decides it against the state
//! as the round has changed it so far, commits all records in one transaction, and only then
//! answers and starts the steps. Claims that arrive together thus share two commits, and
//! nobody hears of what is not on disk.
//!
//! ```text
//! requests, notices -> decide (pure plans) -> commit -> answer, start steps -> notices
//! ```

mod audited;
mod claims;
mod configure;
mod memory;
mod mps;
mod observed;
mod owed;
mod reconcile;
mod round;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use accelpool_ledger::{CommitError, Ledger, Replayed};
use accelpool_model::{Binding, BootId, ClaimId, Pool, Topology, VendorName};
use accelpool_proto::{node::SpanKind, trace::Span};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::warn;

use self::{memory::Memory, round::Round};
use super::{
    apply::{self, Tools},
    history::EventKind,
    request::{NodeError, Notice, Request, State},
};
use crate::{audit, blocking::in_place, trace::Spans, worker::Worker};

/// The most requests that one round takes: the kubelet's default limit is 110 pods.
const ROUND_MAX: usize = 128;
/// The most requests that wait for one claim's steps to end.
const WAITING_MAX: usize = 64;

/// What the owner is made of.
pub(super) struct Parts {
    pub(super) boot: BootId,
    pub(super) pools: Arc<[Pool]>,
    pub(super) topology: Arc<Topology>,
    pub(super) workers: BTreeMap<VendorName, Worker>,
    pub(super) ledger: Ledger,
    pub(super) audit: audit::Log,
    pub(super) replayed: Replayed,
    pub(super) tools: Tools,
    pub(super) inbox: mpsc::Receiver<Request>,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// Where the tasks that the owner starts send their notices.
    pub(super) notify: mpsc::Sender<Notice>,
    pub(super) revision: watch::Sender<u64>,
    /// Grows whenever partitions change by our own doing.
    pub(super) epoch: watch::Sender<u64>,
    pub(super) spans: Spans,
}

pub(super) struct Owner {
    parts: Parts,
    memory: Memory,
    jobs: JoinSet<()>,
    /// What the round has to say to the audit log.
    records: Vec<audit::Entry>,
}

impl Owner {
    pub(super) fn new(mut parts: Parts) -> Self {
        let mut leases = std::mem::take(&mut parts.replayed.leases);
        for lease in leases.iter_mut().filter(|lease| lease.boot != parts.boot) {
            // The numbers of cgroups began anew with the boot.
            lease.bindings.retain(|binding| match binding {
                Binding::Workload(_) | Binding::Cgroup { id: None, .. } => true,
                Binding::Cgroup { id: Some(_), .. } => false,
            });
        }
        let taints = std::mem::take(&mut parts.replayed.taints);
        let owed = std::mem::take(&mut parts.replayed.owed);
        let memory = Memory::new(leases, taints, owed);
        let mut owner = Self { parts, memory, jobs: JoinSet::new(), records: Vec::new() };
        owner.audit_start();
        owner
    }

    /// Waits for the vendors and brings the node in line with the ledger, both for a bounded
    /// time: what takes longer goes on while the node serves.
    pub(super) async fn start(&mut self, patience: Duration) -> Result<(), CommitError> {
        let until = Instant::now() + patience;
        while !self.all_answered() {
            match timeout_at(until, self.gather()).await {
                Ok(Some(arrived)) => self.round(arrived).await?,
                Ok(None) => return Ok(()),
                Err(_) => {
                    warn!("not every vendor has answered in time, going on without");
                    break;
                }
            }
        }
        let mut round = Round::default();
        self.reconcile(&mut round);
        self.settle_owed(&mut round);
        self.memory.started = true;
        for adapter in self.parts.workers.keys().cloned().collect::<Vec<_>>() {
            self.configure(&adapter);
        }
        self.settle(round).await?;
        while !self.memory.in_flight.is_empty() {
            match timeout_at(until + patience, self.gather()).await {
                Ok(Some(arrived)) => self.round(arrived).await?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// Serves until every handle is gone. An error means that the ledger cannot be written.
    pub(super) async fn run(mut self) -> Result<(), CommitError> {
        while let Some(arrived) = self.gather().await {
            self.round(arrived).await?;
        }
        Ok(())
    }

    /// Everything that has arrived, at least one thing; `None` once nobody can ask any more.
    async fn gather(&mut self) -> Option<Arrived> {
        let mut arrived = Arrived::default();
        tokio::select! {
            Some(notice) = self.parts.notices.recv() => arrived.notices.push(notice),
            request = self.parts.inbox.recv() => arrived.requests.push(request?),
        }
        while arrived.notices.len() < ROUND_MAX
            && let Ok(notice) = self.parts.notices.try_recv()
        {
            arrived.notices.push(notice);
        }
        while arrived.requests.len() < ROUND_MAX
            && let Ok(request) = self.parts.inbox.try_recv()
        {
            arrived.requests.push(request);
        }
        Some(arrived)
    }

    async fn round(&mut self, arrived: Arrived) -> Result<(), CommitError> {
        let mut round = Round::default();
        for notice in arrived.notices {
            self.on_notice(notice, &mut round);
        }
        for request in arrived.requests {
            self.on_request(request, &mut round);
        }
        self.settle(round).await
    }

    /// Commits the round, then answers and starts what it decided.
    async fn settle(&mut self, round: Round) -> Result<(), CommitError> {
        let Round { writes, answers, jobs, reads, changed, here, spans } = round;
        if !writes.is_empty() {
            let faults = self.parts.tools.faults.clone();
            faults.pass("commit.before").await;
            // One commit is in the trace of each claim that it is for.
            let commits: Vec<Span> =
                here.iter().map(|it| it.child("ledger commit", SpanKind::Internal)).collect();
            if let Err(error) = in_place(|| self.parts.ledger.commit(&writes)) {
                for answer in answers {
                    answer(Err(NodeError::Ledger));
                }
                return Err(error);
            }
            drop(commits);
            faults.pass("commit.after").await;
        }
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            in_place(|| self.parts.audit.append(records));
        }
        drop(spans);
        self.keep_mps();
        for job in jobs {
            let (tools, notify) = (self.parts.tools.clone(), self.parts.notify.clone());
            self.jobs.spawn(async move {
                let applied = apply::apply(tools, job).await;
                // Nobody listens only if the owner has ended, and then nothing is owed.
                let _ = notify.send(Notice::Applied(applied)).await;
            });
        }
        while self.jobs.try_join_next().is_some() {}
        if changed {
            self.parts.revision.send_modify(|revision| *revision += 1);
        }
        for answer in answers {
            answer(Ok(()));
        }
        for (claim, reply) in reads {
            // The reader may have hung up.
            let _ = reply.send(self.state(claim.as_ref()));
        }
        if self.memory.in_flight.is_empty() {
            self.list_again();
            for reply in self.memory.drained.drain(..) {
                let _ = reply.send(()); // whoever drains may have given up waiting
            }
        }
        Ok(())
    }

    fn on_request(&mut self, request: Request, round: &mut Round) {
        match request {
            Request::Prepare { claim, bindings, by, reply } => {
                self.on_prepare(claim, bindings, by, reply, round);
            }
            Request::Bind { claim, bindings, by, reply } => {
                self.on_bind(claim, bindings, by, reply, round);
            }
            Request::RefuseBinding { claim, error, by, reply } => {
                self.refuse_binding(&claim, error, by, reply, round);
            }
            Request::Release { claim, by, reply } => self.on_release(claim, by, reply, round),
            Request::Taint { device, effect, reason, by, reply } => {
                let words = format!("{effect}: {reason}");
                let tainted = self.on_taint(&device, effect, reason, round);
                if tainted.is_ok() {
                    self.record_device("tainted", device, words, by);
                }
                round.answer(reply, tainted);
            }
            Request::Untaint { device, key, by, reply } => {
                let words = format!("the taint `{key}` was taken off");
                let untainted = self.on_untaint(&device, key, round);
                if untainted.is_ok() {
                    self.record_device("untainted", device, words, by);
                }
                round.answer(reply, untainted);
            }
            Request::Read { claim, reply } => round.reads.push((claim, reply)),
            Request::Gate { told } => {
                round.changed = true;
                match told {
                    Some((claim, kind, message)) if self.memory.leases.contains_key(&claim) => {
                        self.note(&claim, kind, message, "");
                    }
                    Some(_) | None => {}
                }
            }
            Request::Gone { claim, bindings } => self.on_gone(&claim, &bindings, round),
            Request::Pools { pools, reply } => {
                self.parts.pools = pools;
                round.changed = true;
                // Answered with the round, when the state that is read has them.
                round.answers.push(Box::new(move |_| {
                    let _ = reply.send(()); // who asked may have hung up
                }));
            }
            Request::Violated { claim, message } => {
                if self.memory.leases.contains_key(&claim) {
                    round.changed = true;
                    self.note(&claim, EventKind::Violated, message, "");
                }
            }
            Request::Drain { reply } => {
                self.memory.draining = true;
                self.memory.drained.push(reply);
                round.changed = true;
            }
        }
    }

    fn on_notice(&mut self, notice: Notice, round: &mut Round) {
        match notice {
            Notice::Applied(applied) => self.on_applied(applied, round),
            Notice::Observed { adapter, epoch, answer } => {
                self.on_observed(&adapter, epoch, answer, round);
                if self.memory.started {
                    self.reconcile(round);
                    self.settle_owed(round);
                }
            }
            Notice::Faulted { adapter, fault, recorded } => {
                self.on_fault(&adapter, &fault, round);
                round.answers.push(Box::new(move |committed| {
                    if committed.is_ok() {
                        let _ = recorded.send(()); // the watcher may have ended
                    }
                }));
            }
            Notice::Mps(event) => self.on_mps(&event, round),
            Notice::Settled { step, result } => self.on_settled(&step, result, round),
            Notice::Configured { device, settings, result } => {
                self.on_configured(&device, settings, result, round);
            }
            Notice::Probed { device, advice, probed } => {
                self.on_probed(&device, advice, probed, round);
            }
        }
    }

    fn all_answered(&self) -> bool {
        self.parts.workers.keys().all(|adapter| self.memory.answered.contains(adapter))
    }

    fn state(&self, claim: Option<&ClaimId>) -> State {
        State {
            revision: *self.parts.revision.borrow(),
            inventory: Arc::clone(&self.memory.inventory),
            leases: Arc::clone(&self.memory.leases),
            troubles: self.memory.troubles.clone(),
            pools: Arc::clone(&self.parts.pools),
            topology: Arc::clone(&self.parts.topology),
            events: claim.map(|claim| self.memory.history.of(claim)).unwrap_or_default(),
            vendor_troubles: self.memory.vendor_troubles(),
            gate: self.parts.tools.gate.view(),
            settled: self.all_answered() && self.memory.in_flight.is_empty(),
            adapter_of: self.memory.adapters(),
            event_counts: self.memory.history.counts().clone(),
            complete: self.all_answered(),
            draining: self.memory.draining,
        }
    }
}

/// What arrived since the last round.
#[derive(Default)]
struct Arrived {
    requests: Vec<Request>,
    notices: Vec<Notice>,
}

/// The wall clock, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
