//! What programs do: link, fork, exec, make threads, capture, make contexts, use two devices.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod node;

use std::sync::atomic::Ordering;

use accelpool_cuda_engine::machine::{DeviceProfile, Machine};
use accelpool_shim::gate::Grant;

use crate::node::{Keeper, Node, Tenant, programs::compile, until};

const MIB: u64 = 1 << 20;

/// Starts a mode of `tests/c/tenant.c`.
fn start(node: &Node, keeper: &Keeper, arguments: &[&str]) -> Tenant {
    start_with(node, keeper, arguments, &[])
}

fn start_with(
    node: &Node,
    keeper: &Keeper,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Tenant {
    let libraries = ["-l:libcuda.so.1", "-lpthread", "-ldl"];
    let program = compile(node.dir.path(), "tenant.c", "tenant", &libraries);
    let mut command = node.command(&program, keeper);
    command.args(arguments).envs(variables.iter().copied());
    Tenant::spawn(command)
}

/// Lets the program go on, and waits for what it says next.
#[track_caller]
fn go_on(tenant: &mut Tenant, says: &str) {
    tenant.send("");
    assert_eq!(tenant.answer(), says);
}

#[test]
fn a_program_that_is_linked_with_the_driver_is_held_too() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = start(&node, &keeper, &["linked"]);
    // Refused with its output untouched; nothing free of the quota; no checkpoint.
    assert_eq!(tenant.answer(), format!("2 42 0 {MIB} {MIB} 800"));
}

#[test]
fn more_threads_than_lines_are_all_counted() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = start(&node, &keeper, &["threads"]);
    for round in 1..=2 {
        assert_eq!(tenant.answer(), "round");
        assert_eq!(keeper.progress(0), (round * 4000, round * 4000));
        assert!(!keeper.with_process(0, |it| it.page.devices[0].is_anyone_inside()));
        tenant.send("");
    }
}

#[test]
fn forks_and_execs_are_tenants_of_their_own() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenant = start(&node, &keeper, &["fork"]);
    assert_eq!(tenant.answer(), "started");
    until("both are registered", || keeper.registered() == 2 && keeper.used() == 3 * MIB);
    tenant.send("");
    // The parent has its two pages; the child of the second fork has closed its copies.
    assert_eq!(tenant.answer(), "2 0");
    assert_eq!(tenant.answer(), "forked");
    assert_eq!((keeper.registered(), keeper.used()), (2, 3 * MIB), "that fork changed nothing");
    tenant.send("");
    assert_eq!(tenant.answer(), "started");
    until("the program before the exec is gone", || keeper.used() == 4 * MIB);
    assert_eq!(keeper.registered(), 2);
}

#[test]
fn what_is_captured_passes_no_gate_and_the_graph_does() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = start(&node, &keeper, &["capture"]);
    assert_eq!(tenant.answer(), "started");
    keeper.control().devices[0].close();
    go_on(&mut tenant, "captured");
    assert_eq!(keeper.progress(0), (0, 0));
    tenant.send("");
    until("the graph waits", || {
        keeper.with_process(0, |it| it.page.devices[0].want.load(Ordering::SeqCst)) == 1
    });
    keeper.open(2, Grant::EXCLUSIVE);
    assert_eq!(tenant.answer(), "launched");
    let us = keeper.with_process(0, |it| it.page.devices[0].submitted().1);
    assert_eq!(us, 150, "three nodes that were never timed");
    until("it is followed to its end", || keeper.progress(0) == (1, 1));
}

#[test]
fn all_streams_are_drained_also_those_that_were_destroyed() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = start(&node, &keeper, &["streams"]);
    assert_eq!(tenant.answer(), "started");
    for flags in [Grant::EXCLUSIVE, Grant::OPEN] {
        keeper.open(2, flags);
        go_on(&mut tenant, "launched");
        keeper.control().devices[0].close();
        until("drained", || keeper.progress(0) == (6, 6));
        drop(tenant);
        until("gone", || keeper.registered() == 0);
        keeper.open(3, Grant::OPEN);
        tenant = start(&node, &keeper, &["streams"]);
        assert_eq!(tenant.answer(), "started");
    }
}

#[test]
fn what_was_allocated_goes_with_its_context() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 8 * MIB);
    let mut tenant = start(&node, &keeper, &["contexts"]);
    assert_eq!(tenant.answer(), "created");
    assert_eq!(keeper.used(), 9 * MIB);
    go_on(&mut tenant, "destroyed");
    assert_eq!(keeper.used(), 0);
    go_on(&mut tenant, "retained");
    assert_eq!(keeper.used(), 10 * MIB);
    go_on(&mut tenant, "reset");
    assert_eq!(keeper.used(), 0);
}

#[test]
fn devices_are_told_apart_by_their_uuids() {
    let uuids =
        ["GPU-11111111-0000-4000-8000-000000000001", "GPU-22222222-0000-4000-8000-000000000002"];
    let node = Node::with(Machine { devices: uuids.map(DeviceProfile::new).into() });
    let mut claimed = uuids.map(|uuid| DeviceProfile::new(uuid).uuid_bytes());
    // The claim has them in another order than the driver.
    claimed.reverse();
    let keeper = Keeper::new(&node.dir.path().join("claim"), &claimed, 64 * MIB, 0);
    let mut tenant = start(&node, &keeper, &["devices"]);
    assert_eq!(tenant.answer(), "both");
    assert_eq!((keeper.used_of(1), keeper.used_of(0)), (MIB, 2 * MIB));
    go_on(&mut tenant, "first");
    assert_eq!((keeper.used_of(1), keeper.used_of(0)), (0, 2 * MIB));
    go_on(&mut tenant, "none");
    assert_eq!((keeper.used_of(1), keeper.used_of(0)), (0, 0));
}

#[test]
fn what_a_thread_remembers_is_not_used_once_it_is_untrue() {
    let uuids =
        ["GPU-11111111-0000-4000-8000-000000000001", "GPU-22222222-0000-4000-8000-000000000002"];
    let node = Node::with(Machine { devices: uuids.map(DeviceProfile::new).into() });
    let claimed = uuids.map(|uuid| DeviceProfile::new(uuid).uuid_bytes());
    let keeper = Keeper::new(&node.dir.path().join("claim"), &claimed, 64 * MIB, 0);
    keeper.control().devices[1].open(Grant::new(1, Grant::OPEN), 0);
    let mut tenant = start(&node, &keeper, &["remembered"]);
    let submitted =
        |device: usize| keeper.with_process(0, |it| it.page.devices[device].submitted().0);
    assert_eq!(tenant.answer(), "three");
    assert_eq!(submitted(0), 3);
    go_on(&mut tenant, "captured");
    assert_eq!(submitted(0), 3, "what a graph is made of is not submitted");
    go_on(&mut tenant, "nine");
    assert_eq!(submitted(0), 9);
    go_on(&mut tenant, "of two");
    assert_eq!((submitted(0), submitted(1)), (10, 3), "each by its own device");
    // A gate that closes is seen, and all streams are followed.
    keeper.control().devices[0].close();
    until("drained", || keeper.progress(0) == (10, 10));
    keeper.control().devices[1].close();
    tenant.send("");
    until("it waits", || {
        keeper.with_process(0, |it| it.page.devices[1].want.load(Ordering::SeqCst)) == 1
    });
    assert_eq!(submitted(1), 3);
    keeper.control().devices[1].open(Grant::new(2, Grant::OPEN), 0);
    assert_eq!(tenant.answer(), "once more");
    assert_eq!(submitted(1), 4);
}

#[test]
fn two_claims_are_found_in_one_folder() {
    let uuids =
        ["GPU-11111111-0000-4000-8000-000000000001", "GPU-22222222-0000-4000-8000-000000000002"];
    let node = Node::with(Machine { devices: uuids.map(DeviceProfile::new).into() });
    let turns = node.dir.path().join("turns");
    std::fs::create_dir(&turns).unwrap();
    let [one, other] = uuids.map(|uuid| {
        Keeper::new(&turns.join(uuid), &[DeviceProfile::new(uuid).uuid_bytes()], 64 * MIB, 0)
    });
    let folder = turns.to_str().unwrap();
    let mut tenant = start_with(&node, &one, &["devices"], &[("ACCELPOOL_TURNS", folder)]);
    assert_eq!(tenant.answer(), "both");
    assert_eq!((one.used(), other.used()), (MIB, 2 * MIB));
}

#[test]
fn arrays_and_pitches_are_charged_what_they_take() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenant = start(&node, &keeper, &["arrays"]);
    assert_eq!(tenant.answer(), "array");
    assert_eq!(keeper.used(), 16 * MIB, "1024 x 1024 pixels of four floats");
    tenant.send("");
    let pitch: u64 = tenant.answer().parse().unwrap();
    assert_eq!(tenant.answer(), "pitched");
    assert_eq!(keeper.used(), (pitch * 64).next_multiple_of(512));
    go_on(&mut tenant, "free");
    assert_eq!(keeper.used(), 0);
}

#[test]
fn nvml_tells_of_the_quota() {
    let node = Node::new();
    compile(node.dir.path(), "nvml.c", "libnvidia-ml.so.1", &["-shared"]);
    let keeper = node.claim("claim", 64 * MIB, 0);
    let uuid = node.machine.devices[0].uuid.clone();
    let variables = [("NVML_UUID", uuid.as_str())];
    let mut tenant = start_with(&node, &keeper, &["nvml", "cuda"], &variables);
    assert_eq!(tenant.answer(), format!("{} {} {MIB}", 64 * MIB, 63 * MIB));
    drop(tenant);
    until("gone", || keeper.registered() == 0);
    // A monitor that never comes to CUDA.
    let mut tenant = start_with(&node, &keeper, &["nvml"], &variables);
    assert_eq!(tenant.answer(), format!("{} {} 0", 64 * MIB, 64 * MIB));
    // A device of nobody's claim is shown as it is.
    let variables = [("NVML_UUID", "GPU-00000000-0000-4000-8000-00000000ffff")];
    let mut tenant = start_with(&node, &keeper, &["nvml"], &variables);
    assert_eq!(tenant.answer(), format!("{} {} {}", 80_u64 << 30, 79_u64 << 30, 1_u64 << 30));
}

#[test]
fn nvml_lists_the_claims_own_processes() {
    let node = Node::new();
    compile(node.dir.path(), "nvml.c", "libnvidia-ml.so.1", &["-shared"]);
    let keeper = node.claim("claim", 64 * MIB, MIB);
    let uuid = node.machine.devices[0].uuid.clone();
    let variables = [("NVML_UUID", uuid.as_str())];
    let begin = || {
        let mut tenant = start_with(&node, &keeper, &["processes"], &variables);
        assert_eq!(tenant.answer(), "ready");
        tenant
    };
    let lists = |tenant: &mut Tenant| {
        tenant.send("");
        let lines: Vec<String> = (0..9).map(|_| tenant.answer()).collect();
        assert_eq!(tenant.answer(), "listed");
        lines
    };
    let (mut first, second) = (begin(), begin());
    // A context and an allocation each; the code says that there was no room at first.
    let held = 2 * MIB;
    let mut both = [first.pid(), second.pid()].map(|pid| format!("{pid}:{held}"));
    let told = lists(&mut first);
    for line in &told[..3] {
        let mut words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words.drain(..2).collect::<Vec<_>>(), ["7", "0"], "{told:?}");
        words.sort_unstable();
        both.sort_unstable();
        assert_eq!(words, both, "{told:?}");
    }
    assert!(told[3..].iter().all(|line| line == "0 0"), "nobody draws: {told:?}");
    drop((first, second));
    until("gone", || keeper.registered() == 0);
    let mut third = begin();
    let own = format!("7 0 {}:{held}", third.pid());
    assert!(lists(&mut third)[..3].iter().all(|line| *line == own));
    // A device of nobody's claim is shown as it is.
    let variables = [("NVML_UUID", "GPU-00000000-0000-4000-8000-00000000ffff")];
    let mut other = start_with(&node, &keeper, &["processes"], &variables);
    assert_eq!(other.answer(), "ready");
    assert!(lists(&mut other).iter().all(|line| *line == format!("7 0 4711:{}", 5_u64 << 30)));
}

#[test]
fn without_a_daemon_nvml_lists_the_process_itself() {
    let node = Node::new();
    compile(node.dir.path(), "nvml.c", "libnvidia-ml.so.1", &["-shared"]);
    let mut keeper = node.claim("claim", 64 * MIB, MIB);
    keeper.stop();
    let uuid = node.machine.devices[0].uuid.clone();
    let mut tenant = start_with(&node, &keeper, &["processes"], &[("NVML_UUID", uuid.as_str())]);
    assert_eq!(tenant.answer(), "ready");
    tenant.send("");
    assert_eq!(tenant.answer(), format!("7 0 {}:{}", tenant.pid(), 2 * MIB));
}
