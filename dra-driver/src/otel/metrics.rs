//! Figures for the collector, under the names of OpenTelemetry's hardware conventions (`hw.*`,
//! status: development), from the answer that a scrape uses as well.
//!
//! A GPU's figures have the conventions' names; what they lack, or is no GPU, has names below
//! `accelpool.`. Figures of a claim come with its pod as their resource.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use accelpool_proto::{
    node::{AllocationMetrics, DeviceMetrics, GetMetricsResponse},
    otlp::{
        collector::metrics::v1::{
            AggregationTemporality, ExportMetricsServiceRequest, Gauge, Metric, NumberDataPoint,
            ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value,
        },
        common::v1::{KeyValue, Resource},
    },
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{
    connect::{Answer, Collector, Outgoing},
    encode::{Identity, scope, text},
    export::{Counts, Maker},
    settings::Target,
};
use crate::{
    labels,
    metrics::{Source, health},
};

/// What an instrument is: its name, its unit, and what kind of figure it gives.
struct Instrument {
    name: &'static str,
    unit: &'static str,
    kind: Kind,
}

/// Kinds of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of the moment, and senseless to add up.
    Gauge,
    /// Of the moment, and adds up over devices.
    UpDownCounter,
    /// It only grows.
    Counter,
}

const fn instrument(name: &'static str, unit: &'static str, kind: Kind) -> Instrument {
    Instrument { name, unit, kind }
}

const STATUS: Instrument = instrument("hw.status", "1", Kind::UpDownCounter);
const ENERGY: Instrument = instrument("hw.energy", "J", Kind::Counter);
const POWER: Instrument = instrument("hw.power", "W", Kind::Gauge);
const TEMPERATURE: Instrument = instrument("hw.temperature", "Cel", Kind::Gauge);
const ERRORS: Instrument = instrument("hw.errors", "{error}", Kind::Counter);
const IO: Instrument = instrument("hw.gpu.io", "By", Kind::Counter);
const COMPUTE: Instrument = instrument("accelpool.allocation.compute.time", "s", Kind::Counter);
/// A figure of the conventions, and what it is called for what is no GPU.
const USAGE: [Instrument; 2] = [
    instrument("hw.gpu.memory.usage", "By", Kind::UpDownCounter),
    instrument("accelpool.device.memory.usage", "By", Kind::UpDownCounter),
];
const LIMIT: [Instrument; 2] = [
    instrument("hw.gpu.memory.limit", "By", Kind::UpDownCounter),
    instrument("accelpool.device.memory.limit", "By", Kind::UpDownCounter),
];
const UTILIZATION: [Instrument; 2] = [
    instrument("hw.gpu.utilization", "1", Kind::Gauge),
    instrument("accelpool.device.utilization", "1", Kind::Gauge),
];

/// Sends the figures at each interval, until the task is dropped. A collector that is away
/// misses some: the next have all that counts.
pub async fn export_metrics(
    source: Arc<Source>,
    target: Target,
    identity: Identity,
    counts: Counts,
    every: Duration,
) {
    let collector = Collector::new(target);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut complained = false;
    loop {
        ticks.tick().await;
        let fetched = source.fetch().await;
        // What is old is not told as if it were new.
        let Some(metrics) = fetched.metrics.filter(|_| fetched.up) else { continue };
        let request = request(&metrics, &identity);
        let count = points(&request);
        let sent = timeout(every, collector.send(&Outgoing::Figures(request))).await;
        let why = match sent {
            Ok(Answer::Taken { rejected, why }) => {
                let rejected = rejected.min(count);
                counts.add("metrics", "sent", count - rejected);
                counts.add("metrics", "rejected", rejected);
                if rejected == 0 {
                    complained = false;
                    continue;
                }
                why
            }
            Ok(Answer::Later { why, .. } | Answer::Refused(why)) => {
                counts.add("metrics", "dropped", count);
                why
            }
            Err(_) => {
                counts.add("metrics", "dropped", count);
                "no answer before the next figures were due".to_owned()
            }
        };
        if !complained {
            complained = true;
            tracing::warn!(why, "the OpenTelemetry collector does not take figures");
        }
    }
}

fn points(request: &ExportMetricsServiceRequest) -> u64 {
    let scopes = request.resource_metrics.iter().flat_map(|it| &it.scope_metrics);
    let counted = scopes.flat_map(|it| &it.metrics).map(|metric| match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len() as u64,
        Some(Data::Sum(sum)) => sum.data_points.len() as u64,
        None => 0,
    });
    counted.sum()
}

/// The figures of `metrics`.
fn request(metrics: &GetMetricsResponse, identity: &Identity) -> ExportMetricsServiceRequest {
    let mut devices = Figures::new(metrics.unix_ms);
    for device in &metrics.devices {
        of_device(&mut devices, device);
    }
    let kinds: BTreeMap<&str, &str> =
        metrics.devices.iter().map(|it| (it.device.as_str(), it.kind.as_str())).collect();
    let mut pods: BTreeMap<Vec<(&'static str, &str)>, Figures> = BTreeMap::new();
    for allocation in &metrics.allocations {
        let pod = pods.entry(pod_of(allocation)).or_insert_with(|| Figures::new(metrics.unix_ms));
        let kind = kinds.get(allocation.device.as_str()).copied().unwrap_or_default();
        of_allocation(pod, allocation, kind);
    }
    let mut resource_metrics = vec![devices.told(identity.resource(Maker::Driver))];
    resource_metrics.extend(pods.into_iter().map(|(pod, figures)| {
        let pod: Vec<KeyValue> = pod.into_iter().map(|(key, value)| text(key, value)).collect();
        figures.told(identity.resource_of(pod))
    }));
    ExportMetricsServiceRequest { resource_metrics }
}

/// Whose figures they are; without Kubernetes nobody's but the node's.
fn pod_of(allocation: &AllocationMetrics) -> Vec<(&'static str, &str)> {
    let keys = [
        ("k8s.namespace.name", labels::NAMESPACE),
        ("k8s.pod.name", labels::POD),
        ("k8s.pod.uid", labels::POD_UID),
    ];
    let known = |(key, label)| Some((key, allocation.labels.get(label)?.as_str()));
    keys.into_iter().filter_map(known).collect()
}

fn of_device(figures: &mut Figures, device: &DeviceMetrics) {
    let own = [
        ("hw.id", device.device.as_str()),
        ("hw.name", &device.device),
        ("hw.type", &device.kind),
        ("hw.vendor", &device.vendor),
        ("hw.model", &device.model),
        ("hw.driver_version", &device.driver_version),
    ];
    let own: Vec<_> = own.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let with = |key, value| [own.as_slice(), &[(key, value)]].concat();
    let since_ms = device.since_unix_ms;
    let now = health(device);
    for (state, word) in [("ok", "healthy"), ("degraded", "degraded"), ("failed", "unhealthy")] {
        let is = u64::from(word == now);
        figures.whole(&STATUS, &with("hw.state", state), Some(is), since_ms);
    }
    let at = usize::from(device.kind != "gpu");
    figures.whole(&USAGE[at], &own, device.memory_used_bytes, since_ms);
    figures.whole(&LIMIT[at], &own, Some(device.memory_bytes), since_ms);
    figures.part(&ENERGY, &own, device.energy_mj, 1e3, since_ms);
    if let Some(ratio) = device.compute_ratio {
        let labels = with("hw.gpu.task", "general");
        figures.number(&UTILIZATION[at], &labels, Value::AsDouble(ratio), since_ms);
    }
    let Some(readings) = &device.readings else { return };
    for task in ["encoder", "decoder"] {
        let permille = readings.engine_permille.get(task).copied().map(u64::from);
        figures.part(&UTILIZATION[at], &with("hw.gpu.task", task), permille, 1e3, since_ms);
    }
    figures.part(&POWER, &own, readings.power_mw, 1e3, since_ms);
    for (sensor, millidegrees) in sorted(&readings.temperature_mc) {
        #[expect(clippy::cast_precision_loss, reason = "no device is that hot")]
        let celsius = Value::AsDouble(*millidegrees as f64 / 1e3);
        let labels = with("hw.sensor_location", sensor);
        figures.number(&TEMPERATURE, &labels, celsius, since_ms);
    }
    for (class, count) in sorted(&readings.errors) {
        figures.whole(&ERRORS, &with("error.type", class), Some(*count), since_ms);
    }
    if device.kind == "gpu" {
        for traffic in &readings.traffic {
            let direction = match traffic.direction.as_str() {
                "transmitted" => "transmit",
                "received" => "receive",
                _ => continue,
            };
            let labels = [
                own.as_slice(),
                &[("network.io.direction", direction), ("accelpool.link.type", &traffic.link)],
            ];
            figures.whole(&IO, &labels.concat(), Some(traffic.bytes), since_ms);
        }
    }
}

fn of_allocation(figures: &mut Figures, allocation: &AllocationMetrics, kind: &str) {
    let agent = allocation.agent.as_ref().map_or("", |agent| &agent.name);
    let own = [
        ("hw.id", allocation.device.as_str()),
        ("hw.type", kind),
        ("accelpool.claim.uid", &allocation.claim),
        ("accelpool.request", &allocation.request),
        ("accelpool.share.id", allocation.share_id.as_deref().unwrap_or_default()),
        ("accelpool.partition", &allocation.partition),
        ("accelpool.agent", agent),
    ];
    let own: Vec<_> = own.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let (at, since_ms) = (usize::from(kind != "gpu"), allocation.since_unix_ms);
    figures.whole(&USAGE[at], &own, allocation.memory_used_bytes, since_ms);
    figures.whole(&LIMIT[at], &own, Some(allocation.memory_limit_bytes), since_ms);
    if let Some(ratio) = allocation.compute_ratio {
        let labels = [own.as_slice(), &[("hw.gpu.task", "general")]].concat();
        figures.number(&UTILIZATION[at], &labels, Value::AsDouble(ratio), since_ms);
    }
    figures.part(&COMPUTE, &own, allocation.busy_ns, 1e9, since_ms);
    figures.part(&ENERGY, &own, allocation.energy_mj, 1e3, since_ms);
}

/// Figures of one resource, by instrument.
struct Figures {
    unix_ms: u64,
    metrics: BTreeMap<&'static str, Metric>,
}

impl Figures {
    fn new(unix_ms: u64) -> Self {
        Self { unix_ms, metrics: BTreeMap::new() }
    }

    /// Adds an amount that may not be known.
    fn whole(
        &mut self,
        instrument: &Instrument,
        labels: &[(&str, &str)],
        value: Option<u64>,
        since_ms: u64,
    ) {
        if let Some(value) = value {
            let value = Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX));
            self.number(instrument, labels, value, since_ms);
        }
    }

    /// Adds an amount that may not be known, in parts of its unit.
    fn part(
        &mut self,
        instrument: &Instrument,
        labels: &[(&str, &str)],
        value: Option<u64>,
        parts: f64,
        since_ms: u64,
    ) {
        if let Some(value) = value {
            #[expect(clippy::cast_precision_loss, reason = "what does not fit is rounded")]
            let value = Value::AsDouble(value as f64 / parts);
            self.number(instrument, labels, value, since_ms);
        }
    }

    fn number(
        &mut self,
        instrument: &Instrument,
        labels: &[(&str, &str)],
        value: Value,
        since_ms: u64,
    ) {
        let point = NumberDataPoint {
            start_time_unix_nano: match instrument.kind {
                Kind::Gauge => 0,
                Kind::Counter | Kind::UpDownCounter => nanoseconds(since_ms),
            },
            time_unix_nano: nanoseconds(self.unix_ms),
            value: Some(value),
            attributes: labels.iter().map(|(key, value)| text(key, value)).collect(),
        };
        let empty = || Metric {
            name: instrument.name.to_owned(),
            unit: instrument.unit.to_owned(),
            data: Some(match instrument.kind {
                Kind::Gauge => Data::Gauge(Gauge::default()),
                Kind::Counter | Kind::UpDownCounter => Data::Sum(Sum {
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: instrument.kind == Kind::Counter,
                    data_points: Vec::new(),
                }),
            }),
            ..Metric::default()
        };
        match &mut self.metrics.entry(instrument.name).or_insert_with(empty).data {
            Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
            Some(Data::Sum(sum)) => sum.data_points.push(point),
            None => {}
        }
    }

    fn told(self, resource: Resource) -> ResourceMetrics {
        let metrics = self.metrics.into_values().collect();
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics }];
        ResourceMetrics { resource: Some(resource), scope_metrics }
    }
}

fn nanoseconds(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000_000)
}

/// Entries in the order of their words.
fn sorted<T>(map: &std::collections::HashMap<String, T>) -> BTreeMap<&str, &T> {
    map.iter().map(|(word, value)| (word.as_str(), value)).collect()
}

#[cfg(test)]
mod tests;
