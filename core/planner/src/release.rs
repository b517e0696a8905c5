//! Turns a release into the steps that give everything back.

use accelpool_model::{ClaimId, Lease, LeaseState, Plan, Step};

use crate::{NodeView, prepare::owned_partitions};

/// The lease to record as being released, and the steps that undo it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The lease, on its way out.
    pub lease: Lease,
    /// The steps: the CDI spec goes first, so that no new container gets the device, then turns
    /// end and the gate closes, so that no running one uses or opens it again.
    pub plan: Plan,
}

/// Plans how to give back what `claim` holds. A claim without a lease needs nothing: `None`.
#[must_use]
pub fn plan_release(view: NodeView<'_>, claim: &ClaimId) -> Option<Release> {
    let mut lease = view.leases.get(claim)?.clone();
    lease.state = LeaseState::Releasing;
    let plan = plan_undo(&lease);
    Some(Release { lease, plan })
}

/// The steps that undo whatever of `lease` may be there.
#[must_use]
pub fn plan_undo(lease: &Lease) -> Plan {
    let claim = &lease.claim.id;
    let turns = lease.takes_turns().then(|| Step::DisarmTurns(claim.clone()));
    let withdraw = [Step::RemoveSpec(claim.clone())]
        .into_iter()
        .chain(turns)
        .chain([Step::DisarmGate(claim.clone())]);
    let mut partitions: Vec<Step> = owned_partitions(lease).map(Step::DestroyPartition).collect();
    partitions.reverse();
    Plan { steps: withdraw.chain(partitions).collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use accelpool_model::{Enforcement, Inventory};

    use super::*;
    use crate::testing::{lease, partition_lease, pools, share_lease};

    #[track_caller]
    fn check(held: Lease, expected: &[&str]) {
        let claim = held.claim.id.clone();
        let leases = BTreeMap::from([(claim.clone(), held)]);
        let view = NodeView { inventory: &Inventory::default(), leases: &leases, pools: &pools() };
        let release = plan_release(view, &claim).expect("the claim has a lease");
        assert_eq!(release.lease.state, LeaseState::Releasing);
        assert_eq!(release.plan.to_string().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn spec_goes_before_partitions() {
        check(
            partition_lease("a", &[("1g.10gb", 0), ("1g.10gb", 1)], false),
            &[
                "remove CDI spec of a",
                "disarm the gate for a",
                "destroy partition gpu-0000-1b-00-0-mig-1g-10gb-1",
                "destroy partition gpu-0000-1b-00-0-mig-1g-10gb-0",
            ],
        );
    }

    #[test]
    fn turns_end_before_the_gate_closes() {
        let steps = ["remove CDI spec of a", "disarm the turns of a", "disarm the gate for a"];
        let mut held = share_lease("a", 10, 250);
        held.allocations[0].enforcement.compute = Enforcement::Library;
        check(held, &steps);
    }

    #[test]
    fn adopted_partitions_stay() {
        let steps = ["remove CDI spec of a", "disarm the gate for a"];
        check(partition_lease("a", &[("1g.10gb", 0)], true), &steps);
        check(lease("a"), &steps);
    }

    #[test]
    fn unknown_claim_needs_nothing() {
        let view = NodeView {
            inventory: &Inventory::default(),
            leases: &BTreeMap::new(),
            pools: &pools(),
        };
        assert_eq!(plan_release(view, &"a".parse().unwrap()), None);
    }
}
