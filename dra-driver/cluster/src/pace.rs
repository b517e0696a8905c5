//! How fast and how stubbornly the API server is spoken to.
//!
//! Sans-IO: the clock and the dice are arguments.

use std::time::{Duration, Instant};

/// So many calls a second, and so many at once after a quiet time.
#[derive(Debug, Clone)]
pub(crate) struct RateLimit {
    interval: Duration,
    burst: u32,
    /// When the bucket will be full again; each call taken moves it on.
    full_at: Option<Instant>,
}

impl RateLimit {
    /// One call each `interval` on average, `burst` at once.
    pub(crate) const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: None }
    }

    /// Takes one call, and returns how long it must wait.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        self.full_at = Some(full_at);
        full_at.duration_since(now).saturating_sub(self.interval * self.burst)
    }

    /// Takes one call if it needs not wait.
    pub(crate) fn try_take(&mut self, now: Instant) -> bool {
        let before = self.full_at;
        let free = self.take(now).is_zero();
        if !free {
            self.full_at = before;
        }
        free
    }
}

/// Waits that double from try to try, each cut by up to half at random so that the nodes
/// of a cluster do not come back all at once.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempts: 0 }
    }

    /// The wait before the next try; `dice` is any number.
    pub(crate) fn next(&mut self, dice: u64) -> Duration {
        let doubled = 1u32.checked_shl(self.attempts).and_then(|by| self.first.checked_mul(by));
        self.attempts = self.attempts.saturating_add(1);
        let wait = doubled.unwrap_or(self.max).min(self.max);
        let half = wait / 2;
        let parts = u32::try_from(dice % 1001).unwrap_or(0);
        half + half * parts / 1000
    }

    /// How often it has been tried in vain.
    pub(crate) const fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) const fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// When to set right what somebody else disturbed: soon, but ever later in a quarrel.
#[derive(Debug, Clone)]
pub(crate) struct Repairs {
    backoff: Backoff,
    settle: Duration,
    quiet: Duration,
    last: Option<Instant>,
}

impl Repairs {
    /// Waits of `settle` at first, at most `max`; after `quiet` it begins anew.
    pub(crate) const fn new(settle: Duration, max: Duration, quiet: Duration) -> Self {
        Self { backoff: Backoff::new(settle, max), settle, quiet, last: None }
    }

    /// The wait before the repair of a disturbance at `now`; `None` if it belongs to the one
    /// before, whose repair is `pending`: a wipe takes slice after slice.
    pub(crate) fn after(&mut self, now: Instant, pending: bool, dice: u64) -> Option<Duration> {
        let since = self.last.replace(now).map(|last| now.duration_since(last));
        if since.is_none_or(|since| since > self.quiet) {
            self.backoff.reset();
        }
        let same = pending && since.is_some_and(|since| since < self.settle);
        (!same).then(|| self.backoff.next(dice))
    }
}

/// A number that differs from call to call and from process to process.
pub(crate) fn dice() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_is_paced() {
        let start = Instant::now();
        let mut limit = RateLimit::new(Duration::from_millis(100), 3);
        let waits: Vec<_> = (0..5).map(|_| limit.take(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        assert!(!limit.try_take(start));
        let later = start + Duration::from_millis(500);
        assert!((0..3).all(|_| limit.try_take(later)));
        assert!(!limit.try_take(later), "an idle time fills the bucket, no more");
    }

    #[test]
    fn a_wipe_is_one_disturbance_and_a_quarrel_is_slowed_down() {
        let (settle, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut repairs = Repairs::new(settle, max, Duration::from_mins(1));
        let mut now = Instant::now();
        let mut after = |pause_ms: u64, pending: bool| {
            now += Duration::from_millis(pause_ms);
            repairs.after(now, pending, 1000).map(|wait| wait.as_millis())
        };
        assert_eq!(after(0, false), Some(100));
        assert_eq!([after(5, true), after(5, true)], [None, None]);
        assert_eq!(after(1000, false), Some(200));
        assert_eq!(after(1000, false), Some(400));
        let quarrel: Vec<_> = (0..10).filter_map(|_| after(1000, false)).collect();
        assert_eq!(quarrel.last(), Some(&30_000));
        assert_eq!(after(61_000, false), Some(100), "a quiet time ends it");
    }

    #[test]
    fn waits_double_up_to_the_limit_and_are_spread() {
        let waits = |dice| {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
            (0..5).map(|_| backoff.next(dice).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1000), [100, 200, 400, 800, 1000]);
        assert_eq!(waits(0), [50, 100, 200, 400, 500]);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        for _ in 0..100 {
            assert!(backoff.next(dice()) <= Duration::from_mins(1));
        }
        backoff.reset();
        assert!(backoff.next(dice()) <= Duration::from_secs(1));
    }
}
