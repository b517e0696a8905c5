//! The gate: a locked exchange before each launch, and a close that no launch slips past.
//!
//! A thread says that it enters, then reads the grant. The daemon takes the grant away, then
//! reads who is inside. Each writes before it reads, and the exchange keeps the processor
//! from turning that round: so either the thread sees the closed gate, or the daemon sees the
//! thread. With a plain store half of all closes let a launch slip past (measured; the stress
//! test holds the broken variant beside this one).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::layout::{LINES, OVERFLOW_LINE, OWN_LINES, Progress, ThreadLine};

/// The state of a claim's turn on a device: an epoch and flags in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant(pub u64);

impl Grant {
    /// Everybody may submit; the hardware slices.
    pub const OPEN: u64 = 1;
    /// This claim alone may submit, until the deadline.
    pub const EXCLUSIVE: u64 = 1 << 1;
    /// The turn has ended: report when what was submitted is complete.
    pub const DRAIN: u64 = 1 << 2;
    /// The claim is being moved to host memory, or is there.
    pub const PARK: u64 = 1 << 3;
    /// The claim is over: neither memory nor time is granted any more.
    pub const REVOKED: u64 = 1 << 4;
    /// No turns are given for now; quotas hold.
    pub const FAIL_OPEN: u64 = 1 << 5;

    const MAY_SUBMIT: u64 = Self::OPEN | Self::EXCLUSIVE | Self::FAIL_OPEN;
    const FLAGS: u64 = 0xffff_ffff;

    /// A grant of the epoch, with flags out of the constants above.
    #[must_use]
    pub const fn new(epoch: u32, flags: u64) -> Self {
        Self((epoch as u64) << 32 | flags & Self::FLAGS)
    }

    /// The number of the turn.
    #[must_use]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// Whether a launch may go to the driver.
    #[must_use]
    pub const fn may_submit(self) -> bool {
        self.0 & Self::MAY_SUBMIT != 0
    }

    /// The same epoch, closed, to be drained.
    #[must_use]
    pub const fn closed(self) -> Self {
        Self(self.0 & !Self::MAY_SUBMIT | Self::DRAIN)
    }
}

/// The mark of a thread that may be submitting.
///
/// The model and the stress test put their own in its place.
pub trait Mark {
    /// Sets the mark. Nothing that comes later is done before the mark is visible.
    fn set(&self);
    /// Takes the mark away, after all that came before.
    fn clear(&self);
    /// Whether it is set, in the one order of all gate operations.
    fn is_set(&self) -> bool;
}

/// The word that holds the grant.
pub trait Word {
    /// Reads the grant; never later operations first.
    fn read(&self) -> Grant;
    /// Writes the grant. Nothing that comes later is done before it is visible.
    fn write(&self, grant: Grant);
}

/// Passes the gate, or leaves no trace.
#[inline]
pub fn enter(mark: &impl Mark, word: &impl Word) -> Result<Grant, Grant> {
    mark.set();
    let grant = word.read();
    if grant.may_submit() {
        return Ok(grant);
    }
    mark.clear();
    Err(grant)
}

/// Closes the gate. Who is not inside when this returns does not submit in this epoch.
pub fn close(word: &impl Word) -> Grant {
    let closed = word.read().closed();
    word.write(closed);
    closed
}

impl Word for AtomicU64 {
    #[inline]
    fn read(&self) -> Grant {
        // Relaxed and a fence, since the tenant maps the page read-only and only relaxed
        // loads are defined to work there.
        let grant = self.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Grant(grant)
    }

    fn write(&self, grant: Grant) {
        self.swap(grant.0, Ordering::SeqCst);
        full_fence();
    }
}

/// The mark of a thread with a line of its own.
pub struct OwnMark<'a>(pub &'a AtomicU32);

impl Mark for OwnMark<'_> {
    #[inline]
    fn set(&self) {
        self.0.swap(1, Ordering::SeqCst);
        full_fence();
    }

    #[inline]
    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// The mark of the threads that share the overflow line: their number.
struct SharedMark<'a>(&'a AtomicU32);

impl Mark for SharedMark<'_> {
    fn set(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        full_fence();
    }

    fn clear(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// Completes a locked operation to a full barrier where it is not one by itself.
///
/// On x86 each locked operation is. On Arm a later load may pass the store of an exchange.
#[inline]
fn full_fence() {
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
    fence(Ordering::SeqCst);
}

impl ThreadLine {
    /// Leaves the gate by a line of one's own; with `Some(cost_us)` the driver took a submission.
    #[inline]
    pub fn leave(&self, submission: Option<u64>) {
        if let Some(cost_us) = submission {
            add_alone(&self.submitted, 1);
            // A constant where the gate is open.
            if cost_us != 0 {
                add_alone(&self.submitted_us, cost_us);
            }
        }
        OwnMark(&self.entering).clear();
    }
}

impl Progress {
    /// Enters by the thread's line; an index beyond the lines is the overflow line.
    #[inline]
    pub fn enter(&self, line: usize, word: &impl Word) -> Result<Grant, Grant> {
        match self.lines.get(line) {
            Some(own) if line < OWN_LINES => enter(&OwnMark(&own.entering), word),
            Some(_) | None => enter(&SharedMark(&self.overflow().entering), word),
        }
    }

    /// Enters without a grant, where nobody is left who could give one.
    pub fn enter_anyway(&self, line: usize) {
        match self.lines.get(line) {
            Some(own) if line < OWN_LINES => OwnMark(&own.entering).set(),
            Some(_) | None => SharedMark(&self.overflow().entering).set(),
        }
    }

    /// Leaves the gate; with `Some(cost_us)` the driver took a submission.
    #[inline]
    pub fn leave(&self, line: usize, submission: Option<u64>) {
        match self.lines.get(line) {
            Some(own) if line < OWN_LINES => own.leave(submission),
            Some(_) | None => {
                let shared = self.overflow();
                if let Some(cost_us) = submission {
                    shared.submitted.fetch_add(1, Ordering::Relaxed);
                    shared.submitted_us.fetch_add(cost_us, Ordering::Relaxed);
                }
                SharedMark(&shared.entering).clear();
            }
        }
    }

    fn overflow(&self) -> &ThreadLine {
        &self.lines[OVERFLOW_LINE]
    }

    /// The lines that may have been touched. The tenant writes the number, so it is clamped.
    fn touched(&self) -> impl Iterator<Item = &ThreadLine> {
        let len = self.lines_len.load(Ordering::Acquire) as usize;
        self.lines[..len.min(OWN_LINES)].iter().chain(&self.lines[OVERFLOW_LINE..LINES])
    }

    /// Makes the first `len` own lines count; a thread does so before it first enters.
    pub fn touch(&self, len: usize) {
        let len = u32::try_from(len.min(OWN_LINES)).unwrap_or(u32::MAX);
        // Ordered before the thread's mark by the exchange that sets it.
        self.lines_len.fetch_max(len, Ordering::SeqCst);
    }

    /// Whether a thread of the process may be submitting. To be asked after [`close`].
    #[must_use]
    pub fn is_anyone_inside(&self) -> bool {
        // The number of lines is read after the close, as the marks are.
        fence(Ordering::SeqCst);
        self.touched().any(|line| OwnMark(&line.entering).is_set())
    }

    /// Submissions and their estimated time in µs, of all threads together.
    ///
    /// Sums wrap, as a tenant can write anything: only differences mean something.
    #[must_use]
    pub fn submitted(&self) -> (u64, u64) {
        self.touched().fold((0, 0), |(count, cost), line| {
            (
                count.wrapping_add(line.submitted.load(Ordering::Acquire)),
                cost.wrapping_add(line.submitted_us.load(Ordering::Relaxed)),
            )
        })
    }

    /// Notes that the first submissions are complete, as [`Progress::submitted`] counted them,
    /// and wakes who waits for that. Of racing notes the furthest stays.
    pub fn complete(&self, (count, cost_us): (u64, u64)) {
        if self.completed.fetch_max(count, Ordering::AcqRel) < count {
            self.completed_us.fetch_max(cost_us, Ordering::AcqRel);
            crate::sys::bump(&self.progress);
        }
    }

    /// Submissions that are not known to be complete, and their estimated time in µs.
    ///
    /// A tenant that writes nonsense gets 0: it can only claim to be idle, and a turn ends then.
    #[must_use]
    pub fn unfinished(&self) -> (u64, u64) {
        let completed = self.completed.load(Ordering::Acquire);
        let completed_us = self.completed_us.load(Ordering::Relaxed);
        let (submitted, submitted_us) = self.submitted();
        (submitted.saturating_sub(completed), submitted_us.saturating_sub(completed_us))
    }
}

/// Adds to a counter that this thread alone writes: no locked operation.
#[inline]
fn add_alone(counter: &AtomicU64, value: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(value);
    counter.store(sum, Ordering::Release);
}
