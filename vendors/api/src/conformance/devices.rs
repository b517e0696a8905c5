//! Checks of what an adapter says about devices and links.

use std::collections::BTreeSet;

use accelpool_model::{Device, Partition, Partitioning, Placements};

use super::{Stop, Subject, answer, require};

/// What a string attribute of a ResourceSlice takes, in bytes.
const ATTRIBUTE_LEN_MAX: usize = 64;

pub(super) fn identities_are_distinct(subject: &Subject<'_>) -> Result<(), Stop> {
    let devices = subject.devices()?;
    let (mut uuids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for device in &devices {
        require(uuids.insert(&device.uuid), || format!("two devices have UUID {}", device.uuid))?;
        require(names.insert(&device.name), || format!("two devices are named {}", device.name))?;
    }
    Ok(())
}

pub(super) fn names_follow_kind_and_address(subject: &Subject<'_>) -> Result<(), Stop> {
    for Device { name, kind, pci, .. } in subject.devices()? {
        let expected = Device::name_at(kind, pci);
        require(name == expected, || format!("the {kind} at {pci} is named {name}"))?;
    }
    Ok(())
}

pub(super) fn attributes_fit(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in subject.devices()? {
        let present = [
            ("model", Some(&device.model)),
            ("architecture", Some(&device.architecture)),
            ("driver version", Some(&device.driver_version)),
            ("PCIe root", device.pcie_root.as_ref()),
            ("fabric clique", device.fabric_clique.as_ref()),
            ("compute capability", device.traits.compute_capability.as_ref()),
            ("runtime version", device.traits.runtime_version.as_ref()),
        ];
        for (what, text) in present {
            let Some(text) = text else { continue };
            let fits = !text.is_empty()
                && text.len() <= ATTRIBUTE_LEN_MAX
                && !text.chars().any(char::is_control);
            require(fits, || {
                format!("{what} of {} is {text:?}: use 1 to 64 plain bytes", device.name)
            })?;
        }
    }
    Ok(())
}

pub(super) fn injections_are_usable(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in subject.devices()? {
        subject.check_injection(device.name.as_str(), &device.injection)?;
    }
    Ok(())
}

pub(super) fn partitioning_is_sound(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in subject.devices()? {
        if let Some(partitioning) = &device.partitioning {
            check_partitioning(&device, partitioning)?;
        }
    }
    Ok(())
}

fn check_partitioning(device: &Device, partitioning: &Partitioning) -> Result<(), Stop> {
    let mut names = BTreeSet::new();
    for profile in &partitioning.profiles {
        let what = format!("profile {} of {}", profile.name, device.name);
        let starts = profile.starts();
        require(profile.size > 0, || format!("{what} takes no slice"))?;
        require(profile.instances_max > 0, || format!("{what} admits no partition"))?;
        require(!starts.is_empty(), || format!("{what} has no place"))?;
        require(starts.is_sorted_by(|a, b| a < b), || format!("{what}: starts do not ascend"))?;
        require(profile.memory <= device.memory, || format!("{what} has more memory than it"))?;
        let last = match profile.placements {
            Placements::Fixed(_) => starts.last().copied().unwrap_or(0),
            Placements::Counted => 0,
        };
        let end = last.checked_add(profile.size);
        require(end.is_some_and(|end| end <= partitioning.slices), || {
            format!("{what} reaches beyond the {} slices", partitioning.slices)
        })?;
        for start in starts {
            let name = Partition::name_at(&device.name, &partitioning.scheme, &profile.name, start);
            let name = name.map_err(|error| Stop::Fail(format!("{what}: {error}")))?;
            require(!names.contains(&name), || format!("two partitions are named {name}"))?;
            names.insert(name);
        }
    }
    Ok(())
}

pub(super) fn links_join_known_devices(subject: &Subject<'_>) -> Result<(), Stop> {
    let devices = subject.devices()?;
    let mut seen = BTreeSet::new();
    for link in answer("links", subject.vendor.links())? {
        let (a, b) = &link.ends;
        for end in [a, b] {
            let known = devices.iter().any(|device| device.name == *end);
            require(known, || format!("a link ends at {end}, which is no device"))?;
        }
        require(a != b, || format!("a link joins {a} with itself"))?;
        require(link.bandwidth.bytes_per_second() > 0, || format!("{a} to {b} carries nothing"))?;
        let pair = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
        require(seen.insert((pair, link.kind)), || {
            format!("{a} and {b} have two links of kind {}", link.kind)
        })?;
    }
    Ok(())
}

pub(super) fn discovery_is_stable(subject: &Subject<'_>) -> Result<(), Stop> {
    let sorted = || {
        let mut devices = subject.devices()?;
        devices.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        Ok(devices)
    };
    let (first, second) = (sorted()?, sorted()?);
    require(first == second, || "two calls in a row give different devices".to_owned())
}
