//! The slow path: what a thread does at a closed gate, and what the daemon does to open it.
//!
//! A waiting thread counts itself in `want`, signals the arbiter if that sleeps, spins for a
//! moment and then sleeps on a word of the read-only page. It looks up every 100 ms: a
//! heartbeat that stands still for 500 ms belongs to a dead daemon, and then the gate is
//! passed without a turn. An error is never made of that.

use core::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use crate::{
    gate::{Grant, Word},
    layout::{ControlPage, DeviceControl, HEARTBEAT_STALE_NS, Progress},
    sys,
};

/// Spinning costs a processor; most hand-overs that come soon come within this.
const SPIN_NS: u64 = 20_000;

/// How long before the expected grant a thread wakes and begins to spin: a thread of a program
/// is woken up to 50 µs later than it asked for.
const HINT_LEAD_NS: u64 = 75_000;

/// A sleeping thread looks up as often: for the heartbeat, and for a wake that got lost.
const SLEEP_NS: u64 = 100_000_000;

/// How a thread got past the gate. It is inside: it must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// By a grant.
    Granted(Grant),
    /// Since there is no daemon that could give one.
    FailedOpen,
}

/// The claim is over; the thread is not inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked;

/// What a process has seen of the daemon's heartbeat. By its own clock alone, since the two
/// may be in different time namespaces.
#[derive(Debug)]
pub struct Heartbeat {
    seen: AtomicU64,
    since_ns: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

impl Heartbeat {
    /// Nothing seen yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { seen: AtomicU64::new(u64::MAX), since_ns: AtomicU64::new(0) }
    }

    /// Whether the daemon is gone. Needs two looks: a first one never finds out.
    pub fn is_stale(&self, control: &ControlPage, now_ns: u64) -> bool {
        let beat = control.heartbeat_ns.load(Ordering::Relaxed);
        if self.seen.swap(beat, Ordering::Relaxed) != beat {
            self.since_ns.store(now_ns, Ordering::Relaxed);
            return false;
        }
        // Two threads may look at once, the other one earlier.
        now_ns.saturating_sub(self.since_ns.load(Ordering::Relaxed)) >= HEARTBEAT_STALE_NS
    }
}

/// A thread before the gate of a device.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The claim's page.
    pub control: &'a ControlPage,
    /// The device's part of it.
    pub device: &'a DeviceControl,
    /// The process's part.
    pub progress: &'a Progress,
    /// What the process has seen of the heartbeat.
    pub heartbeat: &'a Heartbeat,
    /// The thread's line.
    pub line: usize,
    /// Where the arbiter is signalled.
    pub eventfd: Option<i32>,
    /// To be added to the daemon's times.
    pub clock_offset_ns: i64,
}

impl Turn<'_> {
    /// Passes the gate if it is open and the turn is not over.
    #[inline]
    pub fn try_enter(&self) -> Result<Grant, Grant> {
        let grant = self.progress.enter(self.line, &self.device.grant)?;
        // An open gate has no end, and costs no look at the clock.
        if grant.has(Grant::EXCLUSIVE) && self.is_over() {
            self.progress.leave(self.line, None);
            return Err(grant);
        }
        Ok(grant)
    }

    /// Whether the deadline has passed, even if the daemon is late to say so.
    fn is_over(&self) -> bool {
        let deadline_ns = self.device.deadline_ns.load(Ordering::Relaxed);
        deadline_ns != 0 && sys::now_ns() >= self.own_time(deadline_ns)
    }

    fn own_time(&self, daemon_ns: u64) -> u64 {
        daemon_ns.saturating_add_signed(self.clock_offset_ns)
    }

    /// Waits until the gate lets the thread in. `closed` is called once if it has to wait:
    /// to see to it that what was submitted gets reported as complete.
    pub fn enter(&self, closed: impl FnOnce(Grant)) -> Result<Passed, Revoked> {
        match self.try_enter() {
            Ok(grant) => Ok(Passed::Granted(grant)),
            Err(grant) => {
                closed(grant);
                self.wait()
            }
        }
    }

    fn wait(&self) -> Result<Passed, Revoked> {
        let start_ns = sys::now_ns();
        self.progress.want.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.control.asleep.load(Ordering::Relaxed) != 0
            && let Some(eventfd) = self.eventfd
        {
            sys::signal(eventfd);
        }
        let outcome = self.wait_wanting(start_ns);
        let now_ns = sys::now_ns();
        // Before its work is counted, with which the daemon reads it.
        let came_ns = now_ns.saturating_add_signed(self.clock_offset_ns.saturating_neg());
        self.progress.came_ns.store(came_ns, Ordering::Relaxed);
        self.progress.want.fetch_sub(1, Ordering::SeqCst);
        let waited_ns = now_ns.saturating_sub(start_ns);
        self.progress.waited_ns.fetch_add(waited_ns, Ordering::Relaxed);
        outcome
    }

    fn wait_wanting(&self, start_ns: u64) -> Result<Passed, Revoked> {
        let mut spin_until_ns = start_ns.saturating_add(SPIN_NS);
        loop {
            // Before the try, so that a grant after the try changes it.
            let wake = self.device.wake.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            match self.try_enter() {
                Ok(grant) => return Ok(Passed::Granted(grant)),
                Err(grant) if grant.has(Grant::REVOKED) => return Err(Revoked),
                Err(_) => {}
            }
            let now_ns = sys::now_ns();
            if self.heartbeat.is_stale(self.control, now_ns) {
                self.progress.enter_anyway(self.line);
                return Ok(Passed::FailedOpen);
            }
            if now_ns < spin_until_ns {
                spin_loop();
                continue;
            }
            let hint_ns = self.device.hint_ns.load(Ordering::Relaxed);
            let begin_ns = self.own_time(hint_ns).saturating_sub(HINT_LEAD_NS);
            let until_hint_ns = if hint_ns == 0 { 0 } else { begin_ns.saturating_sub(now_ns) };
            if until_hint_ns == 0 {
                sys::wait(&self.device.wake, wake, SLEEP_NS);
            } else {
                sys::wait(&self.device.wake, wake, until_hint_ns.min(SLEEP_NS));
                spin_until_ns = sys::now_ns().saturating_add(HINT_LEAD_NS + SPIN_NS);
            }
        }
    }
}

/// The daemon's side.
impl DeviceControl {
    /// Opens the gate until `deadline_ns` of the daemon's time, 0 for no end, and wakes who
    /// waits.
    pub fn open(&self, grant: Grant, deadline_ns: u64) {
        // The end before the grant that it is for.
        self.deadline_ns.store(deadline_ns, Ordering::SeqCst);
        self.grant.write(grant);
        sys::bump(&self.wake);
    }

    /// Prolongs the turn in place.
    pub fn renew(&self, deadline_ns: u64) {
        self.deadline_ns.store(deadline_ns, Ordering::SeqCst);
        sys::bump(&self.wake);
    }

    /// Closes the gate: then wait until no process has anyone inside.
    ///
    /// Wakes the helpers, so that processes see to their unfinished work at once.
    pub fn close(&self) -> Grant {
        let closed = crate::gate::close(&self.grant);
        self.wake_helpers();
        closed
    }

    fn wake_helpers(&self) {
        sys::bump(&self.closes);
        // For shims that know no other word.
        sys::bump(&self.wake);
    }

    /// The claim is over: nobody submits or allocates by this page any more.
    pub fn revoke(&self) {
        let epoch = self.grant.read().epoch();
        self.grant.write(Grant::new(epoch, Grant::REVOKED | Grant::DRAIN));
        self.wake_helpers();
    }
}
