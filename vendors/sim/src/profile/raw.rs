//! A profile as it is written.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) major: i64,
    pub(super) model: Vec<Model>,
    pub(super) device: Vec<Device>,
    #[serde(default)]
    pub(super) mesh: Vec<Mesh>,
    #[serde(default)]
    pub(super) link: Vec<Link>,
}

/// What devices of one product have in common.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) vendor: String,
    pub(super) kind: String,
    pub(super) product: String,
    pub(super) architecture: String,
    pub(super) driver_version: String,
    pub(super) memory: String,
    #[serde(default)]
    pub(super) share_enforcement: ShareEnforcement,
    pub(super) nodes: Vec<NodeTemplate>,
    pub(super) partitioning: Option<Partitioning>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShareEnforcement {
    pub(super) memory: String,
    pub(super) compute: String,
}

impl Default for ShareEnforcement {
    fn default() -> Self {
        Self { memory: "none".to_owned(), compute: "none".to_owned() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeTemplate {
    pub(super) path: String,
    pub(super) container: Option<String>,
    #[serde(default)]
    pub(super) first: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Partitioning {
    pub(super) scheme: String,
    pub(super) slices: i64,
    #[serde(default)]
    pub(super) uniform: bool,
    #[serde(default)]
    pub(super) counted: bool,
    /// Whether it begins in the mode in which it serves parts alone; without such a mode absent.
    pub(super) mode: Option<bool>,
    pub(super) uuid_prefix: String,
    pub(super) inherit: String,
    pub(super) nodes: Vec<NodeTemplate>,
    pub(super) profile: Vec<PartitionProfile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartitionProfile {
    pub(super) name: String,
    pub(super) memory: String,
    pub(super) compute_permille: i64,
    pub(super) size: i64,
    pub(super) starts: Option<Vec<i64>>,
    pub(super) instances_max: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub(super) model: String,
    pub(super) uuid: String,
    pub(super) pci: String,
    pub(super) numa_node: Option<i64>,
    pub(super) pcie_root: Option<String>,
    pub(super) fabric_clique: Option<String>,
}

/// Links between all devices of one model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mesh {
    pub(super) model: String,
    pub(super) kind: String,
    pub(super) bandwidth_bytes_per_second: i64,
}

/// A link between two devices, by PCI address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    pub(super) ends: [String; 2],
    pub(super) kind: String,
    pub(super) bandwidth_bytes_per_second: i64,
}
