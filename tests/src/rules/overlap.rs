//! Whether a device is granted twice, worked out from the list of leases.

use std::collections::BTreeMap;

use accelpool_proto::node::{Allocation, Device, Lease, allocation::Portion};

/// Everything that is granted to more than one, or beyond what a device has.
#[must_use]
pub fn overlaps(devices: &[Device], leases: &[Lease]) -> Vec<String> {
    let mut held: BTreeMap<&str, Vec<(&str, &Allocation)>> = BTreeMap::new();
    for lease in leases {
        // Who only looks holds nothing.
        let looks = |one: &&Allocation| matches!(one.portion, Some(Portion::Admin(_)));
        for allocation in lease.allocations.iter().filter(|one| !looks(one)) {
            held.entry(&allocation.device_uuid).or_default().push((&lease.claim, allocation));
        }
    }
    let mut faults = Vec::new();
    for (uuid, held) in held {
        if held.len() > 1
            && held.iter().any(|(_, one)| matches!(one.portion, Some(Portion::Whole(_))))
        {
            faults.push(format!("{uuid} is granted whole beside others: {:?}", claims(&held)));
        }
        // A device that left the bus is not listed any more after a restart.
        let Some(device) = devices.iter().find(|device| device.uuid == uuid) else { continue };
        share_faults(device, &held, &mut faults);
        partition_faults(device, &held, &mut faults);
    }
    faults
}

fn claims<'a>(held: &[(&'a str, &Allocation)]) -> Vec<&'a str> {
    held.iter().map(|(claim, _)| *claim).collect()
}

fn share_faults(device: &Device, held: &[(&str, &Allocation)], faults: &mut Vec<String>) {
    let (mut memory, mut compute, mut shares) = (0, 0, 0);
    for (_, allocation) in held {
        if let Some(Portion::Share(share)) = &allocation.portion {
            memory += share.memory_bytes;
            compute += share.compute_permille;
            shares += 1;
        }
    }
    let name = &device.name;
    if memory > device.memory_bytes {
        faults.push(format!("{name} has {} of memory, {memory} are granted", device.memory_bytes));
    }
    if compute > 1000 {
        faults.push(format!("{compute} thousandths of {name} are granted"));
    }
    if shares > 0 && shares < held.len() {
        faults.push(format!("{name} is granted as shares and otherwise: {:?}", claims(held)));
    }
}

fn partition_faults(device: &Device, held: &[(&str, &Allocation)], faults: &mut Vec<String>) {
    let mut places = Vec::new();
    for (claim, allocation) in held {
        if let Some(Portion::Partition(partition)) = &allocation.portion {
            places.push((*claim, partition.profile.as_str(), partition.start));
        }
    }
    if places.is_empty() {
        return;
    }
    let name = &device.name;
    let Some(partitioning) = &device.partitioning else {
        return faults.push(format!("{name} cannot be cut, but is granted in parts"));
    };
    let mut slices = vec![0; partitioning.slices as usize];
    let (mut taken, mut of_profile) = (0, BTreeMap::new());
    for (index, (claim, profile, start)) in places.iter().enumerate() {
        let Some(shape) = partitioning.profiles.iter().find(|shape| shape.name == *profile) else {
            faults.push(format!("{name} has no profile {profile}, which {claim} holds"));
            continue;
        };
        if places[..index].iter().any(|(_, other, at)| other == profile && at == start) {
            faults.push(format!("{profile} at {start} of {name} is granted twice"));
        }
        taken += shape.size;
        *of_profile.entry(profile).or_insert(0) += 1;
        if of_profile[profile] > shape.instances_max {
            faults.push(format!("{name} is granted in too many partitions of {profile}"));
        }
        if !shape.counted {
            let end = (start + shape.size).min(partitioning.slices);
            slices[*start as usize..end as usize].iter_mut().for_each(|slice| *slice += 1);
        }
    }
    if slices.iter().any(|holders| *holders > 1) || taken > partitioning.slices {
        faults.push(format!("partitions of {name} overlap: {places:?}"));
    }
    if partitioning.uniform && of_profile.len() > 1 {
        faults.push(format!("{name} is cut into different shapes: {places:?}"));
    }
}
