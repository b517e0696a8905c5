//! One graph for all vendors: NUMA nodes, the PCIe tree, devices and the links between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use crate::{Bandwidth, DeviceName, PciAddress};

/// What a link between two devices is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the vendors' own words")]
pub enum LinkKind {
    Pcie,
    NvLink,
    Xgmi,
    Hccs,
}

/// A text that names no [`LinkKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("link kind `{0}` is not known: use pcie, nvlink, xgmi or hccs")]
pub struct UnknownLinkKind(pub String);

impl LinkKind {
    /// The kind in lower case, as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcie => "pcie",
            Self::NvLink => "nvlink",
            Self::Xgmi => "xgmi",
            Self::Hccs => "hccs",
        }
    }
}

impl FromStr for LinkKind {
    type Err = UnknownLinkKind;
    fn from_str(text: &str) -> Result<Self, UnknownLinkKind> {
        match text {
            "pcie" => Ok(Self::Pcie),
            "nvlink" => Ok(Self::NvLink),
            "xgmi" => Ok(Self::Xgmi),
            "hccs" => Ok(Self::Hccs),
            other => Err(UnknownLinkKind(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A link between two devices, both ways; a pair has at most one of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The two ends, in no order.
    pub ends: (DeviceName, DeviceName),
    /// What it is made of.
    pub kind: LinkKind,
    /// Rate in each direction.
    pub bandwidth: Bandwidth,
    /// How many links of the hardware work as this one; 0 where the vendor does not say.
    pub strands: u32,
    /// What it runs through.
    pub route: Route,
}

/// What a link runs through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Route {
    /// From one device to the other.
    #[default]
    Direct,
    /// Through switches of its own kind, at these addresses; none of them where nobody tells.
    Switched(BTreeSet<PciAddress>),
}

impl Route {
    /// True if there are switches, known or not.
    #[must_use]
    pub const fn is_switched(&self) -> bool {
        matches!(self, Self::Switched(_))
    }

    /// The switches that are known.
    pub fn switches(&self) -> impl Iterator<Item = PciAddress> {
        match self {
            Self::Direct => None,
            Self::Switched(switches) => Some(switches),
        }
        .into_iter()
        .flatten()
        .copied()
    }
}

/// A NUMA node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNode {
    /// The operating system's number.
    pub id: u32,
    /// Processors, as the operating system numbers them.
    pub cpus: Vec<u32>,
    /// Memory of the node, in bytes.
    pub memory_bytes: u64,
    /// Distance to each node by its number, 10 = local (ACPI SLIT); empty where unknown.
    pub distances: BTreeMap<u32, u64>,
}

/// A PCIe root complex, bridge or switch port, or a device of the host's PCIe tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcieNode {
    /// Its address; a root complex has none.
    pub pci: Option<PciAddress>,
    /// What people call it, such as `pci0000:3a` for a root complex.
    pub label: String,
    /// Index in [`Topology::pcie`] of the node above; roots have none.
    pub parent: Option<usize>,
    /// The NUMA node it hangs on, where known.
    pub numa_node: Option<u32>,
}

/// The node's topology: the host as hwloc sees it, devices and links as the vendors do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Where the host's part came from: `host`, or the path of a captured XML file.
    pub source: String,
    /// NUMA nodes by number.
    pub numa: Vec<NumaNode>,
    /// The PCIe tree, parents before children.
    pub pcie: Vec<PcieNode>,
    /// Links between devices.
    pub links: Vec<Link>,
}
