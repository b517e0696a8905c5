//! Brings leases in line with what is there, whenever vendors have been heard.

use accelpool_model::{ClaimId, Lease, Plan, Step};
use accelpool_planner::{Outcome, Repair, plan_reconcile};
use tracing::{info, warn};

use super::{Owner, memory::Purpose, round::Round};
use crate::{
    audit::Asker,
    error::Chain,
    node::{
        apply::{Tools, known_injections},
        history::EventKind,
    },
};

impl Owner {
    /// Starts whatever brings leases in line with what is there; claims in hand are left alone.
    pub(super) fn reconcile(&mut self, round: &mut Round) {
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
            let Step::RemoveSpec(claim) = step else { continue };
            match self.parts.tools.specs.remove(&claim) {
                Ok(()) => info!(%claim, "CDI spec without a lease removed"),
                Err(error) => warn!(%claim, error = %Chain(&error), "stale CDI spec stays"),
            }
        }
        if self.all_answered() && self.memory.in_flight.is_empty() {
            self.parts.tools.turns.clear(&self.memory.leases);
        }
        for Repair { claim, outcome, plan } in repairs {
            if self.memory.in_flight.contains_key(&claim) {
                continue;
            }
            if let (Outcome::Troubled(reason), true) = (&outcome, plan.steps.is_empty()) {
                self.trouble(&claim, reason.clone(), round);
                continue;
            }
            let Some(lease) = self.memory.leases.get(&claim).cloned() else { continue };
            if outcome == Outcome::Restored && self.is_in_line(&lease, &plan) {
                round.changed |= self.memory.troubles.remove(&claim).is_some();
                continue;
            }
            let job = self.job(lease, plan, false);
            self.launch(claim, Purpose::Reconcile(outcome), Asker::default(), job, round);
        }
    }

    /// True if all that `plan` would do for `lease` is done: the usual case, which is looked at
    /// here for all leases at once. It reads a few small files of a folder in memory.
    fn is_in_line(&self, lease: &Lease, plan: &Plan) -> bool {
        let injections = known_injections(lease, &self.memory.inventory);
        let Tools { specs, gate, .. } = &self.parts.tools;
        plan.steps.iter().all(|step| match step {
            Step::WriteSpec(_) => matches!(specs.is_right(lease, &injections), Ok(true)),
            Step::ArmGate(_) => gate.is_armed(lease, &injections),
            // What a share's turns add to its spec is known only once they are armed.
            Step::ArmTurns(_)
            | Step::DisarmTurns(_)
            | Step::StartMps(_)
            | Step::SwitchMode(_)
            | Step::CreatePartition(_)
            | Step::DestroyPartition(_)
            | Step::RemoveSpec(_)
            | Step::DisarmGate(_) => false,
        })
    }

    pub(super) fn after_reconcile(
        &mut self,
        claim: &ClaimId,
        outcome: Outcome,
        rewritten: bool,
        round: &mut Round,
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
                self.remove(claim, round);
            }
            Outcome::Troubled(reason) => self.trouble(claim, reason, round),
        }
    }
}
