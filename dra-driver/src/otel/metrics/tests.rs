//! Figures as a collector gets them: names, units and whose they are.

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
    let of_gpu = ["hw.id=gpu-0,hw.gpu.task=general 0.5", "hw.id=gpu-0,hw.gpu.task=encoder 0.25"];
    check(devices, "hw.gpu.utilization", &of_gpu);
    check(devices, "hw.energy", &["hw.id=gpu-0 2.5", "hw.id=npu-0 2.5"]);
    check(devices, "hw.power", &["hw.id=gpu-0 300.5", "hw.id=npu-0 300.5"]);
    let errors =
        ["hw.id=gpu-0,error.type=ecc-corrected 3", "hw.id=npu-0,error.type=ecc-corrected 3"];
    check(devices, "hw.errors", &errors);
    let heat =
        ["hw.id=gpu-0,hw.sensor_location=core -1.5", "hw.id=npu-0,hw.sensor_location=core -1.5"];
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
