//! Random trees: the kernel decides as the rules do.

use std::{collections::BTreeMap, fmt::Write};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use super::{
    opener::Opener,
    scene::{MAJOR, MAJORS, MINORS, Scene, device_of},
};
use crate::{Access, CgroupId, Decision, DeviceType, Gate, Grant, Rules, bpf::tests::some_rules};

/// A tree takes some hundred opens; the interpreter has judged thousands.
const TREES: usize = 60;

/// Cgroups in a line below the gate's root.
const DEPTH_MAX: usize = 9;

#[test]
fn the_kernel_decides_as_the_rules_do() {
    let scene = Scene::new();
    let gate = Gate::open(&scene.config()).expect("this kernel can have a gate");
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for tree in 0..TREES {
        let drawn = some_rules().new_tree(&mut runner).expect("rules are never rejected").current();
        let depth = tree % DEPTH_MAX;
        let path = format!("root/tree{tree}{}", "/n".repeat(depth));
        let mut opener = Opener::start_in(&scene.make_cgroup(&path));
        let line = gate.lineage(&scene.cgroup.join(&path)).expect("it lies below the root");
        let rules = settle(&drawn, &line);
        write(&gate, &rules);
        assert_eq!(gate.rules().expect("it can be read"), rules);
        check(&scene, &rules, &line, &mut opener, &mut seen);
    }
    // The sample is worth something only if each decision is common in it.
    assert!(seen.len() == 4 && seen.values().all(|times| *times > 100), "{seen:?}");
}

/// Lets the cgroups of drawn rules be those of a real line, the gate's root and below, and
/// some that do not exist.
fn settle(drawn: &Rules, line: &[CgroupId]) -> Rules {
    let below = &line[2..];
    let real = |CgroupId(number): CgroupId| {
        let index = usize::try_from(number).expect("a small number");
        below.get(index).copied().unwrap_or(CgroupId(u64::MAX - number))
    };
    let grants = drawn.grants().map(|grant| Grant { cgroup: real(grant.cgroup), ..grant });
    Rules::new(drawn.guards().clone(), grants, drawn.exemptions().map(real))
}

/// Makes the gate's rules those of `rules`, whatever they were.
fn write(gate: &Gate, rules: &Rules) {
    let old = gate.rules().expect("it can be read");
    old.grants().for_each(|it| gate.revoke(it.cgroup, it.device).expect("it is there"));
    old.exemptions().for_each(|it| gate.end_exemption(it).expect("it is there"));
    for Grant { cgroup, device, access } in rules.grants() {
        gate.grant(cgroup, device, access).expect("there is room");
    }
    rules.exemptions().for_each(|it| gate.exempt(it).expect("there is room"));
    gate.guard(rules.guards()).expect("there is room");
}

/// Opens every node in every way, and counts what was decided.
fn check(
    scene: &Scene,
    rules: &Rules,
    line: &[CgroupId],
    opener: &mut Opener,
    seen: &mut BTreeMap<Decision, u32>,
) {
    let mut wrong = String::new();
    for kind in [DeviceType::Character, DeviceType::Block] {
        for (major, minor) in (0..MAJORS * MINORS).map(|it| (MAJOR + it / MINORS, it % MINORS)) {
            let device = device_of(kind, major, minor);
            for access in [Access::READ, Access::WRITE, Access::READ_WRITE] {
                let decision = rules.decide(line, device, access);
                let expected = if decision == Decision::Denied { "EPERM" } else { "ENXIO" };
                let answer = opener.open(&scene.node(device), access);
                if answer != expected {
                    writeln!(wrong, "{device} {access}: {answer}, but {decision:?}")
                        .expect("a string takes everything");
                }
                *seen.entry(decision).or_default() += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{rules:?} of {line:?}:\n{wrong}");
}
