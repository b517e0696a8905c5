//! Whether a partition fits on a device beside those that it has.

use accelpool_model::{Device, Placements, ProfileName};
use accelpool_vendor_api::VendorError;

/// Where a partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) profile: ProfileName,
    pub(crate) start: u32,
}

/// Checks that a partition at `wanted` fits beside `existing`.
pub(crate) fn check_fits(
    device: &Device,
    existing: &[Place],
    wanted: &Place,
) -> Result<(), VendorError> {
    let unknown = || VendorError::UnknownProfile {
        device: device.uuid.clone(),
        profile: wanted.profile.clone(),
        start: wanted.start,
    };
    let occupied = || VendorError::Occupied(device.uuid.clone());
    let partitioning = device.partitioning.as_ref().ok_or_else(unknown)?;
    let profile = device.profile(&wanted.profile).ok_or_else(unknown)?;
    if !profile.starts().contains(&wanted.start) {
        return Err(unknown());
    }
    if partitioning.uniform && existing.iter().any(|other| other.profile != wanted.profile) {
        return Err(occupied());
    }
    let alike = existing.iter().filter(|other| other.profile == wanted.profile).count();
    if u32::try_from(alike).is_ok_and(|alike| alike >= profile.instances_max) {
        return Err(occupied());
    }
    let others =
        || existing.iter().filter_map(|other| Some((other, device.profile(&other.profile)?)));
    let free = match profile.placements {
        Placements::Fixed(_) => {
            let lies_at = profile.placement_at(wanted.start);
            others().all(|(other, of)| match (lies_at, of.placement_at(other.start)) {
                (Some(a), Some(b)) => !a.overlaps(b),
                (None, _) | (_, None) => true,
            })
        }
        Placements::Counted => {
            let taken: u32 = others().map(|(_, of)| of.size).sum();
            taken + profile.size <= partitioning.slices && !existing.contains(wanted)
        }
    };
    if free { Ok(()) } else { Err(occupied()) }
}
