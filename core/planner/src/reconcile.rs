//! Brings the node back in line with the ledger: at start, after a boot, and when devices return.
//!
//! The ledger is what was promised. A lease that was still being prepared was promised to
//! nobody, so it is undone; one that was being released is finished; one that was prepared is
//! made true again. A partition that no lease covers was made by an operator and is left alone.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use accelpool_model::{ClaimId, Device, Lease, LeaseState, PartitionStep, Plan, Portion, Step};

use crate::{
    NodeView,
    prepare::{mps_shares, offer, owned_partitions, switched_modes},
    release::plan_undo,
};

/// What a lease needs to be in line again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The lease.
    pub claim: ClaimId,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The steps that make it so.
    pub plan: Plan,
}

/// What becomes of a lease that is reconciled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is true again once the steps are done.
    Restored,
    /// It is gone once the steps are done.
    Forgotten,
    /// It cannot be made true now, for this reason; it stays on record.
    Troubled(String),
}

/// Plans how to bring every lease in line, in the order of the claims' names.
///
/// `specs` are the claims whose CDI spec is on disk. `complete` says that every vendor has
/// answered, so that a device which is not in the inventory is truly gone.
#[must_use]
pub fn plan_reconcile(
    view: NodeView<'_>,
    specs: &BTreeSet<ClaimId>,
    complete: bool,
) -> (Vec<Repair>, Plan) {
    let repairs = view.leases.values().map(|lease| match lease.state {
        LeaseState::Preparing | LeaseState::Releasing => forget(view, lease, complete),
        LeaseState::Prepared => restore(view, lease),
    });
    let orphans = specs.iter().filter(|claim| !view.leases.contains_key(*claim));
    let cleanup = Plan { steps: orphans.cloned().map(Step::RemoveSpec).collect() };
    (repairs.collect(), cleanup)
}

fn forget(view: NodeView<'_>, lease: &Lease, complete: bool) -> Repair {
    let claim = lease.claim.id.clone();
    let mut plan = plan_undo(lease);
    let absent = |step: &PartitionStep| view.inventory.device_by_uuid(&step.uuid).is_none();
    let hidden = owned_partitions(lease).find(absent);
    let outcome = match hidden {
        // What a device that is truly gone has of it is owed until its return.
        Some(_) if complete => Outcome::Forgotten,
        Some(step) => Outcome::Troubled(format!("device {} does not answer", step.device)),
        None => Outcome::Forgotten,
    };
    if !complete {
        plan.steps.retain(|step| match step {
            Step::DestroyPartition(step) => !absent(step),
            Step::SwitchMode(_)
            | Step::StartMps(_)
            | Step::ArmGate(_)
            | Step::ArmTurns(_)
            | Step::DisarmTurns(_)
            | Step::DisarmGate(_)
            | Step::RemoveSpec(_)
            | Step::CreatePartition(_)
            | Step::WriteSpec(_) => true,
        });
    }
    Repair { claim, outcome, plan }
}

fn restore(view: NodeView<'_>, lease: &Lease) -> Repair {
    let claim = lease.claim.id.clone();
    let trouble = lease.allocations.iter().find_map(|allocation| {
        let name = &allocation.device;
        let Some(device) = view.inventory.device(name) else {
            return Some(format!("device {name} is not on this node"));
        };
        if view.inventory.lost.contains(name) {
            return Some(format!("device {name} has left the bus"));
        }
        if device.uuid != allocation.uuid {
            return Some(format!(
                "device {name} is now {}, another card than {}",
                device.uuid, allocation.uuid
            ));
        }
        if let Some(trouble) = wrong_mode(view, device, &allocation.portion) {
            return Some(trouble);
        }
        match &allocation.portion {
            Portion::Partition { name, profile, start, adopted: true, .. } => {
                let there = view.inventory.partition_at(&device.uuid, profile, *start);
                let gone = !there.is_some_and(|partition| partition.complete);
                gone.then(|| format!("partition {name}, made by an operator, is gone"))
            }
            Portion::Partition { adopted: false, .. }
            | Portion::Whole
            | Portion::Share { .. }
            | Portion::Admin { .. } => None,
        }
    });
    if let Some(trouble) = trouble {
        // A spec on disk may still serve containers that run: it is left as it is.
        return Repair { claim, outcome: Outcome::Troubled(trouble), plan: Plan::default() };
    }
    Repair { claim, outcome: Outcome::Restored, plan: plan_restore(view, lease) }
}

/// What is wrong with the mode that a device is in, if it cannot be mended from here.
fn wrong_mode(view: NodeView<'_>, device: &Device, portion: &Portion) -> Option<String> {
    let switches = view.switches_mode(device);
    let scheme = device.partitioning.as_ref().map_or("", |partitioning| &partitioning.scheme);
    match portion {
        // Whoever holds it may be using it: it is not switched under them.
        Portion::Whole | Portion::Share { .. } => device
            .mode()
            .is_some_and(|mode| mode.on)
            .then(|| format!("device {} was switched to {scheme} mode", device.name)),
        Portion::Partition { .. } => (device.mode().is_some() && !device.serves_parts(switches))
            .then(|| format!("device {} is not in {scheme} mode any more", device.name)),
        Portion::Admin { .. } => None,
    }
}

/// The steps that make `lease` true from whatever is left of it: only what is missing is made.
pub(crate) fn plan_restore(view: NodeView<'_>, lease: &Lease) -> Plan {
    let there =
        |step: &PartitionStep| view.inventory.partition_at(&step.uuid, &step.profile, step.start);
    let missing = owned_partitions(lease)
        .filter(|step| !there(step).is_some_and(|partition| partition.complete))
        .flat_map(|step| {
            // A half-created one stands in the way of a whole one.
            let clear = there(&step).is_some().then(|| Step::DestroyPartition(step.clone()));
            clear.into_iter().chain([Step::CreatePartition(step)])
        });
    let missing: Vec<Step> = missing.collect();
    // A device that serves its parts is in the right mode.
    let modes = switched_modes(view, lease).filter(|_| !missing.is_empty());
    let modes: Vec<Step> = modes.filter(|step| step.on).map(Step::SwitchMode).collect();
    let mps = mps_shares(view, lease).map(Step::StartMps);
    Plan { steps: modes.into_iter().chain(missing).chain(mps).chain(offer(lease)).collect() }
}
