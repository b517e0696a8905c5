//! Traces on their way to a collector: what a call of the kubelet becomes, and that nothing
//! waits for a collector that is away, slow or unwilling.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{net::SocketAddr, time::Duration};

use accelpool_dra_driver::{driver::Driver, otel};
use accelpool_kubelet_double::Kubelet;
use accelpool_proto::{
    node as wire,
    otlp::{collector::trace::v1::SpanKind, common::v1::any_value::Value},
    trace::TraceContext,
};
use tonic::Code;

use crate::common::{
    Bench, GPU_0, GPU_1, Setup,
    collector::{Collector, Mood, Told, text},
    eventually, get, get_as, result, uid_of,
};

const GPU: &str = "accelpool.dev/gpu";

/// The settings of these variables, with spans sent at once.
fn settings(variables: &[(&str, &str)]) -> otel::Settings {
    let read = otel::Settings::from_environment(&|name| {
        let quick = [("OTEL_BSP_SCHEDULE_DELAY", "10")];
        let found = quick.iter().chain(variables).find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    read.unwrap().unwrap()
}

fn over(protocol: &str, address: SocketAddr) -> otel::Settings {
    settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ])
}

async fn traced(protocol: &str) -> (Bench, Kubelet, Driver, Collector) {
    traced_with(protocol, Setup::default()).await
}

async fn traced_with(protocol: &str, setup: Setup) -> (Bench, Kubelet, Driver, Collector) {
    let collector = Collector::start().await;
    let address = if protocol == "grpc" { collector.grpc } else { collector.http };
    let mut bench = Bench::new(setup).await;
    bench.otel = Some(over(protocol, address));
    let kubelet = bench.kubelet();
    let driver = bench.driver(common::POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    (bench, kubelet, driver, collector)
}

#[track_caller]
fn find<'a>(spans: &'a [Told], name: &str) -> &'a Told {
    let named: Vec<_> = spans.iter().filter(|told| told.span.name == name).collect();
    let [found] = named.as_slice() else { panic!("{} spans `{name}` in {spans:?}", named.len()) };
    found
}

/// A driver's counter of spans.
async fn count(driver: &Driver, result: &str) -> u64 {
    let (_, page) = get(driver.http.unwrap(), "/metrics").await;
    let wanted = format!("result=\"{result}\"");
    let line = page.lines().find(|line| {
        line.starts_with("accelpool_otlp_items_total")
            && line.contains("signal=\"traces\"")
            && line.contains(&wanted)
    });
    line.unwrap_or_else(|| panic!("{page}")).rsplit(' ').next().unwrap().parse().unwrap()
}

async fn counted(driver: &Driver, result: &str, least: u64) {
    let waiting = async {
        while count(driver, result).await < least {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_mins(1), waiting).await;
    assert!(reached.is_ok(), "never {least} spans were {result}");
}

fn attribute(key: &str) -> wire::SpanAttribute {
    wire::SpanAttribute { key: key.to_owned(), ..wire::SpanAttribute::default() }
}

fn hex(id: &[u8]) -> String {
    let digits: Vec<String> = id.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

async fn check_trace(protocol: &str) {
    let (bench, kubelet, driver, collector) = traced(protocol).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    eventually("the call's spans arrive", || collector.spans().len() >= 4).await;

    let spans = collector.spans();
    let root = find(&spans, "NodePrepareResources");
    let claim = find(&spans, "prepare");
    let read = find(&spans, "read claim");
    let call = find(&spans, "accelpool.node.v1.Node/PrepareClaim");
    assert_eq!(root.span.parent_span_id, [0; 0], "the kubelet's call is the root");
    assert_eq!(claim.span.parent_span_id, root.span.span_id);
    assert_eq!(read.span.parent_span_id, claim.span.span_id);
    assert_eq!(call.span.parent_span_id, claim.span.span_id);
    for told in &spans {
        let span = &told.span;
        assert_eq!(span.trace_id, root.span.trace_id);
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert_eq!((span.status.as_ref(), span.flags), (None, 1), "{span:?}");
        let resource = &told.resource.attributes;
        assert_eq!(text(resource, "service.name"), Some("accelpool-dra"));
        assert_eq!(text(resource, "k8s.node.name"), Some(common::NODE));
        assert_eq!(text(resource, "k8s.pod.uid"), Some(common::POD_UID));
        assert_eq!(text(resource, "deployment.environment.name"), Some("test"));
    }
    assert_eq!((root.span.kind(), call.span.kind()), (SpanKind::Server, SpanKind::Client));
    assert_eq!(claim.span.kind(), SpanKind::Internal);
    let attributes = &claim.span.attributes;
    assert_eq!(text(attributes, "accelpool.claim.uid"), Some(uid_of("a").as_str()));
    assert_eq!(text(attributes, "k8s.namespace.name"), Some("team"));
    assert!(collector.keys().iter().all(|key| key == "secret"), "{:?}", collector.keys());
    assert!(!collector.keys().is_empty());
    counted(&driver, "sent", 4).await;

    // What the daemon is sent is the span of the call to it.
    let parent: TraceContext = bench.daemon.traceparent(&uid_of("a")).unwrap().parse().unwrap();
    assert_eq!(parent.span_id.to_be_bytes().as_slice(), call.span.span_id);
    assert_eq!(parent.trace_id.to_be_bytes().as_slice(), call.span.trace_id);
    // And its own spans come out here as well, as its own.
    let span = wire::Span {
        trace_id: root.span.trace_id.clone(),
        span_id: vec![7; 8],
        parent_span_id: call.span.span_id.clone(),
        name: "PrepareClaim".to_owned(),
        attributes: vec![wire::SpanAttribute { number: Some(0.5), ..attribute("part") }],
        ..wire::Span::default()
    };
    bench.daemon.tell_span(span).await;
    eventually("the daemon's span arrives", || collector.spans().len() >= 5).await;
    let spans = collector.spans();
    let told = find(&spans, "PrepareClaim");
    assert_eq!(told.span.parent_span_id, call.span.span_id);
    let number = told.span.attributes[0].value.clone().unwrap().value;
    assert_eq!(number, Some(Value::DoubleValue(0.5)), "a number stays one");
    assert_eq!(text(&told.resource.attributes, "service.name"), Some("accelpoold"));
    assert_eq!(text(&told.resource.attributes, "k8s.node.name"), Some(common::NODE));
    driver.drain().await;
}

#[tokio::test]
async fn a_call_of_the_kubelet_is_a_trace_over_grpc() {
    check_trace("grpc").await;
}

#[tokio::test]
async fn a_call_of_the_kubelet_is_a_trace_over_http() {
    check_trace("http/protobuf").await;
}

#[tokio::test]
async fn a_failure_is_in_the_trace_and_the_trace_in_the_event() {
    let (bench, kubelet, driver, collector) = traced("grpc").await;
    bench.daemon.refuse(Code::InvalidArgument, "AP0100", 1);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    eventually("the call's spans arrive", || collector.spans().len() >= 4).await;
    let spans = collector.spans();
    for name in ["NodePrepareResources", "prepare", "accelpool.node.v1.Node/PrepareClaim"] {
        let status = find(&spans, name).span.status.clone().unwrap();
        assert!(status.message.contains("refused by the test"), "{name}: {status:?}");
    }
    assert!(error.contains("refused by the test"), "{error}");
    let trace_id = &find(&spans, "prepare").span.trace_id;
    let digits = hex(trace_id);
    let named = || {
        let events = bench.api.list("events");
        events
            .iter()
            .any(|event| event["metadata"]["annotations"]["accelpool.dev/trace-id"] == digits)
    };
    eventually("an event names the trace", named).await;
    driver.drain().await;
}

/// The kubelet's tracing is on: its span is the parent, and its decision is followed.
#[tokio::test]
async fn the_kubelets_own_span_is_the_parent() {
    let setup = Setup { exposure: "both", ..Setup::default() };
    let (bench, kubelet, driver, collector) = traced_with("grpc", setup).await;
    let sync_pod = TraceContext::fresh();
    kubelet.claims.caller.set(&sync_pod.to_string());
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    kubelet.claims.unprepare(&pod).await.unwrap();
    kubelet.extended.caller.set(&sync_pod.to_string());
    kubelet.extended.wait_for(GPU, |devices| !devices.is_empty()).await;
    let ids = kubelet.extended.allocate(("team", "p"), "main", GPU, 1).await.unwrap();
    let roots = ["NodePrepareResources", "NodeUnprepareResources", "Allocate"];
    let arrived = || {
        let spans = collector.spans();
        roots.iter().all(|root| spans.iter().any(|told| told.span.name == *root))
    };
    eventually("the calls' spans arrive", arrived).await;
    let spans = collector.spans();
    for name in roots {
        let root = &find(&spans, name).span;
        assert_eq!(root.parent_span_id, sync_pod.span_id.to_be_bytes(), "{name}");
        assert_eq!(root.kind(), SpanKind::Server);
    }
    let trace_id = sync_pod.trace_id.to_be_bytes();
    assert!(spans.iter().all(|told| told.span.trace_id == trace_id), "{spans:?}");
    // An allocation is a trace down to the daemon as well.
    let allocate = &find(&spans, "Allocate").span;
    assert_eq!(text(&allocate.attributes, "accelpool.resource"), Some(GPU));
    let calls = || collector.spans().into_iter().map(|told| told.span);
    let of_allocate = || calls().any(|span| span.parent_span_id == allocate.span_id);
    eventually("the call to the daemon arrives", of_allocate).await;

    // Not sampled there, not sampled here.
    let before = collector.spans().len();
    let unsampled = TraceContext { sampled: false, ..TraceContext::fresh() };
    kubelet.claims.caller.set(&unsampled.to_string());
    let free = [GPU_0, GPU_1].into_iter().find(|gpu| !ids[0].contains(gpu)).unwrap();
    let other = bench.claim("b", &[result("gpu", free)]);
    kubelet.claims.prepare(&other).await.unwrap();
    assert_eq!(bench.daemon.traceparent(&uid_of("b")), None);
    driver.drain().await;
    let after = collector.spans().split_off(before);
    let unsampled = unsampled.trace_id.to_be_bytes();
    assert!(after.iter().all(|told| told.span.trace_id != unsampled), "{after:?}");
}

/// What the daemon begins by itself, faults and turns, is the driver's to sample.
#[tokio::test]
async fn the_driver_samples_what_the_daemon_begins() {
    let collector = Collector::start().await;
    let mut bench = Bench::new(Setup::default()).await;
    let endpoint = format!("http://{}", collector.grpc);
    bench.otel = Some(settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ]));
    let driver = bench.driver(common::POD_UID).await;
    let told = |high: u8, undecided| wire::Span {
        trace_id: [&[1; 8][..], &[high; 8]].concat(),
        span_id: vec![7; 8],
        name: "turn".to_owned(),
        undecided,
        ..wire::Span::default()
    };
    // Above the sampler's half, below it, and decided by somebody else.
    for span in [told(0xff, true), told(1, true), told(0xee, false)] {
        bench.daemon.tell_span(span).await;
    }
    eventually("the spans arrive", || collector.spans().len() >= 2).await;
    driver.drain().await;
    let kept: Vec<u8> = collector.spans().iter().map(|told| told.span.trace_id[15]).collect();
    assert_eq!(kept, [1, 0xee]);
}

/// Who looks at a slow bucket finds the trace of a call that fell into it, in both forms.
#[tokio::test]
async fn durations_name_a_trace() {
    let (bench, kubelet, driver, collector) = traced("grpc").await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    eventually("the call's spans arrive", || collector.spans().len() >= 4).await;
    let span = find(&collector.spans(), "prepare").span.clone();
    let ids =
        format!("{{trace_id=\"{}\",span_id=\"{}\"}}", hex(&span.trace_id), hex(&span.span_id));
    let address = driver.http.unwrap();
    let accept = "application/openmetrics-text; version=1.0.0";
    let (_, page) = get_as(address, "/metrics", accept).await;
    let named: Vec<&str> = page.lines().filter(|line| line.contains(&ids)).collect();
    let [line] = named.as_slice() else { panic!("{named:?} in {page}") };
    assert!(line.starts_with("accelpool_kubelet_call_duration_seconds_bucket{"), "{line}");
    assert!(line.contains("call=\"prepare\"") && line.contains("result=\"done\""), "{line}");
    let [value, unix_s] = line.rsplit(' ').take(2).collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    let (value, unix_s) = (unix_s.parse::<f64>().unwrap(), value.parse::<f64>().unwrap());
    let seconds = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64();
    let took_s = seconds(span.end_time_unix_nano - span.start_time_unix_nano);
    assert!(value > 0.0 && value <= took_s + 0.1, "{value} of {took_s}");
    let ended_s = seconds(span.end_time_unix_nano);
    assert!((unix_s - ended_s).abs() < 60.0, "{unix_s} is not about {ended_s}");
    // The older text has no place for them.
    let (_, page) = get(address, "/metrics").await;
    assert!(!page.contains("trace_id"), "{page}");
    driver.drain().await;
}

/// Both transports: asked to come again, it comes again; refused, it gives up and counts.
async fn check_moods(protocol: &str) {
    let (bench, kubelet, driver, collector) = traced(protocol).await;
    collector.expect([Mood::Later(Duration::from_secs(1)), Mood::Later(Duration::ZERO)]);
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    counted(&driver, "sent", 4).await;
    assert!(collector.exports() >= 3, "{}", collector.exports());
    assert_eq!(count(&driver, "dropped").await, 0);

    collector.expect([Mood::Refuse]);
    kubelet.claims.unprepare(&pod).await.unwrap();
    counted(&driver, "dropped", 1).await;

    collector.expect([Mood::Reject(1)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    counted(&driver, "rejected", 1).await;
    driver.drain().await;
}

#[tokio::test]
async fn a_collector_may_refuse_over_grpc() {
    check_moods("grpc").await;
}

#[tokio::test]
async fn a_collector_may_refuse_over_http() {
    check_moods("http/protobuf").await;
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_nothing() {
    let collector = Collector::start().await;
    collector.expect([Mood::Hang; 64]);
    let mut bench = Bench::new(Setup::default()).await;
    bench.otel = Some(settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", collector.http)),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ]));
    let kubelet = bench.kubelet();
    let driver = bench.driver(common::POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    // The first batch hangs; then the queue fills, and the rest is dropped and counted.
    for _ in 0..4 {
        kubelet.claims.prepare(&pod).await.unwrap();
        kubelet.claims.unprepare(&pod).await.unwrap();
    }
    counted(&driver, "dropped", 1).await;
    assert_eq!(count(&driver, "sent").await, 0);
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nothing() {
    // A port that was just given back: nobody listens there.
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bench = Bench::new(Setup::default()).await;
    bench.otel = Some(over("grpc", away));
    let kubelet = bench.kubelet();
    let driver = bench.driver(common::POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    // It does not wait for the collector at its end either.
    driver.drain().await;
}

#[tokio::test]
async fn without_a_collector_there_is_no_trace() {
    let (bench, kubelet, driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.traceparent(&uid_of("a")), None);
    let (_, page) = get(driver.http.unwrap(), "/metrics").await;
    assert!(!page.contains("accelpool_otlp"), "what is off has no series");
}

/// Over both transports, and while the collector refuses some of them.
#[tokio::test]
async fn figures_arrive_at_each_interval() {
    let collector = Collector::start().await;
    collector.expect([Mood::Refuse]);
    for (protocol, address) in [("grpc", collector.grpc), ("http/protobuf", collector.http)] {
        let mut bench = Bench::new(Setup::default()).await;
        bench.otel = Some(settings(&[
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("http://{address}/v1/metrics")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ]));
        let before = collector.metrics().len();
        let driver = bench.driver(common::POD_UID).await;
        eventually("figures arrive", || collector.metrics().len() > before).await;
        let (resource, metric) = collector.metrics().pop().unwrap();
        assert!(metric.name.starts_with("hw."), "{metric:?}");
        assert_eq!(text(&resource.attributes, "k8s.node.name"), Some(common::NODE));
        driver.drain().await;
    }
    assert!(collector.exports() >= 3, "one was refused");
}
