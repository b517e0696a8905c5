//! The way of a launch: past the gate, to the driver, into the counts.
//!
//! This is the long way: [`crate::pass`] is the short one, through an open gate by what this way
//! has found. A thread that has to wait does so here, before the driver has seen anything of the
//! launch.

use core::{
    ffi::c_int,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use accelpool_shim::{
    estimate::UNKNOWN_US,
    gate::Grant,
    layout::{DeviceControl, OVERFLOW_LINE, OWN_LINES, Progress},
    sys,
    turn::{Passed, Revoked, Turn},
};

use crate::{
    capture,
    device::{self, Device},
    fence::Stream,
    helper,
    libc::ThreadEnd,
    lock::Lock,
    pass, process,
    surface::{NOT_PERMITTED, SUCCESS},
    thread::{Thread, thread},
    timing::{self, Subject},
};

/// A thread over its window looks up as often, should nobody tell it of progress.
const WINDOW_SLEEP_NS: u64 = 1_000_000;

/// What a submission is estimated to take.
#[derive(Clone, Copy)]
pub(crate) enum Cost {
    Unknown,
    /// A kernel with a grid of so many blocks.
    Kernel {
        function: usize,
        grid: [u32; 3],
    },
    /// A graph that was instantiated.
    Graph {
        exec: u64,
    },
}

/// Passes the gate with `call`, which submits to `stream`.
pub(crate) fn submit(stream: Stream, cost: Cost, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    let Some(device) = device::current(thread) else { return call() };
    let (Some(control), Some(progress)) = (device.control(), device.progress()) else {
        return call();
    };
    if capture::is_capturing(stream) {
        return call();
    }
    let line = line(thread, progress);
    // The open gate: nothing to look up, no clock.
    match progress.enter(line, &control.grant) {
        Ok(grant) if !grant.has(Grant::EXCLUSIVE) => {
            let outcome = thread.inside(call);
            leave(thread, device, progress, line, stream, outcome, 0);
            pass::remember(thread, device, line, stream);
            return outcome;
        }
        Ok(_) => progress.leave(line, None),
        Err(_) => {}
    }
    submit_in_turn(thread, device, control, progress, stream, cost, call)
}

fn leave(
    thread: &Thread,
    device: &Device,
    progress: &Progress,
    line: usize,
    stream: Stream,
    outcome: c_int,
    cost_us: u64,
) {
    if outcome == SUCCESS {
        device.fences.mark(thread, stream);
        progress.leave(line, Some(cost_us));
    } else {
        progress.leave(line, None);
    }
}

/// While turns are given.
#[cold]
fn submit_in_turn(
    thread: &Thread,
    device: &'static Device,
    control: &'static DeviceControl,
    progress: &'static Progress,
    stream: Stream,
    cost: Cost,
    call: impl FnOnce() -> c_int,
) -> c_int {
    let Some(claim) = device.claim() else { return call() };
    let Some(page) = claim.control() else { return call() };
    let line = line(thread, progress);
    let turn = Turn {
        control: page,
        device: control,
        progress,
        heartbeat: &claim.heartbeat,
        line,
        eventfd: claim.eventfd(),
        clock_offset_ns: claim.clock_offset_ns(),
    };
    wait_for_window(control, progress);
    let closed = |_: Grant| {
        device.fences.record_own(thread, stream);
        helper::wake();
    };
    match turn.enter(closed) {
        Ok(Passed::Granted(_) | Passed::FailedOpen) => {}
        Err(Revoked) => return NOT_PERMITTED,
    }
    let cost_us = cost.estimate_us();
    let is_alone = Grant(control.grant.load(Ordering::Relaxed)).has(Grant::EXCLUSIVE);
    let subject = cost.subject().filter(|_| is_alone);
    let timing = subject.and_then(|it| timing::begin(thread, stream, it));
    let outcome = thread.inside(call);
    if let Some(timing) = timing {
        timing.end(thread, stream, outcome == SUCCESS);
    }
    if outcome == SUCCESS {
        device.fences.mark(thread, stream);
        device.fences.record_own(thread, stream);
    }
    leave(thread, device, progress, line, stream, outcome, cost_us);
    helper::wake_if_idle();
    outcome
}

/// Waits until little enough is unfinished, outside of the gate. Not longer than the turn
/// lasts: then the gate decides.
fn wait_for_window(control: &DeviceControl, progress: &Progress) {
    loop {
        let window_us = u64::from(control.window_us.load(Ordering::Relaxed));
        let window_commands = u64::from(control.window_commands.load(Ordering::Relaxed));
        if window_us == 0 && window_commands == 0 {
            return;
        }
        let before = progress.progress.load(Ordering::Acquire);
        let (commands, us) = progress.unfinished();
        let is_within = (window_us == 0 || us < window_us)
            && (window_commands == 0 || commands < window_commands);
        let grant = Grant(control.grant.load(Ordering::Relaxed));
        if is_within || !grant.has(Grant::EXCLUSIVE) {
            return;
        }
        helper::wake_if_idle();
        sys::wait(&progress.progress, before, WINDOW_SLEEP_NS);
    }
}

impl Cost {
    /// What of it can be timed.
    fn subject(self) -> Option<Subject> {
        match self {
            Self::Unknown => None,
            Self::Kernel { function, grid } => {
                let blocks = grid.iter().fold(1_u64, |all, &it| all.saturating_mul(it.into()));
                Some(Subject { function: function as u64, blocks: blocks.max(1) })
            }
            Self::Graph { exec } => Some(Subject { function: exec, blocks: 0 }),
        }
    }

    fn estimate_us(self) -> u64 {
        self.subject().and_then(Subject::estimate_us).unwrap_or_else(|| match self {
            Self::Unknown | Self::Kernel { .. } => UNKNOWN_US,
            Self::Graph { exec } => UNKNOWN_US.saturating_mul(capture::nodes(exec).max(1)),
        })
    }
}

/// Lines of process pages that threads have, a bit each.
static LINES: AtomicU64 = AtomicU64::new(0);

/// How many of them were ever given out: further ones need not be looked at.
static LINES_LEN: AtomicU32 = AtomicU32::new(0);

/// Frees a thread's line when it ends. Without threads in the program there is none to free.
static THREAD_END: Lock<Option<ThreadEnd>> = Lock::new(None);

/// The line of the thread, which it keeps until it ends.
#[inline]
fn line(thread: &Thread, progress: &Progress) -> usize {
    match thread.line.get() {
        0 => take_line(thread, progress),
        line => {
            let line = line as usize - 1;
            // Each page learns of the lines that are used on it.
            if progress.lines_len.load(Ordering::Relaxed) as usize <= line {
                progress.touch(LINES_LEN.load(Ordering::Relaxed) as usize);
            }
            line
        }
    }
}

#[cold]
fn take_line(thread: &Thread, progress: &Progress) -> usize {
    let taken = LINES.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |lines| {
        (lines != u64::MAX).then(|| lines | (lines + 1))
    });
    let line = taken.map_or(OVERFLOW_LINE, |before| before.trailing_ones() as usize);
    // At most the overflow line, which is 64.
    thread.line.set(u32::try_from(line + 1).unwrap_or(u32::MAX));
    if line < OWN_LINES {
        let mut end = THREAD_END.lock();
        *end = end.or_else(|| ThreadEnd::new(thread_ended));
        if let Some(end) = *end {
            end.arm(line + 1);
        }
        drop(end);
        LINES_LEN.fetch_max(u32::try_from(line + 1).unwrap_or(u32::MAX), Ordering::AcqRel);
    }
    progress.touch(LINES_LEN.load(Ordering::Relaxed) as usize);
    line
}

#[expect(unsafe_code, reason = "called by the C library")]
unsafe extern "C" fn thread_ended(line: *mut core::ffi::c_void) {
    let line = line.addr().wrapping_sub(1);
    if line < OWN_LINES {
        let thread = thread();
        thread.age.set(0);
        thread.line.set(0);
        fence(Ordering::Release);
        LINES.fetch_and(!(1 << line), Ordering::AcqRel);
    }
}

/// In the child of a fork: its one thread has no line yet.
pub(crate) fn forget_lines() {
    LINES.store(0, Ordering::Relaxed);
    LINES_LEN.store(0, Ordering::Relaxed);
    THREAD_END.forget_holder();
}
