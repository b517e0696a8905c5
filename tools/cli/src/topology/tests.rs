//! Trees, matrices and cliques of small nodes.

use super::*;
use crate::{
    document::{NumaNode, Usage},
    output::Page,
    topology::{clique, tree::ranges},
};

fn device(name: &str, pci: &str, numa_node: Option<u32>) -> Device {
    Device {
        name: name.to_owned(),
        pci_address: pci.to_owned(),
        model: "Model".to_owned(),
        memory_bytes: 8 << 30,
        numa_node,
        present: true,
        usage: Usage { mode: "free".to_owned(), ..Usage::default() },
        ..Device::default()
    }
}

fn pcie(pci: &str, label: &str, parent: Option<u32>) -> PcieNode {
    PcieNode { pci_address: pci.to_owned(), label: label.to_owned(), parent, numa_node: None }
}

fn link(a: &str, b: &str, gigabytes: u64) -> Link {
    Link {
        a: a.to_owned(),
        b: b.to_owned(),
        kind: "xgmi".to_owned(),
        bandwidth_bytes_per_second: gigabytes * 1_000_000_000,
        ..Link::default()
    }
}

/// Two devices below a switch of one root, one alone behind a bridge, one that tells nothing.
fn node() -> GetTopologyResponse {
    GetTopologyResponse {
        source: "host".to_owned(),
        numa_nodes: vec![NumaNode {
            id: 0,
            cpus: vec![3, 0, 1, 8],
            memory_bytes: 1 << 40,
            ..NumaNode::default()
        }],
        pcie_nodes: vec![
            pcie("", "pci0000:10", None),
            pcie("0000:10:01.0", "", Some(0)),
            pcie("0000:11:00.0", "", Some(1)),
            pcie("0000:12:00.0", "", Some(1)),
            pcie("0000:10:02.0", "", Some(0)),
            pcie("0000:13:00.0", "", Some(4)),
        ],
        devices: vec![
            device("a-2", "0000:12:00.0", Some(0)),
            device("a-1", "0000:11:00.0", Some(0)),
            device("a-3", "0000:13:00.0", Some(0)),
            device("a-4", "0000:99:00.0", None),
        ],
        links: vec![link("a-1", "a-4", 64)],
    }
}

#[test]
fn devices_without_a_root_share_none() {
    let devices = vec![device("a-1", "", Some(0)), device("a-2", "", Some(0))];
    let topology = GetTopologyResponse { devices, ..GetTopologyResponse::default() };
    let mut page = Page::new(false, false, 0);
    write_matrix(&arrange(&topology), &[], &mut page);
    assert!(
        page.text().ends_with("numa     -\n\nnuma   no link, but the same NUMA node\n"),
        "{}",
        page.text()
    );
}

#[test]
fn a_tree_has_roots_switches_and_devices() {
    let topology = node();
    let mut page = Page::new(false, false, 0);
    write_tree(&arrange(&topology), &mut page);
    let expected = "\
NUMA node 0, processors 0-1,3,8, 1Ti
└─ pci0000:10
   ├─ a-3  Model                         8Gi  free
   └─ switch 0000:10:01.0
      ├─ a-1  Model                         8Gi  free
      └─ a-2  Model                         8Gi  free
No NUMA node known
└─ PCIe root not known
   └─ a-4  Model                         8Gi  free
";
    assert_eq!(page.text(), expected);
}

#[test]
fn a_matrix_says_how_each_pair_speaks() {
    let topology = node();
    let mut page = Page::new(false, false, 0);
    write_matrix(&arrange(&topology), &topology.links, &mut page);
    let lines: Vec<&str> = page.text().lines().take(6).collect();
    let expected = [
        "Links",
        "         3        1        2        4",
        "3        -     root     root        ?",
        "1     root        -     root  xgmi 64",
        "2     root     root        -        ?",
        "4        ?  xgmi 64        ?        -",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_matrix_says_which_switches_join_whom() {
    let devices = ["a-1", "a-2", "a-3"].map(|name| device(name, "", Some(0))).into();
    let switched = |a: &str, b: &str, switches: &[&str]| Link {
        kind: "nvlink".to_owned(),
        strands: 18,
        switched: true,
        switches: switches.iter().map(|it| (*it).to_owned()).collect(),
        ..link(a, b, 450)
    };
    let topology = GetTopologyResponse { devices, ..GetTopologyResponse::default() };
    let check = |links: &[Link], expected: &str| {
        let mut page = Page::new(false, false, 0);
        write_matrix(&arrange(&topology), links, &mut page);
        assert!(page.text().ends_with(expected), "{}", page.text());
    };
    let two = ["0000:05:00.0", "0000:06:00.0"];
    let links = [switched("a-1", "a-2", &two), switched("a-1", "a-3", &two[..1])];
    check(
        &links,
        "\
Links
          1         2         3
1         -  NV18 450  NV18 450
2  NV18 450         -      numa
3  NV18 450      numa         -

A number is GB/s each way.
NVn    n NVLinks that work as one
numa   no link, but the same NUMA node

Switches
0000:05:00.0  nvlink  1 2 3
0000:06:00.0  nvlink  1 2
",
    );
    check(&[switched("a-2", "a-3", &[])], "\nSwitches\nunnamed  nvlink  2 3\n");
}

#[test]
fn a_large_matrix_is_split_to_fit_the_page() {
    let names: Vec<String> = (0..16).map(|at| format!("gpu-0000-{at:02x}-00-0")).collect();
    let devices = names.iter().map(|name| device(name, "", Some(0))).collect();
    let pairs = names.iter().flat_map(|a| names.iter().map(move |b| link(a, b, 64)));
    let topology = GetTopologyResponse { devices, ..GetTopologyResponse::default() };
    let mut page = Page::new(false, false, 0);
    write_matrix(&arrange(&topology), &pairs.collect::<Vec<_>>(), &mut page);
    assert!(page.text().lines().all(|line| line.len() <= 100), "{}", page.text());
    assert_eq!(page.text().matches("xgmi 64").count(), 16 * 15);
}

#[test]
fn a_tree_that_is_none_ends() {
    let mut topology = node();
    topology.pcie_nodes[0].parent = Some(1);
    topology.pcie_nodes[4].parent = Some(u32::MAX);
    assert_eq!(in_order(&arrange(&topology)).len(), 4);
}

#[track_caller]
fn check_split(links: &[Link], cliques: &[&[usize]], curves: &[(usize, usize)]) {
    let names = ["0", "1", "2", "3", "4", "5", "6", "7"];
    let index = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    let (found, rest) = clique::split(links, &index);
    let found: Vec<&[usize]> = found.iter().map(|clique| clique.members.as_slice()).collect();
    let rest: Vec<(usize, usize)> = rest.iter().map(|line| line.ends).collect();
    assert_eq!((found.as_slice(), rest.as_slice()), (cliques, curves));
}

fn mesh(members: &[u32], gigabytes: u64) -> Vec<Link> {
    let pairs = members.iter().flat_map(|a| members.iter().map(move |b| (a, b)));
    let pairs = pairs.filter(|(a, b)| a < b);
    pairs.map(|(a, b)| link(&a.to_string(), &b.to_string(), gigabytes)).collect()
}

#[test]
fn meshes_become_cliques() {
    check_split(&mesh(&[0, 1, 2, 3, 4, 5, 6, 7], 450), &[&[0, 1, 2, 3, 4, 5, 6, 7]], &[]);
    let halves = [mesh(&[0, 1, 2, 3], 30), mesh(&[4, 5, 6, 7], 30)].concat();
    check_split(&halves, &[&[0, 1, 2, 3], &[4, 5, 6, 7]], &[]);
    check_split(&mesh(&[0, 1], 30), &[], &[(0, 1)]);
    let rates = [mesh(&[0, 1, 2], 30), vec![link("3", "0", 50)]].concat();
    check_split(&rates, &[&[0, 1, 2]], &[(0, 3)]);
    let ring = [link("0", "1", 9), link("1", "2", 9), link("2", "3", 9), link("3", "0", 9)];
    check_split(&ring, &[], &[(0, 1), (0, 3), (1, 2), (2, 3)]);
}

#[test]
fn links_to_nowhere_are_left_out() {
    check_split(&[link("0", "0", 9), link("0", "unknown", 9)], &[], &[]);
}

#[test]
fn numbers_become_ranges() {
    assert_eq!(ranges(&[]), "");
    assert_eq!(ranges(&[5, 4, 4, 1, u32::MAX]), "1,4-5,4294967295");
}
