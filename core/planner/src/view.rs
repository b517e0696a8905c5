//! What a decision sees of the node, and what each device is held by.

use std::collections::BTreeMap;

use accelpool_model::{
    Allocation, ClaimId, Device, DeviceName, Inventory, Lease, Partition, Pool, Portion,
    ProfileName, TaintEffect,
};

use crate::{PrepareError, occupancy::Occupancy, prepare::check_mode};

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

    /// True if the pool of `device` lets its partitioning mode be switched.
    #[must_use]
    pub fn switches_mode(&self, device: &Device) -> bool {
        self.pool(device).is_some_and(|pool| pool.switch_mode)
    }

    /// True if the pool of the device has its shares served by MPS.
    #[must_use]
    pub fn shares_by_mps(&self, held: &Allocation) -> bool {
        let device = self.inventory.device(&held.device);
        device.and_then(|device| self.pool(device)).is_some_and(|pool| pool.mps)
    }

    /// Everything that claims other than `but` hold on `device`, in any lease state: what is
    /// half prepared or half released is not free.
    pub(crate) fn holders(
        &self,
        device: &DeviceName,
        but: Option<&ClaimId>,
    ) -> impl Iterator<Item = Holder<'a>> {
        self.leases
            .values()
            .filter(move |lease| Some(&lease.claim.id) != but)
            .flat_map(|lease| {
                let claim = &lease.claim.id;
                lease.allocations.iter().map(move |allocation| Holder { claim, allocation })
            })
            .filter(move |holder| holder.allocation.device == *device)
            // Who only looks is in nobody's way.
            .filter(|holder| !matches!(holder.allocation.portion, Portion::Admin { .. }))
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

/// Checks that a partition could be made for a new claim at this moment.
///
/// # Errors
///
/// The refusal that such a claim would get.
pub fn check_possible(
    view: NodeView<'_>,
    device: &Device,
    profile: &ProfileName,
    start: u32,
) -> Result<(), PrepareError> {
    let unknown =
        || PrepareError::UnknownProfile { device: device.name.clone(), profile: profile.clone() };
    let partitioning = device.partitioning.as_ref().ok_or_else(unknown)?;
    let shape = device.profile(profile).ok_or_else(unknown)?;
    check_mode(view, device, true)?;
    Occupancy::beside_all(view, device).check_partition(partitioning, shape, start).map(|_| ())
}

fn is_leased(leases: &BTreeMap<ClaimId, Lease>, partition: &Partition) -> bool {
    let covers = |allocation: &Allocation| match &allocation.portion {
        Portion::Partition { profile, start, .. } => {
            allocation.uuid == partition.device
                && *profile == partition.profile
                && *start == partition.start
        }
        Portion::Whole | Portion::Share { .. } | Portion::Admin { .. } => false,
    };
    leases.values().any(|lease| lease.allocations.iter().any(covers))
}
