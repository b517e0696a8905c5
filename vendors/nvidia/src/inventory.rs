//! Devices: who they are, where they sit, and what a container needs to use them.
//!
//! A device that the library no longer answers for, but that the driver still describes in
//! procfs, stays listed with what is known there: whoever holds it must not see it vanish.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{
    Device, DeviceKind, DeviceTraits, DeviceUuid, Enforcements, Injection, MemoryBytes, PciAddress,
};
use accelpool_vendor_api::VendorError;

use crate::{
    fallback::{self, Described},
    files, links, mig, nodes,
    roots::Roots,
    settings,
    sys::{CallError, Gpu, Nvml},
};

/// The name of this adapter, and of the vendor of every device that it lists.
const VENDOR: &str = "nvidia";

/// What a string attribute takes, in bytes.
const TEXT_LEN_MAX: usize = 64;

/// A device that the library answers for.
#[derive(Debug, Clone)]
pub(crate) struct Known<'nvml> {
    pub(crate) gpu: Gpu<'nvml>,
    pub(crate) uuid: DeviceUuid,
    pub(crate) pci: PciAddress,
}

/// The devices that the library answers for, in the order of their addresses.
///
/// Of two with one UUID only the first is taken: the UUID would not say which is meant.
pub(crate) fn known(nvml: &Nvml) -> Result<Vec<Known<'_>>, CallError> {
    let mut known: Vec<Known<'_>> = (0..nvml.device_count()?)
        .filter_map(|index| identify(nvml.device_by_index(index).ok()?))
        .collect();
    known.sort_by_key(|device| device.pci);
    let (mut uuids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    known.retain(|it| uuids.insert(it.uuid.clone()) && addresses.insert(it.pci));
    Ok(known)
}

/// Who a device is; none if it does not say, and so cannot be given to anybody.
fn identify(gpu: Gpu<'_>) -> Option<Known<'_>> {
    Some(Known { gpu, uuid: gpu.uuid().ok()?.parse().ok()?, pci: parse_pci(&gpu.pci().ok()?)? })
}

/// Reads an address as NVML writes it, `00000000:1B:00.0`, or with four digits of domain.
pub(crate) fn parse_pci(text: &str) -> Option<PciAddress> {
    let text = text.to_ascii_lowercase();
    let short = match text.len() {
        // A domain beyond 16 bits has no name in the model, and no GPU has been seen in one.
        16 => text.strip_prefix("0000")?,
        _ => &text,
    };
    short.parse().ok()
}

/// The device of that identity.
pub(crate) fn find<'nvml>(
    roots: &Roots,
    nvml: &'nvml Nvml,
    uuid: &DeviceUuid,
) -> Result<Gpu<'nvml>, VendorError> {
    let known = known(nvml).map_err(CallError::about_nobody)?;
    if let Some(found) = known.into_iter().find(|device| device.uuid == *uuid) {
        return Ok(found.gpu);
    }
    if fallback::devices(roots).iter().any(|device| device.uuid == *uuid) {
        let detail = "the driver describes the device, but the library does not answer for it";
        return Err(VendorError::Failed { call: "find", detail: detail.to_owned() });
    }
    Err(VendorError::UnknownDevice(uuid.clone()))
}

/// Every device: those that the library answers for, then those that only procfs describes.
pub(crate) fn devices(roots: &Roots, nvml: Option<&Nvml>) -> Result<Vec<Device>, VendorError> {
    let described = fallback::devices(roots);
    let known = nvml.map(known).transpose().map_err(|error| unusable(&error))?.unwrap_or_default();
    let driver_version = nvml
        .and_then(|nvml| nvml.driver_version().ok())
        .or_else(|| fallback::driver_version(roots))
        .map_or_else(|| "unknown".to_owned(), |text| plain(&text));
    // `CUDA_VERSION` of `cuda.h`: 13000 is 13.0.
    let cuda = nvml.and_then(|nvml| nvml.cuda_version().ok()).filter(|it| *it > 0);
    let cuda_version = cuda.map(|it| format!("{}.{}", it / 1000, it % 1000 / 10));
    let mounts = files::mounts(roots, &driver_version);
    let machine = Machine { roots, mounts, driver_version, cuda_version };
    let mut peers = links::peers(&known);
    let mut devices: BTreeMap<PciAddress, Device> = BTreeMap::new();
    for device in known {
        let described = described.iter().find(|it| it.pci == device.pci);
        if let Some(minor) = device.gpu.minor().ok().or(described.map(|it| it.minor)) {
            let peers = peers.remove(&device.pci).unwrap_or_default();
            let traits = DeviceTraits { peers, ..machine.traits(&device) };
            let listed = machine.device(&device, minor, described);
            devices.insert(device.pci, Device { traits, ..listed });
        }
    }
    let mut uuids: BTreeSet<DeviceUuid> = devices.values().map(|it| it.uuid.clone()).collect();
    for device in described {
        if !devices.contains_key(&device.pci) && uuids.insert(device.uuid.clone()) {
            devices.insert(device.pci, machine.described(&device));
        }
    }
    Ok(devices.into_values().collect())
}

/// A library that cannot even say how many devices there are is of no use.
fn unusable(error: &CallError) -> VendorError {
    VendorError::Library(error.to_string())
}

/// What all devices of a machine have in common.
struct Machine<'a> {
    roots: &'a Roots,
    mounts: Vec<accelpool_model::Mount>,
    driver_version: String,
    /// Such as `13.0`; absent where the library does not say.
    cuda_version: Option<String>,
}

impl Machine<'_> {
    fn device(&self, known: &Known<'_>, minor: u32, described: Option<&Described>) -> Device {
        let gpu = known.gpu;
        let model = gpu.name().ok().or_else(|| described.map(|it| it.model.clone()));
        let memory = MemoryBytes::new(gpu.memory_total().unwrap_or_default());
        Device {
            model: plain(&model.unwrap_or_default()),
            architecture: architecture(gpu.architecture().ok()).to_owned(),
            memory,
            fabric_clique: fabric_clique(gpu),
            partitioning: mig::partitioning(gpu, memory).unwrap_or_default(),
            numa_node: self.numa_node(known),
            ..self.bare(known.uuid.clone(), known.pci, minor)
        }
    }

    /// Where the kernel shows the device it knows best, and -1 is an answer too.
    fn numa_node(&self, known: &Known<'_>) -> Option<u32> {
        if fallback::is_on_bus(self.roots, known.pci) {
            return fallback::numa_node(self.roots, known.pci);
        }
        known.gpu.nearest_numa_node().ok().flatten()
    }

    fn traits(&self, known: &Known<'_>) -> DeviceTraits {
        let capability = known.gpu.compute_capability().ok();
        DeviceTraits {
            compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
            runtime_version: self.cuda_version.clone(),
            peers: Vec::new(),
            settings: settings::settings(known.gpu),
            incarnation: fallback::incarnation(self.roots, known.pci),
        }
    }

    fn described(&self, device: &Described) -> Device {
        Device {
            model: plain(&device.model),
            ..self.bare(device.uuid.clone(), device.pci, device.minor)
        }
    }

    /// A device of which nothing is known but who and where it is.
    fn bare(&self, uuid: DeviceUuid, pci: PciAddress, minor: u32) -> Device {
        Device {
            name: Device::name_at(DeviceKind::Gpu, pci),
            uuid,
            vendor: VENDOR.parse().expect("it is a DNS label"),
            kind: DeviceKind::Gpu,
            model: "unknown".to_owned(),
            architecture: architecture(None).to_owned(),
            pci,
            driver_version: self.driver_version.clone(),
            memory: MemoryBytes::ZERO,
            numa_node: fallback::numa_node(self.roots, pci),
            pcie_root: fallback::pcie_root(self.roots, pci).map(|root| plain(&root)),
            fabric_clique: None,
            partitioning: None,
            // The driver has no quotas: it keeps processes on one device apart, and no more.
            share_enforcement: Enforcements::default(),
            traits: DeviceTraits {
                incarnation: fallback::incarnation(self.roots, pci),
                ..DeviceTraits::default()
            },
            injection: injection(nodes::of_device(self.roots, pci, minor), &self.mounts),
        }
    }
}

/// Nodes and mounts, and a word to NVIDIA's own container runtime, should it be there too, that
/// it has nothing to add.
pub(crate) fn injection(
    nodes: Vec<accelpool_model::DeviceNode>,
    mounts: &[accelpool_model::Mount],
) -> Injection {
    let env = vec![("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())];
    Injection { nodes, mounts: mounts.to_vec(), env, ..Injection::default() }
}

/// `NVML_DEVICE_ARCH_...` of `nvml.h` in words.
fn architecture(number: Option<u32>) -> &'static str {
    match number {
        Some(2) => "kepler",
        Some(3) => "maxwell",
        Some(4) => "pascal",
        Some(5) => "volta",
        Some(6) => "turing",
        Some(7) => "ampere",
        Some(8) => "ada",
        Some(9) => "hopper",
        Some(10) => "blackwell",
        Some(_) | None => "unknown",
    }
}

/// The part of the fabric that a device has joined: `<cluster>.<clique>`.
///
/// A cluster of zeros is a node's own switches: every node says the same, so it names nothing
/// that is shared between nodes, and inside the node the links tell who reaches whom.
fn fabric_clique(gpu: Gpu<'_>) -> Option<String> {
    let fabric = gpu.fabric().ok().filter(|fabric| fabric.joined && fabric.cluster != [0; 16])?;
    let hex = format!("{:032x}", u128::from_be_bytes(fabric.cluster));
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Some(format!("{}.{}", parts.join("-"), fabric.clique))
}

/// A text that fits an attribute: plain characters, not empty, not too long.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.trim().chars().filter(|c| !c.is_control()) {
        if plain.len() + c.len_utf8() > TEXT_LEN_MAX {
            break;
        }
        plain.push(c);
    }
    if plain.is_empty() { "unknown".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_nvml_writes_them() {
        let check = |text: &str, expected: Option<&str>| {
            let found = parse_pci(text).map(|pci| pci.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check("00000000:1B:00.0", Some("0000:1b:00.0"));
        check("0000:1b:00.0", Some("0000:1b:00.0"));
        check("00010000:1B:00.0", None);
        check("", None);
        check("garbage", None);
    }

    #[test]
    fn texts_fit_an_attribute() {
        assert_eq!(plain(" NVIDIA\u{1} A100\n"), "NVIDIA A100");
        assert_eq!(plain("\0"), "unknown");
        assert_eq!(plain(&"ä".repeat(99)).len(), 64);
    }
}
