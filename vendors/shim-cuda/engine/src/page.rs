//! The page of one client: what of its submissions is complete. The engine writes, the client reads.
//!
//! Unsafe is confined to the mapping. The client could scribble on it and would only mislead
//! itself: the engine keeps its own account.
#![expect(unsafe_code, reason = "maps shared memory and waits on a word in it")]

use std::{
    ffi::c_void,
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// Streams that a process may have at a time.
pub const STREAMS_MAX: usize = 2048;
/// Events that a process may have at a time.
pub const EVENTS_MAX: usize = 32_768;
/// Contexts that a process may have at a time.
pub const CONTEXTS_MAX: usize = 64;

/// What the page holds.
#[repr(C)]
pub struct Layout {
    /// Grows with each publication; what waiters wait on.
    pub wake: AtomicU32,
    /// Whether anybody waits.
    pub waiters: AtomicU32,
    /// The number of the last submission that is complete, of each stream.
    pub completed: [AtomicU64; STREAMS_MAX],
    /// The error that each context is stuck in, by the client's own number of it.
    pub errors: [AtomicU32; CONTEXTS_MAX],
    /// What the next call at each [`FaultAt`](crate::FaultAt) is to answer; 0 is nothing.
    pub faults: [AtomicU32; 4],
    /// The record of each event that has completed.
    pub events: [EventWords; EVENTS_MAX],
}

/// One event.
#[repr(C)]
pub struct EventWords {
    /// The number of the submission that recorded it.
    pub seq: AtomicU64,
    /// When.
    pub time_ns: AtomicU64,
}

/// The page, mapped.
pub struct Page {
    at: NonNull<Layout>,
}

// SAFETY: the mapping is shared memory of atomics alone, which any thread may use.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Makes a page, all zero.
    ///
    /// # Errors
    ///
    /// The kernel gives no memory.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let file = memfd_create(c"accelpool-cuda-standin", MFdFlags::MFD_CLOEXEC)?;
        let len = i64::try_from(size_of::<Layout>()).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&file, len)?;
        Ok((Self::map(&file)?, file))
    }

    /// Maps a page that the engine made.
    ///
    /// # Errors
    ///
    /// The descriptor is no such page.
    pub fn map(file: &impl AsFd) -> io::Result<Self> {
        let len = NonZeroUsize::new(size_of::<Layout>()).ok_or(io::ErrorKind::InvalidData)?;
        let found = nix::sys::stat::fstat(file)?.st_size;
        if usize::try_from(found).ok() != Some(len.get()) {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of a file that was just seen to be as long; the kernel chooses
        // where, so it overlaps nothing.
        let at = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { at: at.cast() })
    }

    /// What it holds.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        // SAFETY: the mapping is as long as `Layout`, page-aligned and lives as long as `self`;
        // any bytes are valid atomics, and nobody reaches it but through atomics.
        unsafe { self.at.as_ref() }
    }

    /// Wakes whoever waits for a publication.
    pub fn publish(&self) {
        let layout = self.layout();
        layout.wake.fetch_add(1, Ordering::SeqCst);
        if layout.waiters.load(Ordering::SeqCst) > 0 {
            futex(&layout.wake, libc::FUTEX_WAKE, i32::MAX as u32, None);
        }
    }

    /// Waits until `done` holds, or the engine is gone.
    pub fn wait_until(
        &self,
        mut done: impl FnMut(&Layout) -> bool,
        mut gone: impl FnMut() -> bool,
    ) {
        let layout = self.layout();
        layout.waiters.fetch_add(1, Ordering::SeqCst);
        loop {
            let seen = layout.wake.load(Ordering::SeqCst);
            if done(layout) || gone() {
                break;
            }
            // So seldom that a waiter notices an engine that was killed.
            futex(&layout.wake, libc::FUTEX_WAIT, seen, Some(Duration::from_millis(100)));
        }
        layout.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `at` is a mapping of this length that nothing borrows any more. Should it
        // fail, the mapping stays, which harms nobody.
        let _ = unsafe { munmap(self.at.cast::<c_void>(), size_of::<Layout>()) };
    }
}

fn futex(word: &AtomicU32, op: i32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos().cast_signed()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the timeout outlive the call; both operations take these four
    // arguments. A spurious return is what the callers expect.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, timeout) };
}
