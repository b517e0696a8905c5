//! Claims: prepared, asked for again, released; and what becomes of them when steps end.

use accelpool_model::{
    Allocation, Binding, Claim, ClaimId, Lease, LeaseState, Plan, Portion, Step,
};
use accelpool_planner::{Prepare, PrepareError, plan_bind, plan_prepare, plan_release};
use accelpool_proto::{node::SpanKind, trace::Here};
use tracing::{info, warn};

use super::{
    Owner,
    memory::{InFlight, Purpose},
    now_ms,
    round::Round,
};
use crate::{
    audit::Asker,
    error::Chain,
    gate::dmem,
    node::{
        apply::{self, Job},
        history::EventKind,
        request::{Applied, NodeError, Reply, Request},
    },
};

impl Owner {
    pub(super) fn on_prepare(
        &mut self,
        claim: Claim,
        bindings: Vec<Binding>,
        by: Asker,
        reply: Reply<Lease>,
        round: &mut Round,
    ) {
        if reply.is_closed() {
            return; // The caller hung up before its round came: nothing was promised.
        }
        if self.memory.draining {
            return self.refuse(&claim, NodeError::Draining, by, reply, round);
        }
        if let Some(flight) = self.memory.in_flight.get_mut(&claim.id) {
            return flight.wait(Request::Prepare { claim, bindings, by, reply }, round);
        }
        let (view, id) = (self.memory.view(&self.parts.pools), claim.id.clone());
        let span = by.here.child("plan", SpanKind::Internal);
        let planned = plan_prepare(view, &claim, &bindings, &self.parts.boot, now_ms());
        span.end(&planned);
        let prepare = match planned {
            Ok(prepare) => prepare,
            Err(error) => {
                let error = self.explain(error);
                return self.refuse(&claim, error, by, reply, round);
            }
        };
        if let Some(error) = self.in_the_way(&prepare) {
            return self.refuse(&claim, error, by, reply, round);
        }
        let (mut lease, repeated) = (prepare.lease, prepare.repeated);
        let known = self.memory.leases.get(&id);
        let bound = known.is_some_and(|known| known.bindings != lease.bindings);
        if !repeated || bound || lease.boot != self.parts.boot {
            lease.boot = self.parts.boot.clone();
            self.put(lease.clone(), round);
        }
        let job = self.job(lease, prepare.plan, !repeated);
        let purpose = if repeated { Purpose::Repeat(reply) } else { Purpose::Prepare(reply) };
        self.launch(id, purpose, by, job, round);
    }

    /// Refuses a claim, and tells its story and the audit log if that is news.
    fn refuse(
        &mut self,
        claim: &Claim,
        error: NodeError,
        by: Asker,
        reply: Reply<Lease>,
        round: &mut Round,
    ) {
        let (code, trace) = (crate::error::code(&error), by.here.trace_id());
        if self.note_refused(claim, error.to_string(), code, by) {
            info!(claim = %claim.id, %error, trace, "claim refused");
        }
        round.answer(reply, Err(error));
    }

    /// The same of a binding.
    pub(super) fn refuse_binding<T: Send + 'static>(
        &mut self,
        claim: &ClaimId,
        error: NodeError,
        by: Asker,
        reply: Reply<T>,
        round: &mut Round,
    ) {
        let code = crate::error::code(&error);
        let message = format!("not bound: {}", Chain(&error));
        self.note_by(claim, EventKind::Refused, message, code, by);
        round.answer(reply, Err(error));
    }

    /// What passes by itself and keeps a claim from being prepared until then.
    fn in_the_way(&self, prepare: &Prepare) -> Option<NodeError> {
        // One that is prepared needs nothing of the vendor, or is told by the step that does.
        let fresh = prepare.lease.allocations.iter().filter(|_| !prepare.repeated);
        fresh.into_iter().find_map(|allocation| {
            if let Portion::Partition { name, profile, start, .. } = &allocation.portion
                && self.memory.is_owed(&allocation.uuid, profile, *start)
            {
                return Some(NodeError::Settling(name.clone()));
            }
            let vendor = self.memory.adapter_of(&allocation.uuid)?;
            self.parts.workers.get(vendor)?.paused_until_ms()?;
            Some(NodeError::Paused { vendor: vendor.clone() })
        })
    }

    pub(super) fn on_bind(
        &mut self,
        claim: ClaimId,
        bindings: Vec<Binding>,
        by: Asker,
        reply: Reply<Lease>,
        round: &mut Round,
    ) {
        if self.memory.draining {
            return self.refuse_binding(&claim, NodeError::Draining, by, reply, round);
        }
        if let Some(flight) = self.memory.in_flight.get_mut(&claim) {
            return flight.wait(Request::Bind { claim, bindings, by, reply }, round);
        }
        let bind = match plan_bind(self.memory.view(&self.parts.pools), &claim, &bindings) {
            Ok(bind) => bind,
            Err(error) => {
                let error = NodeError::Refused(error);
                return self.refuse_binding(&claim, error, by, reply, round);
            }
        };
        let known = self.memory.leases.get(&claim);
        if known.is_none_or(|known| known.bindings != bind.lease.bindings) {
            self.put(bind.lease.clone(), round);
            let words: Vec<String> = bindings.iter().map(ToString::to_string).collect();
            let words = format!("bound to {}", words.join(", "));
            self.note_by(&claim, EventKind::Bound, words, "", by.clone());
        }
        let job = self.job(bind.lease, bind.plan, false);
        self.launch(claim, Purpose::Repeat(reply), by, job, round);
    }

    /// Forgets bindings whose cgroups are gone: a claim that outlives its pods must not run out
    /// of room for the next.
    pub(super) fn on_gone(&mut self, claim: &ClaimId, gone: &[Binding], round: &mut Round) {
        // What is under way for the claim goes first; this comes again.
        if self.memory.draining || self.memory.in_flight.contains_key(claim) {
            return;
        }
        let Some(known) = self.memory.leases.get(claim) else { return };
        if known.state != LeaseState::Prepared {
            return;
        }
        let mut lease = known.clone();
        lease.bindings.retain(|binding| !gone.contains(binding));
        let count = known.bindings.len() - lease.bindings.len();
        if count > 0 {
            self.put(lease, round);
            let words = format!("no longer bound to {count}, whose cgroups are gone");
            self.note(claim, EventKind::Bound, words, "");
        }
    }

    pub(super) fn on_release(
        &mut self,
        claim: ClaimId,
        by: Asker,
        reply: Reply<bool>,
        round: &mut Round,
    ) {
        if self.memory.draining {
            return round.answer(reply, Err(NodeError::Draining));
        }
        if let Some(flight) = self.memory.in_flight.get_mut(&claim) {
            return flight.wait(Request::Release { claim, by, reply }, round);
        }
        let Some(release) = plan_release(self.memory.view(&self.parts.pools), &claim) else {
            return round.answer(reply, Ok(false));
        };
        self.put(release.lease.clone(), round);
        let job = self.job(release.lease, release.plan, false);
        self.launch(claim, Purpose::Release(reply), by, job, round);
    }

    pub(super) fn on_applied(&mut self, applied: Applied, round: &mut Round) {
        let Applied { claim, result, undone, switched, created, destroyed, owed, rewritten } =
            applied;
        self.memory.note_modes(&switched);
        if !switched.is_empty() || !created.is_empty() || !destroyed.is_empty() {
            self.memory.note_partitions(created, &destroyed);
            self.parts.epoch.send_modify(|epoch| *epoch += 1);
        }
        round.changed = true;
        let Some(flight) = self.memory.in_flight.remove(&claim) else { return };
        round.trace(&flight.by.here);
        let failure = result.err().map(NodeError::Failed);
        if failure.is_none() || undone {
            self.owe(owed, round);
        }
        if let Some(error) = &failure {
            let chain = Chain(error).to_string();
            let (code, by) = (crate::error::code(error), flight.by.clone());
            let trace = by.here.trace_id();
            if self.note_by(&claim, EventKind::Failed, chain.clone(), code, by) {
                warn!(%claim, error = chain, trace, "steps failed");
            }
            self.memory.troubles.insert(claim.clone(), chain);
        } else {
            self.memory.troubles.remove(&claim);
        }
        match flight.purpose {
            Purpose::Prepare(reply) => {
                self.after_prepare(&claim, reply, flight.by, failure, undone, round);
            }
            Purpose::Repeat(reply) => {
                let lease = self.memory.leases.get(&claim).cloned();
                let answer = failure.map_or(lease.ok_or(NodeError::UnknownClaim(claim)), Err);
                round.answer(reply, answer);
            }
            Purpose::Release(reply) => {
                if failure.is_none() {
                    let trace = flight.by.here.trace_id();
                    self.note_by(&claim, EventKind::Released, "given back".into(), "", flight.by);
                    self.remove(&claim, round);
                    info!(%claim, trace, "claim released");
                }
                round.answer(reply, failure.map_or(Ok(true), Err));
            }
            Purpose::Reconcile(outcome) => {
                if failure.is_none() {
                    self.after_reconcile(&claim, outcome, rewritten, round);
                }
            }
        }
        for request in flight.waiting {
            self.on_request(request, round);
        }
    }

    fn after_prepare(
        &mut self,
        claim: &ClaimId,
        reply: Reply<Lease>,
        by: Asker,
        failure: Option<NodeError>,
        undone: bool,
        round: &mut Round,
    ) {
        let Some(mut lease) = self.memory.leases.get(claim).cloned() else { return };
        match failure {
            None => {
                lease.state = LeaseState::Prepared;
                self.put(lease.clone(), round);
                let targets: Vec<_> = lease.allocations.iter().map(Allocation::target).collect();
                let targets = targets.join(", ");
                let trace = by.here.trace_id();
                self.note_by(claim, EventKind::Prepared, format!("granted {targets}"), "", by);
                info!(%claim, devices = targets, trace, "claim prepared");
                round.answer(reply, Ok(lease));
            }
            Some(error) => {
                if undone {
                    self.remove(claim, round);
                } else {
                    // What could not be undone stays on record until it can.
                    lease.state = LeaseState::Releasing;
                    self.put(lease, round);
                }
                round.answer(reply, Err(error));
            }
        }
    }

    pub(super) fn job(&self, lease: Lease, mut plan: Plan, undo: bool) -> Job {
        // Nobody can destroy the partitions of a device that is gone now, and who releases its
        // claim must not wait for its return: it is owed.
        let mut owed = Vec::new();
        if self.all_answered() {
            plan.steps.retain(|step| match step {
                Step::DestroyPartition(partition) => {
                    let listed = self.memory.is_listed(&partition.uuid);
                    owed.extend(Some(partition.clone()).filter(|_| !listed));
                    listed
                }
                Step::SwitchMode(_)
                | Step::StartMps(_)
                | Step::CreatePartition(_)
                | Step::ArmGate(_)
                | Step::DisarmGate(_)
                | Step::ArmTurns(_)
                | Step::DisarmTurns(_)
                | Step::WriteSpec(_)
                | Step::RemoveSpec(_) => true,
            });
        }
        let workers = self.memory.routes(&lease, &self.parts.workers);
        let injections = apply::known_injections(&lease, &self.memory.inventory);
        let shares = dmem::shares(&lease, &self.memory.inventory);
        let terms = self.memory.share_terms(&lease, &self.parts.pools);
        let here = Here::default();
        Job { lease, plan, workers, injections, shares, owed, terms, undo, here }
    }

    pub(super) fn launch(
        &mut self,
        claim: ClaimId,
        purpose: Purpose,
        by: Asker,
        mut job: Job,
        round: &mut Round,
    ) {
        round.trace(&by.here);
        job.here = by.here.clone();
        self.memory.in_flight.insert(claim, InFlight { purpose, waiting: Vec::new(), by });
        round.jobs.push(job);
    }

    /// The refusal, unless a vendor that is silent since the start may yet change the answer.
    fn explain(&self, error: PrepareError) -> NodeError {
        let silent = self.parts.workers.keys().find(|name| !self.memory.answered.contains(*name));
        match (silent, error) {
            (
                Some(vendor),
                source @ (PrepareError::UnknownDevice(_)
                | PrepareError::NoSuchProfile(_)
                | PrepareError::NoneFree { .. }),
            ) => NodeError::NotObserved { vendor: vendor.clone(), source },
            (_, error) => NodeError::Refused(error),
        }
    }
}
