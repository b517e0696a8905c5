//! Durations, counted into buckets: fixed ones for every reader, exponential ones for those
//! who can read them (Prometheus' native histograms, schema 3: eight buckets a doubling).

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use accelpool_proto::trace::{Here, TraceContext};

use crate::node::now_ms;

/// Upper ends of the fixed buckets, in seconds: from a cheap call to the longest deadline.
pub const BOUNDS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Exponential buckets have this resolution.
pub const SCHEMA: i32 = 3;
/// The exponential buckets that are kept end at 2^-20 s (1 us) to 2^10 s (17 min); what lies
/// outside counts into the outermost, so that the memory of a histogram is bounded.
const INDEX_MIN: i32 = -160;
const INDEX_MAX: i32 = 80;

/// Durations of one kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// All of them together.
    pub sum: Duration,
    /// How many.
    pub count: u64,
    /// How many in each fixed bucket, and beyond the last.
    pub counts: [u64; BOUNDS_S.len() + 1],
    /// How many in each exponential bucket that is not empty.
    pub exponential: BTreeMap<i32, u64>,
    /// The latest that was traced, of the fixed buckets that have one.
    pub traced: BTreeMap<usize, Traced>,
}

/// A duration that was traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traced {
    /// The span that took it.
    pub context: TraceContext,
    /// How long.
    pub took: Duration,
    /// When it ended.
    pub unix_ms: u64,
}

impl Histogram {
    /// Takes one duration, of this span if it was traced.
    pub fn observe(&mut self, duration: Duration, context: Option<TraceContext>) {
        let seconds = duration.as_secs_f64();
        self.sum = self.sum.saturating_add(duration);
        self.count += 1;
        let fixed = BOUNDS_S.partition_point(|bound| *bound < seconds);
        self.counts[fixed] += 1;
        *self.exponential.entry(exponential_index(seconds)).or_default() += 1;
        if let Some(context) = context {
            self.traced.insert(fixed, Traced { context, took: duration, unix_ms: now_ms() });
        }
    }
}

/// The exponential bucket of a number of seconds: the first whose end is not below it.
fn exponential_index(seconds: f64) -> i32 {
    static ENDS: OnceLock<Vec<f64>> = OnceLock::new();
    let ends = ENDS.get_or_init(|| {
        let doubling = f64::from(1 << SCHEMA);
        (INDEX_MIN..=INDEX_MAX).map(|index| (f64::from(index) / doubling).exp2()).collect()
    });
    let place = ends.partition_point(|end| *end < seconds);
    i32::try_from(place).map_or(INDEX_MAX, |place| (INDEX_MIN + place).min(INDEX_MAX))
}

/// Durations by a word from a fixed set, such as a call's name. Shared freely.
#[derive(Debug, Default)]
pub struct Timings {
    by_word: Mutex<BTreeMap<&'static str, Histogram>>,
}

impl Timings {
    /// Takes the time since `started`, which was spent in `here`.
    pub fn observe_since(&self, word: &'static str, started: Instant, here: &Here) {
        let took = started.elapsed();
        self.lock().entry(word).or_default().observe(took, here.context());
    }

    /// Everything so far.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, Histogram> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Histogram>> {
        // Counters are never half changed in a way that matters.
        self.by_word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(nanoseconds: u64, fixed: usize, exponential: i32) {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_nanos(nanoseconds), None);
        assert_eq!(histogram.counts.iter().position(|count| *count == 1), Some(fixed));
        assert_eq!(histogram.exponential, BTreeMap::from([(exponential, 1)]));
        assert_eq!((histogram.count, histogram.counts.iter().sum::<u64>()), (1, 1));
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        check(1_000_000, 0, -79);
        check(1_000_001, 1, -79);
        check(1_000_000_000, 9, 0);
        check(1_000_000_001, 10, 1);
        check(2_000_000_000, 10, 8);
    }

    #[test]
    fn a_bucket_keeps_the_latest_that_was_traced() {
        let mut histogram = Histogram::default();
        let (first, second) = (TraceContext::fresh(), TraceContext::fresh());
        let took = Duration::from_millis(4);
        for context in [Some(first), Some(second), None] {
            histogram.observe(took, context);
        }
        histogram.observe(Duration::MAX, Some(first));
        let kept: Vec<_> =
            histogram.traced.iter().map(|(bucket, it)| (*bucket, it.context, it.took)).collect();
        assert_eq!(kept, [(2, second, took), (14, first, Duration::MAX)]);
    }

    #[test]
    fn the_outermost_buckets_take_the_rest() {
        check(0, 0, INDEX_MIN);
        check(u64::MAX, 14, INDEX_MAX);
    }
}
