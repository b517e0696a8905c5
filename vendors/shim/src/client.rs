//! When a process registers, and when it tries again. Sans-IO: events and a clock in.
//!
//! ```text
//! Fresh --needed--> Connecting --welcome--> Registered --hang-up--> Waiting(10 ms)
//!                       |  \--failure, too fast--> Waiting(twice the last, at most 1 s)
//!                       |                             \--time over--> Connecting
//!                       \--any other refusal--> Refused: it runs without turns, the quota
//!                                               of the control page still holds
//! a fork: the child is Fresh, whatever its parent is
//! ```

use crate::wire::{Refusal, Welcome};

/// The wait after the first failure; a daemon that restarts is back within some of these.
pub const BACK_OFF_MIN_NS: u64 = 10_000_000;

/// The longest wait between two tries.
pub const BACK_OFF_MAX_NS: u64 = 1_000_000_000;

/// What a process is to its daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has asked for a device yet.
    Fresh,
    /// A try is under way.
    Connecting,
    /// The daemon knows the process.
    Registered {
        /// Which start of the daemon.
        incarnation: u64,
        /// Its row in the ledger page.
        process_index: u32,
    },
    /// The next try comes later.
    Waiting {
        /// In the process's monotonic time.
        until_ns: u64,
    },
    /// There will be no further try.
    Refused(Refusal),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A device is used.
    Needed,
    /// Time has passed.
    Tick,
    /// The daemon took the process.
    Welcomed(Welcome),
    /// The daemon did not take it.
    Refused(Refusal),
    /// No connection, no answer in time, or no record.
    Failed,
    /// The connection is gone.
    HungUp,
    /// This is the child of a fork.
    Forked,
}

/// The client of one claim.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    state: State,
    back_off_ns: u64,
    welcomed: Option<(u64, u32)>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A process that no daemon knows.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Fresh, back_off_ns: BACK_OFF_MIN_NS, welcomed: None }
    }

    /// What the process is now.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The incarnation that welcomed it last, and its row there, to return with.
    #[must_use]
    pub const fn welcomed(&self) -> Option<(u64, u32)> {
        self.welcomed
    }

    /// Takes an event. After it, `State::Connecting` where it was not so before asks for a try.
    pub fn step(&mut self, now_ns: u64, event: Event) -> State {
        match (event, self.state) {
            (Event::Forked, _) => *self = Self::new(),
            (Event::Needed, State::Fresh) => self.state = State::Connecting,
            (Event::Tick, State::Waiting { until_ns }) if until_ns <= now_ns => {
                self.state = State::Connecting;
            }
            (Event::Welcomed(welcome), State::Connecting) => {
                let Welcome { incarnation, process_index, .. } = welcome;
                self.state = State::Registered { incarnation, process_index };
                self.welcomed = Some((incarnation, process_index));
                self.back_off_ns = BACK_OFF_MIN_NS;
            }
            (Event::Failed | Event::Refused(Refusal::TooFast), State::Connecting)
            | (Event::HungUp, State::Registered { .. }) => self.wait(now_ns),
            // What an old try has left is no news to a later state.
            (Event::Refused(refusal), State::Connecting) => self.state = State::Refused(refusal),
            (
                Event::Needed
                | Event::Tick
                | Event::Welcomed(_)
                | Event::Refused(_)
                | Event::Failed
                | Event::HungUp,
                State::Fresh
                | State::Connecting
                | State::Registered { .. }
                | State::Waiting { .. }
                | State::Refused(_),
            ) => {}
        }
        self.state
    }

    fn wait(&mut self, now_ns: u64) {
        self.state = State::Waiting { until_ns: now_ns.saturating_add(self.back_off_ns) };
        self.back_off_ns = (self.back_off_ns * 2).min(BACK_OFF_MAX_NS);
    }
}

/// What to add to the daemon's times to get times of this process, which asked and was answered
/// at two times of its own clock.
///
/// A daemon with the same clock has read it in between. Another time namespace shifts it by
/// anything, a fraction of a second too: then it is the middle, off by half the answer's time
/// at most.
#[must_use]
pub fn clock_offset_ns(asked_ns: u64, daemon_ns: u64, answered_ns: u64) -> i64 {
    if (asked_ns..=answered_ns).contains(&daemon_ns) {
        return 0;
    }
    let half = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    half(asked_ns.midpoint(answered_ns)).saturating_sub(half(daemon_ns))
}
