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
mod tests {
    use accelpool_proto::node::{DeviceReadings, DeviceTaint, LinkTraffic};

    use super::*;
    use crate::otel::Settings;

    /// The instruments of the hardware conventions that are used here, with their units, as the
    /// conventions have them (semantic conventions 1.3x, `docs/hardware`).
    const CONVENTIONS: [(&str, &str); 9] = [
        ("hw.energy", "J"),
        ("hw.errors", "{error}"),
        ("hw.gpu.io", "By"),
        ("hw.gpu.memory.limit", "By"),
        ("hw.gpu.memory.usage", "By"),
        ("hw.gpu.utilization", "1"),
        ("hw.power", "W"),
        ("hw.status", "1"),
        ("hw.temperature", "Cel"),
    ];

    fn device(name: &str, kind: &str) -> DeviceMetrics {
        let traffic = LinkTraffic { link: "pcie".into(), direction: "received".into(), bytes: 7 };
        DeviceMetrics {
            device: name.into(),
            kind: kind.into(),
            vendor: "sim".into(),
            model: "H100".into(),
            driver_version: "550".into(),
            present: true,
            memory_bytes: 80,
            memory_used_bytes: Some(50),
            busy_ns: Some(9_000_000_000),
            energy_mj: Some(2500),
            compute_ratio: Some(0.5),
            since_unix_ms: 1000,
            readings: Some(DeviceReadings {
                power_mw: Some(300_500),
                temperature_mc: [("core".to_owned(), -1500)].into(),
                engine_permille: [("encoder".to_owned(), 250)].into(),
                errors: [("ecc-corrected".to_owned(), 3)].into(),
                traffic: vec![traffic],
                ..DeviceReadings::default()
            }),
            ..DeviceMetrics::default()
        }
    }

    fn told(metrics: &GetMetricsResponse) -> ExportMetricsServiceRequest {
        let settings = Settings::from_environment(&|name| {
            (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://x".to_owned())
        });
        let own = crate::plugin::OwnPod { namespace: "accelpool".into(), name: "d".into() };
        let settings = settings.unwrap().unwrap();
        request(metrics, &Identity::new(&settings, "worker-1", "u-1", Some(&own)))
    }

    fn sample() -> GetMetricsResponse {
        let pod = [(labels::NAMESPACE, "team"), (labels::POD, "a"), (labels::POD_UID, "u-a")];
        let allocation = AllocationMetrics {
            claim: "c".into(),
            device: "gpu-0".into(),
            labels: pod.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            memory_limit_bytes: 40,
            memory_used_bytes: Some(30),
            busy_ns: Some(1_500_000_000),
            compute_ratio: Some(0.25),
            ..AllocationMetrics::default()
        };
        GetMetricsResponse {
            unix_ms: 5000,
            devices: vec![device("gpu-0", "gpu"), device("npu-0", "npu")],
            allocations: vec![allocation],
            ..GetMetricsResponse::default()
        }
    }

    fn number(point: &NumberDataPoint) -> f64 {
        match point.value {
            Some(Value::AsDouble(number)) => number,
            Some(Value::AsInt(number)) => f64::from(i32::try_from(number).unwrap()),
            None => panic!("{point:?}"),
        }
    }

    /// Points of `metric` in `resource`, as `key=value,... number`.
    #[track_caller]
    fn check(resource: &ResourceMetrics, metric: &str, expected: &[&str]) {
        let metrics = &resource.scope_metrics[0].metrics;
        let found = metrics.iter().find(|it| it.name == metric);
        let points = match found.and_then(|it| it.data.as_ref()) {
            Some(Data::Gauge(gauge)) => gauge.data_points.as_slice(),
            Some(Data::Sum(sum)) => sum.data_points.as_slice(),
            None => &[],
        };
        let always = ["hw.name", "hw.type", "hw.vendor", "hw.model", "hw.driver_version"];
        let actual: Vec<String> = points
            .iter()
            .map(|point| {
                let words = point.attributes.iter().filter(|it| !always.contains(&it.key.as_str()));
                let words: Vec<_> = words.map(|it| format!("{}={}", it.key, word(it))).collect();
                format!("{} {}", words.join(","), number(point))
            })
            .collect();
        assert_eq!(actual, expected, "{metric}");
    }

    fn word(attribute: &KeyValue) -> &str {
        use accelpool_proto::otlp::common::v1::any_value::Value;
        match attribute.value.as_ref().and_then(|it| it.value.as_ref()) {
            Some(Value::StringValue(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_and_units_are_the_conventions() {
        for resource in told(&sample()).resource_metrics {
            for metric in &resource.scope_metrics[0].metrics {
                let own = metric.name.starts_with("accelpool.");
                let known = CONVENTIONS.contains(&(&metric.name, &metric.unit));
                assert!(own || known, "{} in {}", metric.name, metric.unit);
                let points = match metric.data.as_ref().unwrap() {
                    Data::Gauge(gauge) => &gauge.data_points,
                    Data::Sum(sum) => &sum.data_points,
                };
                for point in points {
                    // What the conventions require of each point.
                    for key in ["hw.id", "hw.type"] {
                        assert!(point.attributes.iter().any(|it| it.key == key), "{metric:?}");
                    }
                    assert_eq!(point.time_unix_nano, 5_000_000_000);
                }
            }
        }
    }

    #[test]
    fn figures_are_in_base_units() {
        let told = told(&sample());
        let [devices, pod] = told.resource_metrics.as_slice() else { panic!("{told:?}") };
        check(devices, "hw.gpu.memory.usage", &["hw.id=gpu-0 50"]);
        check(devices, "accelpool.device.memory.usage", &["hw.id=npu-0 50"]);
        let of_gpu =
            ["hw.id=gpu-0,hw.gpu.task=general 0.5", "hw.id=gpu-0,hw.gpu.task=encoder 0.25"];
        check(devices, "hw.gpu.utilization", &of_gpu);
        check(devices, "hw.energy", &["hw.id=gpu-0 2.5", "hw.id=npu-0 2.5"]);
        check(devices, "hw.power", &["hw.id=gpu-0 300.5", "hw.id=npu-0 300.5"]);
        let errors =
            ["hw.id=gpu-0,error.type=ecc-corrected 3", "hw.id=npu-0,error.type=ecc-corrected 3"];
        check(devices, "hw.errors", &errors);
        let heat = [
            "hw.id=gpu-0,hw.sensor_location=core -1.5",
            "hw.id=npu-0,hw.sensor_location=core -1.5",
        ];
        check(devices, "hw.temperature", &heat);
        let io = "hw.id=gpu-0,network.io.direction=receive,accelpool.link.type=pcie 7";
        check(devices, "hw.gpu.io", &[io]);
        check(pod, "hw.gpu.memory.limit", &["hw.id=gpu-0,accelpool.claim.uid=c 40"]);
        check(pod, "accelpool.allocation.compute.time", &["hw.id=gpu-0,accelpool.claim.uid=c 1.5"]);
    }

    #[test]
    fn a_claims_figures_have_its_pod_as_resource() {
        let told = told(&sample());
        let words = |resource: &ResourceMetrics, key: &str| {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            let found: Vec<_> = attributes.iter().filter(|it| it.key == key).map(word).collect();
            found.join(",")
        };
        let [devices, pod] = told.resource_metrics.as_slice() else { panic!("{told:?}") };
        for (key, own, of_pod) in [
            ("k8s.node.name", "worker-1", "worker-1"),
            ("k8s.namespace.name", "accelpool", "team"),
            ("k8s.pod.name", "d", "a"),
            ("k8s.pod.uid", "u-1", "u-a"),
        ] {
            assert_eq!((words(devices, key).as_str(), words(pod, key).as_str()), (own, of_pod));
        }
    }

    #[test]
    fn a_tainted_device_is_degraded_or_failed() {
        let mut metrics = sample();
        let taint = |effect: &str| DeviceTaint { effect: effect.into(), ..DeviceTaint::default() };
        metrics.devices[0].taints = vec![taint("NoSchedule")];
        metrics.devices[1].taints = vec![taint("NoExecute")];
        let told = told(&metrics);
        let states: Vec<String> = [("gpu-0", [0, 1, 0]), ("npu-0", [0, 0, 1])]
            .into_iter()
            .flat_map(|(device, is)| {
                let states = ["ok", "degraded", "failed"].into_iter().zip(is);
                states.map(move |(state, is)| format!("hw.id={device},hw.state={state} {is}"))
            })
            .collect();
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        check(&told.resource_metrics[0], "hw.status", &states);
    }
}
