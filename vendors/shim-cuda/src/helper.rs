//! The helper: one thread in each process that uses a device of a claim.
//!
//! It sleeps until a gate moves. While turns are given it follows what was submitted, so that
//! the daemon learns of a drain although all threads of the program do something else; and it
//! keeps the registration alive. It takes no signals and submits nothing.
#![expect(unsafe_code, reason = "is started by the C library and calls the driver")]

use core::{
    ffi::c_void,
    ptr::null_mut,
    sync::atomic::{AtomicU32, Ordering},
};

use accelpool_shim::{
    gate::{Grant, Word},
    sys,
};

use crate::{
    device::{self, Device},
    libc, process, registration, surface,
    thread::thread,
    timing,
};

/// Between two looks at work that is under way. An event takes the driver half a microsecond,
/// so that this is a percent of a processor, and only while turns are given.
const FOLLOW_NS: u64 = 50_000;

/// How often the registration is looked at when nothing else happens.
const REST_NS: u64 = 200_000_000;

/// On a kernel that cannot wait for several words at once.
const POLL_NS: u64 = 5_000_000;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: u32 = 2;

/// Changes to wake the helper.
static WORD: AtomicU32 = AtomicU32::new(0);

/// Nonzero while it sleeps without work.
static IS_IDLE: AtomicU32 = AtomicU32::new(0);

/// Raised by each fork: the helper of another generation is in another process.
static IS_STARTED: AtomicU32 = AtomicU32::new(0);

/// Starts it, if it does not run.
pub(crate) fn start() {
    if IS_STARTED.swap(1, Ordering::AcqRel) == 0 {
        // Threads inherit the mask: the program's handlers are for the program's threads.
        let mask = sys::mask_signals(u64::MAX);
        if !libc::start_thread(run) {
            IS_STARTED.store(0, Ordering::Release);
        }
        let _ = sys::mask_signals(mask);
    }
}

pub(crate) fn wake() {
    sys::bump(&WORD);
}

/// Wakes it unless it is at work anyhow.
#[inline]
pub(crate) fn wake_if_idle() {
    if IS_IDLE.load(Ordering::SeqCst) != 0 {
        wake();
    }
}

/// In the child of a fork, which has none.
pub(crate) fn forget() {
    IS_STARTED.store(0, Ordering::Relaxed);
    IS_IDLE.store(0, Ordering::Relaxed);
}

unsafe extern "C" fn run(_: *mut c_void) -> *mut c_void {
    sys::sleep_exactly();
    let thread = thread();
    // All that it calls is the driver's own.
    thread.depth.set(1);
    let mut mode = RELAXED;
    // SAFETY: the mode is read and written. Without it, our events would end the captures of
    // other threads.
    unsafe { surface::cuThreadExchangeStreamCaptureMode((&raw mut mode).cast()) };
    let mut next_look_ns = 0;
    loop {
        let word = WORD.load(Ordering::SeqCst);
        let mut words = [(&WORD, word); sys::WAIT_WORDS_MAX];
        let mut len = 1;
        IS_IDLE.store(1, Ordering::SeqCst);
        let mut is_busy = false;
        for device in device::all() {
            if let (Some(control), Some(place)) = (device.control(), words.get_mut(len)) {
                // Not that of grants: a thread that waits for one needs the processor more.
                let knows = control.closes.load(Ordering::Relaxed) != 0;
                let word = if knows { &control.closes } else { &control.wake };
                *place = (word, word.load(Ordering::Relaxed));
                len += 1;
            }
            is_busy |= follow(device);
        }
        is_busy |= timing::collect();
        let now_ns = sys::now_ns();
        if now_ns >= next_look_ns {
            let rest_ns = process::claims().map(registration::look).min().unwrap_or(REST_NS);
            next_look_ns = now_ns.saturating_add(rest_ns.min(REST_NS));
        }
        if is_busy {
            IS_IDLE.store(0, Ordering::SeqCst);
            sys::wait_any(&words[..1], FOLLOW_NS, FOLLOW_NS);
        } else {
            let rest_ns = next_look_ns.saturating_sub(now_ns).max(FOLLOW_NS);
            sys::wait_any(&words[..len], rest_ns, POLL_NS);
            IS_IDLE.store(0, Ordering::SeqCst);
        }
        if IS_STARTED.load(Ordering::Relaxed) == 0 {
            return null_mut();
        }
    }
}

/// Follows the work on a device while turns are given; whether any is left.
fn follow(device: &'static Device) -> bool {
    let (Some(control), Some(progress)) = (device.control(), device.progress()) else {
        return false;
    };
    let grant = control.grant.read();
    if grant.has(Grant::OPEN) {
        return false;
    }
    let is_left = device.fences.advance(progress);
    if !is_left && !grant.may_submit() && !progress.is_anyone_inside() {
        let (unfinished, _) = progress.unfinished();
        if unfinished == 0 {
            progress.drained_epoch.store(grant.epoch(), Ordering::Release);
        }
    }
    is_left
}
