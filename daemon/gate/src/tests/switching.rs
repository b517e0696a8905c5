//! Changes while somebody opens devices all the time: no gap, and nobody is refused wrongly.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{
    opener::Opener,
    scene::{MAJOR, Scene, device, device_of, whole_major},
};
use crate::{
    Access, Counts, DeviceRange, DeviceType, Gate, Guard, Guards, Mode,
    bpf::program,
    sys::{LinkFd, ProgramFd},
};

const OPENS: u32 = 100_000;

/// Opens minor 0 all the time while `change` is called again and again, with the number
/// of the call; what came of the opens.
fn open_during(scene: &Scene, opener: &mut Opener, mut change: impl FnMut(u32)) -> [u32; 3] {
    let done = AtomicBool::new(false);
    let node = scene.node_of(0);
    thread::scope(|scope| {
        let counts = scope.spawn(|| {
            let counts = opener.open_often(&node, OPENS);
            done.store(true, Ordering::Release);
            counts
        });
        let mut changes = 0;
        while !done.load(Ordering::Acquire) {
            change(changes);
            changes += 1;
        }
        assert!(changes > 2, "only {changes} changes while it ran");
        counts.join().expect("the opener answers")
    })
}

#[test]
fn who_holds_a_grant_is_never_refused() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pod = scene.make_cgroup("root/pod");
    let id = gate.cgroup(&pod).expect("it lies below the root");
    gate.grant(id, device(0), Access::READ).expect("there is room");
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod/container"));
    let modes = [Mode::Off, Mode::Enforce, Mode::Audit, Mode::Enforce];
    let counts = open_during(&scene, &mut opener, |number| {
        gate.set_mode(modes[number as usize % 4]).expect("there is room");
        let access = [Access::READ, Access::READ_WRITE][number as usize % 2];
        gate.grant(id, device(0), access).expect("there is room");
        // Grants of others come and go beside it.
        gate.grant(id, device(1 + number % 9), access).expect("there is room");
        gate.revoke(id, device(1 + (number + 4) % 9)).expect("to revoke what is gone succeeds");
    });
    assert_eq!(counts, [0, 0, OPENS]);
}

#[test]
fn who_holds_none_never_passes_while_guards_change() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod/container"));
    let range = |first, last, mode| {
        let devices = DeviceRange::new(DeviceType::Character, MAJOR, first, last);
        Guard { devices: devices.expect("a valid range"), mode }
    };
    let one = Guard { devices: device(0).into(), mode: Mode::Enforce };
    let other = device_of(DeviceType::Character, MAJOR + 1, 0);
    let lists = [
        whole_major(Mode::Enforce),
        Guards::new([one]).expect("one guard"),
        Guards::new([range(0, 6, Mode::Enforce), range(7, 90, Mode::Off)]).expect("no overlap"),
        Guards::new([one, Guard { devices: other.into(), mode: Mode::Audit }]).expect("no overlap"),
        Guards::new([range(0, 2, Mode::Enforce)]).expect("one guard"),
    ];
    let counts = open_during(&scene, &mut opener, |number| {
        gate.guard(&lists[number as usize % lists.len()]).expect("there is room");
    });
    assert_eq!(counts, [0, OPENS, 0]);
}

#[test]
fn every_open_is_judged_in_one_mode_or_the_other() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Audit);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod/container"));
    let [_, denied, audited] = open_during(&scene, &mut opener, |number| {
        gate.set_mode([Mode::Enforce, Mode::Audit][number as usize % 2]).expect("there is room");
    });
    assert!(denied > 0 && audited > 0, "{denied} denied, {audited} audited");
    let counts = gate.counts().expect("it can be read");
    let found = counts.into_iter().find(|(it, _)| *it == Some(device(0)));
    let Counts { audited: seen_audited, denied: seen_denied, .. } = found.expect("counted").1;
    assert_eq!((seen_denied, seen_audited), (denied.into(), audited.into()));
}

/// A program of another version: it does the same, and has an instruction more.
pub(super) fn other_version(gate: &Gate) -> ProgramFd {
    let mut assembler = crate::bpf::assembler::Assembler::default();
    assembler.set(crate::bpf::assembler::Register::R0, 0);
    let mut code = gate.code();
    let more: Vec<[u8; 8]> = assembler.finish().instructions.iter().map(|it| it.encode()).collect();
    code.splice(0..0, more);
    ProgramFd::load(program::NAME, &code, None).expect("the kernel takes it")
}

#[test]
fn nobody_passes_while_the_program_is_replaced() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod/container"));
    let other = other_version(&gate);
    let pin = scene.config().pins.join("gate-1");
    let counts = open_during(&scene, &mut opener, |_| {
        let link = LinkFd::open(&pin).expect("it is pinned");
        link.replace_program(&other).expect("the kernel takes it");
        // Finds a gate of another version, and puts its own program in the place.
        let gate = Gate::open(&scene.config()).expect("it can be adopted");
        assert_eq!(gate.verify().expect("it can be asked").defects, []);
    });
    assert_eq!(counts, [0, OPENS, 0]);
}
