//! A page: samples of the series in the table, and their encoding by the crate
//! `prometheus-client`.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use accelpool_proto::node::Histogram;
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder,
        NativeHistogram, NativeHistogramBuckets,
    },
    metrics::MetricType,
    registry::Unit,
};

use super::{
    exemplars::{Exemplar, Traced},
    series::{ALL, Kind, Series},
};

/// Labels of a sample, in order. An empty value is no label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Those that many samples share.
    common: Arc<Vec<(&'static str, String)>>,
    own: Option<(&'static str, String)>,
}

impl Labels {
    /// The labels of `pairs` that have a value.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'static str, &'a str)>) -> Self {
        let known = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        let common = known.map(|(key, value)| (key, value.to_owned())).collect();
        Self { common: Arc::new(common), own: None }
    }

    /// These and one more.
    #[must_use]
    pub fn with(&self, key: &'static str, value: &str) -> Self {
        Self { common: Arc::clone(&self.common), own: Some((key, value.to_owned())) }
    }

    /// Every label, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.common.iter().chain(&self.own).map(|(key, value)| (*key, value.as_str()))
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        for label in self.iter() {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// What a sample says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// Durations.
    Durations(Arc<Histogram>),
}

/// A sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which of its family.
    pub labels: Labels,
    /// What it says.
    pub value: Value,
}

/// Samples by family.
#[derive(Debug, Default)]
pub struct Page {
    samples: HashMap<&'static str, Vec<Sample>>,
    /// What was traced of its durations, and of those that this program counts itself.
    pub exemplars: Vec<Exemplar>,
}

impl Page {
    /// Adds a number.
    pub fn number(&mut self, series: &'static Series, labels: Labels, value: f64) {
        self.add(series, labels, Value::Number(value));
    }

    /// Adds an amount. Above 2^53 it is rounded, as Prometheus does.
    pub fn amount(&mut self, series: &'static Series, labels: Labels, value: u64) {
        self.number(series, labels, rounded(value));
    }

    /// Adds an amount that may not be known.
    pub fn known(&mut self, series: &'static Series, labels: Labels, value: Option<u64>) {
        if let Some(value) = value {
            self.amount(series, labels, value);
        }
    }

    /// Adds an amount that may not be known, in thousandths of its unit.
    pub fn milli(&mut self, series: &'static Series, labels: Labels, value: Option<u64>) {
        if let Some(value) = value {
            self.number(series, labels, rounded(value) / 1e3);
        }
    }

    /// Adds a time that may not be known.
    pub fn nanoseconds(&mut self, series: &'static Series, labels: Labels, value: Option<u64>) {
        if let Some(value) = value {
            self.number(series, labels, rounded(value) / 1e9);
        }
    }

    /// Adds a yes or no.
    pub fn flag(&mut self, series: &'static Series, labels: Labels, value: bool) {
        self.number(series, labels, if value { 1.0 } else { 0.0 });
    }

    /// Adds durations.
    pub fn durations(&mut self, series: &'static Series, labels: Labels, value: Histogram) {
        let traced = value.exemplars.iter().filter_map(|exemplar| {
            let bucket = usize::try_from(exemplar.bucket).ok()?;
            let mut ends = value.bounds_s.iter().copied().chain([f64::INFINITY]);
            let labels = labels.iter().map(|(key, value)| (key, value.to_owned())).collect();
            let (family, bound_s) = (series.name, ends.nth(bucket)?);
            Some(Exemplar { family, labels, bound_s, traced: Traced::of_wire(exemplar)? })
        });
        self.exemplars.extend(traced);
        self.add(series, labels, Value::Durations(Arc::new(value)));
    }

    fn add(&mut self, series: &'static Series, labels: Labels, value: Value) {
        debug_assert!(
            labels.iter().all(|(key, _)| series
                .labels
                .iter()
                .any(|known| known.trim_matches(['(', ')']) == key)),
            "{} has a label that its table lacks: {labels:?}",
            series.name
        );
        self.samples.entry(series.name).or_default().push(Sample { labels, value });
    }

    /// The samples of a family.
    #[must_use]
    pub fn samples(&self, series: &Series) -> &[Sample] {
        self.samples.get(series.name).map_or(&[], Vec::as_slice)
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.values().map(Vec::len).sum()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A whole number as Prometheus keeps numbers.
#[expect(clippy::cast_precision_loss, reason = "what does not fit is rounded, as Prometheus does")]
pub(super) fn rounded(value: u64) -> f64 {
    value as f64
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        for series in ALL {
            let samples = self.samples(series);
            if samples.is_empty() {
                continue;
            }
            let unit = series.unit.map(|unit| Unit::Other(unit.to_owned()));
            // The encoder adds the unit itself.
            let bare = series.unit.and_then(|unit| series.name.strip_suffix(unit));
            let name = bare.map_or(series.name, |bare| bare.trim_end_matches('_'));
            let kind = match series.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
                Kind::Info => MetricType::Info,
            };
            let mut family = encoder.encode_descriptor(
                name,
                &format!("{}.", series.help),
                unit.as_ref(),
                kind,
            )?;
            for sample in samples {
                encode_sample(series, sample, &mut family)?;
            }
        }
        Ok(())
    }
}

fn encode_sample(
    series: &Series,
    sample: &Sample,
    family: &mut MetricEncoder<'_>,
) -> std::fmt::Result {
    if series.kind == Kind::Info {
        return family.encode_info(&sample.labels);
    }
    let mut metric = family.encode_family(&sample.labels)?;
    match &sample.value {
        Value::Number(value) if series.kind == Kind::Counter => {
            metric.encode_counter::<Labels, f64, f64>(value, None)
        }
        Value::Number(value) => metric.encode_gauge(value),
        Value::Durations(durations) => encode_durations(durations, &mut metric),
    }
}

fn encode_durations(durations: &Histogram, metric: &mut MetricEncoder<'_>) -> std::fmt::Result {
    let bounds = durations.bounds_s.iter().copied().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(durations.counts.iter().copied()).collect();
    let mut spans: Vec<(i32, u32)> = Vec::new();
    let mut deltas = Vec::new();
    let (mut last_index, mut last_count) = (None, 0_i64);
    for (index, count) in durations.indexes.iter().zip(&durations.index_counts) {
        let gap =
            last_index.map_or(*index, |last: i32| index.saturating_sub(last).saturating_sub(1));
        match spans.last_mut() {
            Some((_, length)) if gap == 0 => *length += 1,
            _ => spans.push((gap, 1)),
        }
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        deltas.push(count.saturating_sub(last_count));
        (last_index, last_count) = (Some(*index), count);
    }
    let native = NativeHistogram {
        schema: durations.schema,
        // Nothing takes no time: the first bucket's end is above it.
        zero_threshold: 0.0,
        zero_count: 0,
        negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
        positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
        created: None,
    };
    metric.encode_histogram_with_native::<Labels>(
        durations.sum_s,
        durations.count,
        &buckets,
        None,
        native,
    )
}

/// The text of the `OpenMetrics` format in Prometheus' older one, for readers that know no other.
#[must_use]
pub fn to_classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    // A family's suffix belongs to its name here.
    let mut described = (String::new(), "");
    for line in text.lines() {
        if !line.starts_with('#') {
            classic.push_str(line);
            classic.push('\n');
            continue;
        }
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            // HELP comes before TYPE, which says what the name ends in.
            ["#", "HELP", name, help] => described = (format!("# HELP {name}"), help),
            ["#", "TYPE", name, kind] => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    kind => ("", kind),
                };
                let (start, help) = &described;
                writeln!(classic, "{start}{suffix} {help}\n# TYPE {name}{suffix} {kind}")
                    .expect("a String takes any text");
            }
            _ => {} // units and the end are not told here
        }
    }
    classic
}
