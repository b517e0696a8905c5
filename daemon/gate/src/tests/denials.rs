//! What the kernel reports and counts.

use std::time::Duration;

use super::{
    opener::Opener,
    scene::{MINORS, Scene, device, whole_major},
};
use crate::{Access, Counts, Denial, Denials, DeviceNumber, Gate, Guard, Guards, Mode};

/// Long enough for any machine; a test that passes does not wait for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Everything that is reported up to a record of `last`.
fn until(denials: &mut Denials, last: DeviceNumber) -> Vec<Denial> {
    let mut all = Vec::new();
    loop {
        let some = denials.wait(PATIENCE).expect("it can be waited for");
        assert!(!some.is_empty(), "{last} was never reported: {all:?}");
        all.extend(some);
        if all.iter().any(|it| it.device == last) {
            return all;
        }
    }
}

fn counts(gate: &Gate, of: DeviceNumber) -> Counts {
    let counts = gate.counts().expect("it can be read");
    counts.into_iter().find(|(device, _)| *device == Some(of)).expect("it is guarded").1
}

#[test]
fn a_denial_says_who_wanted_what() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let container = scene.make_cgroup("root/pod/container");
    let mut denials = gate.denials().expect("it can be mapped");
    assert_eq!(denials.wait(Duration::ZERO).expect("it can be waited for"), []);
    let mut opener = Opener::start_in(&container);
    opener.open(&scene.node_of(2), Access::WRITE);
    gate.set_mode(Mode::Audit).expect("there is room");
    opener.open(&scene.node_of(3), Access::READ_WRITE);

    let reported = until(&mut denials, device(3));
    let cgroup = gate.cgroup(&container).expect("it lies below the root");
    let expected = |minor, access, denied| (cgroup, opener.id(), device(minor), access, denied);
    let actual: Vec<_> = reported
        .iter()
        .map(|it| (it.cgroup, it.process, it.device, it.access, it.denied))
        .collect();
    let expected = [expected(2, Access::WRITE, true), expected(3, Access::READ_WRITE, false)];
    assert_eq!(actual, expected);
    // The test runner names its threads by their tests, and the kernel cuts at 15 bytes.
    assert!(reported.iter().all(|it| it.thread_name == "tests::opener::"), "{reported:?}");
    assert!(reported[0].time_since_boot < reported[1].time_since_boot);
    assert_eq!(counts(&gate, device(2)), Counts { denied: 1, ..Counts::default() });
    assert_eq!(counts(&gate, device(3)), Counts { audited: 1, ..Counts::default() });
}

#[test]
fn what_is_not_reported_is_counted() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut denials = gate.denials().expect("it can be mapped");
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod"));
    let [_, denied, _] = opener.open_often(&scene.node_of(0), 5000);
    assert_eq!(denied, 5000);
    opener.open(&scene.node_of(1), Access::READ);
    let reported = until(&mut denials, device(1)).len() as u64 - 1;
    // As many as the seconds that it took, which are unknown.
    assert!(reported >= 1);
    let expected = Counts { audited: 0, denied: 5000, unreported: 5000 - reported };
    assert_eq!(counts(&gate, device(0)), expected);
}

#[test]
fn a_ring_that_nobody_reads_loses_no_denial_and_no_count() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    // More cgroups times devices than the ring has room for records.
    let room = u64::from(crate::layout::DENIALS_BYTES) / 72;
    let mut opener = Opener::start();
    let (mut attempts, mut number) = (0, 0);
    while attempts < room + 100 {
        opener.enter(&scene.make_cgroup(&format!("root/pod{number}")));
        for minor in 0..MINORS {
            assert_eq!(opener.open(&scene.node_of(minor), Access::READ), "EPERM");
            attempts += 1;
        }
        number += 1;
    }
    let totals = gate.counts().expect("it can be read");
    let sum = |field: fn(&Counts) -> u64| totals.iter().map(|(_, it)| field(it)).sum::<u64>();
    assert_eq!(sum(|it| it.denied), attempts);
    let mut denials = gate.denials().expect("it can be mapped");
    let reported = denials.take().len() as u64;
    assert_eq!(reported, attempts - sum(|it| it.unreported));
    assert!(reported < attempts && reported > room / 2, "{reported} of {attempts}");
    // Once it is read there is room again; a reader that comes later goes on behind it.
    drop(denials);
    let mut denials = gate.denials().expect("it can be mapped");
    assert_eq!(denials.take(), []);
    opener.enter(&scene.make_cgroup("root/late"));
    opener.open(&scene.node_of(0), Access::READ);
    assert_eq!(until(&mut denials, device(0)).len(), 1);
}

#[test]
fn counts_follow_what_is_guarded() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod"));
    opener.open(&scene.node_of(4), Access::READ);
    opener.open(&scene.node_of(5), Access::READ);
    let listed = || {
        let counts = gate.counts().expect("it can be read").into_iter();
        counts.map(|(device, it)| (device.map(DeviceNumber::minor), it.denied)).collect::<Vec<_>>()
    };
    assert_eq!(listed(), [(None, 0), (Some(4), 1), (Some(5), 1)]);
    // Devices that are guarded by number are listed before anything happens to them.
    let one = |minor| Guard { devices: device(minor).into(), mode: Mode::Enforce };
    gate.guard(&Guards::new([one(5), one(6)]).expect("they differ")).expect("there is room");
    assert_eq!(listed(), [(None, 0), (Some(5), 1), (Some(6), 0)]);
    gate.guard(&whole_major(Mode::Enforce)).expect("there is room");
    assert_eq!(listed(), [(None, 0), (Some(5), 1), (Some(6), 0)]);
}
