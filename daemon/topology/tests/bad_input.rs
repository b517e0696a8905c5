//! What is no topology is refused by name, and nothing from a file ends the process.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{error::Error, fs, iter, path::Path};

use accelpool_topology::{Source, TopologyError, XML_BYTES_MAX, parse, read};
use proptest::{prelude::*, sample::Index};

const DGX: &[u8] = include_bytes!("data/dgx-h100.xml");
const VM: &[u8] = include_bytes!("data/one-socket-vm.xml");

/// The whole chain of messages, with the folder of the test taken out.
fn chain(error: &TopologyError, folder: &Path) -> String {
    let chain = iter::successors(Some(error as &dyn Error), |&error| error.source());
    let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    text.replace(&format!("{}/", folder.display()), "")
}

#[track_caller]
fn check(bytes: impl AsRef<[u8]>, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.xml");
    fs::write(&path, bytes).unwrap();
    let error = read(&Source::File(path)).unwrap_err();
    let prefix = "hwloc XML `host.xml` is not usable: ";
    assert_eq!(chain(&error, folder.path()), format!("{prefix}{expected}"));
}

/// The DGX with `old` replaced once by `new`.
#[track_caller]
fn check_edit(old: &str, new: &str, expected: &str) {
    let text = std::str::from_utf8(DGX).unwrap();
    assert!(text.contains(old), "the file has no `{old}`");
    check(text.replacen(old, new, 1), expected);
}

const NOT_XML: &str = "it is not well-formed XML without entities: ";

#[test]
fn files_that_are_no_xml_are_refused() {
    check("", "it is empty");
    check(" \n", "it is empty");
    check([0x7f, b'E', b'L', b'F', 0xff, 0xfe], "it is not UTF-8 text");
    check("\0\0\0\0", &format!("{NOT_XML}unknown token at 1:1"));
    check(&DGX[..DGX.len() / 2], &format!("{NOT_XML}unexpected end of stream"));
    check(vec![b' '; 16 << 20 | 1], "it is larger than 16 MiB");
}

#[test]
fn other_xml_is_refused() {
    check("<svg/>", "its root element is `svg`, not `topology`");
    check("<topology xmlns='urn:x'/>", "it declares XML namespaces");
    check("<topology/>", "its format version is `1`: capture it again with hwloc 2");
    check(
        "<topology version='3.0'/>",
        "its format version is `3.0`: capture it again with hwloc 2",
    );
    check("<topology version='2.0'/>", "it describes 0 machines, not one");
    check(
        "<topology version='2.0'><object type='PU'/></topology>",
        "it describes 0 machines, not one",
    );
    check("<topology version='2.0'><object type='Machine'/></topology>", "it has no NUMA node");
}

#[test]
fn document_types_and_entities_are_refused() {
    let entity = "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\" [<!ENTITY a SYSTEM \"/etc/passwd\">]>";
    let official = "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">";
    check_edit(official, entity, &format!("{NOT_XML}XML with DTD detected"));
    check_edit(official, &official.repeat(2), &format!("{NOT_XML}XML with DTD detected"));
}

#[test]
fn values_out_of_place_are_refused() {
    check_edit(
        "bridge_pci=\"0000:[15-1b]\"",
        "bridge_pci=\"0000:[15-1b\"",
        "line 34: bridge_pci `0000:[15-1b` of `Bridge` is not valid",
    );
    check_edit(
        "bridge_type=\"0-1\"",
        "bridge_type=\"1-0\"",
        "line 29: bridge_type `1-0` of `Bridge` is not valid",
    );
    check_edit("0000:1b:00.0", "0000:18:00.0", "it has two PCI devices at 0000:18:00.0");
    check_edit("pci_busid=\"0000:1b:00.0\"", "", "line 41: pci_busid `` of `PCIDev` is not valid");
    check_edit(
        "\"NUMANode\" os_index=\"1\"",
        "\"NUMANode\" os_index=\"0\"",
        "it has two NUMA nodes of number 0",
    );
    check_edit(
        "nodeset=\"0x00000003\"",
        "nodeset=\"0xf...f\"",
        "line 4: nodeset `0xf...f` of `Machine` is not valid",
    );
    check_edit(
        "10 21 21 10",
        "10 21 21",
        "line 153: u64values `3 numbers` of `distances2` is not valid",
    );
    check_edit(
        "10 21 21 10",
        "10 21 -1 10",
        "line 153: u64values `-1` of `distances2` is not valid",
    );
    check_edit(
        ">0 1 </indexes>",
        ">0 7 </indexes>",
        "line 153: indexes `7` of `distances2` is not valid",
    );
}

#[test]
fn more_than_a_machine_has_is_refused() {
    let attributes: Vec<_> = (0..200_000).map(|index| format!(" a{index}='x'")).collect();
    let attributes = attributes.concat();
    check(format!("<topology{attributes}/>"), "an element has too many attributes");
    check("<a>".repeat(1 << 20), &format!("{NOT_XML}nodes limit reached"));

    let deep = 100_000;
    let objects = ["<object>".repeat(deep), "</object>".repeat(deep)].concat();
    let machine = format!("<object type='Machine'>{objects}</object>");
    check(format!("<topology version='2.0'>{machine}</topology>"), "it has no NUMA node");

    let node = |id| format!("<object type='NUMANode' os_index='{id}' cpuset='0x0'/>");
    let nodes = (0..1025).map(node).collect::<Vec<_>>().concat();
    check(
        format!("<topology version='2.0'><object type='Machine'>{nodes}</object></topology>"),
        "it has more than 1024 NUMA nodes",
    );

    let device = |index: usize| {
        let (bus, device, function) = (index >> 8, index >> 3 & 31, index & 7);
        format!(
            "<object type='PCIDev' pci_busid='0000:{bus:02x}:{device:02x}.{function}' \
             pci_type='0302 [10de:2330] [10de:2330] a1'/>"
        )
    };
    let devices = (0..4097).map(device).collect::<Vec<_>>().concat();
    check(
        format!("<topology version='2.0'><object type='Machine'>{devices}</object></topology>"),
        "its PCIe tree has more than 4096 nodes",
    );
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |name: &str| {
        let error = read(&Source::File(folder.path().join(name))).unwrap_err();
        chain(&error, folder.path())
    };
    fs::create_dir(folder.path().join("folder")).unwrap();
    assert_eq!(refusal("folder"), "failed to read hwloc XML `folder`: not a regular file");
    let absent = "failed to read hwloc XML `absent`: No such file or directory (os error 2)";
    assert_eq!(refusal("absent"), absent);
    // A device that never ends, and one byte too many, are both seen without reading on.
    let zero = read(&Source::File("/dev/zero".into())).unwrap_err();
    let zero = chain(&zero, folder.path());
    assert_eq!(zero, "failed to read hwloc XML `/dev/zero`: not a regular file");
    assert_eq!(XML_BYTES_MAX, 16 << 20);
}

#[test]
fn a_domain_beyond_sixteen_bits_is_passed_over() {
    let text = std::str::from_utf8(VM).unwrap();
    let text = text.replace("0000:[00-00]", "10000:[00-00]").replace("0000:00:", "10000:00:");
    let topology = parse(text.as_bytes(), "vmd").unwrap();
    assert_eq!((topology.numa.len(), topology.pcie.len()), (1, 0));
}

/// One edit of a file: cut, overwrite, repeat or leave out a run of bytes.
#[derive(Debug, Clone)]
enum Edit {
    Cut(Index),
    Write(Index, Vec<u8>),
    Repeat(Index, usize),
    Omit(Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..4),
        "[0-9\"<>/=&x,:\\[\\]-]{1,4}".prop_map(String::into_bytes),
    ];
    prop_oneof![
        1 => any::<Index>().prop_map(Edit::Cut),
        6 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Edit::Write(at, bytes)),
        2 => (any::<Index>(), 1..200_usize).prop_map(|(at, len)| Edit::Repeat(at, len)),
        2 => (any::<Index>(), 1..200_usize).prop_map(|(at, len)| Edit::Omit(at, len)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: Edit) {
    if bytes.is_empty() {
        return;
    }
    let run = |at: Index, len: usize, of: usize| {
        let at = at.index(of);
        at..(at + len).min(of)
    };
    let of = bytes.len();
    match edit {
        Edit::Cut(at) => bytes.truncate(at.index(of)),
        Edit::Write(at, with) => drop(bytes.splice(run(at, with.len(), of), with)),
        Edit::Repeat(at, len) => bytes.extend_from_within(run(at, len, of)),
        Edit::Omit(at, len) => drop(bytes.drain(run(at, len, of))),
    }
}

proptest! {
    #[test]
    fn a_damaged_file_is_refused_or_read_within_limits(
        dgx in any::<bool>(),
        edits in prop::collection::vec(edit(), 1..6),
    ) {
        let mut bytes = if dgx { DGX } else { VM }.to_vec();
        for edit in edits {
            apply(&mut bytes, edit);
        }
        if let Ok(topology) = parse(&bytes, "damaged") {
            prop_assert!(!topology.numa.is_empty());
            for (index, node) in topology.pcie.iter().enumerate() {
                prop_assert!(node.parent.is_none_or(|parent| parent < index));
            }
        }
    }

    #[test]
    fn bytes_at_random_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(parse(&bytes, "random").is_err());
    }
}
