//! Each test reads: what the vendor says of a device, what stands after the merge.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use accelpool_model::{
    Bandwidth, Device, DeviceKind, Enforcements, Injection, Link, LinkKind, MemoryBytes, Route,
    Topology,
};
use accelpool_topology::{merge, parse, place};

fn dgx() -> Topology {
    parse(include_bytes!("data/dgx-h100.xml"), "dgx").unwrap()
}

fn device(pci: &str, numa_node: Option<u32>, pcie_root: Option<&str>) -> Device {
    let pci = pci.parse().unwrap();
    Device {
        name: Device::name_at(DeviceKind::Gpu, pci),
        uuid: format!("GPU-{}", pci.label()).parse().unwrap(),
        vendor: "sim".parse().unwrap(),
        kind: DeviceKind::Gpu,
        model: "Sim".to_owned(),
        architecture: "sim".to_owned(),
        pci,
        driver_version: "1.0.0".to_owned(),
        memory: MemoryBytes::from_gib(80),
        numa_node,
        pcie_root: pcie_root.map(str::to_owned),
        fabric_clique: None,
        partitioning: None,
        share_enforcement: Enforcements::default(),
        traits: accelpool_model::DeviceTraits::default(),
        injection: Injection::default(),
    }
}

#[track_caller]
fn check(pci: &str, vendor: (Option<u32>, Option<&str>), merged: (Option<u32>, Option<&str>)) {
    let mut devices = [device(pci, vendor.0, vendor.1)];
    merge(&mut dgx(), &mut devices, &[]);
    assert_eq!((devices[0].numa_node, devices[0].pcie_root.as_deref()), merged);
}

#[test]
fn the_tree_fills_in_what_the_vendor_does_not_know() {
    check("0000:1b:00.0", (None, None), (Some(0), Some("pci0000:15")));
    check("0000:df:00.0", (None, None), (Some(1), Some("pci0000:d7")));
}

#[test]
fn the_tree_is_right_where_both_know() {
    check("0000:9d:00.0", (Some(0), Some("pci0000:00")), (Some(1), Some("pci0000:97")));
}

#[test]
fn the_vendor_is_right_where_the_tree_does_not_know() {
    check("0000:aa:00.0", (Some(7), Some("pci0000:a9")), (Some(7), Some("pci0000:a9")));
    check("0000:aa:00.0", (None, None), (None, None));
}

#[test]
fn what_the_tree_leaves_open_the_vendor_fills_in() {
    let mut topology = dgx();
    for node in &mut topology.pcie {
        node.numa_node = None;
    }
    // A device without a root complex above it, as a virtual machine may show.
    topology.pcie.retain(|node| node.pci.is_some_and(|pci| pci.to_string() == "0000:1b:00.0"));
    topology.pcie[0].parent = None;
    let mut devices = [device("0000:1b:00.0", Some(3), Some("pci0000:1a"))];
    merge(&mut topology, &mut devices, &[]);
    assert_eq!(devices[0].numa_node, Some(3));
    assert_eq!(devices[0].pcie_root.as_deref(), Some("pci0000:1a"));
}

#[test]
fn a_tree_that_bites_its_tail_ends() {
    let mut topology = dgx();
    for (index, node) in topology.pcie.iter_mut().enumerate() {
        node.parent = Some(index);
    }
    let position = place(&topology, "0000:1b:00.0".parse().unwrap()).unwrap();
    assert_eq!(position.pcie_root, None);
}

#[test]
fn links_between_devices_stay_once() {
    let mut devices =
        ["0000:1b:00.0", "0000:43:00.0", "0000:52:00.0"].map(|pci| device(pci, None, None));
    let names = devices.each_ref().map(|device| device.name.clone());
    let link = |a: usize, b: usize, kind, rate| Link {
        ends: (names[a].clone(), names[b].clone()),
        kind,
        bandwidth: Bandwidth::from_bytes_per_second(rate),
        strands: 0,
        route: Route::Direct,
    };
    let mut to_nowhere = link(0, 1, LinkKind::NvLink, 9);
    to_nowhere.ends.1 = "gpu-0000-aa-00-0".parse().unwrap();
    let links = [
        link(0, 1, LinkKind::NvLink, 5),
        link(1, 0, LinkKind::NvLink, 7),
        link(0, 1, LinkKind::Pcie, 1),
        link(2, 2, LinkKind::NvLink, 9),
        to_nowhere,
    ];
    let mut topology = dgx();
    merge(&mut topology, &mut devices, &links);
    assert_eq!(topology.links, [link(0, 1, LinkKind::Pcie, 1), link(1, 0, LinkKind::NvLink, 7)]);
}
