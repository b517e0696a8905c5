//! What a decision sees of the node, and what each device is held by.

use std::collections::BTreeMap;

use accelpool_model::{
    Allocation, Claim, ClaimId, Device, DeviceName, Inventory, Lease, Partition, Pool, Portion,
    TaintEffect,
};

/// The node as a decision sees it: observed, promised and configured.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// What is there.
    pub inventory: &'a Inventory,
    /// What was promised, by claim.
    pub leases: &'a BTreeMap<ClaimId, Lease>,
    /// How devices may be used. The first pool that takes a device decides.
    pub pools: &'a [Pool],
}

/// One allocation on a device, and the claim that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder<'a> {
    pub(crate) claim: &'a ClaimId,
    pub(crate) allocation: &'a Allocation,
}

impl<'a> NodeView<'a> {
    /// The pool that `device` belongs to.
    #[must_use]
    pub fn pool(&self, device: &Device) -> Option<&'a Pool> {
        self.pools.iter().find(|pool| pool.selector.matches(device))
    }

    /// Everything that claims other than `claim` hold on `device`, in any lease state: what is
    /// half prepared or half released is not free.
    pub(crate) fn holders_beside(
        &self,
        claim: &Claim,
        device: &DeviceName,
    ) -> impl Iterator<Item = Holder<'a>> {
        let own = claim.id.clone();
        let device = device.clone();
        self.leases
            .values()
            .filter(move |lease| lease.claim.id != own)
            .flat_map(|lease| {
                let claim = &lease.claim.id;
                lease.allocations.iter().map(move |allocation| Holder { claim, allocation })
            })
            .filter(move |holder| holder.allocation.device == device)
    }

    /// Partitions of `device` that exist and belong to no lease: an operator made them.
    pub fn foreign_partitions(&self, device: &Device) -> impl Iterator<Item = &'a Partition> {
        let leases = self.leases;
        let uuid = device.uuid.clone();
        self.inventory
            .partitions
            .iter()
            .filter(move |partition| partition.device == uuid)
            .filter(move |partition| !is_leased(leases, partition))
    }

    /// True if new work may be put on `device` by this node's own choice.
    pub(crate) fn accepts_work(&self, device: &Device) -> bool {
        let taints = self.inventory.taints.get(&device.name);
        let kept_off = |effect| match effect {
            TaintEffect::None => false,
            TaintEffect::NoSchedule | TaintEffect::NoExecute => true,
        };
        !self.inventory.lost.contains(&device.name)
            && !taints.is_some_and(|taints| taints.iter().any(|taint| kept_off(taint.effect)))
    }
}

fn is_leased(leases: &BTreeMap<ClaimId, Lease>, partition: &Partition) -> bool {
    let covers = |allocation: &Allocation| match &allocation.portion {
        Portion::Partition { profile, start, .. } => {
            allocation.uuid == partition.device
                && *profile == partition.profile
                && *start == partition.start
        }
        Portion::Whole | Portion::Share { .. } => false,
    };
    leases.values().any(|lease| lease.allocations.iter().any(covers))
}
