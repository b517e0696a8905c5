//! Which device numbers are guarded, and how: from what vendors list and pools say. Pure but
//! for looking at device nodes, whose majors drift when a driver is loaded again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use accelpool_gate::{DeviceNumber, DeviceRange, DeviceType, Guard, Guards, MINOR_MAX, Mode};
use accelpool_model::{Injection, OnStaleHolder, VendorName};
use accelpool_planner::NodeView;

use super::holders::is_to_be_left;

/// The device numbers that belong to one adapter's drivers whoever uses them, beside the nodes
/// that it lists: a node for a device that is broken, or that nobody has listed, is one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The adapter.
    pub adapter: VendorName,
    /// What the names of its drivers begin with in `/proc/devices`; nothing, if all majors
    /// of its nodes are its own.
    pub drivers: Option<&'static str>,
    /// The list of drivers, which follows modules as they are loaded.
    pub proc_devices: PathBuf,
}

/// A device number that is guarded because somebody lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    /// The devices and partitions that have it.
    pub(super) users: BTreeSet<String>,
    /// The devices that have it, themselves or by a partition.
    pub(super) devices: BTreeSet<String>,
    pub(super) mode: Mode,
    /// Who keeps it open without a grant is killed, as all pools of its devices say.
    pub(super) kill: bool,
    /// It is the node of one device, which everybody is to leave.
    pub(super) tainted: bool,
}

/// Everything that is guarded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Guarded {
    pub(super) nodes: BTreeMap<DeviceNumber, Node>,
    pub(super) guards: Guards,
}

/// The number of a device node.
pub(super) fn number_of(path: &Path) -> io::Result<DeviceNumber> {
    let found = fs::metadata(path)?;
    let kind = found.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => DeviceType::Character,
        (_, true) => DeviceType::Block,
        (false, false) => return Err(io::Error::other("it is no device node")),
    };
    let part = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let (major, minor) =
        (part(nix::sys::stat::major(found.rdev())), part(nix::sys::stat::minor(found.rdev())));
    DeviceNumber::new(kind, major, minor).map_err(io::Error::other)
}

/// What is guarded on a node as `view` shows it. `adapter_of` says who lists a device.
pub(super) fn guarded(
    view: NodeView<'_>,
    families: &[Family],
    adapter_of: impl Fn(&accelpool_model::Device) -> Option<VendorName>,
) -> Guarded {
    let mut nodes: BTreeMap<DeviceNumber, Node> = BTreeMap::new();
    let mut modes: BTreeMap<VendorName, Mode> = BTreeMap::new();
    let mut majors: BTreeMap<VendorName, BTreeSet<(DeviceType, u32)>> = BTreeMap::new();
    for device in view.inventory.devices() {
        // What no pool takes is offered to nobody, and guarded as by default.
        let pool = view.pool(device);
        let mode = pool.map(|pool| pool.gate).unwrap_or_default();
        let kill = pool.is_some_and(|pool| pool.on_stale_holder == OnStaleHolder::Kill);
        let taints = view.inventory.taints.get(&device.name).map_or(&[][..], Vec::as_slice);
        let tainted = is_to_be_left(taints);
        let name = device.name.to_string();
        let adapter = adapter_of(device);
        let partitions = view.inventory.partitions.iter().filter(|it| it.device == device.uuid);
        let injections = partitions.map(|it| (it.uuid.to_string(), &it.injection));
        for (user, injection) in [(name.clone(), &device.injection)].into_iter().chain(injections) {
            for (number, path) in numbers(injection) {
                let node =
                    nodes.entry(number).or_insert_with(|| Node { mode, kill, ..Node::default() });
                node.path = path;
                node.users.insert(user.clone());
                node.devices.insert(name.clone());
                // Who is only audited needs the nodes that all devices of a vendor share.
                node.mode = node.mode.min(mode);
                node.kill &= kill;
                node.tainted = tainted && node.devices.len() == 1;
                if let Some(adapter) = &adapter {
                    let own = majors.entry(adapter.clone()).or_default();
                    own.insert((number.kind(), number.major()));
                }
            }
        }
        if let Some(adapter) = adapter {
            let all = modes.entry(adapter).or_insert(mode);
            *all = (*all).min(mode);
        }
    }
    let mut whole = Vec::new();
    for family in families {
        let mode = modes.get(&family.adapter).copied().unwrap_or_default();
        let majors = match family.drivers {
            Some(prefix) => {
                let text = fs::read_to_string(&family.proc_devices).unwrap_or_default();
                drivers(&text, prefix)
            }
            None => majors.remove(&family.adapter).unwrap_or_default(),
        };
        whole.extend(majors.into_iter().map(|major| (major, mode)));
    }
    let guards = arrange(nodes.iter().map(|(number, node)| (*number, node.mode)), whole);
    Guarded { nodes, guards }
}

/// The numbers of the nodes that `injection` brings; one that is not there brings nothing.
fn numbers(injection: &Injection) -> impl Iterator<Item = (DeviceNumber, PathBuf)> {
    injection.nodes.iter().filter_map(|node| {
        let path = PathBuf::from(&node.host_path);
        Some((number_of(&path).ok()?, path))
    })
}

/// The majors of drivers whose names begin so, from the text of `/proc/devices`.
fn drivers(text: &str, prefix: &str) -> BTreeSet<(DeviceType, u32)> {
    let mut kind = DeviceType::Character;
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        match line.split_once(' ') {
            Some(("Block", _)) => kind = DeviceType::Block,
            Some((major, name)) if name.trim().starts_with(prefix) => {
                found.extend(major.parse().map(|major: u32| (kind, major)));
            }
            Some(_) | None => {}
        }
    }
    found
}

/// Guards of single numbers, and of all else of some majors.
fn arrange(
    nodes: impl IntoIterator<Item = (DeviceNumber, Mode)>,
    whole: impl IntoIterator<Item = ((DeviceType, u32), Mode)>,
) -> Guards {
    let mut single: BTreeMap<(DeviceType, u32), BTreeMap<u32, Mode>> = BTreeMap::new();
    for (number, mode) in nodes {
        let minors = single.entry((number.kind(), number.major())).or_default();
        minors.insert(number.minor(), mode);
    }
    let mut guards = Vec::new();
    let mut guard = |(kind, major), first, last, mode| {
        let range = DeviceRange::new(kind, major, first, last);
        guards.extend(range.map(|devices| Guard { devices, mode }));
    };
    // Two adapters may have drivers of one major; the more lenient counts.
    let mut rest: BTreeMap<(DeviceType, u32), Mode> = BTreeMap::new();
    for (major, mode) in whole {
        rest.entry(major).and_modify(|it| *it = (*it).min(mode)).or_insert(mode);
        single.entry(major).or_default();
    }
    for (major, minors) in single {
        let mut next = 0;
        for (minor, mode) in minors {
            if let Some(rest) = rest.get(&major)
                && minor > next
            {
                guard(major, next, minor - 1, *rest);
            }
            guard(major, minor, minor, mode);
            next = minor + 1;
        }
        if let Some(rest) = rest.get(&major)
            && next <= MINOR_MAX
        {
            guard(major, next, MINOR_MAX, *rest);
        }
    }
    Guards::new(guards).expect("each number is named once")
}

/// `new`, and what `old` guards beside it: for as long as a vendor has not answered.
pub(super) fn merge(new: &Guards, old: &Guards) -> Guards {
    let mut merged: Vec<Guard> = new.iter().collect();
    for guard in old.iter() {
        let range = guard.devices;
        let beside = new.iter().map(|it| it.devices).filter(|other| {
            (other.kind(), other.major()) == (range.kind(), range.major())
                && other.first() <= range.last()
                && range.first() <= other.last()
        });
        let mut next = u64::from(range.first());
        let mut add = |first: u64, last: u64| {
            let part = |minor: u64| u32::try_from(minor).unwrap_or(MINOR_MAX);
            let left = DeviceRange::new(range.kind(), range.major(), part(first), part(last));
            merged.extend(left.map(|devices| Guard { devices, mode: guard.mode }));
        };
        for other in beside {
            if u64::from(other.first()) > next {
                add(next, u64::from(other.first()) - 1);
            }
            next = next.max(u64::from(other.last()) + 1);
        }
        if next <= u64::from(range.last()) {
            add(next, range.last().into());
        }
    }
    Guards::new(merged).unwrap_or_else(|_| new.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(major: u32, minor: u32) -> DeviceNumber {
        DeviceNumber::new(DeviceType::Character, major, minor).expect("a valid number")
    }

    fn words(guards: &Guards) -> String {
        let words: Vec<String> =
            guards.iter().map(|guard| format!("{} {}", guard.devices, guard.mode)).collect();
        words.join(", ")
    }

    #[test]
    fn spare_numbers_of_a_driver_are_guarded_too() {
        let character = |major| (DeviceType::Character, major);
        let nodes = [
            (number(195, 0), Mode::Enforce),
            (number(195, 1), Mode::Enforce),
            (number(195, 255), Mode::Audit),
            (number(226, 128), Mode::Enforce),
        ];
        let guards = arrange(nodes, [(character(195), Mode::Audit), (character(500), Mode::Audit)]);
        assert_eq!(
            words(&guards),
            "c 195:0-1 enforce, c 195:2-1048575 audit, c 226:128 enforce, c 500:* audit"
        );
    }

    #[test]
    fn drivers_are_found_by_their_names() {
        let text = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n507 nvidia-caps\n\
                    226 drm\n\nBlock devices:\n  8 sd\n 12 nvidia-nvswitch\n";
        let found: Vec<String> = drivers(text, "nvidia")
            .into_iter()
            .map(|(kind, major)| format!("{kind:?} {major}"))
            .collect();
        assert_eq!(found, ["Block 12", "Character 195", "Character 507"]);
    }

    #[test]
    fn guards_of_a_silent_vendor_stay() {
        let old = arrange(
            [(number(226, 1), Mode::Enforce)],
            [((DeviceType::Character, 195), Mode::Enforce)],
        );
        let new = arrange([(number(195, 3), Mode::Audit)], []);
        assert_eq!(
            words(&merge(&new, &old)),
            "c 195:0-2 enforce, c 195:3 audit, c 195:4-1048575 enforce, c 226:1 enforce"
        );
        assert_eq!(words(&merge(&old, &old)), words(&old));
        assert_eq!(words(&merge(&Guards::default(), &old)), words(&old));
    }
}
