//! The program against the rules: in the interpreter they must agree on everything.

use proptest::prelude::*;

use super::{
    interpreter::{World, run},
    program::assemble,
};
use crate::{
    denials::Denial,
    device::{Access, DeviceNumber, DeviceRange, DeviceType},
    layout::{self, Map, OTHERS},
    rules::{CgroupId, Decision, Grant, Guard, Guards, LEVELS_MAX, Mode, Rules},
    tests::scene::{MAJOR, MAJORS, MINORS},
};

/// Cgroups of random rules: few, so that they meet those of a random process.
const CGROUPS: u64 = 16;

/// A world whose maps hold `rules`, as [`crate::Gate`] writes them.
fn world(rules: &Rules) -> World {
    let mut world = World::new();
    for guard in rules.guards().iter() {
        for key in layout::guard_keys(guard) {
            world.insert(Map::Guards, &key, &layout::mode_number(guard.mode).to_ne_bytes());
        }
    }
    for grant in rules.grants() {
        let key = layout::grant_key(grant.cgroup, grant.device);
        world.insert(Map::Grants, &key, &grant.access.bits().to_ne_bytes());
    }
    for cgroup in rules.exemptions() {
        world.insert(Map::Exemptions, &cgroup.0.to_ne_bytes(), &[0; 4]);
    }
    world.insert(Map::Counts, &OTHERS, &[0; layout::COUNTS]);
    world
}

/// Runs the program for one attempt and says what it decided, as far as it shows.
fn attempt(world: &mut World, device: DeviceNumber, access: Access) -> (bool, Vec<Denial>) {
    let kind = device.kind().number();
    let context = [access.bits() << 16 | kind, device.major(), device.minor()];
    let passes = match run(&assemble(), world, context) {
        0 => false,
        1 => true,
        other => panic!("a device program gives 0 or 1, not {other}"),
    };
    let records = world.records.drain(..);
    (passes, records.map(|it| Denial::of_bytes(&it).expect("a record of ours")).collect())
}

fn counts(world: &World, key: &[u8]) -> Option<[u64; 3]> {
    let value = world.value(Map::Counts, key)?;
    let field = |index: usize| layout::u64_at(value, index * 8);
    Some([field(0)?, field(1)?, field(2)?])
}

fn device(kind: DeviceType, major: u32, minor: u32) -> DeviceNumber {
    DeviceNumber::new(kind, major, minor).expect("test numbers are valid")
}

fn a_device() -> impl Strategy<Value = DeviceNumber> {
    let kind = prop_oneof![Just(DeviceType::Character), Just(DeviceType::Block)];
    (kind, MAJOR..MAJOR + MAJORS, 0..MINORS)
        .prop_map(|(kind, major, minor)| device(kind, major, minor))
}

fn an_access() -> impl Strategy<Value = Access> {
    (0..8_u32).prop_map(Access::of_bits)
}

fn a_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![1 => Just(Mode::Off), 2 => Just(Mode::Audit), 4 => Just(Mode::Enforce)]
}

/// Guards over a small world, in which devices often have neighbours of another mode.
fn some_guards() -> impl Strategy<Value = Guards> {
    let minors = prop::collection::btree_map((0..MINORS, any::<bool>()), a_mode(), 0..24);
    let whole = prop::option::of(a_mode());
    (minors, whole).prop_map(|(minors, whole)| {
        let single = minors.into_iter().map(|((minor, block), mode)| {
            let kind = if block { DeviceType::Block } else { DeviceType::Character };
            Guard { devices: device(kind, MAJOR, minor).into(), mode }
        });
        let whole = whole.map(|mode| {
            let devices = DeviceRange::whole(DeviceType::Character, MAJOR + 1);
            Guard { devices: devices.expect("a valid major"), mode }
        });
        Guards::new(single.chain(whole)).expect("each device is named once")
    })
}

pub(crate) fn some_rules() -> impl Strategy<Value = Rules> {
    let cgroup = || (1..CGROUPS).prop_map(CgroupId);
    let grant = (cgroup(), a_device(), an_access()).prop_map(|(cgroup, device, access)| Grant {
        cgroup,
        device,
        access,
    });
    let grants = prop::collection::vec(grant, 0..128);
    let exemptions = prop::option::weighted(0.3, cgroup());
    (some_guards(), grants, exemptions)
        .prop_map(|(guards, grants, exemptions)| Rules::new(guards, grants, exemptions))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_program_decides_as_the_rules_do(
        rules in some_rules(),
        lineage in prop::collection::vec(1..CGROUPS, 1..LEVELS_MAX + 3),
        device in a_device(),
        access in an_access(),
    ) {
        let ids: Vec<CgroupId> = lineage.iter().copied().map(CgroupId).collect();
        let decision = rules.decide(&ids, device, access);
        let mut world = world(&rules);
        world.lineage = lineage;
        let (passes, denials) = attempt(&mut world, device, access);
        prop_assert_eq!(passes, decision != Decision::Denied, "{:?}", decision);
        let counted = counts(&world, &layout::counts_key(device));
        match decision {
            Decision::Untouched | Decision::Admitted => {
                prop_assert_eq!((denials, counted), (vec![], None));
            }
            Decision::Audited | Decision::Denied => {
                let denied = decision == Decision::Denied;
                let expected = Denial {
                    time_since_boot: std::time::Duration::from_secs(10),
                    cgroup: CgroupId(*world.lineage.last().expect("never empty")),
                    process: 41,
                    thread: 42,
                    thread_name: "tester".to_owned(),
                    device,
                    access: access & Access::READ_WRITE,
                    denied,
                };
                prop_assert_eq!(denials, vec![expected]);
                let expected = if denied { [0, 1, 0] } else { [1, 0, 0] };
                prop_assert_eq!(counted, Some(expected));
            }
        }
    }
}

#[test]
fn every_level_counts_up_to_the_last() {
    let device = device(DeviceType::Character, MAJOR, 0);
    let guards = || Guards::new([Guard { devices: device.into(), mode: Mode::Enforce }]);
    let lineage: Vec<u64> = (100..).take(LEVELS_MAX + 2).collect();
    for (level, cgroup) in lineage.iter().copied().map(CgroupId).enumerate() {
        let grant = Grant { cgroup, device, access: Access::READ };
        let granted = Rules::new(guards().expect("one guard"), [grant], []);
        let exempt = Rules::new(guards().expect("one guard"), [], [cgroup]);
        for rules in [granted, exempt] {
            let mut world = world(&rules);
            world.lineage.clone_from(&lineage);
            let (passes, _) = attempt(&mut world, device, Access::READ);
            assert_eq!(passes, level < LEVELS_MAX, "{cgroup} at level {level}");
        }
    }
}

/// A world without grants in which every minor of major 195 is guarded.
fn bare_world(mode: Mode) -> World {
    let devices = DeviceRange::whole(DeviceType::Character, 195).expect("a valid major");
    let guards = Guards::new([Guard { devices, mode }]).expect("one guard");
    world(&Rules::new(guards, [], []))
}

/// How many records come of attempts at these times, and what the device's counts are then.
#[track_caller]
fn check_reports(world: &mut World, times_ms: &[u64], records: usize, expected: [u64; 3]) {
    let device = device(DeviceType::Character, 195, 3);
    let mut seen = 0;
    for time in times_ms {
        world.now_ns = (100_000 + time) * 1_000_000;
        seen += attempt(world, device, Access::READ).1.len();
    }
    assert_eq!(seen, records);
    assert_eq!(counts(world, &layout::counts_key(device)), Some(expected));
}

#[test]
fn a_cgroup_is_reported_once_a_second_for_a_device() {
    check_reports(&mut bare_world(Mode::Enforce), &[0, 1, 500, 999], 1, [0, 4, 3]);
    check_reports(&mut bare_world(Mode::Audit), &[0, 999, 1000, 1500, 2000], 3, [5, 0, 2]);
}

#[test]
fn cgroups_are_reported_apart() {
    let mut world = bare_world(Mode::Enforce);
    check_reports(&mut world, &[0, 1], 1, [0, 2, 1]);
    world.lineage.push(7);
    check_reports(&mut world, &[2, 3], 1, [0, 4, 2]);
}

#[test]
fn a_full_ring_changes_no_decision() {
    let mut world = bare_world(Mode::Enforce);
    world.records_max = 0;
    check_reports(&mut world, &[0, 5000], 0, [0, 2, 2]);
}

#[test]
fn devices_beyond_the_room_are_counted_together() {
    let mut world = bare_world(Mode::Enforce);
    world.limit(Map::Counts, 3);
    for minor in 0..6 {
        attempt(&mut world, device(DeviceType::Character, 195, minor), Access::READ);
    }
    let of = |minor| counts(&world, &layout::counts_key(device(DeviceType::Character, 195, minor)));
    assert_eq!((of(0), of(1), of(2)), (Some([0, 1, 0]), Some([0, 1, 0]), None));
    assert_eq!(counts(&world, &OTHERS), Some([0, 4, 0]));
}

#[test]
fn the_program_stays_short() {
    // 4,096 is what every kernel takes; each attempt runs a small part of it.
    let length = assemble().instructions.len();
    assert!(length < 1000, "{length}");
}
