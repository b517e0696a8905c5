//! How long kernels and graphs take: a pair of events around one launch in some, while turns
//! are given. Nobody waits for them: the helper reads what the device has come to.
//!
//! In an open gate nothing is timed, since others' work would be in the time too.
#![expect(unsafe_code, reason = "calls the driver")]

use core::{
    ffi::c_void,
    ptr::{null_mut, with_exposed_provenance_mut},
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use accelpool_shim::estimate::Estimates;

use crate::{
    capture, context,
    fence::Stream,
    surface::{self, NOT_READY, SUCCESS},
    thread::Thread,
};

/// Launches that are timed at once; one that finds no place is timed another time.
const PLACES: usize = 8;

/// `CU_EVENT_DEFAULT`.
const WITH_TIMING: u32 = 0;

pub(crate) static ESTIMATES: Estimates = Estimates::new();

static TIMINGS: [Timing; PLACES] = [const { Timing::new() }; PLACES];

/// The states of a place.
const FREE: u32 = 0;
const TAKEN: u32 = 1;
const UNDER_WAY: u32 = 2;

/// What a launch runs, as the estimates name it.
#[derive(Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) function: u64,
    /// 0 for a graph.
    pub(crate) blocks: u64,
}

impl Subject {
    pub(crate) fn estimate_us(self) -> Option<u64> {
        ESTIMATES.estimate_us(self.function, self.blocks)
    }
}

/// A place for one launch that is timed.
pub(crate) struct Timing {
    state: AtomicU32,
    function: AtomicU64,
    blocks: AtomicU64,
    context: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Begins to time a launch to a stream, if this one is due and can be timed.
pub(crate) fn begin(thread: &Thread, stream: Stream, subject: Subject) -> Option<&'static Timing> {
    let untimed = thread.untimed.get();
    // An event among a capture would become part of it, or end it.
    if !ESTIMATES.is_due(subject.function, subject.blocks, untimed) || capture::is_any() {
        thread.untimed.set(untimed.saturating_add(1));
        return None;
    }
    let take = |it: &&Timing| {
        it.state.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let timing = TIMINGS.iter().find(take)?;
    thread.untimed.set(0);
    timing.function.store(subject.function, Ordering::Relaxed);
    timing.blocks.store(subject.blocks, Ordering::Relaxed);
    timing.context.store(context::current(thread), Ordering::Relaxed);
    let has_started = thread.inside(|| {
        let made = [&timing.start, &timing.end].into_iter().all(|place| {
            let event = new_event();
            place.store(event.expose_provenance(), Ordering::Relaxed);
            !event.is_null()
        });
        made && record(&timing.start, stream)
    });
    if has_started {
        return Some(timing);
    }
    thread.inside(|| timing.give_up());
    None
}

/// Ends the timings that the device has come to the end of; whether any is left. Called by the
/// helper, whose current context it changes.
pub(crate) fn collect() -> bool {
    let mut is_left = false;
    for timing in &TIMINGS {
        if timing.state.load(Ordering::Acquire) == UNDER_WAY {
            is_left |= !timing.read();
        }
    }
    is_left
}

/// In the child of a fork: the events are the parent's.
pub(crate) fn forget() {
    for timing in &TIMINGS {
        timing.state.store(FREE, Ordering::Relaxed);
    }
}

fn new_event() -> *mut c_void {
    let mut event: *mut c_void = null_mut();
    // SAFETY: the event is written.
    let made = unsafe { surface::cuEventCreate((&raw mut event).cast(), WITH_TIMING) };
    if made == SUCCESS { event } else { null_mut() }
}

fn record(event: &AtomicUsize, stream: Stream) -> bool {
    let event = with_exposed_provenance_mut(event.load(Ordering::Relaxed));
    // SAFETY: an event of ours, and the stream that its user is just submitting to.
    let outcome = unsafe {
        if stream.per_thread {
            surface::cuEventRecord_ptsz(event, stream.handle)
        } else {
            surface::cuEventRecord(event, stream.handle)
        }
    };
    outcome == SUCCESS
}

impl Timing {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            function: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            context: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
        }
    }

    /// The launch is submitted, or has failed.
    pub(crate) fn end(&self, thread: &Thread, stream: Stream, is_submitted: bool) {
        if is_submitted && thread.inside(|| record(&self.end, stream)) {
            self.state.store(UNDER_WAY, Ordering::Release);
        } else {
            thread.inside(|| self.give_up());
        }
    }

    /// Learns from it if it has ended; `false` while it has not.
    fn read(&self) -> bool {
        let [start, end] = [&self.start, &self.end]
            .map(|it| with_exposed_provenance_mut::<c_void>(it.load(Ordering::Relaxed)));
        let context = usize::try_from(self.context.load(Ordering::Relaxed)).unwrap_or_default();
        let mut took_ms = 0_f32;
        // SAFETY: events of ours, the context that was current when they were made, and a
        // time to write. A context that is gone is refused, and they are gone with it.
        let outcome = unsafe {
            surface::cuCtxSetCurrent(with_exposed_provenance_mut(context));
            match surface::cuEventQuery(end) {
                SUCCESS => surface::cuEventElapsedTime((&raw mut took_ms).cast(), start, end),
                outcome => outcome,
            }
        };
        if outcome == NOT_READY {
            return false;
        }
        if outcome == SUCCESS && took_ms >= 0.0 {
            let (function, blocks) =
                (self.function.load(Ordering::Relaxed), self.blocks.load(Ordering::Relaxed));
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::as_conversions,
                reason = "not negative, and what is too large becomes the largest"
            )]
            ESTIMATES.learn(function, blocks, ((took_ms * 1000.0) as u64).max(1));
        }
        self.give_up();
        true
    }

    fn give_up(&self) {
        for place in [&self.start, &self.end] {
            let event = place.swap(0, Ordering::Relaxed);
            if event != 0 {
                // SAFETY: an event of ours, which nobody else has.
                unsafe { surface::cuEventDestroy_v2(with_exposed_provenance_mut(event)) };
            }
        }
        self.state.store(FREE, Ordering::Release);
    }
}
