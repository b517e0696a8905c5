//! Worker messages to model types and back.
//!
//! What comes from a worker came from a vendor's library: every text is checked, every list
//! has a limit, and one bad device costs only itself.

use accelpool_model::{
    Bandwidth, ComputePermille, Device, DeviceNode, Enforcements, Fault, FaultClass, Injection,
    Link, MemoryBytes, Mount, Partition, PartitionProfile, Partitioning, PartitioningMode,
    Placements, RecoveryAction, Route, Sample,
};
use accelpool_proto::worker as wire;

use super::traits;

/// The most devices that a vendor may list; the largest known nodes have 16 to 64.
const DEVICES_MAX: usize = 256;
/// The most partitions, links, nodes, mounts or profiles in one list.
const ITEMS_MAX: usize = 4096;
/// The longest free text that is kept of a vendor's, in bytes; a ResourceSlice takes 64.
const TEXT_MAX: usize = 64;

/// Of one link; a DGX A100 has 6, and no board has been seen with more.
const SWITCHES_MAX: usize = 64;

/// What a worker answered that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {detail}")]
pub(super) struct BadAnswer {
    what: &'static str,
    detail: String,
}

pub(super) fn bad(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> BadAnswer {
    move |detail| BadAnswer { what, detail: detail.to_string() }
}

pub(super) fn device_to_wire(device: &Device) -> wire::Device {
    wire::Device {
        vendor: device.vendor.to_string(),
        name: device.name.to_string(),
        uuid: device.uuid.to_string(),
        kind: device.kind.to_string(),
        model: device.model.clone(),
        architecture: device.architecture.clone(),
        pci_address: device.pci.to_string(),
        driver_version: device.driver_version.clone(),
        memory_bytes: device.memory.bytes(),
        numa_node: device.numa_node,
        pcie_root: device.pcie_root.clone(),
        fabric_clique: device.fabric_clique.clone(),
        partitioning: device.partitioning.as_ref().map(partitioning_to_wire),
        share_memory_enforcement: device.share_enforcement.memory.to_string(),
        share_compute_enforcement: device.share_enforcement.compute.to_string(),
        injection: Some(injection_to_wire(&device.injection)),
        traits: Some(traits::to_wire(&device.traits)),
    }
}

fn partitioning_to_wire(partitioning: &Partitioning) -> wire::Partitioning {
    let profile = |profile: &PartitionProfile| wire::Profile {
        name: profile.name.to_string(),
        memory_bytes: profile.memory.bytes(),
        compute_permille: profile.compute.permille().into(),
        size: profile.size,
        counted: matches!(profile.placements, Placements::Counted),
        starts: match &profile.placements {
            Placements::Fixed(starts) => starts.clone(),
            Placements::Counted => Vec::new(),
        },
        instances_max: profile.instances_max,
    };
    wire::Partitioning {
        scheme: partitioning.scheme.clone(),
        slices: partitioning.slices,
        uniform: partitioning.uniform,
        profiles: partitioning.profiles.iter().map(profile).collect(),
        mode: partitioning
            .mode
            .map(|mode| wire::PartitioningMode { on: mode.on, switchable: mode.switchable }),
    }
}

pub(super) fn injection_to_wire(injection: &Injection) -> wire::Injection {
    let path = |host: &str, container: &str| wire::Path {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
    };
    wire::Injection {
        nodes: injection.nodes.iter().map(|n| path(&n.host_path, &n.container_path)).collect(),
        mounts: injection.mounts.iter().map(|m| path(&m.host_path, &m.container_path)).collect(),
        env: injection
            .env
            .iter()
            .map(|(name, value)| wire::Variable { name: name.clone(), value: value.clone() })
            .collect(),
    }
}

pub(super) fn partition_to_wire(partition: &Partition) -> wire::Partition {
    wire::Partition {
        uuid: partition.uuid.to_string(),
        device_uuid: partition.device.to_string(),
        profile: partition.profile.to_string(),
        start: partition.start,
        complete: partition.complete,
        injection: Some(injection_to_wire(&partition.injection)),
    }
}

pub(super) fn link_to_wire(link: &Link) -> wire::Link {
    wire::Link {
        a: link.ends.0.to_string(),
        b: link.ends.1.to_string(),
        kind: link.kind.to_string(),
        bandwidth_bytes_per_second: link.bandwidth.bytes_per_second(),
        strands: link.strands,
        switched: link.route.is_switched(),
        switches: link.route.switches().map(|it| it.to_string()).collect(),
    }
}

pub(super) fn sample_to_wire(sample: &Sample) -> wire::ProcessSample {
    wire::ProcessSample {
        pid: sample.pid,
        partition_uuid: sample.partition.as_ref().map(ToString::to_string),
        memory_bytes: sample.memory.bytes(),
        compute_busy_ns: sample
            .compute_busy
            .map(|busy| u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX)),
        engines_busy: super::counters::busy_to_wire(&sample.engines),
    }
}

pub(super) fn fault_to_wire(fault: &Fault) -> wire::Fault {
    wire::Fault {
        device_uuid: fault.device.to_string(),
        class: fault.class.to_string(),
        code: fault.code.clone(),
        message: fault.message.clone(),
    }
}

/// Keeps the devices of `answer` that make sense; says of the others what is wrong.
pub(super) fn devices_from_wire(answer: Vec<wire::Device>) -> (Vec<Device>, Vec<String>) {
    let mut devices: Vec<Device> = Vec::new();
    let mut troubles = Vec::new();
    let surplus = answer.len().saturating_sub(DEVICES_MAX);
    if surplus > 0 {
        troubles.push(format!("{surplus} devices beyond the limit of {DEVICES_MAX} are left out"));
    }
    for device in answer.into_iter().take(DEVICES_MAX) {
        let label = clip(&device.name);
        match device_from_wire(device) {
            Ok(device) => {
                let twin = devices
                    .iter()
                    .any(|other| other.uuid == device.uuid || other.name == device.name);
                if twin {
                    troubles
                        .push(format!("device {label} is listed twice: the second is left out"));
                } else {
                    devices.push(device);
                }
            }
            Err(error) => troubles.push(format!("device {label} is left out: {error}")),
        }
    }
    (devices, troubles)
}

fn device_from_wire(device: wire::Device) -> Result<Device, BadAnswer> {
    let kind = device.kind.parse().map_err(|e| bad("kind")(&e))?;
    let pci = device.pci_address.parse().map_err(|e| bad("PCI address")(&e))?;
    let name = Device::name_at(kind, pci);
    if name.as_str() != device.name {
        return Err(bad("name")(&format!("expected {name}")));
    }
    let partitioning = device.partitioning.map(partitioning_from_wire).transpose()?;
    Ok(Device {
        name,
        uuid: device.uuid.parse().map_err(|e| bad("identity")(&e))?,
        vendor: device.vendor.parse().map_err(|e| bad("vendor")(&e))?,
        kind,
        model: clip(&device.model),
        architecture: clip(&device.architecture),
        pci,
        driver_version: clip(&device.driver_version),
        memory: MemoryBytes::new(device.memory_bytes),
        numa_node: device.numa_node,
        pcie_root: device.pcie_root.as_deref().map(clip),
        fabric_clique: device.fabric_clique.as_deref().map(clip),
        partitioning,
        share_enforcement: Enforcements {
            memory: device
                .share_memory_enforcement
                .parse()
                .map_err(|e| bad("memory enforcement")(&e))?,
            compute: device
                .share_compute_enforcement
                .parse()
                .map_err(|e| bad("compute enforcement")(&e))?,
        },
        injection: injection_from_wire(device.injection.unwrap_or_default())?,
        traits: traits::from_wire(device.traits.unwrap_or_default())?,
    })
}

fn partitioning_from_wire(wire: wire::Partitioning) -> Result<Partitioning, BadAnswer> {
    let profile = |profile: wire::Profile| -> Result<PartitionProfile, BadAnswer> {
        let what = "partition profile";
        let fits =
            |start: &u32| start.checked_add(profile.size).is_some_and(|end| end <= wire.slices);
        if profile.size == 0 || profile.size > wire.slices || !profile.starts.iter().all(fits) {
            return Err(bad(what)(&format!("{} lies outside the device", clip(&profile.name))));
        }
        if profile.instances_max == 0 || profile.instances_max as usize > ITEMS_MAX {
            return Err(bad(what)(&format!("{} has no sane limit", clip(&profile.name))));
        }
        Ok(PartitionProfile {
            name: profile.name.parse().map_err(|e| bad(what)(&e))?,
            memory: MemoryBytes::new(profile.memory_bytes),
            compute: ComputePermille::try_from(u64::from(profile.compute_permille))
                .map_err(|e| bad(what)(&e))?,
            size: profile.size,
            placements: if profile.counted {
                Placements::Counted
            } else {
                Placements::Fixed(profile.starts)
            },
            instances_max: profile.instances_max,
        })
    };
    limit("partition profiles", wire.profiles.len())?;
    Ok(Partitioning {
        scheme: clip(&wire.scheme),
        slices: wire.slices,
        uniform: wire.uniform,
        profiles: wire.profiles.into_iter().map(profile).collect::<Result<_, _>>()?,
        mode: wire.mode.map(|mode| PartitioningMode { on: mode.on, switchable: mode.switchable }),
    })
}

fn injection_from_wire(wire: wire::Injection) -> Result<Injection, BadAnswer> {
    limit("device nodes", wire.nodes.len())?;
    limit("mounts", wire.mounts.len())?;
    limit("environment variables", wire.env.len())?;
    let absolute = |path: &wire::Path| {
        let sound = |text: &str| text.starts_with('/') && !text.contains('\0');
        let both = sound(&path.host_path) && sound(&path.container_path);
        if both { Ok(()) } else { Err(bad("path")(&format!("{path:?} is not absolute"))) }
    };
    wire.nodes.iter().chain(&wire.mounts).try_for_each(absolute)?;
    let variable = |variable: wire::Variable| {
        let sound = !variable.name.is_empty() && !variable.name.contains(['=', '\0']);
        let sound = sound && !variable.value.contains('\0');
        if sound {
            Ok((variable.name, variable.value))
        } else {
            Err(bad("variable")(&variable.name))
        }
    };
    Ok(Injection {
        nodes: wire
            .nodes
            .into_iter()
            .map(|path| DeviceNode {
                host_path: path.host_path,
                container_path: path.container_path,
            })
            .collect(),
        mounts: wire
            .mounts
            .into_iter()
            .map(|path| Mount { host_path: path.host_path, container_path: path.container_path })
            .collect(),
        folders: Vec::new(),
        env: wire.env.into_iter().map(variable).collect::<Result<_, _>>()?,
    })
}

pub(super) fn partition_from_wire(wire: wire::Partition) -> Result<Partition, BadAnswer> {
    Ok(Partition {
        uuid: wire.uuid.parse().map_err(|e| bad("partition identity")(&e))?,
        device: wire.device_uuid.parse().map_err(|e| bad("partition device")(&e))?,
        profile: wire.profile.parse().map_err(|e| bad("partition profile")(&e))?,
        start: wire.start,
        complete: wire.complete,
        injection: injection_from_wire(wire.injection.unwrap_or_default())?,
    })
}

pub(super) fn link_from_wire(wire: &wire::Link) -> Result<Link, BadAnswer> {
    let end = |text: &str| text.parse().map_err(|e| bad("link")(&e));
    if wire.switches.len() > SWITCHES_MAX {
        return Err(bad("link")(&format!("{} switches", wire.switches.len())));
    }
    let switch = |text: &String| text.parse().map_err(|e| bad("switch of a link")(&e));
    let switches: Result<_, BadAnswer> = wire.switches.iter().map(switch).collect();
    Ok(Link {
        ends: (end(&wire.a)?, end(&wire.b)?),
        kind: wire.kind.parse().map_err(|e| bad("link")(&e))?,
        bandwidth: Bandwidth::from_bytes_per_second(wire.bandwidth_bytes_per_second),
        strands: wire.strands,
        route: if wire.switched { Route::Switched(switches?) } else { Route::Direct },
    })
}

pub(super) fn fault_from_wire(wire: &wire::Fault) -> Result<Fault, BadAnswer> {
    let class = FaultClass::ALL.into_iter().find(|class| class.as_str() == wire.class);
    Ok(Fault {
        device: wire.device_uuid.parse().map_err(|e| bad("fault device")(&e))?,
        class: class.ok_or_else(|| bad("fault class")(&clip(&wire.class)))?,
        code: clip(&wire.code),
        message: clip_to(&wire.message, 256),
    })
}

pub(super) fn recovery_from_wire(text: &str) -> Result<RecoveryAction, BadAnswer> {
    let action = RecoveryAction::ALL.into_iter().find(|action| action.as_str() == text);
    action.ok_or_else(|| bad("recovery action")(&clip(text)))
}

pub(super) fn sample_from_wire(wire: wire::ProcessSample) -> Result<Sample, BadAnswer> {
    let partition = wire.partition_uuid.map(|uuid| uuid.parse()).transpose();
    Ok(Sample {
        pid: wire.pid,
        partition: partition.map_err(|e| bad("sample partition")(&e))?,
        memory: MemoryBytes::new(wire.memory_bytes),
        compute_busy: wire.compute_busy_ns.map(std::time::Duration::from_nanos),
        engines: super::counters::busy_from_wire(&wire.engines_busy)?,
    })
}

/// Refuses lists that no real node has.
pub(super) fn limit(what: &'static str, len: usize) -> Result<(), BadAnswer> {
    if len <= ITEMS_MAX { Ok(()) } else { Err(bad(what)(&format!("{len} of them"))) }
}

pub(super) fn clip(text: &str) -> String {
    clip_to(text, TEXT_MAX)
}

/// The text without control characters, cut at a character's end.
pub(super) fn clip_to(text: &str, max: usize) -> String {
    let mut kept = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if kept.len() + c.len_utf8() > max {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire_device(uuid: &str, pci: &str) -> wire::Device {
        wire::Device {
            name: format!("gpu-{}", pci.replace([':', '.'], "-")),
            vendor: "sim".into(),
            uuid: uuid.into(),
            kind: "gpu".into(),
            pci_address: pci.into(),
            share_memory_enforcement: "none".into(),
            share_compute_enforcement: "none".into(),
            ..wire::Device::default()
        }
    }

    #[track_caller]
    fn check(devices: Vec<wire::Device>, kept: usize, troubles: &[&str]) {
        let (devices, found) = devices_from_wire(devices);
        assert_eq!(
            (devices.len(), found),
            (kept, troubles.iter().map(ToString::to_string).collect())
        );
    }

    #[test]
    fn one_bad_device_costs_only_itself() {
        let good = wire_device("GPU-1", "0000:1b:00.0");
        let twin = wire_device("GPU-1", "0000:43:00.0");
        let nameless = wire::Device { name: "gpu0".into(), ..wire_device("GPU-2", "0000:52:00.0") };
        check(
            vec![good, twin, nameless],
            1,
            &[
                "device gpu-0000-43-00-0 is listed twice: the second is left out",
                "device gpu0 is left out: name: expected gpu-0000-52-00-0",
            ],
        );
    }

    #[test]
    fn lists_have_limits() {
        let many = (0..300).map(|n| wire_device(&format!("GPU-{n}"), &format!("{n:04x}:00:00.0")));
        check(many.collect(), 256, &["44 devices beyond the limit of 256 are left out"]);
    }

    #[test]
    fn texts_are_clipped_and_cleaned() {
        assert_eq!(clip("a\u{1b}[31m\nb"), "a[31mb");
        assert_eq!(clip(&"\u{e9}".repeat(40)).len(), 64);
    }

    #[test]
    fn profiles_outside_the_device_are_refused() {
        let profile = wire::Profile {
            name: "1g".into(),
            compute_permille: 1,
            size: 2,
            starts: vec![u32::MAX],
            instances_max: 1,
            ..wire::Profile::default()
        };
        let partitioning =
            wire::Partitioning { slices: 8, profiles: vec![profile], ..Default::default() };
        let error = partitioning_from_wire(partitioning).unwrap_err().to_string();
        assert_eq!(error, "partition profile: 1g lies outside the device");
    }
}
