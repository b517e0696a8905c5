//! The node's topology for people: who hangs on what, and how fast pairs speak.
//!
//! Arranges what the daemon says; works out no distances of its own.

mod clique;
mod matrix;
mod svg;
mod tree;

use std::collections::BTreeMap;

use crate::document::{Device, GetTopologyResponse, Link, PcieNode};

pub(crate) use self::{matrix::write_matrix, svg::draw, tree::write_tree};

/// A NUMA node with what hangs on it.
pub(crate) struct NumaGroup<'a> {
    /// Its number; none for devices that tell no node.
    pub(crate) id: Option<u32>,
    /// Its processors.
    pub(crate) cpus: &'a [u32],
    /// Its memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// PCIe roots that lead to devices, by label.
    pub(crate) roots: Vec<RootGroup<'a>>,
}

/// A PCIe root with the devices below.
pub(crate) struct RootGroup<'a> {
    /// What people call it; none if the device tells no root.
    pub(crate) label: Option<String>,
    /// Its devices by the switch they share.
    pub(crate) branches: Vec<Branch<'a>>,
}

/// Devices that share a switch below a root, or hang on the root alone.
pub(crate) struct Branch<'a> {
    /// The switch; none for devices that share only the root.
    pub(crate) switch: Option<String>,
    /// The devices, by name.
    pub(crate) devices: Vec<&'a Device>,
}

impl<'a> RootGroup<'a> {
    /// The label, or words that say that there is none.
    pub(crate) fn title(&self) -> &str {
        self.label.as_deref().unwrap_or("PCIe root not known")
    }

    /// The devices of all branches.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &'a Device> {
        self.branches.iter().flat_map(|branch| branch.devices.iter().copied())
    }
}

/// The place of a device in the PCIe tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    root: Option<String>,
    switch: Option<String>,
}

/// Groups the devices by NUMA node, root and switch. Nodes without devices are there too.
pub(crate) fn arrange(topology: &GetTopologyResponse) -> Vec<NumaGroup<'_>> {
    let mut numa: BTreeMap<u32, BTreeMap<Place, Vec<&Device>>> = BTreeMap::new();
    for node in &topology.numa_nodes {
        numa.entry(node.id).or_default();
    }
    let mut elsewhere: BTreeMap<Place, Vec<&Device>> = BTreeMap::new();
    for (device, place) in places(topology) {
        let places = match device.numa_node {
            Some(node) => numa.entry(node).or_default(),
            None => &mut elsewhere,
        };
        places.entry(place).or_default().push(device);
    }
    let mut groups: Vec<NumaGroup<'_>> = numa
        .into_iter()
        .map(|(id, places)| {
            let node = topology.numa_nodes.iter().find(|node| node.id == id);
            NumaGroup {
                id: Some(id),
                cpus: node.map_or(&[], |node| node.cpus.as_slice()),
                memory_bytes: node.map_or(0, |node| node.memory_bytes),
                roots: roots(places),
            }
        })
        .collect();
    if !elsewhere.is_empty() {
        groups.push(NumaGroup { id: None, cpus: &[], memory_bytes: 0, roots: roots(elsewhere) });
    }
    groups
}

fn roots(places: BTreeMap<Place, Vec<&Device>>) -> Vec<RootGroup<'_>> {
    let mut roots: Vec<RootGroup<'_>> = Vec::new();
    for (place, mut devices) in places {
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        let branch = Branch { switch: place.switch, devices };
        match roots.last_mut() {
            Some(root) if root.label == place.root => root.branches.push(branch),
            Some(_) | None => {
                roots.push(RootGroup { label: place.root, branches: vec![branch] });
            }
        }
    }
    roots
}

/// Each device with its place.
fn places(topology: &GetTopologyResponse) -> Vec<(&Device, Place)> {
    let nodes = &topology.pcie_nodes;
    let paths: Vec<Vec<usize>> =
        topology.devices.iter().map(|device| path_to_root(nodes, device)).collect();
    let mut devices_below = vec![0_usize; nodes.len()];
    for at in paths.iter().flatten() {
        devices_below[*at] += 1;
    }
    let place = |(device, path): (_, &Vec<usize>)| {
        let device: &Device = device;
        let Some((root, bridges)) = path.split_last() else {
            let root = device.pcie_root.clone().filter(|root| !root.is_empty());
            return (device, Place { root, switch: None });
        };
        let switch = bridges.iter().find(|at| devices_below[**at] > 1);
        let switch = switch.map(|at| node_label(&nodes[*at]));
        (device, Place { root: Some(node_label(&nodes[*root])), switch })
    };
    topology.devices.iter().zip(&paths).map(place).collect()
}

/// The nodes above a device, nearest first, the root last; empty if the tree lacks the device.
fn path_to_root(nodes: &[PcieNode], device: &Device) -> Vec<usize> {
    let is_device =
        |node: &PcieNode| !node.pci_address.is_empty() && node.pci_address == device.pci_address;
    let Some(own) = nodes.iter().find(|node| is_device(node)) else { return Vec::new() };
    let mut path = Vec::new();
    let mut above = own.parent;
    while let Some(at) = above.and_then(|at| usize::try_from(at).ok()) {
        // Parents come before children; what breaks that is no tree and might never end.
        let is_backwards = path.last().is_none_or(|last| at < *last);
        let Some(node) = nodes.get(at).filter(|_| is_backwards) else { break };
        path.push(at);
        above = node.parent;
    }
    path
}

fn node_label(node: &PcieNode) -> String {
    if node.label.is_empty() { node.pci_address.clone() } else { node.label.clone() }
}

/// The devices in the order in which trees, matrices and pictures show them.
pub(crate) fn in_order<'a>(groups: &[NumaGroup<'a>]) -> Vec<&'a Device> {
    groups.iter().flat_map(|group| &group.roots).flat_map(RootGroup::devices).collect()
}

/// The fastest link between two devices.
fn fastest_link<'a>(links: &'a [Link], a: &str, b: &str) -> Option<&'a Link> {
    let joins = |link: &&Link| (link.a == a && link.b == b) || (link.a == b && link.b == a);
    links.iter().filter(joins).max_by_key(|link| link.bandwidth_bytes_per_second)
}

#[cfg(test)]
mod tests;
