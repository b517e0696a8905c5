//! Exemplars: for a bucket of a histogram the latest duration that was traced, with its trace.
//!
//! `prometheus-client` writes exemplars of its own histograms alone, and of none that is native;
//! so they are put into what it has written, as text or as families.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use accelpool_proto::node;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    self as wire, LabelPair, MetricFamily,
};

/// One duration that a trace tells more of.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// The histogram's name.
    pub family: &'static str,
    /// Labels that tell its samples apart, of fixed words.
    pub labels: Vec<(&'static str, String)>,
    /// The upper end of its bucket.
    pub bound_s: f64,
    /// What was traced.
    pub traced: Traced,
}

/// The duration and its span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traced {
    trace_id: u128,
    span_id: u64,
    value_s: f64,
    unix_ms: u64,
}

impl Traced {
    /// One that took so long and ended then.
    #[must_use]
    pub const fn new(trace_id: u128, span_id: u64, value_s: f64, unix_ms: u64) -> Self {
        Self { trace_id, span_id, value_s, unix_ms }
    }

    /// As the daemon tells it, if its ids are some.
    pub(super) fn of_wire(exemplar: &node::Exemplar) -> Option<Self> {
        let trace_id = u128::from_be_bytes(exemplar.trace_id.as_slice().try_into().ok()?);
        let span_id = u64::from_be_bytes(exemplar.span_id.as_slice().try_into().ok()?);
        Some(Self::new(trace_id, span_id, exemplar.value_s, exemplar.unix_ms))
    }

    fn labels(self) -> [(&'static str, String); 2] {
        let Self { trace_id, span_id, .. } = self;
        [("trace_id", format!("{trace_id:032x}")), ("span_id", format!("{span_id:016x}"))]
    }
}

/// The text with its exemplars, which only `OpenMetrics` knows.
pub(super) fn into_text(text: String, exemplars: &[Exemplar]) -> String {
    if exemplars.is_empty() {
        return text;
    }
    let mut traced = String::with_capacity(text.len() + exemplars.len() * 128);
    for line in text.lines() {
        traced.push_str(line);
        if let Some(found) = exemplars.iter().find(|exemplar| exemplar.is_of_line(line)) {
            let [trace, span] = found.traced.labels().map(|(key, id)| format!("{key}=\"{id}\""));
            let Traced { value_s, unix_ms, .. } = found.traced;
            let (seconds, rest) = (unix_ms / 1000, unix_ms % 1000);
            write!(traced, " # {{{trace},{span}}} {value_s} {seconds}.{rest:03}")
                .expect("a String takes any text");
        }
        traced.push('\n');
    }
    traced
}

/// The families with their exemplars: at the fixed bucket, and once more for readers of native
/// histograms.
pub(super) fn into_families(families: &mut [MetricFamily], exemplars: &[Exemplar]) {
    for exemplar in exemplars {
        let of_name = families.iter_mut().filter(|family| family.name == exemplar.family);
        let of_labels = of_name
            .flat_map(|family| &mut family.metric)
            .filter(|metric| exemplar.has_labels(|key| pair(&metric.label, key)));
        for histogram in of_labels.filter_map(|metric| metric.histogram.as_mut()) {
            let is_its = |bucket: &&mut wire::Bucket| same(bucket.upper_bound, exemplar.bound_s);
            if let Some(bucket) = histogram.bucket.iter_mut().find(is_its) {
                bucket.exemplar = Some(exemplar.to_wire());
                histogram.exemplars.push(exemplar.to_wire());
            }
        }
    }
}

fn pair<'a>(labels: &'a [LabelPair], key: &str) -> Option<&'a str> {
    labels.iter().find(|pair| pair.name == key).map(|pair| pair.value.as_str())
}

/// Bounds are constants that are handed on: none is computed.
fn same(a: f64, b: f64) -> bool {
    a.total_cmp(&b).is_eq()
}

impl Exemplar {
    fn is_of_line(&self, line: &str) -> bool {
        let Some((name, rest)) = line.split_once('{') else { return false };
        let Some((labels, _)) = rest.rsplit_once('}') else { return false };
        // No value of these families has a comma: they are our words, and a node's name.
        let label = |key: &str| {
            let mut pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(own, _)| *own == key).map(|(_, value)| value.trim_matches('"'))
        };
        let bound = || label("le").and_then(|le| le.parse().ok());
        name.strip_suffix("_bucket") == Some(self.family)
            && self.has_labels(label)
            && bound().is_some_and(|bound| same(bound, self.bound_s))
    }

    fn has_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels.iter().all(|(key, value)| label(key) == Some(value))
    }

    fn to_wire(&self) -> wire::Exemplar {
        let labels = self.traced.labels();
        let label = labels.map(|(name, value)| LabelPair { name: name.to_owned(), value });
        let ended = UNIX_EPOCH.checked_add(Duration::from_millis(self.traced.unix_ms));
        wire::Exemplar {
            label: label.into(),
            value: self.traced.value_s,
            timestamp: ended.map(Into::into),
        }
    }
}
