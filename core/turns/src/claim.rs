//! What the policy keeps of one claim.

use accelpool_model::ShareClass;

use crate::{Seen, Terms, bucket::Bucket, window::Window};

/// Virtual time of one nanosecond at weight 1.
const SCALE: u128 = 1_000_000;
/// A holder that has been idle for this long gives its turn to who waits.
const GRACE_NS: std::ops::RangeInclusive<u64> = 50_000..=100_000;
/// How often a holder is looked at while somebody waits: often if it tends to go idle.
const LOOK_NS: std::ops::RangeInclusive<u64> = 50_000..=200_000;
/// A gap is worth waiting for only if the work that follows comes within this time.
const GAP_MAX_NS: u64 = 1_000_000;
/// How much an idle claim may save up under its cap.
const CAP_BURST_NS: u64 = 20_000_000;

/// Where the claim's gates stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Closed, and nothing of it is left on a device.
    Closed,
    /// Open beside all others.
    Open,
    /// It has the turn.
    Held {
        since_ns: u64,
        deadline_ns: Option<u64>,
        /// Granted early: its predecessor's work still runs, and is charged to that.
        overlapped: bool,
    },
    /// Closed; its last work still runs.
    Draining { closed_ns: u64, cause: Cause },
    /// Closed, but it did not drain in time: others are granted beside it.
    Stuck { closed_ns: u64 },
    /// Stuck without progress, and its turn came: open for a while beside the holder.
    Sliced { until_ns: u64 },
}

/// Why gates were closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The turn was over, while it had work: it still wants the device.
    Over,
    /// It had nothing to do.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    No,
    Wanted,
    Yes,
}

#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) terms: Terms,
    pub(crate) gate: Gate,
    pub(crate) seen: Seen,
    pub(crate) processes: u32,
    pub(crate) parked: Parked,
    pub(crate) backlogged: bool,
    pub(crate) waiting_since_ns: u64,
    pub(crate) virtual_time: u128,
    pub(crate) cap: Option<Bucket>,
    pub(crate) budget: Option<Bucket>,
    /// A real-time claim is one only while this holds: it fell out of its budget otherwise.
    pub(crate) within_budget: bool,
    pub(crate) window: Window,
    pub(crate) idle_since_ns: Option<u64>,
    pub(crate) busy_ns: u64,
    pub(crate) progressed_ns: u64,
    pub(crate) look_ns: u64,
    gap_ns: u64,
    /// How much it had ever submitted when its turn began.
    pub(crate) submitted_before: u64,
    /// What is left of the hand-over that began its turn: lost to all, charged to nobody.
    pub(crate) hand_over_left_ns: u64,
    /// When its next turn was said to come; 0 for not.
    pub(crate) expected_ns: u64,
    pub(crate) used_ns: u64,
    pub(crate) throttled_ns: u64,
    pub(crate) turns: u64,
}

impl Claim {
    pub(crate) fn new(terms: Terms, budget: Option<Bucket>, now_ns: u64) -> Self {
        let cap = terms.cap.map(|cap| Bucket::full(cap, CAP_BURST_NS, now_ns));
        Self {
            terms,
            gate: Gate::Closed,
            seen: Seen::default(),
            processes: 0,
            parked: Parked::No,
            backlogged: false,
            waiting_since_ns: now_ns,
            virtual_time: 0,
            cap,
            within_budget: budget.is_some(),
            budget,
            window: Window::default(),
            idle_since_ns: None,
            busy_ns: 0,
            progressed_ns: now_ns,
            look_ns: *LOOK_NS.end(),
            gap_ns: 0,
            submitted_before: 0,
            hand_over_left_ns: 0,
            expected_ns: 0,
            used_ns: 0,
            throttled_ns: 0,
            turns: 0,
        }
    }

    /// Device time as virtual time: the smaller the weight, the longer.
    pub(crate) fn virtual_of(&self, ns: u64) -> u128 {
        u128::from(ns) * SCALE / u128::from(self.terms.weight.value())
    }

    /// Charges time on one of its devices, but for what is left of the hand-over.
    pub(crate) fn charge(&mut self, ns: u64) {
        let free = ns.min(self.hand_over_left_ns);
        self.hand_over_left_ns -= free;
        let ns = ns - free;
        self.used_ns = self.used_ns.saturating_add(ns);
        // A claim of several devices pays for a turn once, not once a device.
        let each = ns / self.terms.devices.len().max(1) as u64;
        self.virtual_time += self.virtual_of(each);
        for bucket in self.cap.iter_mut().chain(&mut self.budget) {
            bucket.take(each);
        }
    }

    /// True while its work, or its right to work, takes the device from others.
    pub(crate) fn occupies(&self) -> bool {
        match self.gate {
            Gate::Closed => false,
            Gate::Held { overlapped, .. } => self.idle_since_ns.is_none() && !overlapped,
            Gate::Open | Gate::Sliced { .. } | Gate::Draining { .. } | Gate::Stuck { .. } => {
                !self.seen.is_drained()
            }
        }
    }

    /// True while it wants a device and its gates are shut.
    pub(crate) fn is_kept_waiting(&self) -> bool {
        match self.gate {
            Gate::Closed | Gate::Draining { .. } | Gate::Stuck { .. } => {
                self.backlogged && self.seen.waiting
            }
            Gate::Open | Gate::Held { .. } | Gate::Sliced { .. } => false,
        }
    }

    pub(crate) fn is_realtime(&self) -> bool {
        self.terms.class == ShareClass::Realtime
    }

    /// The class of those it competes with by virtual time.
    pub(crate) fn clock(&self) -> usize {
        usize::from(self.terms.class == ShareClass::Idle)
    }

    /// Before whom it comes: 0 is served first.
    pub(crate) fn rank(&self) -> u8 {
        match self.terms.class {
            ShareClass::Realtime if self.within_budget => 0,
            ShareClass::Realtime | ShareClass::Normal => 1,
            ShareClass::Idle => 2,
        }
    }

    /// How long it may be idle before its turn goes to another.
    pub(crate) fn grace_ns(&self) -> u64 {
        (self.gap_ns + self.gap_ns / 2).clamp(*GRACE_NS.start(), *GRACE_NS.end())
    }

    /// Learns how long it pauses between two pieces of work.
    pub(crate) fn note_gap(&mut self, gap_ns: u64) {
        if gap_ns <= GAP_MAX_NS {
            self.gap_ns = self.gap_ns - self.gap_ns / 8 + gap_ns / 8;
        }
    }

    /// Learns whether it must be looked at often.
    pub(crate) fn note_end(&mut self, cause: Cause) {
        self.look_ns = match cause {
            Cause::Idle => *LOOK_NS.start(),
            Cause::Over => (self.look_ns * 2).min(*LOOK_NS.end()),
        };
    }
}
