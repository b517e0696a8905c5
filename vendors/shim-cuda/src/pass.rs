//! The short way of a launch through an open gate: a locked exchange, a load, and the few stores
//! around the call, by what the thread remembers of the long way that it last took.
//!
//! That is its line, the grant and the mark of its stream, all in pages and tables that stay for
//! good. Whatever makes any of it untrue for other threads (a capture, new pages, a stream that is
//! destroyed) raises the age, and what is of another age is not used: the long way finds it anew.
#![expect(unsafe_code, reason = "calls the driver and keeps places in pages that stay mapped")]

use core::{
    ffi::{c_int, c_void},
    ptr::from_ref,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use accelpool_shim::{
    gate::{Grant, Mark, OwnMark, Word},
    layout::OWN_LINES,
};

use crate::{
    capture,
    device::Device,
    fence::Stream,
    surface::{REAL, SUCCESS},
    thread::{Thread, thread},
};

/// Of what age a memory must be: below 2^32, the upper half being for the depth beside it.
static AGE: AtomicU64 = AtomicU64::new(1);

/// After so many changes nothing is remembered any more: an age never comes again.
const AGE_MAX: u64 = 0xffff_ffff;

/// What all threads remember is not true any more; to be said after the change.
pub(crate) fn forget_all() {
    let next = |age: u64| (age < AGE_MAX).then_some(age + 1);
    // The last age is nobody's.
    let _ = AGE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
}

/// Keeps what the long way has found for a launch through an open gate.
pub(crate) fn remember(thread: &Thread, device: &'static Device, line: usize, stream: Stream) {
    // Before all else, so that what changes while this looks makes it too old.
    let age = AGE.load(Ordering::SeqCst);
    thread.age.set(0);
    if age == AGE_MAX || line >= OWN_LINES || capture::is_any() {
        return;
    }
    let (Some(control), Some(progress)) = (device.control(), device.progress()) else { return };
    let (Some(own), Some(dirty)) =
        (progress.lines.get(line), device.fences.mark_of(thread, stream))
    else {
        return;
    };
    thread.named.set(stream.name());
    thread.own.set(from_ref(own));
    thread.grant.set(from_ref(&control.grant));
    thread.dirty.set(from_ref(dirty));
    thread.age.set(u32::try_from(age).unwrap_or(0));
}

/// A launch that is inside of the gate. What else it needs stands in the thread's words, where
/// it outlives the call without a register.
pub(crate) struct Pass(&'static Thread);

/// Passes an open gate; `None` where it is not open, or where the long way must be gone.
#[inline]
pub(crate) fn pass(stream: Stream) -> Option<Pass> {
    let thread = thread();
    let state = u64::from(thread.age.get()) | u64::from(thread.depth.get()) << 32;
    if state != AGE.load(Ordering::Relaxed) || thread.named.get() != stream.name() {
        return None;
    }
    // SAFETY: of this age, so that `remember` has set both; their pages stay mapped for good.
    let (own, grant) = unsafe { (&*thread.own.get(), &*thread.grant.get()) };
    OwnMark(&own.entering).set();
    if grant.read().0 & (Grant::OPEN | Grant::FAIL_OPEN) == 0 {
        OwnMark(&own.entering).clear();
        return None;
    }
    thread.depth.set(1);
    Some(Pass(thread))
}

impl Pass {
    /// Leaves the gate, after the driver's answer.
    #[inline]
    pub(crate) fn leave(self, outcome: c_int) -> c_int {
        let thread = self.0;
        thread.depth.set(0);
        // SAFETY: as in `pass`, which this thread came by; the mark is of a static table. What
        // the driver called meanwhile was passed on, and remembered nothing.
        let (own, dirty) = unsafe { (&*thread.own.get(), &*thread.dirty.get()) };
        if outcome != SUCCESS {
            own.leave(None);
            return outcome;
        }
        if dirty.load(Ordering::Relaxed) == 0 {
            dirty.store(1, Ordering::Release);
        }
        own.leave(Some(0));
        SUCCESS
    }
}

/// Where the short way calls the driver: the long way puts the driver's own function there, once
/// it has been found.
pub(crate) fn know(next: &AtomicPtr<c_void>, row: usize) {
    let real = REAL[row].load(Ordering::Relaxed);
    if !real.is_null() && next.load(Ordering::Relaxed) != real {
        next.store(real, Ordering::Release);
    }
}

/// Functions that submit, with the driver's names, exported by the library alone: the stream for
/// the short way, or none, then the long way.
macro_rules! submits {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) to $stream:block else $long:block)*) => {$(
        #[cfg_attr(accelpool_library, unsafe(no_mangle))]
        pub(crate) unsafe extern "C" fn $name($($argument: $type),*) -> core::ffi::c_int {
            /// At first the long way, which passes on at once what comes from inside.
            static NEXT: core::sync::atomic::AtomicPtr<core::ffi::c_void> =
                core::sync::atomic::AtomicPtr::new(long as *mut core::ffi::c_void);

            #[cold]
            #[inline(never)]
            unsafe extern "C" fn long($($argument: $type),*) -> core::ffi::c_int {
                // SAFETY: the contract is that of the driver's function, and the arguments are
                // passed on as they came.
                let outcome = unsafe { $long };
                crate::pass::know(&NEXT, crate::surface::rows::$name);
                outcome
            }

            let stream: Option<crate::fence::Stream> = $stream;
            match stream.and_then(crate::pass::pass) {
                Some(pass) => {
                    let next = NEXT.load(core::sync::atomic::Ordering::Relaxed);
                    // SAFETY: the driver's function of this name, or `long`: both have these
                    // parameters.
                    let next = unsafe {
                        core::mem::transmute::<
                            *mut core::ffi::c_void,
                            unsafe extern "C" fn($($type),*) -> core::ffi::c_int,
                        >(next)
                    };
                    // SAFETY: passes on what its caller gave.
                    pass.leave(unsafe { next($($argument),*) })
                }
                // SAFETY: as above.
                None => unsafe { long($($argument),*) },
            }
        }
    )*};
}
pub(crate) use submits;
