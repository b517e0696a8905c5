//! Each function that the shim stands in for, one by one, on a driver that has them all: what
//! submits work waits at a closed gate and passes once, what allocates is charged to the byte
//! and refused beyond the quota with its outputs untouched, and the rest passes.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod node;

use std::sync::atomic::Ordering;

use accelpool_shim::gate::Grant;

use crate::node::{
    Keeper, Node, Tenant,
    programs::compile,
    until,
    whole::{self, Row, table},
};

const MIB: u64 = 1 << 20;

struct Caller {
    keeper: Keeper,
    tenant: Tenant,
    _node: Node,
}

impl Caller {
    fn new(quota: u64, is_drop_in: bool) -> Self {
        let node = Node::new();
        whole::install(&node);
        let keeper = node.claim("claim", quota, 0);
        let program = compile(node.dir.path(), "caller.c", "caller", &["-ldl"]);
        let mut command = if is_drop_in {
            node.drop_in(&program, &keeper)
        } else {
            node.command(&program, &keeper)
        };
        let uuid: String = node.machine.devices[0].uuid.replace("GPU-", "").replace('-', "");
        command.env("WHOLE_UUID", uuid).env("WHOLE", node.dir.path().join("libcuda.so.1"));
        let mut caller = Self { keeper, tenant: Tenant::spawn(command), _node: node };
        assert_eq!(caller.call("cuInit", "0"), (0, 1, 42));
        caller
    }

    /// Calls a function: its outcome, how often the driver was called, and the output.
    #[track_caller]
    fn call(&mut self, symbol: &str, words: &str) -> (i32, u32, u64) {
        self.tenant.send(&format!("call {symbol} {symbol} {words}"));
        self.answer(symbol)
    }

    #[track_caller]
    fn answer(&mut self, what: &str) -> (i32, u32, u64) {
        let answer = self.tenant.answer();
        let words: Vec<&str> = answer.split(' ').collect();
        let [outcome, calls, out] = words[..] else { panic!("{what}: `{answer}`") };
        (outcome.parse().unwrap(), calls.parse().unwrap(), out.parse().unwrap())
    }

    fn want(&self) -> u32 {
        self.keeper.with_process(0, |it| it.page.devices[0].want.load(Ordering::SeqCst))
    }
}

/// A function as CUDA's runtime looks it up.
fn as_runtime(row: &Row) -> String {
    let flags = if row.is_per_thread() { 2 } else { 0 };
    format!("{}@{}@{flags}", row.name, row.since)
}

#[track_caller]
fn check_gated(is_drop_in: bool, has_name: impl Fn(&Row) -> String) {
    let mut caller = Caller::new(MIB, is_drop_in);
    let mut gated = 0;
    for row in table().iter().filter(|row| ["launch", "work"].contains(&row.class)) {
        caller.keeper.control().devices[0].close();
        let before = caller.keeper.progress(0).0;
        // The first word is what launches with a configuration read.
        caller.tenant.send(&format!("call {} {} @fill", has_name(row), row.symbol));
        until(row.symbol, || caller.want() == 1);
        assert_eq!(caller.keeper.progress(0).0, before, "{}: nothing was submitted", row.symbol);
        caller.keeper.open(2, Grant::OPEN);
        let (outcome, calls, _) = caller.answer(row.symbol);
        assert_eq!((outcome, calls), (0, 1), "{}", row.symbol);
        assert_eq!(caller.keeper.progress(0).0, before + 1, "{}: one pass", row.symbol);
        gated += 1;
    }
    assert!(gated > 80, "{gated} functions submit work");
}

#[test]
fn every_function_that_submits_work_waits_for_its_turn() {
    check_gated(false, |row| row.symbol.to_owned());
    check_gated(true, as_runtime);
}

#[test]
fn everything_else_passes_a_closed_gate() {
    let mut caller = Caller::new(MIB, false);
    caller.keeper.control().devices[0].close();
    let mut passed = 0;
    for row in table() {
        // Structures by value, and what would end the set-up of the test itself.
        let is_apart = row.symbol.starts_with("cuIpcOpen") || row.class == "entry";
        let classes = ["order", "sync", "copy", "state", "host", "import", "pool", "device", "map"];
        if is_apart || !classes.contains(&row.class) {
            continue;
        }
        // Pointers to write to; a range to unmap would be a long one.
        let words = if row.symbol == "cuMemUnmap" { "0 0" } else { "@out @out @out" };
        let (outcome, calls, _) = caller.call(row.symbol, words);
        assert_eq!((outcome, calls), (0, 1), "{}", row.symbol);
        passed += 1;
    }
    assert!(passed > 150, "{passed} functions pass");
    assert_eq!((caller.keeper.progress(0), caller.want()), ((0, 0), 0));
    assert_eq!(caller.keeper.used(), 0, "none of them was charged");
    for row in table().iter().filter(|row| row.action == "deny") {
        assert_eq!(caller.call(row.symbol, "0"), (800, 0, 42), "{}", row.symbol);
    }
}

/// Whether the driver says what an allocation really takes.
fn is_corrected(symbol: &str) -> bool {
    symbol == "cuMemAllocPitch_v2"
}

/// `fill` is what a descriptor says; `free` gets what was made.
#[track_caller]
fn check_allocation(caller: &mut Caller, fill: &str, call: &str, expected: u64, free: &str) {
    let (symbol, words) = call.split_once(' ').unwrap();
    if !fill.is_empty() {
        assert_eq!(caller.tenant.ask(&format!("fill {fill}")), "ok");
    }
    assert_eq!(caller.keeper.used(), 0, "before {call}");
    let (outcome, calls, made) = caller.call(symbol, words);
    assert_eq!((outcome, calls), (0, 1), "{call}");
    assert_eq!(caller.keeper.used(), expected, "{call}");
    // What is left is a byte too little for another one.
    let left = 64 * MIB - expected;
    let rest = left - expected.saturating_sub(512).min(left);
    let (_, _, filler) = caller.call("cuMemAlloc_v2", &format!("@out {rest}"));
    if expected > 0 {
        let used = caller.keeper.used();
        let (outcome, calls, out) = caller.call(symbol, words);
        assert_eq!((outcome, out), (2, 42), "{call}: beyond the quota");
        // Rows that the driver makes longer are known once it has made them.
        assert!(calls == 0 || is_corrected(symbol), "{call}: the driver was asked");
        assert_eq!(caller.keeper.used(), used, "{call}: refused, and charged nothing");
    }
    assert_eq!(caller.call("cuMemFree_v2", &filler.to_string()).0, 0);
    let (outcome, calls, _) = caller.call(free, &made.to_string());
    assert_eq!((outcome, calls), (0, 1), "{free}");
    assert_eq!(caller.keeper.used(), 0, "{call}, then {free}");
}

#[test]
fn every_way_to_allocate_is_charged_and_bounded() {
    let mut caller = Caller::new(64 * MIB, false);
    let mut seen = Vec::new();
    let mut check = |fill: &str, call: &str, expected: u64, free: &str| {
        seen.push(call.split(' ').next().unwrap().to_owned());
        check_allocation(&mut caller, fill, call, expected, free);
    };
    let mib = MIB.to_string();
    for free in ["cuMemFree_v2", "cuMemFreeAsync", "cuMemFreeAsync_ptsz"] {
        check("", &format!("cuMemAlloc_v2 @out {mib}"), MIB, free);
        check("", &format!("cuMemAllocManaged @out {mib} 1"), MIB, free);
        check("", &format!("cuMemAllocAsync @out {mib} 0"), MIB, free);
        check("", &format!("cuMemAllocAsync_ptsz @out {mib} 0"), MIB, free);
        check("", &format!("cuMemAllocFromPoolAsync @out {mib} 1 0"), MIB, free);
        check("", &format!("cuMemAllocFromPoolAsync_ptsz @out {mib} 1 0"), MIB, free);
    }
    check("", "cuMemAlloc_v2 @out 1", 512, "cuMemFree_v2");
    // The driver makes rows of 2048 bytes out of 1500: what it takes is what is charged.
    check("", "cuMemAllocPitch_v2 @out @pitch 1500 64 4", 2048 * 64, "cuMemFree_v2");
    check("", &format!("cuMemAlloc @out {mib}"), MIB, "cuMemFree");
    check("", "cuMemAllocPitch @out @pitch 1500 64 4", 1536 * 64, "cuMemFree");
    // CUmemAllocationProp: kind and handle types, location and device.
    check("1 1", &format!("cuMemCreate @out {mib} @fill 0"), MIB, "cuMemRelease");
    // On the host: the container's.
    check("1 2", &format!("cuMemCreate @out {mib} @fill 0"), 0, "cuMemRelease");
    // 512 x 128 pixels of four floats; words of 64 bits, and of 32 in the first versions.
    let float4 = format!("{:#x}", 0x20_u64 | 4 << 32);
    let plane = 512 * 128 * 16;
    check(&format!("512 128 {float4}"), "cuArrayCreate_v2 @out @fill", plane, "cuArrayDestroy");
    let older = format!("{:#x} {float4}", 512_u64 | 128 << 32);
    check(&older, "cuArrayCreate @out @fill", plane, "cuArrayDestroy");
    let solid = format!("512 128 3 {float4}");
    check(&solid, "cuArray3DCreate_v2 @out @fill", 3 * plane, "cuArrayDestroy");
    let older = format!("{:#x} {:#x} 4", 512_u64 | 128 << 32, 3_u64 | 0x20 << 32);
    check(&older, "cuArray3DCreate @out @fill", 3 * plane, "cuArrayDestroy");
    // Half floats of one channel; then pages that are mapped later, from memory of its own.
    check(
        "512 128 0 0x100000010",
        "cuArray3DCreate_v2 @out @fill",
        512 * 128 * 2,
        "cuArrayDestroy",
    );
    for flags in ["0x40", "0x80"] {
        let sparse = format!("{solid} {flags}");
        check(&sparse, "cuArray3DCreate_v2 @out @fill", 0, "cuArrayDestroy");
    }
    let mipmaps = "cuMipmappedArrayCreate @out @fill";
    check(&solid, &format!("{mipmaps} 1"), 3 * plane, "cuMipmappedArrayDestroy");
    check(&solid, &format!("{mipmaps} 5"), 6 * plane, "cuMipmappedArrayDestroy");
    for row in table().iter().filter(|row| row.class == "allocate") {
        assert!(seen.iter().any(|it| it == row.symbol), "{} has no case here", row.symbol);
    }
}

#[test]
fn sizes_that_overflow_are_more_than_any_quota() {
    let mut caller = Caller::new(64 * MIB, false);
    let most = u64::MAX.to_string();
    caller.tenant.ask(&format!("fill {most} {most} {most} 0x400000020"));
    for call in [
        "cuMemAlloc_v2 @out MOST",
        "cuMemAllocPitch_v2 @out @pitch MOST MOST 4",
        "cuMemAllocAsync @out MOST 0",
        "cuArray3DCreate_v2 @out @fill",
        "cuMipmappedArrayCreate @out @fill 9",
    ] {
        let call = call.replace("MOST", &most);
        let (symbol, words) = call.split_once(' ').unwrap();
        assert_eq!(caller.call(symbol, words), (2, 0, 42), "{call}");
    }
    assert_eq!(caller.keeper.used(), 0);
}

#[test]
fn what_another_process_exported_is_its_exporters() {
    let mut caller = Caller::new(64 * MIB, false);
    // A handle that nobody here has made.
    assert_eq!(caller.call("cuMemImportFromShareableHandle", "@out 777 1"), (0, 1, 777));
    assert_eq!(caller.call("cuMemMap", "0x10000000 2097152 0 777 0").0, 0);
    assert_eq!(caller.call("cuMemUnmap", "0x10000000 2097152").0, 0);
    assert_eq!(caller.call("cuMemRelease", "777").0, 0);
    assert_eq!(caller.keeper.used(), 0);
    // One of this process that comes back: charged once, until both are released.
    caller.tenant.ask("fill 1 1");
    let (_, _, own) = caller.call("cuMemCreate", "@out 2097152 @fill 0");
    let import = format!("@out {own} 1");
    assert_eq!(caller.call("cuMemImportFromShareableHandle", &import).2, own);
    for left in [2 * MIB, 0] {
        assert_eq!(caller.call("cuMemRelease", &own.to_string()).0, 0);
        assert_eq!(caller.keeper.used(), left);
    }
    // Other ways in pass, and are nobody's of this claim.
    for symbol in ["cuIpcCloseMemHandle", "cuMemPoolImportPointer", "cuImportExternalMemory"] {
        assert_eq!(caller.call(symbol, "0 0 0").0, 0, "{symbol}");
    }
    assert_eq!(caller.keeper.used(), 0);
}

#[test]
fn a_pool_that_may_keep_much_is_told_to_give_it_back() {
    let mut caller = Caller::new(64 * MIB, false);
    let trims = |caller: &mut Caller| -> u32 {
        caller.tenant.ask("calls cuMemPoolTrimTo").parse().unwrap()
    };
    let free_a_mib = |caller: &mut Caller| {
        let (_, _, at) = caller.call("cuMemAllocAsync", &format!("@out {MIB} 0"));
        assert_eq!(caller.call("cuMemFreeAsync", &format!("{at} 0")).0, 0);
    };
    // A sixteenth of the quota may stay there.
    for _ in 0..4 {
        free_a_mib(&mut caller);
    }
    assert_eq!(trims(&mut caller), 0);
    free_a_mib(&mut caller);
    let first = trims(&mut caller);
    assert!(first > 0, "more than that may not");
    free_a_mib(&mut caller);
    assert_eq!(trims(&mut caller), first, "it begins anew");
}

#[test]
fn graphs_that_allocate_are_charged_what_they_hold() {
    let mut caller = Caller::new(64 * MIB, false);
    assert_eq!(caller.call("cuGraphLaunch", "7 0").0, 0);
    assert_eq!(caller.keeper.used(), 0, "no graph allocates");
    assert_eq!(caller.call("cuGraphAddMemAllocNode", "@out 1 0 0 @fill").0, 0);
    assert_eq!(caller.call("cuGraphLaunch", "7 0").0, 0);
    assert_eq!(caller.keeper.used(), MIB);
    caller.tenant.ask("fill 10");
    assert_eq!(caller.call("cuGraphAddNode", "@out 1 0 0 @fill").0, 0);
    assert_eq!(caller.call("cuGraphAddNode_v2", "@out 1 0 0 0 @fill").0, 0);
    assert_eq!(caller.call("cuGraphLaunch_ptsz", "7 0").0, 0);
    assert_eq!(caller.keeper.used(), 3 * MIB);
    assert_eq!(caller.call("cuDeviceGraphMemTrim", "0").0, 0);
    assert_eq!(caller.call("cuGraphLaunch", "7 0").0, 0);
    assert_eq!(caller.keeper.used(), 0, "what the driver has given back");
}
