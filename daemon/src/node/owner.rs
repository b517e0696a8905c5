//! The one task that owns the node's state. Nothing else changes leases, taints or inventory.
//!
//! It works in turns. A turn takes everything that has arrived, decides it against the state
//! as the turn has changed it so far, commits all records in one transaction, and only then
//! answers and starts the steps. Claims that arrive together thus share two commits, and
//! nobody hears of what is not on disk.
//!
//! ```text
//! requests, notices -> decide (pure plans) -> commit -> answer, start steps -> notices
//! ```

mod memory;
mod observed;
mod turn;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use accelpool_ledger::{CommitError, Ledger, Replayed};
use accelpool_model::{BootId, Claim, ClaimId, Lease, Pool, Topology, VendorName};
use accelpool_planner::{Outcome, Repair, plan_prepare, plan_reconcile, plan_release};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use self::{
    memory::{InFlight, Memory, Purpose},
    turn::Turn,
};
use super::{
    apply::{self, Job, Tools},
    history::EventKind,
    request::{Applied, NodeError, Notice, Reply, Request, State},
};
use crate::{error::Chain, worker::Worker};

/// The most requests that one turn takes: the kubelet's default limit is 110 pods.
const TURN_MAX: usize = 128;
/// The most requests that wait for one claim's steps to end.
const WAITING_MAX: usize = 64;

/// What the owner is made of.
pub(super) struct Parts {
    pub(super) boot: BootId,
    pub(super) pools: Arc<[Pool]>,
    pub(super) topology: Arc<Topology>,
    pub(super) workers: BTreeMap<VendorName, Worker>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) replayed: Replayed,
    pub(super) tools: Tools,
    pub(super) inbox: mpsc::Receiver<Request>,
    pub(super) notices: mpsc::Receiver<Notice>,
    /// Where the tasks that the owner starts send their notices.
    pub(super) notify: mpsc::Sender<Notice>,
    pub(super) revision: watch::Sender<u64>,
    /// Grows whenever partitions change by our own doing.
    pub(super) epoch: watch::Sender<u64>,
}

pub(super) struct Owner {
    parts: Parts,
    memory: Memory,
    jobs: JoinSet<()>,
}

impl Owner {
    pub(super) fn new(mut parts: Parts) -> Self {
        let leases = std::mem::take(&mut parts.replayed.leases);
        let taints = std::mem::take(&mut parts.replayed.taints);
        Self { parts, memory: Memory::new(leases, taints), jobs: JoinSet::new() }
    }

    /// Waits for the vendors and brings the node in line with the ledger, both for a bounded
    /// time: what takes longer goes on while the node serves.
    pub(super) async fn start(&mut self, patience: Duration) -> Result<(), CommitError> {
        let until = Instant::now() + patience;
        while !self.all_answered() {
            match timeout_at(until, self.gather()).await {
                Ok(Some(arrived)) => self.turn(arrived).await?,
                Ok(None) => return Ok(()),
                Err(_) => {
                    warn!("not every vendor has answered in time, going on without");
                    break;
                }
            }
        }
        let mut turn = Turn::default();
        self.reconcile(&mut turn);
        self.memory.started = true;
        self.settle(turn).await?;
        while !self.memory.in_flight.is_empty() {
            match timeout_at(until + patience, self.gather()).await {
                Ok(Some(arrived)) => self.turn(arrived).await?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// Serves until every handle is gone. An error means that the ledger cannot be written.
    pub(super) async fn run(mut self) -> Result<(), CommitError> {
        while let Some(arrived) = self.gather().await {
            self.turn(arrived).await?;
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
        while arrived.notices.len() < TURN_MAX
            && let Ok(notice) = self.parts.notices.try_recv()
        {
            arrived.notices.push(notice);
        }
        while arrived.requests.len() < TURN_MAX
            && let Ok(request) = self.parts.inbox.try_recv()
        {
            arrived.requests.push(request);
        }
        Some(arrived)
    }

    async fn turn(&mut self, arrived: Arrived) -> Result<(), CommitError> {
        let mut turn = Turn::default();
        for notice in arrived.notices {
            self.on_notice(notice, &mut turn);
        }
        for request in arrived.requests {
            self.on_request(request, &mut turn);
        }
        self.settle(turn).await
    }

    /// Commits the turn, then answers and starts what it decided.
    async fn settle(&mut self, turn: Turn) -> Result<(), CommitError> {
        let Turn { writes, answers, jobs, reads, changed } = turn;
        if !writes.is_empty() {
            let faults = self.parts.tools.faults.clone();
            faults.pass("commit.before").await;
            let ledger = Arc::clone(&self.parts.ledger);
            let committed = tokio::task::spawn_blocking(move || ledger.commit(&writes)).await;
            if let Err(error) =
                committed.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
            {
                for answer in answers {
                    answer(Err(NodeError::Ledger));
                }
                return Err(error);
            }
            faults.pass("commit.after").await;
        }
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
            for reply in self.memory.drained.drain(..) {
                let _ = reply.send(()); // whoever drains may have given up waiting
            }
        }
        Ok(())
    }

    fn on_request(&mut self, request: Request, turn: &mut Turn) {
        match request {
            Request::Prepare { claim, reply } => self.on_prepare(claim, reply, turn),
            Request::Release { claim, reply } => self.on_release(claim, reply, turn),
            Request::Taint { device, effect, reason, reply } => {
                let tainted = self.on_taint(&device, effect, reason, turn);
                turn.answer(reply, tainted);
            }
            Request::Untaint { device, key, reply } => {
                let untainted = self.on_untaint(&device, key, turn);
                turn.answer(reply, untainted);
            }
            Request::Read { claim, reply } => turn.reads.push((claim, reply)),
            Request::Drain { reply } => {
                self.memory.draining = true;
                self.memory.drained.push(reply);
                turn.changed = true;
            }
        }
    }

    fn on_notice(&mut self, notice: Notice, turn: &mut Turn) {
        match notice {
            Notice::Applied(applied) => self.on_applied(applied, turn),
            Notice::Observed { adapter, epoch, answer } => {
                self.on_observed(&adapter, epoch, answer, turn);
                if self.memory.started {
                    self.reconcile(turn);
                }
            }
            Notice::Faulted { adapter, fault } => self.on_fault(&adapter, &fault, turn),
            Notice::Probed { device, action, probed } => {
                self.on_probed(&device, action, probed, turn);
            }
        }
    }

    fn on_prepare(&mut self, claim: Claim, reply: Reply<Lease>, turn: &mut Turn) {
        if reply.is_closed() {
            return; // The caller hung up before its turn came: nothing was promised.
        }
        if self.memory.draining {
            return turn.answer(reply, Err(NodeError::Draining));
        }
        if let Some(flight) = self.memory.in_flight.get_mut(&claim.id) {
            return flight.wait(Request::Prepare { claim, reply }, turn);
        }
        let (view, id) = (self.memory.view(&self.parts.pools), claim.id.clone());
        let prepare = match plan_prepare(view, &claim, &self.parts.boot, now_ms()) {
            Ok(prepare) => prepare,
            Err(error) => {
                let error = NodeError::from(error);
                let code = crate::error::code(&error);
                if self.note(&id, EventKind::Refused, error.to_string(), code) {
                    info!(claim = %id, %error, "claim refused");
                }
                return turn.answer(reply, Err(error));
            }
        };
        let (mut lease, repeated) = (prepare.lease, prepare.repeated);
        if !repeated || lease.boot != self.parts.boot {
            lease.boot = self.parts.boot.clone();
            self.put(lease.clone(), turn);
        }
        let job = self.job(lease, prepare.plan, !repeated);
        let purpose = if repeated { Purpose::Repeat(reply) } else { Purpose::Prepare(reply) };
        self.launch(id, purpose, job, turn);
    }

    fn on_release(&mut self, claim: ClaimId, reply: Reply<bool>, turn: &mut Turn) {
        if self.memory.draining {
            return turn.answer(reply, Err(NodeError::Draining));
        }
        if let Some(flight) = self.memory.in_flight.get_mut(&claim) {
            return flight.wait(Request::Release { claim, reply }, turn);
        }
        let Some(release) = plan_release(self.memory.view(&self.parts.pools), &claim) else {
            return turn.answer(reply, Ok(false));
        };
        self.put(release.lease.clone(), turn);
        let job = self.job(release.lease, release.plan, false);
        self.launch(claim, Purpose::Release(reply), job, turn);
    }

    fn on_applied(&mut self, applied: Applied, turn: &mut Turn) {
        let Applied { claim, result, undone, created, destroyed, rewritten } = applied;
        if !created.is_empty() || !destroyed.is_empty() {
            self.memory.note_partitions(created, &destroyed);
            self.parts.epoch.send_modify(|epoch| *epoch += 1);
        }
        turn.changed = true;
        let Some(flight) = self.memory.in_flight.remove(&claim) else { return };
        let failure = result.err().map(NodeError::Failed);
        if let Some(error) = &failure {
            let chain = Chain(error).to_string();
            if self.note(&claim, EventKind::Failed, chain.clone(), crate::error::code(error)) {
                warn!(%claim, error = chain, "steps failed");
            }
            self.memory.troubles.insert(claim.clone(), chain);
        } else {
            self.memory.troubles.remove(&claim);
        }
        match flight.purpose {
            Purpose::Prepare(reply) => self.after_prepare(&claim, reply, failure, undone, turn),
            Purpose::Repeat(reply) => {
                let lease = self.memory.leases.get(&claim).cloned();
                let answer = failure.map_or(lease.ok_or(NodeError::UnknownClaim(claim)), Err);
                turn.answer(reply, answer);
            }
            Purpose::Release(reply) => {
                if failure.is_none() {
                    self.note(&claim, EventKind::Released, "given back".into(), "");
                    self.remove(&claim, turn);
                    info!(%claim, "claim released");
                }
                turn.answer(reply, failure.map_or(Ok(true), Err));
            }
            Purpose::Reconcile(outcome) => {
                if failure.is_none() {
                    self.after_reconcile(&claim, outcome, rewritten, turn);
                }
            }
        }
        for request in flight.waiting {
            self.on_request(request, turn);
        }
    }

    fn after_prepare(
        &mut self,
        claim: &ClaimId,
        reply: Reply<Lease>,
        failure: Option<NodeError>,
        undone: bool,
        turn: &mut Turn,
    ) {
        let Some(mut lease) = self.memory.leases.get(claim).cloned() else { return };
        match failure {
            None => {
                lease.state = accelpool_model::LeaseState::Prepared;
                self.put(lease.clone(), turn);
                let targets: Vec<_> =
                    lease.allocations.iter().map(accelpool_model::Allocation::target).collect();
                let targets = targets.join(", ");
                self.note(claim, EventKind::Prepared, format!("granted {targets}"), "");
                info!(%claim, devices = targets, "claim prepared");
                turn.answer(reply, Ok(lease));
            }
            Some(error) => {
                if undone {
                    self.remove(claim, turn);
                } else {
                    // What could not be undone stays on record until it can.
                    lease.state = accelpool_model::LeaseState::Releasing;
                    self.put(lease, turn);
                }
                turn.answer(reply, Err(error));
            }
        }
    }

    /// Starts whatever brings leases in line with what is there; claims in hand are left alone.
    fn reconcile(&mut self, turn: &mut Turn) {
        let specs = match self.parts.tools.specs.claims() {
            Ok(specs) => specs,
            Err(error) => {
                warn!(error = %Chain(&error), "CDI specs cannot be checked");
                return;
            }
        };
        let view = self.memory.view(&self.parts.pools);
        let (repairs, cleanup) = plan_reconcile(view, &specs, self.all_answered());
        for step in cleanup.steps {
            let accelpool_model::Step::RemoveSpec(claim) = step else { continue };
            match self.parts.tools.specs.remove(&claim) {
                Ok(()) => info!(%claim, "CDI spec without a lease removed"),
                Err(error) => warn!(%claim, error = %Chain(&error), "stale CDI spec stays"),
            }
        }
        for Repair { claim, outcome, plan } in repairs {
            if self.memory.in_flight.contains_key(&claim) {
                continue;
            }
            if let (Outcome::Troubled(reason), true) = (&outcome, plan.steps.is_empty()) {
                self.trouble(&claim, reason.clone(), turn);
                continue;
            }
            let Some(lease) = self.memory.leases.get(&claim).cloned() else { continue };
            let job = self.job(lease, plan, false);
            self.launch(claim, Purpose::Reconcile(outcome), job, turn);
        }
    }

    fn after_reconcile(
        &mut self,
        claim: &ClaimId,
        outcome: Outcome,
        rewritten: bool,
        turn: &mut Turn,
    ) {
        match outcome {
            Outcome::Restored if rewritten => {
                self.note(claim, EventKind::Repaired, "the CDI spec was written anew".into(), "");
                info!(%claim, "CDI spec repaired");
            }
            Outcome::Restored => {}
            Outcome::Forgotten => {
                let message = "an unfinished attempt was cleared away".to_owned();
                self.note(claim, EventKind::Recovered, message, "");
                info!(%claim, "unfinished lease cleared away");
                self.remove(claim, turn);
            }
            Outcome::Troubled(reason) => self.trouble(claim, reason, turn),
        }
    }

    fn job(&self, lease: Lease, plan: accelpool_model::Plan, undo: bool) -> Job {
        let workers = self.memory.routes(&lease, &self.parts.workers);
        let injections = apply::known_injections(&lease, &self.memory.inventory);
        Job { lease, plan, workers, injections, undo }
    }

    fn launch(&mut self, claim: ClaimId, purpose: Purpose, job: Job, turn: &mut Turn) {
        self.memory.in_flight.insert(claim, InFlight { purpose, waiting: Vec::new() });
        turn.jobs.push(job);
    }

    fn all_answered(&self) -> bool {
        self.parts.workers.keys().all(|adapter| self.memory.answered.contains(adapter))
    }

    fn state(&self, claim: Option<&ClaimId>) -> State {
        State {
            revision: *self.parts.revision.borrow(),
            inventory: self.memory.inventory.clone(),
            leases: self.memory.leases.values().cloned().collect(),
            troubles: self.memory.troubles.clone(),
            pools: Arc::clone(&self.parts.pools),
            topology: Arc::clone(&self.parts.topology),
            events: claim.map(|claim| self.memory.history.of(claim)).unwrap_or_default(),
            vendor_troubles: self.memory.vendor_troubles.clone(),
            devices_of: self
                .memory
                .discoveries
                .iter()
                .map(|(adapter, found)| {
                    (adapter.clone(), u32::try_from(found.devices.len()).unwrap_or(u32::MAX))
                })
                .collect(),
            draining: self.memory.draining,
        }
    }
}

/// What arrived since the last turn.
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
