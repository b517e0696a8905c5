//! Each test of a decision reads: who asks, for what, and what comes of it.

use proptest::prelude::*;

use super::*;
use crate::device::{DeviceType, MINOR_MAX};

fn device(minor: u32) -> DeviceNumber {
    DeviceNumber::new(DeviceType::Character, 195, minor).expect("test numbers are valid")
}

fn guard(first: u32, last: u32, mode: Mode) -> Guard {
    let devices = DeviceRange::new(DeviceType::Character, 195, first, last);
    Guard { devices: devices.expect("test ranges are valid"), mode }
}

fn guards(list: &[(u32, u32, Mode)]) -> Result<Guards, ConflictingGuards> {
    Guards::new(list.iter().map(|(first, last, mode)| guard(*first, *last, *mode)))
}

/// Minors 0 to 7 enforced, 8 to 15 audited, 16 and up off; cgroup 20 holds all of minor 1,
/// cgroup 30 below it may write to minor 2 and cgroup 20 read it; cgroup 40 is exempt.
fn rules() -> Rules {
    let guards = guards(&[(0, 7, Mode::Enforce), (8, 15, Mode::Audit), (16, 99, Mode::Off)]);
    let grant =
        |cgroup, minor, access| Grant { cgroup: CgroupId(cgroup), device: device(minor), access };
    let grants =
        [grant(20, 1, Access::READ_WRITE), grant(20, 2, Access::READ), grant(30, 2, Access::WRITE)];
    Rules::new(guards.expect("they do not overlap"), grants, [CgroupId(40)])
}

#[track_caller]
fn check(lineage: &[u64], minor: u32, access: Access, expected: Decision) {
    let lineage: Vec<CgroupId> = lineage.iter().copied().map(CgroupId).collect();
    assert_eq!(rules().decide(&lineage, device(minor), access), expected);
}

#[test]
fn a_grant_admits_the_cgroup_and_all_below() {
    check(&[1, 10, 20], 1, Access::READ_WRITE, Decision::Admitted);
    check(&[1, 10, 20, 30, 31, 32], 1, Access::READ, Decision::Admitted);
    check(&[1, 10], 1, Access::READ, Decision::Denied);
    check(&[1, 10, 21], 1, Access::READ, Decision::Denied);
}

#[test]
fn grants_of_ancestors_add_up() {
    check(&[1, 20], 2, Access::READ, Decision::Admitted);
    check(&[1, 20], 2, Access::READ_WRITE, Decision::Denied);
    check(&[1, 20, 30], 2, Access::READ_WRITE, Decision::Admitted);
}

#[test]
fn the_mode_decides_what_nothing_admits() {
    check(&[1], 0, Access::READ, Decision::Denied);
    check(&[1], 8, Access::READ, Decision::Audited);
    check(&[1], 16, Access::READ, Decision::Untouched);
    check(&[1], 100, Access::READ, Decision::Untouched);
}

#[test]
fn making_a_node_is_never_refused() {
    check(&[1], 0, Access::MAKE, Decision::Untouched);
    check(&[1], 0, Access::MAKE | Access::READ, Decision::Denied);
}

#[test]
fn an_exemption_frees_all_below() {
    check(&[1, 40, 41], 0, Access::READ_WRITE, Decision::Admitted);
}

#[test]
fn cgroups_beyond_the_deepest_level_are_judged_by_their_ancestors() {
    let mut lineage: Vec<u64> = (1000..).take(LEVELS_MAX - 1).collect();
    lineage.push(20);
    check(&lineage, 1, Access::READ, Decision::Admitted);
    lineage.insert(0, 999);
    check(&lineage, 1, Access::READ, Decision::Denied);
}

#[track_caller]
fn check_guards(list: &[(u32, u32, Mode)], expected: &str) {
    let actual = match guards(list) {
        Ok(guards) => {
            let texts = guards.iter().map(|guard| format!("{} {}", guard.devices, guard.mode));
            texts.collect::<Vec<_>>().join(", ")
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(actual, expected);
}

#[test]
fn neighbours_of_one_mode_are_joined() {
    check_guards(
        &[(8, 9, Mode::Audit), (0, 3, Mode::Audit), (2, 5, Mode::Audit), (6, 6, Mode::Audit)],
        "c 195:0-6 audit, c 195:8-9 audit",
    );
    check_guards(&[(0, 3, Mode::Audit), (4, 5, Mode::Off)], "c 195:0-3 audit, c 195:4-5 off");
    check_guards(&[(0, MINOR_MAX, Mode::Audit), (5, 5, Mode::Audit)], "c 195:* audit");
}

#[test]
fn one_device_in_two_modes_is_refused() {
    check_guards(
        &[(3, 3, Mode::Enforce), (0, 7, Mode::Audit)],
        "devices c 195:0-7 are to be in mode audit, and of them c 195:3 in mode enforce",
    );
}

proptest! {
    #[test]
    fn prefixes_cover_a_range_and_nothing_else(a in 0..=MINOR_MAX, b in 0..=MINOR_MAX) {
        let (first, last) = (a.min(b), a.max(b));
        let prefixes = prefixes(guard(first, last, Mode::Audit).devices);
        // Twice the bits of a minor, less the two that one block saves.
        prop_assert!(prefixes.len() <= 38);
        let mut next = first;
        for (minor, bits) in prefixes {
            let (from, to) = range_of_prefix(minor, bits);
            prop_assert_eq!((from, from), (next, minor));
            next = to + 1;
        }
        prop_assert_eq!(next, last + 1);
    }
}
