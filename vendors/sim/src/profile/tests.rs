//! Each test reads: a change to a sound profile, what is said to it.

use std::collections::BTreeSet;

use accelpool_model::{Enforcement, Enforcements, PartitionProfile};
use proptest::prelude::*;

use super::*;
use crate::chain::Chain;

const SOUND: &str = r#"
name = "small"
major = 240

[[model]]
name = "a"
vendor = "nvidia"
kind = "gpu"
product = "A"
architecture = "x"
driver_version = "1"
memory = "8Gi"
nodes = [{ path = "a{n}" }, { path = "actl" }]

[model.partitioning]
scheme = "mig"
slices = 4
uuid_prefix = "P-"
inherit = "all"
nodes = [{ path = "caps/a{n}" }]

[[model.partitioning.profile]]
name = "half"
memory = "4Gi"
compute_permille = 500
size = 2
starts = [0, 2]
instances_max = 2

[[device]]
model = "a"
uuid = "GPU-1"
pci = "0000:01:00.0"
numa_node = 0

[[device]]
model = "a"
uuid = "GPU-2"
pci = "0000:02:00.0"

[[link]]
ends = ["0000:01:00.0", "0000:02:00.0"]
kind = "nvlink"
bandwidth_bytes_per_second = 25
"#;

/// Replaces `from` by `to` in a sound profile and checks what reading it says.
#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    assert!(SOUND.contains(from), "{from}");
    let said = match Profile::parse(&SOUND.replacen(from, to, 1)) {
        Ok(_) => "sound".to_owned(),
        Err(error) => Chain(&error).to_string(),
    };
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_sound_profile_is_read() {
    check("GPU-1", "GPU-1", "sound");
}

#[test]
fn values_out_of_range_are_refused_by_place_value_and_range() {
    check("major = 240", "major = 195", "`major` is `195`: use 240 to 254");
    check("8Gi", "0", "`model[0].memory` is `0`: use more than 0, at most 16Ti");
    check("\"4Gi\"", "\"9Gi\"", "profile[0].memory` is `9Gi`: use more than 0, at most 8Gi");
    check("permille = 500", "permille = 0", "compute_permille` is `0`: use 1 to 1000");
    check("size = 2", "size = 5", "profile[0].size` is `5`: use 1 to 4");
    check("[0, 2]", "[0, 3]", "profile[0].starts[1]` is `3`: use 0 to 2");
    check("max = 2", "max = 3", "profile[0].instances_max` is `3`: use 1 to 2");
    check("numa_node = 0", "numa_node = -1", "`device[0].numa_node` is `-1`: use 0 to 1023");
    check("second = 25", "second = 0", "`link[0].bandwidth_bytes_per_second` is `0`: use 1 to");
    check("\"x\"", "\"\"", "`model[0].architecture` is ``: use 1 to 64 bytes");
}

#[test]
fn names_that_break_a_rule_or_point_nowhere_are_refused() {
    check("kind = \"gpu\"", "kind = \"cpu\"", "`model[0].kind` is `cpu`: device kind `cpu`");
    check("0000:02:00.0", "2:0", "`device[1].pci` is `2:0`: PCI address");
    check("0000:02:00.0", "0000:01:00.0", "`device[1].pci` is `0000:01:00.0`: use each once");
    check("GPU-2", "GPU-1", "`device[1].uuid` is `GPU-1`: use each once");
    check("model = \"a\"", "model = \"b\"", "`device[0].model` is `b`: use the name of a");
    check("[\"0000:01:00.0\"", "[\"0000:09:00.0\"", "use the PCI address of a `[[device]]`");
    check("[\"0000:01:00.0\"", "[\"0000:02:00.0\"", "use two devices");
    check(
        "[[link]]",
        "[[mesh]]\nmodel = \"a\"\nkind = \"nvlink\"\nbandwidth_bytes_per_second = 1\n[[link]]",
        "use one link of a kind",
    );
    check("mig", "M", "`model[0].partitioning.scheme` is `M`");
}

#[test]
fn device_nodes_stay_below_dev_and_apart() {
    for path in ["../x", "/x", "a//b", "a/./b", "a b", "", "a/b/c/d/e", "\u{e9}"] {
        check("path = \"actl\"", &format!("path = \"{path}\""), "`model[0].nodes[1].path` is");
    }
    check("path = \"actl\"", "path = \"a{n}\"", "use paths that differ");
    check("caps/a{n}", "a{n}", "use paths that differ");
    check("caps/a{n}", "caps/a", "each partition has nodes of its own");
}

#[test]
fn unknown_keys_and_other_types_are_refused() {
    check("major", "mayor", "unknown field `mayor`");
    check("slices = 4", "slices = 4\ncolour = 1", "unknown field `colour`");
    check("major = 240", "major = \"x\"", "invalid type");
    check("starts = [0, 2]", "", "list the slices where a partition may begin");
    check("slices = 4", "slices = 4\ncounted = true", "leave it out where slices are only counted");
}

#[test]
fn too_many_and_too_long_are_refused() {
    let error = Profile::parse(&" ".repeat(PROFILE_LEN_MAX + 1)).unwrap_err().to_string();
    assert_eq!(error, "profile has 1048577 bytes: at most 1048576 are read");
    let device = |i: usize| {
        format!("[[device]]\nmodel = \"a\"\nuuid = \"X-{i}\"\npci = \"0000:{:02x}:00.0\"\n", i + 16)
    };
    let devices: Vec<String> = (0..63).map(device).collect();
    check("[[link]]", &format!("{}[[link]]", devices.concat()), "`device` is `65 entries`");
}

#[test]
fn share_enforcement_is_what_the_profile_claims() {
    let text = SOUND.replace(
        "memory = \"8Gi\"",
        "memory = \"8Gi\"\nshare_enforcement = { memory = \"kernel\", compute = \"library\" }",
    );
    let shares: Vec<_> =
        Profile::parse(&text).unwrap().devices().map(|d| d.share_enforcement).collect();
    assert!(shares.iter().all(|share| share.memory == Enforcement::Kernel), "{shares:?}");
    let none = Profile::parse(SOUND).unwrap();
    assert!(none.devices().all(|device| device.share_enforcement == Enforcements::default()));
}

#[test]
fn embedded_profiles_are_what_their_names_say() {
    let summary = |name: &str| {
        let profile = Profile::embedded(name).unwrap();
        let vendors: BTreeSet<String> =
            profile.devices().map(|device| device.vendor.to_string()).collect();
        let cuts: BTreeSet<String> = profile
            .devices()
            .flat_map(|device| &device.partitioning)
            .flat_map(|cut| &cut.profiles)
            .map(|profile: &PartitionProfile| format!("{}{:?}", profile.name, profile.starts()))
            .collect();
        let (devices, links) = (profile.devices().count(), profile.links().len());
        let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" ");
        format!("{devices} {} {links} links {}", list(vendors), list(cuts))
    };
    assert_eq!(
        summary("dgx-h100"),
        "8 nvidia 28 links 1g.10gb+me[0, 1, 2, 3, 4, 5, 6] 1g.10gb[0, 1, 2, 3, 4, 5, 6] \
         1g.20gb[0, 2, 4, 6] 2g.20gb[0, 2, 4] 3g.40gb[0, 4] 4g.40gb[0] 7g.80gb[0]"
    );
    assert_eq!(
        summary("mi300x"),
        "8 amd 28 links cpx[0, 1, 2, 3, 4, 5, 6, 7] dpx[0, 4] qpx[0, 2, 4, 6]"
    );
    assert_eq!(
        summary("atlas-910b"),
        "8 huawei 28 links vir05_1c_16g[0, 1, 2, 3] vir10_3c_32g[0, 1]"
    );
    assert_eq!(summary("mixed-edge"), "3 amd nvidia xilinx 0 links ");
    assert!(Profile::embedded("dgx-2000").is_none());
    for name in Profile::embedded_names() {
        assert_eq!(Profile::embedded(name).unwrap().name(), name);
    }
}

/// What a container runtime relies on: each node of the machine has a path and a minor of its own.
fn check_nodes(profile: &Profile) -> Result<(), TestCaseError> {
    let (mut paths, mut minors) = (BTreeSet::new(), BTreeSet::new());
    for unit in profile.units() {
        for node in &unit.nodes {
            let new = paths.insert(node.path.clone());
            prop_assert!(minors.insert(node.minor) == new && (new || node.shared), "{node:?}");
        }
        for (nodes, cut) in unit.partitions.iter().zip(&unit.device.partitioning) {
            for node in nodes.all(cut) {
                prop_assert!(paths.insert(node.path.clone()), "{node:?}");
                prop_assert!(minors.insert(node.minor), "{node:?}");
            }
            for profile in &cut.profiles {
                for start in profile.starts() {
                    prop_assert!(nodes.nodes(cut, &profile.name, start).is_some());
                }
            }
        }
    }
    Ok(())
}

/// A profile with a few places overwritten, so that most of it is still understood.
fn scratched() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        "[0-9]{1,20}",
        "[a-z{}./\"=\\[\\]\n-]{0,6}",
        Just("-1".to_owned()),
        Just("9223372036854775807".to_owned()),
        any::<String>(),
    ];
    let scratches = prop::collection::vec((any::<prop::sample::Index>(), 0..6_usize, words), 0..4);
    (0..=EMBEDDED.len(), scratches).prop_map(|(which, scratches)| {
        let mut text: Vec<char> =
            EMBEDDED.get(which).map_or(SOUND, |(_, text)| *text).chars().collect();
        for (at, len, words) in scratches {
            let at = at.index(text.len());
            let end = (at + len).min(text.len());
            text.splice(at..end, words.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        let _ = Profile::parse(&text);
    }

    #[test]
    fn what_is_read_has_distinct_nodes(text in scratched()) {
        if let Ok(profile) = Profile::parse(&text) {
            check_nodes(&profile)?;
        }
    }
}
