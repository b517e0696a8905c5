//! Child processes that share memory with the test, and end with it.
#![allow(dead_code, reason = "each suite uses a part")]
#![expect(unsafe_code, reason = "forks and maps")]

use std::{
    mem::size_of,
    ops::Deref,
    ptr::{self, NonNull},
};

/// Memory shared with children, zero from the start.
pub(crate) struct Shared<T>(NonNull<T>);

// SAFETY: only made for types of atomics (see `new`), which threads may share.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}

impl<T: Sync> Shared<T> {
    /// # Safety
    ///
    /// All zero is a value of `T`, and all its fields are atomics.
    pub(crate) unsafe fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let there =
            unsafe { libc::mmap(ptr::null_mut(), size_of::<T>(), protection, flags, -1, 0) };
        assert_ne!(there, libc::MAP_FAILED, "memory can be mapped");
        Self(NonNull::new(there.cast()).expect("a mapping is not at 0"))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped until the process ends, zero is a value, and others write atomically.
        unsafe { self.0.as_ref() }
    }
}

/// A forked process; killed and reaped when dropped.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Runs `body` in a fork. It must not allocate nor lock: another thread of the test may
    /// have held the lock in the moment of the fork.
    pub(crate) fn run(body: impl FnOnce()) -> Self {
        // SAFETY: the child runs `body` alone and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "a process can be forked");
        if child == 0 {
            // SAFETY: a child must not outlive a test that is killed.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            body();
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        Self(child)
    }

    /// Waits for the end; whether it came by `_exit(0)`.
    pub(crate) fn join(self) -> bool {
        let mut status = 0;
        // SAFETY: the child is ours, and the status lives through the call.
        let reaped = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        let child = self.0;
        std::mem::forget(self);
        reaped == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet reaped.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, ptr::null_mut(), 0);
        }
    }
}

/// Keeps the calling process on one processor, if the machine lets it.
pub(crate) fn pin(processor: usize) {
    // SAFETY: a set of processors is plain bits; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// The processors that this process may run on.
pub(crate) fn processors() -> Vec<usize> {
    // SAFETY: the call fills the set.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        set
    };
    // SAFETY: the index is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&it| unsafe { libc::CPU_ISSET(it, &set) }).collect()
}
