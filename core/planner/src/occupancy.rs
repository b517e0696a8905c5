//! The overlap rules: what may lie beside what on one device.
//!
//! A whole device excludes everything. Shares lie beside shares while memory and compute
//! last. Partitions lie beside partitions whose slices they do not touch. A partition that
//! an operator made by hand is respected like a lease, and can be adopted by the claim that
//! asks for exactly that one.

use accelpool_model::{
    Allocation, Claim, ComputePermille, Device, MemoryBytes, Partition, PartitionProfile,
    Partitioning, Placement, Portion,
};

use crate::{NodeView, PrepareError, view::Holder};

/// What lies on a device already: other claims' allocations, then this claim's earlier ones.
pub(crate) struct Occupancy<'a> {
    device: &'a Device,
    holders: Vec<Holder<'a>>,
    foreign: Vec<&'a Partition>,
}

impl<'a> Occupancy<'a> {
    pub(crate) fn of(
        view: NodeView<'a>,
        device: &'a Device,
        claim: &'a Claim,
        earlier: &'a [Allocation],
    ) -> Self {
        let own = earlier
            .iter()
            .filter(|allocation| allocation.device == device.name)
            .filter(|allocation| !matches!(allocation.portion, Portion::Admin { .. }))
            .map(|allocation| Holder { claim: &claim.id, allocation });
        Self {
            device,
            holders: view.holders(&device.name, Some(&claim.id)).chain(own).collect(),
            foreign: view.foreign_partitions(device).collect(),
        }
    }

    /// What a claim that does not exist yet would find.
    pub(crate) fn beside_all(view: NodeView<'a>, device: &'a Device) -> Self {
        Self {
            device,
            holders: view.holders(&device.name, None).collect(),
            foreign: view.foreign_partitions(device).collect(),
        }
    }

    /// True if nothing at all lies on the device.
    pub(crate) fn is_free(&self) -> bool {
        self.holders.is_empty() && self.foreign.is_empty()
    }

    /// Memory that no share holds.
    pub(crate) fn memory_left(&self) -> MemoryBytes {
        let held = self.holders.iter().map(|holder| match &holder.allocation.portion {
            Portion::Share { memory, .. } => *memory,
            Portion::Whole | Portion::Partition { .. } => self.device.memory,
            Portion::Admin { .. } => MemoryBytes::ZERO,
        });
        self.device.memory.saturating_sub(held.sum())
    }

    /// Compute time that no share holds, in thousandths.
    pub(crate) fn compute_left(&self) -> u16 {
        let whole = ComputePermille::WHOLE.permille();
        self.holders.iter().fold(whole, |left, holder| match &holder.allocation.portion {
            Portion::Share { compute, .. } => left.saturating_sub(compute.permille()),
            Portion::Whole | Portion::Partition { .. } => 0,
            Portion::Admin { .. } => left,
        })
    }

    /// Slices that no partition takes.
    pub(crate) fn slices_left(&self, partitioning: &Partitioning) -> u32 {
        let leased = self.holders.iter().map(|holder| match &holder.allocation.portion {
            Portion::Partition { size, .. } => *size,
            Portion::Whole | Portion::Share { .. } => partitioning.slices,
            Portion::Admin { .. } => 0,
        });
        let by_hand = self.foreign.iter().filter_map(|partition| self.size_of(partition));
        partitioning.slices.saturating_sub(leased.chain(by_hand).fold(0, u32::saturating_add))
    }

    /// Checks that the whole device can be had.
    pub(crate) fn check_whole(&self) -> Result<(), PrepareError> {
        if let Some(holder) = self.holders.first() {
            return Err(self.held(holder));
        }
        self.check_not_cut_by_hand()
    }

    /// Checks that a share can be had beside what is there.
    pub(crate) fn check_share(
        &self,
        memory: MemoryBytes,
        compute: ComputePermille,
    ) -> Result<(), PrepareError> {
        let other = self.holders.iter().find(|holder| match holder.allocation.portion {
            Portion::Whole | Portion::Partition { .. } => true,
            Portion::Share { .. } | Portion::Admin { .. } => false,
        });
        if let Some(holder) = other {
            return Err(self.held(holder));
        }
        self.check_not_cut_by_hand()?;
        let device = self.device.name.clone();
        let left = self.memory_left();
        if memory > left {
            return Err(PrepareError::MemoryTaken { device, wanted: memory, left });
        }
        let left = self.compute_left();
        if compute.permille() > left {
            return Err(PrepareError::ComputeTaken { device, wanted: compute, left });
        }
        Ok(())
    }

    /// Checks that a partition can be had; true if it exists and would be adopted.
    pub(crate) fn check_partition(
        &self,
        partitioning: &Partitioning,
        profile: &PartitionProfile,
        start: u32,
    ) -> Result<bool, PrepareError> {
        let placement = profile.placement_at(start);
        for holder in &self.holders {
            let blocks = match &holder.allocation.portion {
                Portion::Whole | Portion::Share { .. } => true,
                Portion::Admin { .. } => false,
                Portion::Partition { profile: other, start: at, placement: held, .. } => {
                    touches(placement, *held)
                        || (*other == profile.name && *at == start)
                        || (partitioning.uniform && *other != profile.name)
                }
            };
            if blocks {
                return Err(self.held(holder));
            }
        }
        let adopted = self.check_beside_foreign(partitioning, profile, start)?;
        if !adopted {
            self.check_counts(partitioning, profile)?;
        }
        Ok(adopted)
    }

    fn check_beside_foreign(
        &self,
        partitioning: &Partitioning,
        profile: &PartitionProfile,
        start: u32,
    ) -> Result<bool, PrepareError> {
        for partition in &self.foreign {
            let same = partition.profile == profile.name && partition.start == start;
            if same && partition.complete {
                return Ok(true);
            }
            let shape = self.device.profile(&partition.profile);
            let held = shape.and_then(|shape| shape.placement_at(partition.start));
            // A partition of a shape that the device does not list could lie anywhere.
            let unknown = shape.is_none();
            let uniform = partitioning.uniform && partition.profile != profile.name;
            if same || unknown || uniform || touches(profile.placement_at(start), held) {
                return Err(self.cut_by_hand(partition));
            }
        }
        Ok(false)
    }

    /// Checks the limits that hold wherever the partition lies.
    fn check_counts(
        &self,
        partitioning: &Partitioning,
        profile: &PartitionProfile,
    ) -> Result<(), PrepareError> {
        let leased = self.holders.iter().filter(|holder| match &holder.allocation.portion {
            Portion::Partition { profile: other, .. } => *other == profile.name,
            Portion::Whole | Portion::Share { .. } | Portion::Admin { .. } => false,
        });
        let by_hand = self.foreign.iter().filter(|partition| partition.profile == profile.name);
        let exhausted = leased.count() + by_hand.count() >= profile.instances_max as usize;
        if exhausted || self.slices_left(partitioning) < profile.size {
            return Err(PrepareError::PartitionsTaken {
                device: self.device.name.clone(),
                profile: profile.name.clone(),
            });
        }
        Ok(())
    }

    fn check_not_cut_by_hand(&self) -> Result<(), PrepareError> {
        self.foreign.first().map_or(Ok(()), |partition| Err(self.cut_by_hand(partition)))
    }

    fn cut_by_hand(&self, partition: &Partition) -> PrepareError {
        PrepareError::CutByHand {
            device: self.device.name.clone(),
            profile: partition.profile.clone(),
            start: partition.start,
        }
    }

    fn held(&self, holder: &Holder<'_>) -> PrepareError {
        PrepareError::Held {
            device: self.device.name.clone(),
            portion: match &holder.allocation.portion {
                Portion::Whole => "whole".to_owned(),
                Portion::Share { .. } => "as a share".to_owned(),
                Portion::Partition { name, .. } => format!("as partition {name}"),
                Portion::Admin { .. } => "to look at".to_owned(),
            },
            holder: holder.claim.clone(),
        }
    }

    fn size_of(&self, partition: &Partition) -> Option<u32> {
        self.device.profile(&partition.profile).map(|profile| profile.size)
    }
}

fn touches(one: Option<Placement>, other: Option<Placement>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one.overlaps(other))
}
