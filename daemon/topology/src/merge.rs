//! Joins the host's tree with what vendors say of their devices.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{Device, DeviceName, Link, LinkKind, PciAddress, Topology};

/// Where a device hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The NUMA node, unless the device is as near to several.
    pub numa_node: Option<u32>,
    /// The root complex, such as `pci0000:15`, unless the tree shows none.
    pub pcie_root: Option<String>,
}

/// Looks up the position of the device at `pci`; `None` if the tree does not have it.
#[must_use]
pub fn place(topology: &Topology, pci: PciAddress) -> Option<Position> {
    let mut index = topology.pcie.iter().position(|node| node.pci == Some(pci))?;
    let numa_node = topology.pcie[index].numa_node;
    // Parents stand before their children, so every step leads down in the list and ends.
    while let Some(parent) = topology.pcie[index].parent.filter(|parent| *parent < index) {
        index = parent;
    }
    let root = &topology.pcie[index];
    Some(Position { numa_node, pcie_root: root.pci.is_none().then(|| root.label.clone()) })
}

/// Puts `links` into the topology, and positions into `devices`.
///
/// For a device that is in the tree, the tree is right wherever it knows: it is the
/// kernel's own view, and the processors and memory of a NUMA node are counted there too. A
/// device that is not in the tree (a simulated one, or any beside a captured XML) keeps
/// what its vendor said.
///
/// Links that join no two of `devices` are dropped. Of several of one kind between the
/// same two devices the fastest stays.
pub fn merge(topology: &mut Topology, devices: &mut [Device], links: &[Link]) {
    for device in &mut *devices {
        let Some(Position { numa_node, pcie_root }) = place(topology, device.pci) else { continue };
        device.numa_node = numa_node.or(device.numa_node);
        device.pcie_root = pcie_root.or_else(|| device.pcie_root.take());
    }
    let known: BTreeSet<&DeviceName> = devices.iter().map(|device| &device.name).collect();
    let mut fastest: BTreeMap<(&DeviceName, &DeviceName, LinkKind), &Link> = BTreeMap::new();
    for link in links {
        let (a, b) = (&link.ends.0, &link.ends.1);
        if a == b || !known.contains(a) || !known.contains(b) {
            continue;
        }
        let best = fastest.entry((a.min(b), a.max(b), link.kind)).or_insert(link);
        if link.bandwidth > best.bandwidth {
            *best = link;
        }
    }
    topology.links = fastest.into_values().cloned().collect();
}
