//! What each thread remembers: some words of thread-local memory, laid out by hand.
//!
//! Stable Rust has no thread-locals without its standard library. The block is reached as
//! C code reaches its own in a library that is loaded at start: one load, one addition.
#![expect(unsafe_code, reason = "reaches thread-local memory by its place")]

use core::{
    arch::{asm, global_asm},
    cell::Cell,
    mem::size_of,
    sync::atomic::{AtomicU32, AtomicU64},
};

use accelpool_shim::layout::ThreadLine;

/// A thread's words. All zero in a new thread.
#[repr(C)]
pub(crate) struct Thread {
    /// Of what age the next four are, as [`crate::pass`] has it; 0 for nothing.
    pub(crate) age: Cell<u32>,
    /// Above 0 inside of the driver: what it calls by itself is not looked at.
    pub(crate) depth: Cell<u32>,
    /// The stream of the last launch through an open gate, as it was named.
    pub(crate) named: Cell<usize>,
    /// The thread's line in the page of the current device.
    pub(crate) own: Cell<*const ThreadLine>,
    /// The grant of the current device.
    pub(crate) grant: Cell<*const AtomicU64>,
    /// The mark of that stream.
    pub(crate) dirty: Cell<*const AtomicU32>,
    /// The line in process pages plus one; 0 for none yet.
    pub(crate) line: Cell<u32>,
    /// The device of the current context plus one; 0 for unknown.
    pub(crate) device: Cell<u32>,
    /// Launches since the last one that was timed.
    pub(crate) untimed: Cell<u32>,
    /// The stream of the last launch, and its row.
    pub(crate) stream: Cell<usize>,
    pub(crate) row: Cell<usize>,
    rest: [u64; 7],
}

const BLOCK_BYTES: usize = 128;
const _: () = assert!(size_of::<Thread>() == BLOCK_BYTES);

global_asm!(
    ".section .tbss.accelpool_thread,\"awT\",@nobits",
    ".balign 64",
    ".hidden accelpool_cuda_thread",
    ".globl accelpool_cuda_thread",
    ".type accelpool_cuda_thread, @object",
    ".size accelpool_cuda_thread, 128",
    "accelpool_cuda_thread:",
    ".zero 128",
    ".text",
);

/// The words of the calling thread.
#[inline]
pub(crate) fn thread() -> &'static Thread {
    let there: *const Thread;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the initial-exec way to the symbol above; reads the thread's own base.
    unsafe {
        asm!(
            "mov {there}, qword ptr [rip + accelpool_cuda_thread@GOTTPOFF]",
            "add {there}, qword ptr fs:[0]",
            there = out(reg) there,
            options(pure, readonly, nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "mrs {base}, tpidr_el0",
            "adrp {there}, :gottprel:accelpool_cuda_thread",
            "ldr {there}, [{there}, :gottprel_lo12:accelpool_cuda_thread]",
            "add {there}, {there}, {base}",
            base = out(reg) _,
            there = out(reg) there,
            options(pure, readonly, nostack),
        );
    }
    // SAFETY: 128 bytes at a multiple of 64, zero at first, and cells that this thread alone
    // reaches: the reference cannot leave it, since cells are not `Sync`. The memory lives as
    // long as the thread runs code.
    unsafe { &*there }
}

impl Thread {
    /// Runs `call` as the driver's own business: wrappers that it comes to pass on at once.
    #[inline]
    pub(crate) fn inside<T>(&self, call: impl FnOnce() -> T) -> T {
        self.depth.set(self.depth.get() + 1);
        let outcome = call();
        self.depth.set(self.depth.get() - 1);
        outcome
    }

    #[inline]
    pub(crate) fn is_inside(&self) -> bool {
        self.depth.get() != 0
    }

    /// Another context may be current from now on. The same number may mean another's stream.
    pub(crate) fn forget_device(&self) {
        self.age.set(0);
        self.device.set(0);
        self.stream.set(0);
    }
}
