//! How the kubelet's calls fare: what the objectives for preparing are measured by.
//!
//! A claim that cannot be met as it is written is refused, which is no failure of the node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use accelpool_proto::trace::Here;

use prometheus_client::{
    metrics::{
        family::Family,
        histogram::{Histogram, NativeHistogramConfig},
    },
    registry::{Registry, Unit},
};

use crate::metrics::exemplars::{Exemplar, Traced};

const NAME: &str = "accelpool_kubelet_call_duration";
const FULL_NAME: &str = "accelpool_kubelet_call_duration_seconds";
/// Upper ends of the buckets, in seconds: from a claim that is prepared already to beyond the
/// 45 s after which the kubelet gives up.
const BOUNDS_S: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Eight buckets a doubling, and no more of them than from 1 us to 17 min.
const SCHEMA: i8 = 3;
const BUCKETS_MAX: usize = 240;

/// What the kubelet asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// A claim of `NodePrepareResources`.
    Prepare,
    /// A claim of `NodeUnprepareResources`.
    Unprepare,
    /// A container of a device plugin's `Allocate`.
    Allocate,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It cannot be done as it is asked for, now or later.
    Refused,
    /// It was not done, and not for what was asked.
    Failed,
}

impl Call {
    const ALL: [Self; 3] = [Self::Prepare, Self::Unprepare, Self::Allocate];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Unprepare => "unprepare",
            Self::Allocate => "allocate",
        }
    }
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Done, Self::Refused, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

type Labels = [(&'static str, &'static str); 2];

fn labels(call: Call, outcome: Outcome) -> Labels {
    [("call", call.as_str()), ("result", outcome.as_str())]
}

/// The durations of all calls. Cloned freely.
#[derive(Debug, Clone)]
pub struct CallTimes {
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    /// The latest that was traced, by labels and bucket.
    traced: Arc<Mutex<BTreeMap<(Labels, usize), Traced>>>,
}

impl CallTimes {
    /// Nothing was called yet. What can happen is there from the start, with none of it, so that
    /// the first failure is a rise.
    #[must_use]
    pub fn new() -> Self {
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        for call in Call::ALL {
            for outcome in Outcome::ALL {
                drop(durations.get_or_create(&labels(call, outcome)));
            }
        }
        Self { durations, traced: Arc::default() }
    }

    /// Has `registry` tell of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            NAME,
            "Time from a call of the kubelet to its answer, for each claim or container of it: \
             prepare, unprepare, allocate; done, refused (it cannot be met as it is asked for), failed",
            Unit::Seconds,
            self.durations.clone(),
        );
    }

    /// Takes one call that began at `started`, in the span `here` if it was traced.
    pub fn observe(&self, call: Call, outcome: Outcome, started: Instant, here: &Here) {
        let seconds = started.elapsed().as_secs_f64();
        let labels = labels(call, outcome);
        self.durations.get_or_create(&labels).observe(seconds);
        if let Some(context) = here.context() {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            let traced = Traced::new(context.trace_id, context.span_id, seconds, unix_ms);
            let bucket = BOUNDS_S.partition_point(|bound| *bound < seconds);
            self.traced().insert((labels, bucket), traced);
        }
    }

    /// For each bucket the latest call that was traced.
    #[must_use]
    pub fn exemplars(&self) -> Vec<Exemplar> {
        let exemplar = |((labels, bucket), traced): (&(Labels, usize), &Traced)| Exemplar {
            family: FULL_NAME,
            labels: labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            bound_s: BOUNDS_S.get(*bucket).copied().unwrap_or(f64::INFINITY),
            traced: *traced,
        };
        self.traced().iter().map(exemplar).collect()
    }

    fn traced(&self) -> MutexGuard<'_, BTreeMap<(Labels, usize), Traced>> {
        // An entry is whole or is not there.
        self.traced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CallTimes {
    fn default() -> Self {
        Self::new()
    }
}

fn histogram() -> Histogram {
    let native = NativeHistogramConfig::with_schema(SCHEMA).max_buckets(BUCKETS_MAX);
    Histogram::new_classic_and_native(BOUNDS_S, native)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn every_outcome_is_there_before_it_happens() {
        let times = CallTimes::new();
        times.observe(Call::Prepare, Outcome::Failed, Instant::now(), &Here::default());
        let mut registry = Registry::default();
        times.register(&mut registry);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        for call in Call::ALL {
            for outcome in Outcome::ALL {
                let failed = (call, outcome) == (Call::Prepare, Outcome::Failed);
                let line = format!(
                    "accelpool_kubelet_call_duration_seconds_count{{call=\"{}\",result=\"{}\"}} {}",
                    call.as_str(),
                    outcome.as_str(),
                    u8::from(failed)
                );
                assert!(page.contains(&line), "{line} is not in {page}");
            }
        }
    }
}
