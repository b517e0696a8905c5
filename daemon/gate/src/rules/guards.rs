//! What is guarded, normalised: disjoint ranges in order, neighbours of one mode joined.
//!
//! The kernel keeps the same as prefixes of device numbers, so that one lookup in a trie
//! answers for any number of ranges. Since ranges are disjoint, a device has at most one
//! prefix in an old list and one in a new one, and is never left without while they change.

use crate::{
    device::{DeviceNumber, DeviceRange},
    rules::{Guard, Mode},
};

/// The guarded devices. None overlaps another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guards(Vec<Guard>);

impl Guards {
    /// Normalises a list. Devices may be named twice with the same mode.
    pub fn new(guards: impl IntoIterator<Item = Guard>) -> Result<Self, ConflictingGuards> {
        let mut sorted: Vec<Guard> = guards.into_iter().collect();
        sorted.sort_unstable();
        let mut joined: Vec<Guard> = Vec::with_capacity(sorted.len());
        for guard in sorted {
            match joined.last() {
                Some(last) if overlap(last.devices, guard.devices) && last.mode != guard.mode => {
                    return Err(ConflictingGuards(*last, guard));
                }
                Some(_) | None => append(&mut joined, guard),
            }
        }
        Ok(Self(joined))
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Guard> {
        self.0.iter().copied()
    }

    /// How a device is guarded, if it is.
    #[must_use]
    pub fn mode_of(&self, device: DeviceNumber) -> Option<Mode> {
        self.0.iter().find(|guard| guard.devices.contains(device)).map(|guard| guard.mode)
    }

    /// The same devices, all in one mode.
    #[must_use]
    pub fn with_mode(&self, mode: Mode) -> Self {
        let mut joined = Vec::with_capacity(self.0.len());
        for guard in self.iter() {
            append(&mut joined, Guard { mode, ..guard });
        }
        Self(joined)
    }
}

/// A device cannot be guarded in two ways; to choose is not the gate's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("devices {} are to be in mode {}, and of them {} in mode {}",
    .0.devices, .0.mode, .1.devices, .1.mode)]
pub struct ConflictingGuards(pub Guard, pub Guard);

fn same_major(one: DeviceRange, other: DeviceRange) -> bool {
    (one.kind(), one.major()) == (other.kind(), other.major())
}

/// Whether two ranges share a device; `later` does not start before `earlier`.
fn overlap(earlier: DeviceRange, later: DeviceRange) -> bool {
    same_major(earlier, later) && later.first() <= earlier.last()
}

/// Adds a guard that does not start before the last one, and joins the two where they touch.
fn append(joined: &mut Vec<Guard>, guard: Guard) {
    match joined.last_mut().and_then(|last| Some((join(*last, guard)?, last))) {
        Some((both, last)) => *last = both,
        None => joined.push(guard),
    }
}

/// The range of both, where they touch and have one mode.
fn join(earlier: Guard, later: Guard) -> Option<Guard> {
    let (from, to) = (earlier.devices, later.devices);
    let touch = same_major(from, to) && to.first() <= from.last().saturating_add(1);
    if !touch || earlier.mode != later.mode {
        return None;
    }
    let last = from.last().max(to.last());
    let devices = DeviceRange::new(from.kind(), from.major(), from.first(), last).ok()?;
    Some(Guard { devices, mode: earlier.mode })
}

/// The fewest prefixes that cover exactly a range, each as its first minor and how many
/// of the 32 bits of the minor count.
pub(crate) fn prefixes(devices: DeviceRange) -> Vec<(u32, u32)> {
    let mut prefixes = Vec::new();
    let (mut first, last) = (devices.first(), devices.last());
    loop {
        // The largest block that begins at `first`, cut down until it ends by `last`.
        let mut free_bits = first.trailing_zeros().min(31);
        while first + ((1 << free_bits) - 1) > last {
            free_bits -= 1;
        }
        prefixes.push((first, 32 - free_bits));
        let end = first + ((1 << free_bits) - 1);
        if end >= last {
            return prefixes;
        }
        first = end + 1;
    }
}

/// The minors that a prefix covers, first and last.
pub(crate) fn range_of_prefix(minor: u32, bits: u32) -> (u32, u32) {
    let free = u32::MAX.checked_shr(bits).unwrap_or(0);
    (minor & !free, minor | free)
}
