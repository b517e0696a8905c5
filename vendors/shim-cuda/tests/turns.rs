//! The gate and the daemon's coming and going, as programs of the driver API meet them.

mod node;

use std::{sync::atomic::Ordering, time::Duration};

use accelpool_shim::{
    gate::Grant,
    layout::{HEARTBEAT_STALE_NS, LAYOUT_HASH},
    wire::Refusal,
};

use crate::node::{Keeper, Node, Tenant, until};

const MIB: u64 = 1 << 20;

/// Work of each kind that the gate is before: a kernel, one by `Ex`, a graph of three.
const WORK: [&str; 3] = ["launch 10 1", "ex 10", "graph 10 3 1"];

/// Sends a command that must wait at the closed gate, and waits until it does.
fn send_to_gate(tenant: &mut Tenant, keeper: &Keeper, command: &str) {
    tenant.send(command);
    until("a thread waits for its turn", || want(keeper) == 1);
}

fn want(keeper: &Keeper) -> u32 {
    keeper.with_process(0, |it| it.page.devices[0].want.load(Ordering::SeqCst))
}

#[test]
fn a_closed_gate_holds_each_kind_of_work() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    for (variables, name) in [
        (&[][..], "legacy"),
        (&[("TENANT_STREAM", "per-thread")][..], "own"),
        (&[("TENANT_LOOKUP", "dlsym")], "dlsym"),
    ] {
        let mut tenant = node.tenant_with(&keeper, variables);
        tenant.must("start 0");
        for (work, epoch) in WORK.into_iter().zip(1..) {
            keeper.control().devices[0].close();
            let (before, _) = keeper.progress(0);
            send_to_gate(&mut tenant, &keeper, work);
            assert_eq!(keeper.progress(0).0, before, "{name}, {work}: nothing was submitted");
            keeper.open(epoch, Grant::OPEN);
            assert_eq!(tenant.answer(), "ok", "{name}, {work}");
            assert_eq!(keeper.progress(0).0, before + 1, "{name}, {work}: one pass each");
            assert_eq!(want(&keeper), 0);
        }
        drop(tenant);
        until("the process is gone", || keeper.registered() == 0);
        keeper.open(9, Grant::OPEN);
    }
}

#[test]
fn a_closed_claim_reports_its_drain_by_itself() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    keeper.open(7, Grant::EXCLUSIVE);
    // Long enough to be under way when the gate closes, and nobody waits for it.
    tenant.must("launch 20000 5");
    let closed = keeper.control().devices[0].close();
    assert_eq!(closed.epoch(), 7);
    assert!(!keeper.with_process(0, |it| it.page.devices[0].is_anyone_inside()));
    let drained =
        || keeper.with_process(0, |it| it.page.devices[0].drained_epoch.load(Ordering::SeqCst));
    assert_ne!(drained(), 7, "a hundred milliseconds of work are not done yet");
    until("drained", || drained() == 7);
    assert_eq!(keeper.progress(0), (5, 5));
}

#[test]
fn what_was_submitted_in_an_open_gate_is_drained_too() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    tenant.must("launch 5000 4");
    assert_eq!(keeper.progress(0).0, 4);
    keeper.control().devices[0].close();
    until("drained", || keeper.progress(0) == (4, 4));
}

#[test]
fn a_wait_proves_what_was_before_it() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    tenant.must("launch 100 8");
    tenant.must("sync");
    assert_eq!(keeper.progress(0), (8, 8), "in an open gate, without any event");
}

#[test]
fn a_turn_ends_at_its_deadline_although_nobody_says_so() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    // The end lies behind already.
    keeper.control().devices[0].open(Grant::new(3, Grant::EXCLUSIVE), 1);
    send_to_gate(&mut tenant, &keeper, "launch 10 1");
    keeper.control().devices[0].renew(u64::MAX / 2);
    assert_eq!(tenant.answer(), "ok");
}

#[test]
fn a_window_bounds_what_is_unfinished() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    keeper.control().devices[0].window_commands.store(4, Ordering::SeqCst);
    keeper.open(2, Grant::EXCLUSIVE);
    tenant.send("launch 2000 40");
    let mut most = 0;
    until("all were submitted", || {
        let (submitted, completed) = keeper.progress(0);
        most = most.max(submitted - completed);
        submitted == 40
    });
    assert_eq!(tenant.answer(), "ok");
    assert!(most <= 4, "{most} were under way at once");
}

#[test]
fn a_daemon_that_is_gone_stops_nobody() {
    let node = Node::new();
    let mut keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    tenant.must("alloc 1000000");
    keeper.control().devices[0].close();
    keeper.stop();
    let start = std::time::Instant::now();
    tenant.must("launch 10 1");
    assert!(
        start.elapsed() >= Duration::from_nanos(HEARTBEAT_STALE_NS),
        "the gate was closed until then"
    );
    tenant.must("launch 10 100");
    assert_eq!(tenant.ask("alloc 100000"), "error 2", "the quota holds all the same");
    // The next one finds everything as it was.
    let keeper = keeper.restart();
    until("registered again", || keeper.registered() == 1);
    let returns = keeper.with_process(0, |it| it.hello.returns).expect("it came back");
    assert_eq!((returns.incarnation, returns.process_index), (1, 0));
    assert_eq!(keeper.used(), 1_000_448, "the ledger page is the one that it brought");
    send_to_gate(&mut tenant, &keeper, "launch 10 1");
    keeper.open(1, Grant::OPEN);
    assert_eq!(tenant.answer(), "ok");
    assert_eq!(tenant.ask("alloc 100000"), "error 2");
}

#[test]
fn a_revoked_claim_gets_neither_time_nor_memory() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    let held = tenant.must("alloc 1000");
    keeper.control().devices[0].close();
    send_to_gate(&mut tenant, &keeper, "launch 10 1");
    keeper.control().devices[0].revoke();
    assert_eq!(tenant.answer(), "error 800");
    assert_eq!(tenant.ask("alloc 1"), "error 2");
    tenant.must(&format!("free {held}"));
    assert_eq!(keeper.used(), 0);
}

#[test]
fn who_is_refused_runs_without_turns_and_within_the_quota() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    keeper.refuse(Refusal::TooMany);
    keeper.control().devices[0].close();
    let mut tenant = node.started(&keeper);
    tenant.must("launch 10 5");
    tenant.must("alloc 1048576");
    assert_eq!(tenant.ask("alloc 1"), "error 2");
}

#[test]
fn another_layout_is_left_alone_but_for_its_limits() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    keeper.control().layout_hash.store(!LAYOUT_HASH, Ordering::SeqCst);
    keeper.refuse(Refusal::Layout);
    keeper.control().devices[0].revoke();
    let mut tenant = node.started(&keeper);
    tenant.must("launch 10 5");
    tenant.must("alloc 1048576");
    assert_eq!(tenant.ask("alloc 1"), "error 2");
}

#[test]
fn a_killed_process_gives_back_what_it_held() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenant = node.started(&keeper);
    tenant.must(&format!("alloc {}", 64 * MIB));
    keeper.open(4, Grant::EXCLUSIVE);
    tenant.send("burn 100 60000");
    until("it is at work", || keeper.progress(0).0 > 10);
    drop(tenant);
    until("its bytes are back", || keeper.used() == 0 && keeper.registered() == 0);
    node.started(&keeper).must(&format!("alloc {}", 64 * MIB));
}

/// Launches once and waits for it; gives what the launch was estimated to take.
fn estimated_us(tenant: &mut Tenant, keeper: &Keeper, command: &str) -> u64 {
    let us = || keeper.with_process(0, |it| it.page.devices[0].submitted().1);
    let before = us();
    tenant.must(command);
    tenant.must("sync");
    us() - before
}

#[test]
fn what_a_kernel_takes_is_learnt_and_the_window_is_of_that() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    assert_eq!(estimated_us(&mut tenant, &keeper, "launch 4000 1"), 0, "an open gate asks nobody");
    keeper.open(2, Grant::EXCLUSIVE);
    let first = estimated_us(&mut tenant, &keeper, "launch 4000 1");
    assert_eq!(first, 50, "it was never timed");
    // The second launch is timed, and read by the helper some time later.
    until("it is learnt", || estimated_us(&mut tenant, &keeper, "launch 4000 1") >= 4000);
    assert_eq!(estimated_us(&mut tenant, &keeper, "launch 10 1"), 50, "another size of grid");
    // Room for one of them and a part of the next: by their number it would be all at once.
    keeper.control().devices[0].window_us.store(6000, Ordering::SeqCst);
    let (before, _) = keeper.progress(0);
    tenant.send("launch 4000 10");
    let mut most = 0;
    until("all were submitted", || {
        let (submitted, completed) = keeper.progress(0);
        most = most.max(submitted - completed);
        submitted == before + 10
    });
    assert_eq!(tenant.answer(), "ok");
    assert!(most <= 2, "{most} of four milliseconds were under way at once");
}

#[test]
fn a_parked_claim_waits_and_goes_on_where_it_was() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    let mut tenant = node.started(&keeper);
    let held = tenant.must("alloc 1000");
    keeper.open(2, Grant::PARK);
    send_to_gate(&mut tenant, &keeper, "launch 10 1");
    assert_eq!(keeper.progress(0).0, 0, "it wants, and submits nothing");
    keeper.open(3, Grant::OPEN);
    assert_eq!(tenant.answer(), "ok");
    tenant.must(&format!("free {held}"));
}

#[test]
fn in_a_time_namespace_a_turn_ends_when_it_ends() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    // The tenant's clock is a day ahead: compared as it is, each deadline would lie behind it.
    let unshare = std::path::Path::new("/usr/bin/unshare");
    let namespace = ["--user", "--map-root-user", "--time", "--fork", "--kill-child"];
    let day = ["--monotonic", "86400"];
    let mut probe = std::process::Command::new(unshare);
    let probe = probe.args(namespace).args(day).arg("true").output();
    if !probe.as_ref().is_ok_and(|it| it.status.success()) {
        eprintln!("skipped: this machine lets nobody make a time namespace: {probe:?}");
        return;
    }
    let mut command = node.command(unshare, &keeper);
    command.env_remove("LD_PRELOAD");
    command.args(namespace).args(day).arg("env");
    command.arg(format!("LD_PRELOAD={}", accelpool_shim_cuda::BUILT_AT));
    command.arg(node::tenant_program());
    let mut tenant = Tenant::spawn(command);
    tenant.must("start 0");
    let shift = keeper.with_process(0, |it| it.hello.monotonic_ns) / 1_000_000_000;
    let own = accelpool_shim::sys::now_ns() / 1_000_000_000;
    assert!(shift >= own + 86_000, "it is in a time namespace: {shift} beside {own}");
    let hour_ns = 3_600_000_000_000;
    let deadline_ns = accelpool_shim::sys::now_ns() + hour_ns;
    keeper.control().devices[0].open(Grant::new(2, Grant::EXCLUSIVE), deadline_ns);
    tenant.must("launch 10 1");
    // And a turn that is over by the daemon's clock is over.
    keeper.control().devices[0].open(Grant::new(3, Grant::EXCLUSIVE), 1);
    send_to_gate(&mut tenant, &keeper, "launch 10 1");
    keeper.open(4, Grant::OPEN);
    assert_eq!(tenant.answer(), "ok");
}
