//! The maps that the gate's program and this crate share, byte for byte.
//!
//! Version [`LAYOUT`] of it is part of the name under which a gate is pinned: one whose maps
//! look different stands beside the old one, never in its maps. Numbers are in the byte
//! order of the machine, but for the key of the guards, whose bits the kernel compares
//! from the first byte on.

use crate::{
    device::{Access, DeviceNumber, DeviceRange, DeviceType},
    rules::{CgroupId, Grant, Guard, Mode, prefixes, range_of_prefix},
};

/// Raised with every change of a map below.
pub(crate) const LAYOUT: u32 = 1;

/// Which prefixes of device numbers are guarded. An arbitrary range takes at most 38
/// prefixes, one device or one major takes one; a node has some hundred device nodes.
pub(crate) const GUARDS_MAX: u32 = 4096;

/// 500 pods (the most that a kubelet is set to in practice) with 32 device nodes each.
pub(crate) const GRANTS_MAX: u32 = 16_384;

/// Monitoring agents and the like: a few per node.
pub(crate) const EXEMPTIONS_MAX: u32 = 1024;

/// Devices that were refused by number; what comes later counts as [`OTHERS`].
pub(crate) const COUNTS_MAX: u32 = 1024;

/// Pairs of cgroup and device of which a report is withheld; the least recent gives way.
pub(crate) const REPORTED_MAX: u32 = 4096;

/// A cgroup is reported once in this time for each device.
pub(crate) const REPORT_INTERVAL_NS: u32 = 1_000_000_000;

/// Bytes of the ring of denials: 1,820 records of 72 bytes with their heads. A power of two
/// and whole pages, also of 64 KiB. A tenant that floods it costs the reader no more than
/// one ring at a time.
pub(crate) const DENIALS_BYTES: u32 = 1 << 17;

/// A mode as the program knows it.
pub(crate) const fn mode_number(mode: Mode) -> u32 {
    match mode {
        Mode::Off => 0,
        Mode::Audit => 1,
        Mode::Enforce => 2,
    }
}

pub(crate) const fn mode_of_number(number: u32) -> Option<Mode> {
    match number {
        0 => Some(Mode::Off),
        1 => Some(Mode::Audit),
        2 => Some(Mode::Enforce),
        _ => None,
    }
}

/// The type of a map, by its number in `enum bpf_map_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapType {
    Hash = 1,
    LruHash = 9,
    Trie = 11,
    Ring = 27,
}

/// `BPF_F_NO_PREALLOC`: entries take memory when they are made.
const NO_PREALLOC: u32 = 1;

/// A map of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Map {
    /// Prefix of a device number -> mode.
    Guards,
    /// Cgroup and device -> access.
    Grants,
    /// Cgroup -> nothing of interest.
    Exemptions,
    /// Device -> counts.
    Counts,
    /// Cgroup and device -> when it was last reported.
    Reported,
    /// Records of what was audited or denied.
    Denials,
}

/// What the kernel is told of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: MapType,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
    pub(crate) entries_max: u32,
    pub(crate) flags: u32,
}

impl Map {
    pub(crate) const ALL: [Self; 6] =
        [Self::Guards, Self::Grants, Self::Exemptions, Self::Counts, Self::Reported, Self::Denials];

    /// Its name in the kernel, of at most 15 characters.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Guards => "gate_guards",
            Self::Grants => "gate_grants",
            Self::Exemptions => "gate_exemptions",
            Self::Counts => "gate_counts",
            Self::Reported => "gate_reported",
            Self::Denials => "gate_denials",
        }
    }

    /// What is in it, for messages.
    pub(crate) fn contents(self) -> &'static str {
        self.name().trim_start_matches("gate_")
    }

    #[expect(clippy::cast_possible_truncation, reason = "an entry has a few bytes")]
    pub(crate) const fn shape(self) -> Shape {
        let (kind, key_bytes, value_bytes, entries_max, flags) = match self {
            Self::Guards => (MapType::Trie, GUARD_KEY, 4, GUARDS_MAX, NO_PREALLOC),
            Self::Grants => (MapType::Hash, GRANT_KEY, 4, GRANTS_MAX, NO_PREALLOC),
            Self::Exemptions => (MapType::Hash, 8, 4, EXEMPTIONS_MAX, NO_PREALLOC),
            // The program makes entries here, where it must not fail for want of memory.
            Self::Counts => (MapType::Hash, COUNTS_KEY, COUNTS, COUNTS_MAX, 0),
            Self::Reported => (MapType::LruHash, GRANT_KEY, 8, REPORTED_MAX, 0),
            Self::Denials => (MapType::Ring, 0, 0, DENIALS_BYTES, 0),
        };
        Shape {
            kind,
            key_bytes: key_bytes as u32,
            value_bytes: value_bytes as u32,
            entries_max,
            flags,
        }
    }
}

/// Bits of prefix that count (4 bytes), then type, major, minor, each big-endian.
pub(crate) const GUARD_KEY: usize = 16;
/// Cgroup (8 bytes), type, major, minor, four bytes of zero.
pub(crate) const GRANT_KEY: usize = 24;
/// The same without the cgroup.
pub(crate) const COUNTS_KEY: usize = 16;
/// Audited, denied, unreported: 8 bytes each.
pub(crate) const COUNTS: usize = 24;
/// Time (8 bytes), cgroup (8), thread, process, type, major, minor, access, mode, zero, name of
/// the thread (16).
pub(crate) const DENIAL: usize = 64;

/// The key under which what has no counts of its own is counted.
pub(crate) const OTHERS: [u8; COUNTS_KEY] = [0; COUNTS_KEY];

/// The bits of type and major, in front of the minor's.
const MINOR_BITS_FROM: u32 = 64;

/// The keys of one guard.
pub(crate) fn guard_keys(guard: Guard) -> Vec<[u8; GUARD_KEY]> {
    let (kind, major) = (guard.devices.kind().number(), guard.devices.major());
    let key = |(minor, bits): (u32, u32)| {
        let mut key = [0; GUARD_KEY];
        put(&mut key, 0, &(MINOR_BITS_FROM + bits).to_ne_bytes());
        put(&mut key, 4, &kind.to_be_bytes());
        put(&mut key, 8, &major.to_be_bytes());
        put(&mut key, 12, &minor.to_be_bytes());
        key
    };
    prefixes(guard.devices).into_iter().map(key).collect()
}

/// Reads one entry of the guards; nothing if it is none of ours.
pub(crate) fn guard_of(key: &[u8], value: &[u8]) -> Option<Guard> {
    let bits = u32_at(key, 0)?.checked_sub(MINOR_BITS_FROM)?;
    let big_endian = |at| u32_at(key, at).map(u32::from_be);
    let (first, last) = range_of_prefix(big_endian(12)?, bits);
    let kind = DeviceType::of_number(big_endian(4)?)?;
    let devices = DeviceRange::new(kind, big_endian(8)?, first, last).ok()?;
    Some(Guard { devices, mode: mode_of_number(u32_at(value, 0)?)? })
}

/// The key of a grant.
pub(crate) fn grant_key(cgroup: CgroupId, device: DeviceNumber) -> [u8; GRANT_KEY] {
    let mut key = [0; GRANT_KEY];
    put(&mut key, 0, &cgroup.0.to_ne_bytes());
    put(&mut key, 8, &counts_key(device));
    key
}

/// Reads one entry of the grants; nothing if it is none of ours.
pub(crate) fn grant_of(key: &[u8], value: &[u8]) -> Option<Grant> {
    let device = device_of(key.get(8..)?)?;
    let access = Access::of_bits(u32_at(value, 0)?);
    Some(Grant { cgroup: CgroupId(u64_at(key, 0)?), device, access })
}

/// The key of a device's counts.
pub(crate) fn counts_key(device: DeviceNumber) -> [u8; COUNTS_KEY] {
    let mut key = [0; COUNTS_KEY];
    put(&mut key, 0, &device.kind().number().to_ne_bytes());
    put(&mut key, 4, &device.major().to_ne_bytes());
    put(&mut key, 8, &device.minor().to_ne_bytes());
    key
}

/// Reads type, major and minor; nothing if they are no device's.
pub(crate) fn device_of(bytes: &[u8]) -> Option<DeviceNumber> {
    let kind = DeviceType::of_number(u32_at(bytes, 0)?)?;
    DeviceNumber::new(kind, u32_at(bytes, 4)?, u32_at(bytes, 8)?).ok()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(key: &mut [u8], at: usize, bytes: &[u8]) {
    key[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let range = DeviceRange::new(DeviceType::Block, 259, 3, 12).expect("a valid range");
        let guard = Guard { devices: range, mode: Mode::Audit };
        let guards: Vec<Guard> = guard_keys(guard)
            .iter()
            .map(|key| guard_of(key, &mode_number(Mode::Audit).to_ne_bytes()).expect("ours"))
            .collect();
        let ranges: Vec<String> = guards.iter().map(|it| it.devices.to_string()).collect();
        assert_eq!(ranges, ["b 259:3", "b 259:4-7", "b 259:8-11", "b 259:12"]);

        let device = DeviceNumber::new(DeviceType::Character, 195, 7).expect("a valid number");
        let cgroup = CgroupId(0x0102_0304_0506_0708);
        let grant = Grant { cgroup, device, access: Access::READ };
        let value = Access::READ.bits().to_ne_bytes();
        assert_eq!(grant_of(&grant_key(cgroup, device), &value), Some(grant));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let read = (guard_of(&bytes, &bytes), grant_of(&bytes, &bytes), device_of(&bytes));
            drop((read, crate::Denial::of_bytes(&bytes)));
        }

        #[test]
        fn prefixes_of_any_length_are_read_or_refused(bits in any::<u32>(), minor in any::<u32>()) {
            let mut key = [0; GUARD_KEY];
            put(&mut key, 0, &bits.to_ne_bytes());
            put(&mut key, 4, &2_u32.to_be_bytes());
            put(&mut key, 12, &minor.to_be_bytes());
            if let Some(guard) = guard_of(&key, &[0; 4]) {
                prop_assert!((76..=96).contains(&bits) || bits > 96);
                prop_assert!(guard.devices.last() <= crate::MINOR_MAX);
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_not_read() {
        assert_eq!(grant_of(&[0; GRANT_KEY], &[0; 4]), None);
        assert_eq!(guard_of(&[0; GUARD_KEY], &[0; 4]), None);
        assert_eq!(grant_of(&[2; 3], &[]), None);
        assert_eq!(device_of(&OTHERS), None);
    }
}
