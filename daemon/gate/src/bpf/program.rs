//! The gate's program: [`Rules::decide`](crate::Rules::decide) as the kernel runs it.
//!
//! Called for each open, access check and mknod of a device node by a process below the
//! gate's root, and by drivers that ask on their own (amdkfd). 1 lets pass, 0 refuses.
//! All it knows is in maps, so that rules change while it runs.

use crate::{
    bpf::assembler::{
        Assembler, Helper, Label, Operation, Program,
        Register::{self, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10},
        When, Width,
    },
    device::Access,
    layout::{self, DENIAL, GRANT_KEY, GUARD_KEY, Map, REPORT_INTERVAL_NS, mode_number},
    rules::{LEVELS_MAX, Mode},
};

/// The name in the kernel, of at most 15 characters.
pub(crate) const NAME: &str = "accelpool_gate";

// The context (`struct bpf_cgroup_dev_ctx`): type in the lower half of the first word and
// access in the upper one, then major, then minor.
const CTX_ACCESS_TYPE: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;

// The stack, by offset from its end. The layouts are those of `layout.rs`.
const GUARD_AT: i16 = -16;
const GRANT_AT: i16 = GUARD_AT - 24;
const DEVICE_AT: i16 = GRANT_AT + 8;
const DENIAL_AT: i16 = GRANT_AT - 64;
const ZEROS_AT: i16 = DENIAL_AT - 24;
const _: () = assert!(DENIAL == 64 && GRANT_KEY == 24 && GUARD_KEY == 16 && layout::COUNTS == 24);

// Fields of a denial, see `layout::DENIAL`.
const TIME_AT: i16 = DENIAL_AT;
const DENIAL_CGROUP_AT: i16 = DENIAL_AT + 8;
const PID_TGID_AT: i16 = DENIAL_AT + 16;
const DENIAL_DEVICE_AT: i16 = DENIAL_AT + 24;
const ACCESS_AT: i16 = DENIAL_AT + 36;
const MODE_AT: i16 = DENIAL_AT + 40;
const COMM_AT: i16 = DENIAL_AT + 48;
const COMM_BYTES: i32 = 16;

// Fields of the counts, see `layout::COUNTS`.
const AUDITED: i16 = 0;
const DENIED: i16 = 8;
const UNREPORTED: i16 = 16;

// What lasts over calls.
const WANTED: Register = R6;
const MISSING: Register = R7;
const MODE: Register = R8;
const COUNTS: Register = R9;

/// `BPF_ANY`, `BPF_NOEXIST`.
const ANY: i32 = 0;
const IF_ABSENT: i32 = 1;

/// Writes the program.
pub(crate) fn assemble() -> Program {
    let mut assembler = Assembler::default();
    let (pass, refuse, decided) = (assembler.label(), assembler.label(), assembler.label());
    read_context(&mut assembler, pass);
    look_up_guard(&mut assembler, pass);
    look_up_grants(&mut assembler, pass);
    look_up_exemptions(&mut assembler, pass);
    count(&mut assembler, decided);
    report(&mut assembler, decided);
    assembler.bind(decided);
    assembler.jump_if(MODE, When::Equal, signed(mode_number(Mode::Enforce)), refuse);
    assembler.bind(pass);
    assembler.set(R0, 1);
    assembler.exit();
    assembler.bind(refuse);
    assembler.set(R0, 0);
    assembler.exit();
    assembler.finish()
}

/// Keeps the wanted access, and writes the device into both keys.
fn read_context(assembler: &mut Assembler, pass: Label) {
    assembler.load(Width::Bytes4, R2, R1, CTX_ACCESS_TYPE);
    assembler.copy(WANTED, R2);
    assembler.compute(Operation::ShiftRight, WANTED, 16);
    assembler.compute(Operation::And, WANTED, signed(Access::READ_WRITE.bits()));
    assembler.jump_if(WANTED, When::Equal, 0, pass);
    assembler.compute(Operation::And, R2, 0xffff);
    assembler.load(Width::Bytes4, R3, R1, CTX_MAJOR);
    assembler.load(Width::Bytes4, R4, R1, CTX_MINOR);
    for (index, register) in (0..).zip([R2, R3, R4]) {
        assembler.store(Width::Bytes4, R10, DEVICE_AT + 4 * index, register);
        assembler.swap_to_big_endian(register);
        assembler.store(Width::Bytes4, R10, GUARD_AT + 4 + 4 * index, register);
    }
    assembler.store_value(Width::Bytes4, R10, DEVICE_AT + 12, 0);
    assembler.store_value(Width::Bytes4, R10, GUARD_AT, 96);
}

fn look_up_guard(assembler: &mut Assembler, pass: Label) {
    look_up(assembler, Map::Guards, GUARD_AT);
    assembler.jump_if(R0, When::Equal, 0, pass);
    assembler.load(Width::Bytes4, MODE, R0, 0);
    assembler.jump_if(MODE, When::Equal, signed(mode_number(Mode::Off)), pass);
}

/// Takes from what is missing what each ancestor holds, from the root downwards.
fn look_up_grants(assembler: &mut Assembler, pass: Label) {
    assembler.copy(MISSING, WANTED);
    let none_left = assembler.label();
    for level in (0..).take(LEVELS_MAX) {
        let next = assembler.label();
        ancestor(assembler, level, none_left);
        look_up(assembler, Map::Grants, GRANT_AT);
        assembler.jump_if(R0, When::Equal, 0, next);
        assembler.load(Width::Bytes4, R1, R0, 0);
        assembler.compute(Operation::Xor, R1, -1);
        assembler.compute_with(Operation::And, MISSING, R1);
        assembler.jump_if(MISSING, When::Equal, 0, pass);
        assembler.bind(next);
    }
    assembler.bind(none_left);
}

/// A second pass, so that a cgroup with a grant does not pay for exemptions.
fn look_up_exemptions(assembler: &mut Assembler, pass: Label) {
    let none_left = assembler.label();
    for level in (0..).take(LEVELS_MAX) {
        ancestor(assembler, level, none_left);
        look_up(assembler, Map::Exemptions, GRANT_AT);
        assembler.jump_if(R0, When::NotEqual, 0, pass);
    }
    assembler.bind(none_left);
}

/// Leaves the device's counts in `COUNTS` with the mode's raised. A device without counts
/// gets some; where there is no room, it is one of the others.
fn count(assembler: &mut Assembler, decided: Label) {
    let (found, denied, counted) = (assembler.label(), assembler.label(), assembler.label());
    look_up(assembler, Map::Counts, DEVICE_AT);
    assembler.jump_if(R0, When::NotEqual, 0, found);
    for offset in [0, 8, 16] {
        assembler.store_value(Width::Bytes8, R10, ZEROS_AT + offset, 0);
    }
    update(assembler, Map::Counts, DEVICE_AT, ZEROS_AT, IF_ABSENT);
    look_up(assembler, Map::Counts, DEVICE_AT);
    assembler.jump_if(R0, When::NotEqual, 0, found);
    // The others' key is all zeros.
    look_up(assembler, Map::Counts, ZEROS_AT);
    assembler.jump_if(R0, When::Equal, 0, decided);
    assembler.bind(found);
    assembler.copy(COUNTS, R0);
    assembler.set(R1, 1);
    assembler.jump_if(MODE, When::Equal, signed(mode_number(Mode::Enforce)), denied);
    assembler.add_to_memory(COUNTS, AUDITED, R1);
    assembler.jump(counted);
    assembler.bind(denied);
    assembler.add_to_memory(COUNTS, DENIED, R1);
    assembler.bind(counted);
}

/// Sends a record, unless this cgroup was reported for this device a moment ago or the
/// ring is full.
fn report(assembler: &mut Assembler, decided: Label) {
    let (due, unreported) = (assembler.label(), assembler.label());
    assembler.call(Helper::CurrentCgroupId);
    assembler.store(Width::Bytes8, R10, GRANT_AT, R0);
    assembler.store(Width::Bytes8, R10, DENIAL_CGROUP_AT, R0);
    assembler.call(Helper::KtimeGetBootNs);
    assembler.store(Width::Bytes8, R10, TIME_AT, R0);
    look_up(assembler, Map::Reported, GRANT_AT);
    assembler.jump_if(R0, When::Equal, 0, due);
    assembler.load(Width::Bytes8, R1, R0, 0);
    assembler.load(Width::Bytes8, R2, R10, TIME_AT);
    assembler.compute_with(Operation::Subtract, R2, R1);
    assembler.jump_if(R2, When::Less, signed(REPORT_INTERVAL_NS), unreported);
    assembler.bind(due);
    update(assembler, Map::Reported, GRANT_AT, TIME_AT, ANY);

    assembler.call(Helper::CurrentPidTgid);
    assembler.store(Width::Bytes8, R10, PID_TGID_AT, R0);
    for offset in [0, 4, 8] {
        assembler.load(Width::Bytes4, R1, R10, DEVICE_AT + offset);
        assembler.store(Width::Bytes4, R10, DENIAL_DEVICE_AT + offset, R1);
    }
    assembler.store(Width::Bytes4, R10, ACCESS_AT, WANTED);
    assembler.store(Width::Bytes4, R10, MODE_AT, MODE);
    assembler.store_value(Width::Bytes4, R10, MODE_AT + 4, 0);
    point(assembler, R1, COMM_AT);
    assembler.set(R2, COMM_BYTES);
    assembler.call(Helper::CurrentComm);
    assembler.load_map(R1, Map::Denials);
    point(assembler, R2, DENIAL_AT);
    assembler.set(R3, i32::from(GRANT_AT - DENIAL_AT));
    assembler.set(R4, 0);
    assembler.call(Helper::RingbufOutput);
    assembler.jump_if(R0, When::Equal, 0, decided);
    assembler.bind(unreported);
    assembler.set(R1, 1);
    assembler.add_to_memory(COUNTS, UNREPORTED, R1);
}

/// Writes the current process's ancestor at a level into the key of grants.
fn ancestor(assembler: &mut Assembler, level: i32, none_left: Label) {
    assembler.set(R1, level);
    assembler.call(Helper::CurrentAncestorCgroupId);
    assembler.jump_if(R0, When::Equal, 0, none_left);
    assembler.store(Width::Bytes8, R10, GRANT_AT, R0);
}

fn look_up(assembler: &mut Assembler, map: Map, key_at: i16) {
    assembler.load_map(R1, map);
    point(assembler, R2, key_at);
    assembler.call(Helper::MapLookup);
}

fn update(assembler: &mut Assembler, map: Map, key_at: i16, value_at: i16, flag: i32) {
    assembler.load_map(R1, map);
    point(assembler, R2, key_at);
    point(assembler, R3, value_at);
    assembler.set(R4, flag);
    assembler.call(Helper::MapUpdate);
}

/// Points a register to a place on the stack.
fn point(assembler: &mut Assembler, register: Register, at: i16) {
    assembler.copy(register, R10);
    assembler.compute(Operation::Add, register, i32::from(at));
}

/// A small constant as the immediate of an instruction.
const fn signed(value: u32) -> i32 {
    value.cast_signed()
}
