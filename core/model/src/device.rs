//! Devices and their partitions, as a vendor reports them.

use std::{fmt, str::FromStr};

use crate::{
    ComputePermille, DeviceName, DeviceTraits, DeviceUuid, MemoryBytes, NameError, PartitionName,
    PciAddress, Placement, ProfileName, VendorName,
};

/// What a device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum DeviceKind {
    Gpu,
    Npu,
    Fpga,
}

/// A text that names no [`DeviceKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device kind `{0}` is not known: use gpu, npu or fpga")]
pub struct UnknownDeviceKind(pub String);

impl DeviceKind {
    /// The kind in lower case, as it stands in names and on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Npu => "npu",
            Self::Fpga => "fpga",
        }
    }
}

impl FromStr for DeviceKind {
    type Err = UnknownDeviceKind;
    fn from_str(text: &str) -> Result<Self, UnknownDeviceKind> {
        match text {
            "gpu" => Ok(Self::Gpu),
            "npu" => Ok(Self::Npu),
            "fpga" => Ok(Self::Fpga),
            other => Err(UnknownDeviceKind(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What keeps a tenant inside its grant, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Enforcement {
    /// Nothing: the limit is written down and measured, no more.
    #[default]
    None,
    /// A library inside the tenant's process: exact for honest workloads, no guard against others.
    Library,
    /// The kernel: holds against a tenant that is root in its container.
    Kernel,
    /// The device itself.
    Hardware,
}

/// A text that names no [`Enforcement`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("enforcement `{0}` is not known: use none, library, kernel or hardware")]
pub struct UnknownEnforcement(pub String);

impl Enforcement {
    /// The class in lower case, as it stands in attributes and on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Library => "library",
            Self::Kernel => "kernel",
            Self::Hardware => "hardware",
        }
    }
}

impl FromStr for Enforcement {
    type Err = UnknownEnforcement;
    fn from_str(text: &str) -> Result<Self, UnknownEnforcement> {
        match text {
            "none" => Ok(Self::None),
            "library" => Ok(Self::Library),
            "kernel" => Ok(Self::Kernel),
            "hardware" => Ok(Self::Hardware),
            other => Err(UnknownEnforcement(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Enforcement of a grant's memory and of its compute time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Enforcements {
    pub memory: Enforcement,
    pub compute: Enforcement,
}

impl Enforcements {
    /// What a whole device or a partition of it has.
    pub const HARDWARE: Self =
        Self { memory: Enforcement::Hardware, compute: Enforcement::Hardware };
}

/// One accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// For people and schedulers: kind and PCI address.
    pub name: DeviceName,
    /// The vendor's identity.
    pub uuid: DeviceUuid,
    /// Whose device it is: a real adapter's own name, or the vendor that a simulation imitates.
    pub vendor: VendorName,
    /// What it is for.
    pub kind: DeviceKind,
    /// The vendor's product name.
    pub model: String,
    /// The vendor's name of the chip generation.
    pub architecture: String,
    /// Where it sits.
    pub pci: PciAddress,
    /// Version of the kernel driver, as the vendor writes it.
    pub driver_version: String,
    /// All of its memory that tenants can be given.
    pub memory: MemoryBytes,
    /// The NUMA node it hangs on, where the platform says one.
    pub numa_node: Option<u32>,
    /// The PCIe root complex above it, such as `pci0000:3a`.
    pub pcie_root: Option<String>,
    /// Devices with the same clique reach each other over the fabric.
    pub fabric_clique: Option<String>,
    /// How it can be cut, if it can.
    pub partitioning: Option<Partitioning>,
    /// The strongest enforcement that a share of it can be given.
    pub share_enforcement: Enforcements,
    /// What the vendor tells of it beyond that.
    pub traits: DeviceTraits,
    /// What a container needs to use all of it, or a share.
    pub injection: Injection,
}

impl Device {
    /// The name of the device of `kind` at `pci`.
    ///
    /// # Panics
    ///
    /// Never: kind and address are made of characters that a name admits.
    #[must_use]
    pub fn name_at(kind: DeviceKind, pci: PciAddress) -> DeviceName {
        format!("{kind}-{}", pci.label()).parse().expect("kind and PCI address form a DNS label")
    }

    /// True if it can be had whole or as a share; `switches` says that its mode may be switched
    /// for that.
    #[must_use]
    pub fn serves_whole(&self, switches: bool) -> bool {
        self.mode().is_none_or(|mode| !mode.on || (mode.switchable && switches))
    }

    /// True if parts of it can be had; `switches` says that its mode may be switched for that.
    #[must_use]
    pub fn serves_parts(&self, switches: bool) -> bool {
        self.partitioning.is_some()
            && self.mode().is_none_or(|mode| mode.on || (mode.switchable && switches))
    }

    /// The mode that it must be in to be cut, where there is one.
    #[must_use]
    pub fn mode(&self) -> Option<PartitioningMode> {
        self.partitioning.as_ref()?.mode
    }

    /// The partition profile of that name.
    #[must_use]
    pub fn profile(&self, name: &ProfileName) -> Option<&PartitionProfile> {
        self.partitioning.as_ref()?.profiles.iter().find(|profile| profile.name == *name)
    }
}

/// How a device can be cut into partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// The vendor's word for a cut device, such as `mig`, `xcp` or `vnpu`; part of names.
    pub scheme: String,
    /// Size of the device in the unit that placements count: memory slices for MIG
    /// (`nvmlGpuInstancePlacement_t`), XCDs for AMD, AI cores for Ascend.
    pub slices: u32,
    /// True if all partitions of the device must have the same profile (AMD's modes).
    pub uniform: bool,
    /// The profiles offered.
    pub profiles: Vec<PartitionProfile>,
    /// The mode that the device must be in to be cut, where it has such a mode (MIG's).
    pub mode: Option<PartitioningMode>,
}

/// A mode in which a device serves parts alone, and without which it serves no parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartitioningMode {
    /// Whether the device is in it now.
    pub on: bool,
    /// Whether it can be switched while the device is idle, without a reset.
    pub switchable: bool,
}

/// One shape a partition can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionProfile {
    /// The vendor's name.
    pub name: ProfileName,
    /// Memory of such a partition.
    pub memory: MemoryBytes,
    /// Its part of the device's compute.
    pub compute: ComputePermille,
    /// Slices that it takes.
    pub size: u32,
    /// Where it may lie.
    pub placements: Placements,
    /// How many the device takes at once at most.
    pub instances_max: u32,
}

/// Where partitions of a profile may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placements {
    /// At these starts; two partitions exclude each other where their slices overlap.
    Fixed(Vec<u32>),
    /// Anywhere: slices are only counted, and the start is an ordinal below `instances_max`.
    Counted,
}

impl PartitionProfile {
    /// The starts that a partition of this profile can have, ascending.
    #[must_use]
    pub fn starts(&self) -> Vec<u32> {
        match &self.placements {
            Placements::Fixed(starts) => starts.clone(),
            Placements::Counted => (0..self.instances_max).collect(),
        }
    }

    /// The slices that a partition at `start` takes; `None` where slices are only counted.
    #[must_use]
    pub fn placement_at(&self, start: u32) -> Option<Placement> {
        match self.placements {
            Placements::Fixed(_) => Placement::new(start, self.size),
            Placements::Counted => None,
        }
    }
}

/// A partition that exists on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The vendor's identity of the partition.
    pub uuid: DeviceUuid,
    /// The device it is a part of.
    pub device: DeviceUuid,
    /// Its shape.
    pub profile: ProfileName,
    /// Where it lies: see [`PartitionProfile::starts`].
    pub start: u32,
    /// False if a creation stopped half-way; such a partition serves nobody.
    pub complete: bool,
    /// What a container needs to use it, beside nothing of the whole device.
    pub injection: Injection,
}

impl Partition {
    /// The name of a partition of `device` with `scheme` and `profile` at `start`.
    ///
    /// # Errors
    ///
    /// The vendor's own words may not fit a DNS label of 63 characters.
    pub fn name_at(
        device: &DeviceName,
        scheme: &str,
        profile: &ProfileName,
        start: u32,
    ) -> Result<PartitionName, NameError> {
        let words = format!("{scheme}-{profile}").to_ascii_lowercase();
        let words: String =
            words.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        format!("{device}-{words}-{start}").parse()
    }
}

/// What is put into a container that was granted a device or a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Injection {
    /// Device nodes, in the order given.
    pub nodes: Vec<DeviceNode>,
    /// Files of the driver, always read-only.
    pub mounts: Vec<Mount>,
    /// Folders that the container may write to.
    pub folders: Vec<Mount>,
    /// Environment that the vendor's own libraries need, as name and value.
    pub env: Vec<(String, String)>,
}

/// A device node and where the container sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct DeviceNode {
    pub host_path: String,
    pub container_path: String,
}

/// A file or folder of the host and where the container sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kind_address_profile_and_start() {
        let device = Device::name_at(DeviceKind::Gpu, "0000:3b:00.0".parse().unwrap());
        assert_eq!(device.as_str(), "gpu-0000-3b-00-0");
        let name = |profile: &str| {
            let profile = profile.parse().unwrap();
            Partition::name_at(&device, "mig", &profile, 4).unwrap().to_string()
        };
        assert_eq!(name("1g.10gb"), "gpu-0000-3b-00-0-mig-1g-10gb-4");
        assert_eq!(name("1g.10gb+me"), "gpu-0000-3b-00-0-mig-1g-10gb-me-4");
    }

    #[test]
    fn enforcement_is_ordered_weakest_first() {
        assert!(Enforcement::None < Enforcement::Library);
        assert!(Enforcement::Library < Enforcement::Kernel);
        assert!(Enforcement::Kernel < Enforcement::Hardware);
    }
}
