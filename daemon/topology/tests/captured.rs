//! Golden descriptions of captured machines, and hwloc's own view of the same files.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use accelpool_model::{PciAddress, Topology};
use accelpool_topology::{Position, Source, place, read};
use hwlocality::object::{
    TopologyObject,
    attributes::{DownstreamAttributes, ObjectAttributes},
    types::ObjectType,
};

fn path(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn captured(name: &str) -> Topology {
    read(&Source::File(path(name).into())).unwrap()
}

/// One line a NUMA node and one a PCIe node, indented by its depth.
fn describe(topology: &Topology) -> Vec<String> {
    let numa = topology.numa.iter().map(|node| {
        let distances: Vec<_> =
            node.distances.iter().map(|(to, distance)| format!("{to}={distance}")).collect();
        let (id, gib) = (node.id, node.memory_bytes >> 30);
        format!("numa {id}: cpus {:?}, {gib} GiB, distances [{}]", node.cpus, distances.join(" "))
    });
    let mut depths: Vec<usize> = Vec::new();
    let pcie = topology.pcie.iter().map(|node| {
        depths.push(node.parent.map_or(0, |parent| depths[parent] + 1));
        let indent = "  ".repeat(depths[depths.len() - 1]);
        let address = node.pci.map_or(String::new(), |pci| format!("{pci} "));
        let numa = node.numa_node.map_or("?".to_owned(), |node| node.to_string());
        format!("{indent}{address}{} @{numa}", node.label)
    });
    numa.chain(pcie).collect()
}

#[test]
fn one_socket_vm() {
    let topology = captured("one-socket-vm.xml");
    assert_eq!(topology.source, path("one-socket-vm.xml"));
    let expected = [
        "numa 0: cpus [0, 1], 4 GiB, distances []",
        "pci0000:00 @0",
        "  0000:00:02.0 storage controller 1af4:1042 @0",
        "  0000:00:03.0 network controller 1af4:1041 @0",
    ];
    assert_eq!(describe(&topology), expected);
}

#[test]
fn a_file_that_crashes_hwloc_is_read() {
    // Two names in it are damaged, of an attribute and of a feature; neither is read here.
    let damaged = describe(&captured("crashes-hwloc.xml"));
    assert_eq!(damaged, describe(&captured("one-socket-vm.xml")));
}

/// A root complex with a switch, which has a network controller and an accelerator below it.
fn behind_switch(numa: u32, root: u8, network: u8, gpu: u8) -> Vec<String> {
    let (up, down) = (root + 1, root + 2);
    vec![
        format!("pci0000:{root:02x} @{numa}"),
        format!("  0000:{root:02x}:01.0 bridge 8086:352a @{numa}"),
        format!("    0000:{up:02x}:00.0 bridge 1000:c030 @{numa}"),
        format!("      0000:{down:02x}:00.0 bridge 1000:c030 @{numa}"),
        format!("        0000:{network:02x}:00.0 InfiniBand controller 15b3:1021 @{numa}"),
        format!("      0000:{down:02x}:01.0 bridge 1000:c030 @{numa}"),
        format!("        0000:{gpu:02x}:00.0 3D controller 10de:2330 @{numa}"),
    ]
}

#[test]
fn two_sockets_eight_gpus() {
    let mut expected: Vec<String> = [
        "numa 0: cpus [0, 1, 2, 3, 4, 5, 6, 7], 1024 GiB, distances [0=10 1=21]",
        "numa 1: cpus [8, 9, 10, 11, 12, 13, 14, 15], 1024 GiB, distances [0=21 1=10]",
        "pci0000:00 @0",
        "  0000:00:1c.0 bridge 8086:352a @0",
        "    0000:02:00.0 display controller 1a03:2000 @0",
    ]
    .map(str::to_owned)
    .into();
    let roots = [
        (0, 0x15, 0x18, 0x1b),
        (0, 0x37, 0x40, 0x43),
        (0, 0x48, 0x4f, 0x52),
        (0, 0x59, 0x5e, 0x61),
        (1, 0x97, 0x9a, 0x9d),
        (1, 0xb7, 0xc0, 0xc3),
        (1, 0xc7, 0xce, 0xd1),
        (1, 0xd7, 0xdc, 0xdf),
    ];
    for (numa, root, network, gpu) in roots {
        expected.extend(behind_switch(numa, root, network, gpu));
    }
    assert_eq!(describe(&captured("dgx-h100.xml")), expected);
}

/// Every PCI device where hwloc itself places it.
fn places_by_hwloc(topology: &hwlocality::Topology) -> Vec<(PciAddress, Position)> {
    let devices = topology.objects_with_type(ObjectType::PCIDevice).map(|device| {
        let Some(ObjectAttributes::PCIDevice(pci)) = device.attributes() else {
            panic!("a PCI device without attributes");
        };
        let (domain, bus) = (pci.domain(), pci.bus_id());
        let address =
            format!("{domain:04x}:{bus:02x}:{:02x}.{:x}", pci.bus_device(), pci.function());
        let nodes = device.first_non_io_ancestor().and_then(TopologyObject::nodeset).unwrap();
        let node = nodes.first_set().map(|index| u32::try_from(usize::from(index)).unwrap());
        let root = device.ancestors().filter(|object| object.object_type() == ObjectType::Bridge);
        let root = root.last().and_then(|bridge| match bridge.attributes() {
            Some(ObjectAttributes::Bridge(bridge)) => bridge.downstream_attributes().map(|down| {
                let DownstreamAttributes::PCI(down) = down;
                format!("pci{:04x}:{:02x}", down.domain(), down.secondary_bus())
            }),
            _ => None,
        });
        let numa_node = node.filter(|_| nodes.weight() == Some(1));
        (address.parse().unwrap(), Position { numa_node, pcie_root: root })
    });
    devices.collect()
}

/// hwloc's own reader must agree; it is safe with these files, which it wrote.
#[track_caller]
fn check_agreement(topology: &Topology, hwloc: &hwlocality::Topology) {
    let expected = places_by_hwloc(hwloc);
    let actual: Vec<_> = expected
        .iter()
        .map(|(pci, _)| (*pci, place(topology, *pci).expect("hwloc has this device")))
        .collect();
    assert_eq!(actual, expected);
    let nodes: Vec<_> = hwloc.objects_with_type(ObjectType::NUMANode).collect();
    let ids = |index: Option<usize>| index.and_then(|index| u32::try_from(index).ok()).unwrap();
    let mut expected: Vec<_> = nodes
        .iter()
        .map(|node| (ids(node.os_index()), node.total_memory(), node.cpuset().unwrap().weight()))
        .collect();
    expected.sort_unstable();
    let numa = topology.numa.iter();
    let actual: Vec<_> =
        numa.map(|node| (node.id, node.memory_bytes, Some(node.cpus.len()))).collect();
    assert_eq!(actual, expected);
}

#[test]
fn hwloc_says_the_same() {
    use hwlocality::topology::builder::TypeFilter;
    for name in ["one-socket-vm.xml", "dgx-h100.xml"] {
        let hwloc = hwlocality::Topology::builder()
            .with_io_type_filter(TypeFilter::KeepAll)
            .unwrap()
            .from_xml_file(path(name))
            .unwrap()
            .build()
            .unwrap();
        assert!(!hwloc.is_this_system());
        check_agreement(&captured(name), &hwloc);
    }
}

#[test]
fn this_host_is_read() {
    use hwlocality::topology::builder::{BuildFlags, TypeFilter};
    let topology = read(&Source::Host).unwrap();
    assert_eq!(topology.source, "host");
    assert!(!topology.numa.is_empty() && topology.links.is_empty());
    let hwloc = hwlocality::Topology::builder()
        .with_flags(BuildFlags::INCLUDE_DISALLOWED)
        .unwrap()
        .with_io_type_filter(TypeFilter::KeepImportant)
        .unwrap()
        .build()
        .unwrap();
    check_agreement(&topology, &hwloc);
}
