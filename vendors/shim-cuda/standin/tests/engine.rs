//! The stand-in from outside: processes that load it, and what the engine makes of them.

mod harness;

use accelpool_cuda_engine::suite::Tenant;
use accelpool_cuda_engine::{
    Fault, FaultAt,
    machine::{DeviceProfile, Machine},
};
use harness::Node;

const MIB: u64 = 1 << 20;

fn machine(memory_mib: u64) -> Machine {
    let mut device = DeviceProfile::new("GPU-1");
    device.memory_bytes = memory_mib * MIB;
    device.context_bytes = 16 * MIB;
    Machine { devices: vec![device] }
}

#[test]
fn memory_is_exact_to_the_byte() {
    let node = Node::new(machine(116));
    let mut tenant = node.tenant();
    // A hundred MiB beside the context; CUDA gives 512 bytes at least.
    let all = tenant.must(&format!("alloc {}", 100 * MIB - 512));
    let last = tenant.must("alloc 1");
    assert_eq!(tenant.must("info"), format!("0 {}", 116 * MIB));
    for command in ["alloc 1", "managed 1", "async 1", "create 2097152"] {
        assert_eq!(tenant.ask(command), "error 2", "{command}");
    }
    tenant.must(&format!("free {last}"));
    tenant.must("alloc 512");
    tenant.must(&format!("free {all}"));
    assert_eq!(tenant.ask(&format!("free {all}")), "error 1", "it was freed before");
    assert_eq!(node.engine.total(0).allocated_peak_bytes, 100 * MIB);
}

#[test]
fn physical_memory_lives_as_long_as_a_handle_or_a_mapping() {
    let node = Node::new(machine(1024));
    let mut tenant = node.tenant();
    let held = |node: &Node| node.engine.total(0).allocated_bytes / MIB;
    let handle = tenant.must("create 4194304");
    assert_eq!(held(&node), 4);
    let range = tenant.must("reserve 8388608");
    tenant.must(&format!("map {range} 4194304 {handle}"));
    tenant.must(&format!("release {handle}"));
    assert_eq!(held(&node), 4, "the mapping holds it");
    let again = tenant.must(&format!("retain {range}"));
    assert_eq!(again, handle);
    tenant.must(&format!("unmap {range} 4194304"));
    assert_eq!(held(&node), 4, "the handle holds it");
    tenant.must(&format!("release {handle}"));
    assert_eq!(held(&node), 0);
}

#[test]
fn pools_keep_what_they_reserved_until_trimmed() {
    let node = Node::new(machine(1024));
    let mut tenant = node.tenant();
    let held = |node: &Node| node.engine.total(0).allocated_bytes / MIB;
    let at = tenant.must("async 1");
    assert_eq!(held(&node), 32, "a pool grows in steps");
    tenant.must(&format!("free-async {at}"));
    assert_eq!(held(&node), 32);
    tenant.must("trim");
    assert_eq!(held(&node), 0);
    tenant.must(&format!("pool {}", 40 * MIB));
    tenant.must(&format!("async {}", 40 * MIB));
    assert_eq!(tenant.ask("async 1"), "error 2", "a pool has a limit of its own");
}

/// Whoever is killed leaves nothing behind, whatever it was at.
fn check_killed(work: &str) {
    let node = Node::new(machine(1024));
    let mut tenant = node.tenant();
    tenant.must("alloc 104857600");
    tenant.must(work);
    let pid = tenant.pid();
    assert!(node.engine.processes(0).iter().any(|process| process.pid == pid));
    drop(tenant);
    let until = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while node.engine.total(0).allocated_bytes + node.engine.total(0).context_bytes > 0 {
        assert!(std::time::Instant::now() < until, "bytes of a dead process remain");
        std::thread::yield_now();
    }
    assert!(node.engine.processes(0).is_empty());
    let mut next = node.tenant();
    next.must("launch 10 10");
    next.must("sync");
}

#[test]
fn a_killed_process_leaves_nothing() {
    check_killed("launch 1000 10");
    check_killed("hang");
}

#[test]
fn kernels_take_the_time_they_claim_however_they_are_launched() {
    let node = Node::new(machine(1024));
    for (variables, command, us) in [
        (&[][..], "launch 100 20", 2000),
        (&[("TENANT_LOOKUP", "dlsym")], "launch 100 20", 2000),
        (&[("TENANT_STREAM", "per-thread")], "launch 100 20", 2000),
        (&[], "ex 1500", 1500),
        (&[], "graph 100 5 4", 2000),
    ] {
        let before = node.engine.total(0).busy_ns;
        let mut tenant = node.tenant_with(variables);
        let start = std::time::Instant::now();
        tenant.must(command);
        tenant.must("sync");
        assert!(start.elapsed().as_micros() >= us, "`{command}` was over too soon");
        let busy = u128::from(node.engine.total(0).busy_ns - before);
        assert_eq!(busy / 1000, us, "`{command}` with {variables:?}");
    }
}

#[test]
fn contexts_take_turns() {
    let mut machine = machine(1024);
    machine.devices[0].switch_ns = 10_000;
    let node = Node::new(machine);
    let mut tenants: Vec<Tenant> = (0..2).map(|_| node.tenant()).collect();
    // The first has twenty milliseconds of work before the second has one.
    tenants[0].must("launch 20000");
    tenants[1].must("launch 1000");
    tenants[1].must("sync");
    let used = node.engine.processes(0);
    let of = |pid| used.iter().find(|process| process.pid == pid).unwrap().busy_ns;
    assert_eq!(of(tenants[1].pid()), 1_000_000);
    tenants[0].must("sync");
    assert!(node.engine.total(0).switch_ns >= 10_000);
}

#[test]
fn faults_hit_whom_they_are_meant_for() {
    let node = Node::new(machine(1024));
    let (mut one, mut other) = (node.tenant(), node.tenant());
    node.engine.inject(Fault::Fail(FaultAt::Launch, 701), Some(one.pid()));
    assert_eq!(one.ask("launch 10"), "error 701");
    one.must("launch 10");
    node.engine.inject(Fault::Fail(FaultAt::Allocate, 2), Some(one.pid()));
    assert_eq!(one.ask("alloc 512"), "error 2");
    // A kernel that fails takes its context along, and no other.
    assert_eq!(one.ask("trap"), "error 719");
    assert_eq!(one.ask("launch 10"), "error 719");
    assert_eq!(one.ask("alloc 512"), "error 719");
    other.must("launch 10");
    other.must("sync");
    other.must("hang");
    node.engine.inject(Fault::Lose, Some(other.pid()));
    assert_eq!(other.ask("sync"), "error 719");
}
