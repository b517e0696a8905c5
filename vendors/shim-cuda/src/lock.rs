//! A lock without a library: a word to sleep on. Not on the way of a launch in an open gate.
#![expect(unsafe_code, reason = "hands out what the lock guards")]

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU32, Ordering},
};

use accelpool_shim::sys;

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

/// A thread that sleeps looks up as often, should a wake be lost to a fork.
const SLEEP_NS: u64 = 1_000_000_000;

/// A value that one thread at a time may touch.
pub(crate) struct Lock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one thread at a time, which is all that `Send` asks.
unsafe impl<T: Send> Sync for Lock<T> {}

pub(crate) struct Held<'a, T>(&'a Lock<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    pub(crate) fn lock(&self) -> Held<'_, T> {
        let exchange =
            |from, to| self.state.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed);
        if exchange(FREE, HELD).is_err() {
            while self.state.swap(AWAITED, Ordering::Acquire) != FREE {
                sys::wait(&self.state, AWAITED, SLEEP_NS);
            }
        }
        Held(self)
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<Held<'_, T>> {
        let free = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        free.ok().map(|_| Held(self))
    }

    /// After a fork: whoever held it is not in this process.
    pub(crate) fn forget_holder(&self) {
        self.state.store(FREE, Ordering::Release);
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock, and `self` is borrowed alone.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        if self.0.state.swap(FREE, Ordering::Release) == AWAITED {
            sys::wake(&self.0.state);
        }
    }
}
