//! What a node may grant, in the simplest words: no code of the planner's, no cleverness.

use std::collections::BTreeSet;

use accelpool_model::{Allocation, Lease, Portion};

/// The devices of `small.toml`, in its order.
pub(crate) const DEVICES: [Shape; 4] = [
    Shape { name: "gpu-0000-01-00-0", uuid: "PLACED-1", scheme: "mig", cut: Cut::Placed },
    Shape { name: "gpu-0000-02-00-0", uuid: "PLACED-2", scheme: "mig", cut: Cut::Placed },
    Shape { name: "gpu-0000-03-00-0", uuid: "UNIFORM-1", scheme: "xcp", cut: Cut::Uniform },
    Shape { name: "npu-0000-04-00-0", uuid: "COUNTED-1", scheme: "vnpu", cut: Cut::Counted },
];

pub(crate) const MEMORY_MIB: u64 = 1000;
const SLICES: u32 = 4;

pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) uuid: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) cut: Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Placed,
    Uniform,
    Counted,
}

/// Something that lies on a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Piece {
    Whole,
    Share { memory_mib: u64, compute: u64 },
    Part { profile: String, start: u32 },
}

/// A partition of the hardware that no lease holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stray {
    pub(crate) uuid: String,
    pub(crate) profile: String,
    pub(crate) start: u32,
    pub(crate) complete: bool,
}

fn size(profile: &str) -> Option<u32> {
    match profile {
        "one" => Some(1),
        "two" => Some(2),
        _ => None,
    }
}

fn instances_max(cut: Cut, profile: &str) -> usize {
    match (cut, profile) {
        (Cut::Placed, "one") => 3,
        (_, "one") => 4,
        _ => 2,
    }
}

/// The starts that a profile has.
pub(crate) fn starts(cut: Cut, profile: &str) -> Vec<u32> {
    match (cut, profile) {
        (_, "one") => vec![0, 1, 2, 3],
        (Cut::Counted, "two") => vec![0, 1],
        (_, "two") => vec![0, 2],
        _ => vec![],
    }
}

/// True if `piece` can lie on a device beside `held`, and beside `strays` of which it may be one.
pub(crate) fn fits(cut: Cut, held: &[Piece], strays: &[Stray], piece: &Piece) -> bool {
    match piece {
        Piece::Whole => held.is_empty() && strays.is_empty(),
        Piece::Share { memory_mib, compute } => {
            let (mut memory, mut time) = (*memory_mib, *compute);
            for other in held {
                let Piece::Share { memory_mib, compute } = other else { return false };
                memory += memory_mib;
                time += compute;
            }
            strays.is_empty() && *memory_mib > 0 && memory <= MEMORY_MIB && time <= 1000
        }
        Piece::Part { profile, start } => {
            let mut places = BTreeSet::new();
            for other in held {
                let Piece::Part { profile, start } = other else { return false };
                places.insert((profile.as_str(), *start));
            }
            if !starts(cut, profile).contains(start) || places.contains(&(profile.as_str(), *start))
            {
                return false;
            }
            // A whole one may be adopted, half a one stands in the way.
            let same = |stray: &&Stray| stray.profile == *profile && stray.start == *start;
            if strays.iter().find(same).is_some_and(|stray| !stray.complete) {
                return false;
            }
            places.extend(strays.iter().map(|stray| (stray.profile.as_str(), stray.start)));
            places.insert((profile, *start));
            can_be_cut(cut, &places)
        }
    }
}

/// True if a device can have these partitions at once.
fn can_be_cut(cut: Cut, places: &BTreeSet<(&str, u32)>) -> bool {
    let mut slices = BTreeSet::new();
    let mut taken = 0;
    for (profile, start) in places {
        let Some(size) = size(profile) else { return false };
        taken += size;
        if cut != Cut::Counted && !(*start..start + size).all(|slice| slices.insert(slice)) {
            return false;
        }
        let alike = places.iter().filter(|(other, _)| other == profile).count();
        if alike > instances_max(cut, profile) || (cut == Cut::Uniform && alike < places.len()) {
            return false;
        }
    }
    taken <= SLICES
}

/// What `leases` hold of device `uuid`.
pub(crate) fn pieces_on(uuid: &str, leases: &[Lease]) -> Vec<Piece> {
    let allocations = leases.iter().flat_map(|lease| &lease.allocations);
    allocations.filter(|one| one.uuid.as_str() == uuid).filter_map(piece).collect()
}

fn piece(allocation: &Allocation) -> Option<Piece> {
    match &allocation.portion {
        Portion::Whole => Some(Piece::Whole),
        Portion::Share { memory, compute, .. } => Some(Piece::Share {
            memory_mib: memory.bytes() >> 20,
            compute: compute.permille().into(),
        }),
        Portion::Partition { profile, start, .. } => {
            Some(Piece::Part { profile: profile.to_string(), start: *start })
        }
        // Who looks holds nothing.
        Portion::Admin { .. } => None,
    }
}

/// Devices that are granted twice or beyond what they have.
pub(crate) fn overlaps(leases: &[Lease]) -> Vec<String> {
    let mut faults = Vec::new();
    for Shape { name, uuid, cut, .. } in &DEVICES {
        let pieces = pieces_on(uuid, leases);
        for (index, piece) in pieces.iter().enumerate() {
            if !fits(*cut, &pieces[..index], &[], piece) {
                faults.push(format!("{name} is granted twice: {pieces:?}"));
            }
        }
    }
    faults
}
