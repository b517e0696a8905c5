//! The memory quota, as programs of the driver API meet it.

mod node;

use std::sync::atomic::Ordering;

use crate::node::{Node, until};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn the_last_byte_is_granted_and_the_next_is_not() {
    let node = Node::new();
    let keeper = node.claim("claim", GIB, 0);
    let mut tenant = node.started(&keeper);
    assert_eq!(tenant.info(), (GIB, GIB));
    let most = tenant.must(&format!("alloc {}", GIB - 512));
    assert_eq!(tenant.ask("alloc 513"), "error 2");
    let last = tenant.must("alloc 512");
    assert_eq!(tenant.ask("alloc 1"), "error 2");
    assert_eq!(tenant.info(), (0, GIB));
    tenant.must(&format!("free {last}"));
    tenant.must(&format!("free {most}"));
    assert_eq!(keeper.used(), 0);
    assert_eq!(keeper.with_ledger(|it| it.devices[0].denied.load(Ordering::SeqCst)), 2);
    assert_eq!(keeper.with_ledger(|it| it.devices[0].peak.load(Ordering::SeqCst)), GIB);
}

/// Every way to take memory: `take` it all, be refused one step more, and give it back.
#[track_caller]
fn check_exact(take: &str, more: &str, give_back: impl Fn(&str) -> String) {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenant = node.started(&keeper);
    let all = tenant.must(take);
    assert_eq!(keeper.used(), 64 * MIB, "{take}");
    assert_eq!(tenant.ask(more), "error 2", "{more}");
    tenant.must(&give_back(&all));
    assert_eq!(keeper.used(), 0, "after {}", give_back(&all));
    tenant.must(more);
}

#[test]
fn each_way_to_allocate_is_exact() {
    let all = 64 * MIB;
    for (take, more, free) in [
        ("alloc", "alloc 1", "free"),
        ("managed", "managed 1", "free"),
        ("async", "async 1", "free-async"),
        ("async", "alloc 1", "free"),
        ("alloc", "create 2097152", "free"),
    ] {
        check_exact(&format!("{take} {all}"), more, |all| format!("{free} {all}"));
    }
    check_exact(&format!("create {all}"), "alloc 1", |handle| format!("release {handle}"));
}

#[test]
fn physical_memory_is_charged_until_no_handle_and_no_mapping_is_left() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenant = node.started(&keeper);
    let bytes = 4 * MIB;
    let place = tenant.must(&format!("reserve {}", 2 * bytes));
    let start = u64::from_str_radix(place.trim_start_matches("0x"), 16).unwrap();
    let second = format!("{:#x}", start + bytes);
    let [one, other] = [(); 2].map(|()| tenant.must(&format!("create {bytes}")));
    tenant.must(&format!("map {place} {bytes} {one}"));
    tenant.must(&format!("map {second} {bytes} {other}"));
    let again = tenant.must(&format!("retain {place}"));
    for handle in [&one, &other] {
        tenant.must(&format!("release {handle}"));
    }
    assert_eq!(keeper.used(), 2 * bytes, "mappings hold it");
    tenant.must(&format!("unmap {place} {}", 2 * bytes));
    assert_eq!(keeper.used(), bytes, "the handle that was retained holds its part");
    tenant.must(&format!("release {again}"));
    assert_eq!(keeper.used(), 0);
}

#[test]
fn a_context_is_charged_once_and_the_rest_goes_with_the_process() {
    let node = Node::new();
    let keeper = node.claim("claim", GIB, 300 * MIB);
    let mut first = node.started(&keeper);
    assert_eq!(keeper.used(), 300 * MIB);
    first.must("start 0");
    assert_eq!(keeper.used(), 300 * MIB, "retained, not made again");
    assert_eq!(first.info(), (GIB - 300 * MIB, GIB));
    first.must("alloc 1048576");
    let mut second = node.started(&keeper);
    second.must(&format!("alloc {}", 100 * MIB));
    assert_eq!(keeper.used(), 701 * MIB);
    // A third context has no room.
    let mut third = node.tenant(&keeper);
    second.must(&format!("alloc {}", 200 * MIB));
    assert_eq!(third.ask("start 0"), "error 2");
    drop(first);
    until("the bytes of an ended process come back", || keeper.used() == 600 * MIB);
    third.must("start 0");
}

#[test]
fn eight_processes_race_and_never_exceed_it() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    let mut tenants: Vec<_> = (0..8).map(|_| node.started(&keeper)).collect();
    for (tenant, seed) in tenants.iter_mut().zip(1..) {
        tenant.send(&format!("race 300 {seed} {}", 8 * MIB));
    }
    let outcomes: Vec<_> = tenants.iter_mut().map(node::Tenant::answer).collect();
    let denied: u64 = outcomes
        .iter()
        .map(|it| it.strip_prefix("ok ").and_then(|it| it.split_once(' ')).unwrap().1)
        .map(|it| it.parse::<u64>().unwrap())
        .sum();
    assert!(denied > 0, "they were in each other's way: {outcomes:?}");
    assert_eq!(keeper.with_ledger(|it| it.devices[0].denied.load(Ordering::SeqCst)), denied);
    assert!(keeper.with_ledger(|it| it.devices[0].peak.load(Ordering::SeqCst)) <= 64 * MIB);
    assert_eq!(keeper.used(), 0, "each has freed all that it held");
    assert!(node.engine.total(0).allocated_peak_bytes <= 64 * MIB, "nor did the device hold more");
}

#[test]
fn what_is_not_of_a_claim_passes() {
    let node = Node::new();
    let keeper = node.claim("claim", MIB, 0);
    // The claim's folder is another one: the tenant has no claim at all.
    let elsewhere = node.dir.path().join("none");
    let folder = elsewhere.to_str().unwrap();
    let mut tenant = node.tenant_with(&keeper, &[("ACCELPOOL_TURNS", folder)]);
    tenant.must("start 0");
    tenant.must(&format!("alloc {GIB}"));
    assert_eq!((keeper.used(), keeper.registered()), (0, 0));
}

#[test]
fn without_a_daemon_the_quota_holds_for_each_process() {
    let node = Node::new();
    let mut keeper = node.claim("claim", 64 * MIB, 0);
    keeper.stop();
    let mut tenant = node.started(&keeper);
    let half = tenant.must(&format!("alloc {}", 32 * MIB));
    assert_eq!(tenant.ask(&format!("alloc {}", 33 * MIB)), "error 2");
    tenant.must("launch 10 3");
    tenant.must("sync");
    // It registers as soon as there is somebody, and what it holds is charged then.
    let keeper = keeper.restart();
    until("registered", || keeper.registered() == 1 && keeper.used() == 32 * MIB);
    tenant.must(&format!("free {half}"));
    assert_eq!(keeper.used(), 0);
}

fn pinned(keeper: &node::Keeper) -> u64 {
    keeper.with_ledger(|it| it.host_used.load(Ordering::SeqCst))
}

#[test]
fn pinned_memory_of_the_host_has_a_limit_of_its_own() {
    let node = Node::new();
    let keeper = node.claim("claim", 64 * MIB, 0);
    keeper.control().host_bytes.store(8 * MIB, Ordering::SeqCst);
    let (mut first, mut second) = (node.started(&keeper), node.started(&keeper));
    let most = first.must(&format!("pin {}", 8 * MIB - 4096));
    assert_eq!(second.ask("pin 4097"), "error 2");
    assert_eq!(second.ask("register 4097"), "error 2");
    assert_eq!(second.ask("create 2097152 host"), "error 2");
    let last = second.must("register 1");
    assert_eq!(first.ask("pin 1"), "error 2");
    assert_eq!((pinned(&keeper), keeper.used()), (8 * MIB, 0), "the device is charged nothing");
    assert_eq!(keeper.with_ledger(|it| it.host_denied.load(Ordering::SeqCst)), 4);
    assert_eq!(keeper.with_ledger(|it| it.host_peak.load(Ordering::SeqCst)), 8 * MIB);
    first.must(&format!("alloc {}", 64 * MIB));
    first.must(&format!("unpin {most}"));
    second.must(&format!("unregister {last}"));
    assert_eq!(pinned(&keeper), 0);
    second.must(&format!("pin {}", 2 * MIB));
    drop(second);
    until("what an ended process pinned comes back", || pinned(&keeper) == 0);
    // Without a limit it is counted all the same.
    keeper.control().host_bytes.store(0, Ordering::SeqCst);
    first.must(&format!("pin {}", 32 * MIB));
    assert_eq!(pinned(&keeper), 32 * MIB);
}

#[test]
fn pinned_memory_has_its_limit_without_a_daemon_too() {
    let node = Node::new();
    let mut keeper = node.claim("claim", 64 * MIB, 0);
    keeper.control().host_bytes.store(8 * MIB, Ordering::SeqCst);
    keeper.stop();
    let mut tenant = node.started(&keeper);
    let half = tenant.must(&format!("pin {}", 4 * MIB));
    assert_eq!(tenant.ask(&format!("pin {}", 5 * MIB)), "error 2");
    let keeper = keeper.restart();
    until("registered", || keeper.registered() == 1 && pinned(&keeper) == 4 * MIB);
    tenant.must(&format!("unpin {half}"));
    assert_eq!(pinned(&keeper), 0);
}
