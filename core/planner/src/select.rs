//! Chooses devices for a claim that leaves the choice to this node.
//!
//! Whole devices by topology (`choose`); shares where they fit tightest, so that whole
//! devices stay free; partitions where they leave the most room for other shapes.

use std::cmp::Reverse;

use accelpool_model::{
    Allocation, Claim, Device, PartitionProfile, Placements, ProfileName, Request, Selector, Share,
};

use crate::{
    NodeView, PrepareError,
    choose::{Candidate, choose},
    occupancy::Occupancy,
    prepare::{allocate_partition, allocate_share, allocate_whole},
};

/// The most devices that one request may ask for; Kubernetes allows as many results.
pub const COUNT_MAX: u32 = 32;

/// What a request leaves open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Any<'a> {
    pub(crate) selector: &'a Selector,
    pub(crate) profile: Option<&'a ProfileName>,
    pub(crate) count: u32,
}

pub(crate) fn allocate_any(
    view: NodeView<'_>,
    claim: &Claim,
    request: &Request,
    any: Any<'_>,
    earlier: &[Allocation],
) -> Result<Vec<Allocation>, PrepareError> {
    let devices: Vec<&Device> = view
        .inventory
        .devices()
        .filter(|device| any.selector.matches(device) && view.accepts_work(device))
        .collect();
    let seek = Seek { view, claim, request, earlier, devices };
    match (any.profile, &request.share) {
        (Some(profile), None) => seek.partitions(profile, any.count),
        (Some(profile), Some(_)) => Err(PrepareError::ShareOfPartition(profile.to_string())),
        (None, Some(share)) => seek.shares(*share, any.count),
        (None, None) => seek.whole(any.count),
    }
}

struct Seek<'a> {
    view: NodeView<'a>,
    claim: &'a Claim,
    request: &'a Request,
    earlier: &'a [Allocation],
    devices: Vec<&'a Device>,
}

impl Seek<'_> {
    fn whole(&self, count: u32) -> Result<Vec<Allocation>, PrepareError> {
        let allocate = |device: &&Device| {
            let earlier = self.earlier;
            allocate_whole(self.view, self.claim, self.request, device, earlier)
        };
        let (free, refusals) = self.sort_out(allocate);
        let candidates: Vec<Candidate<'_>> =
            free.iter().map(|(device, _)| Candidate::of(device)).collect();
        let chosen = choose(&candidates, &self.view.inventory.links, count as usize, &[]);
        let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) else {
            return Err(self.none_free("whole device", refusals, free.len(), count));
        };
        Ok(chosen.into_iter().map(|index| free[index].1.clone()).collect())
    }

    fn shares(&self, share: Share, count: u32) -> Result<Vec<Allocation>, PrepareError> {
        let allocate = |device: &&Device| {
            let earlier = self.earlier;
            allocate_share(self.view, self.claim, self.request, device, share, earlier)
        };
        let (mut fitting, refusals) = self.sort_out(allocate);
        if fitting.len() < count as usize {
            return Err(self.none_free(
                "device with room for the share",
                refusals,
                fitting.len(),
                count,
            ));
        }
        // The fullest device first: what is left whole stays whole.
        fitting.sort_by_key(|(device, _)| {
            let occupancy = Occupancy::of(self.view, device, self.claim, self.earlier);
            (occupancy.is_free(), occupancy.compute_left(), occupancy.memory_left())
        });
        let allocations = fitting.into_iter().map(|(_, allocation)| allocation);
        Ok(allocations.take(count as usize).collect())
    }

    fn partitions(
        &self,
        profile: &ProfileName,
        count: u32,
    ) -> Result<Vec<Allocation>, PrepareError> {
        let known = |device: &&Device| device.profile(profile).is_some();
        if !self.devices.is_empty() && !self.devices.iter().any(known) {
            return Err(PrepareError::NoSuchProfile(profile.clone()));
        }
        let mut taken = self.earlier.to_vec();
        let mut allocations = Vec::new();
        while allocations.len() < count as usize {
            match self.partition(profile, &taken) {
                Ok(allocation) => {
                    taken.push(allocation.clone());
                    allocations.push(allocation);
                }
                Err(refusals) => {
                    let wanted = format!("partition of profile {profile}");
                    return Err(self.none_free(&wanted, refusals, allocations.len(), count));
                }
            }
        }
        Ok(allocations)
    }

    /// The partition that disturbs the least: one that exists, else on the fullest device, else
    /// where most other shapes stay possible.
    fn partition(
        &self,
        profile: &ProfileName,
        earlier: &[Allocation],
    ) -> Result<Allocation, Vec<PrepareError>> {
        let mut best = None;
        let mut refusals = Vec::new();
        for device in &self.devices {
            let Some((partitioning, shape)) =
                device.partitioning.as_ref().zip(device.profile(profile))
            else {
                continue;
            };
            let occupancy = Occupancy::of(self.view, device, self.claim, earlier);
            let left = occupancy.slices_left(partitioning);
            for start in shape.starts() {
                let place = (*device, profile, start);
                match allocate_partition(self.view, self.claim, self.request, place, earlier) {
                    Ok(allocation) => {
                        let exists = occupancy
                            .check_partition(partitioning, shape, start)
                            .is_ok_and(|adopted| adopted);
                        let blocked =
                            shapes_blocked(&partitioning.profiles, shape, start, &|other, at| {
                                occupancy.check_partition(partitioning, other, at).is_ok()
                            });
                        let rank = (Reverse(exists), left, blocked, device.name.clone(), start);
                        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                            best = Some((rank, allocation));
                        }
                    }
                    Err(error) => refusals.push(error),
                }
            }
        }
        best.map(|(_, allocation)| allocation).ok_or(refusals)
    }

    /// Splits the devices into those that `allocate` takes, and the reasons against the others.
    fn sort_out(
        &self,
        allocate: impl Fn(&&Device) -> Result<Allocation, PrepareError>,
    ) -> (Vec<(&Device, Allocation)>, Vec<PrepareError>) {
        let mut refusals = Vec::new();
        let mut taken = Vec::new();
        for device in &self.devices {
            match allocate(device) {
                Ok(allocation) => taken.push((*device, allocation)),
                Err(error) => refusals.push(error),
            }
        }
        (taken, refusals)
    }

    /// With a single candidate its own reason says more than a count, and so does a reason
    /// that waiting does not cure.
    fn none_free(
        &self,
        wanted: &str,
        mut refusals: Vec<PrepareError>,
        found: usize,
        asked: u32,
    ) -> PrepareError {
        let lasting = found == 0 && refusals.iter().all(PrepareError::is_lasting);
        if !refusals.is_empty() && (self.devices.len() == 1 || lasting) {
            return refusals.swap_remove(0);
        }
        PrepareError::NoneFree { wanted: wanted.to_owned(), found, asked }
    }
}

/// How many placements of other shapes, possible now, a partition at `start` would take away.
fn shapes_blocked(
    profiles: &[PartitionProfile],
    shape: &PartitionProfile,
    start: u32,
    possible: &dyn Fn(&PartitionProfile, u32) -> bool,
) -> usize {
    let Some(own) = shape.placement_at(start) else { return 0 };
    profiles
        .iter()
        .filter(|profile| matches!(profile.placements, Placements::Fixed(_)))
        .flat_map(|profile| profile.starts().into_iter().map(move |at| (profile, at)))
        .filter(|(profile, at)| profile.placement_at(*at).is_some_and(|held| held.overlaps(own)))
        .filter(|(profile, at)| possible(profile, *at))
        .count()
}
