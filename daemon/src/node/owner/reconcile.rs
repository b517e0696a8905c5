//! Brings leases in line with what is there, whenever vendors have been heard.

use accelpool_model::{ClaimId, Step};
use accelpool_planner::{Outcome, Repair, plan_reconcile};
use tracing::{info, warn};

use super::{Owner, memory::Purpose, round::Round};
use crate::{error::Chain, node::history::EventKind};

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
            let job = self.job(lease, plan, false);
            self.launch(claim, Purpose::Reconcile(outcome), job, round);
        }
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
