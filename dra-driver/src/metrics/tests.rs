//! The page as it is read: golden, complete, bounded, and described in docs/metrics.md.

mod dcgm;

use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::Path};

use accelpool_proto::node::{
    Agent, AgentMetrics, AllocationMetrics, CountByWord, DaemonMetrics, DeviceMetrics,
    DeviceReadings, DeviceTaint, Exemplar, GateMetrics, GateOpens, GetMetricsResponse, Histogram,
    LinkTraffic, Throttle, TimingByWord, TurnsMetrics, VendorMetrics,
};

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as wire;

use super::{page::Value, series::Kind, *};

const GIB: u64 = 1 << 30;

fn exemplar(bucket: u32, value_s: f64) -> Exemplar {
    let (trace_id, span_id) = (vec![0xab; 16], vec![0xcd; 8]);
    Exemplar { bucket, trace_id, span_id, value_s, unix_ms: 1_764_000_055_007 }
}

fn timing(word: &str) -> TimingByWord {
    let timing = Histogram {
        sum_s: 0.015,
        count: 3,
        bounds_s: vec![0.005, 0.01],
        counts: vec![2, 0, 1],
        schema: 3,
        indexes: vec![-64, -63, -53],
        index_counts: vec![1, 1, 1],
        exemplars: vec![
            exemplar(2, 0.0125),
            exemplar(0, 0.004),
            // What no daemon says is nothing.
            exemplar(3, 1.0),
            Exemplar { trace_id: vec![1], ..exemplar(1, 1.0) },
        ],
    };
    TimingByWord { word: word.to_owned(), timing: Some(timing) }
}

fn encoder(busy_ns: u64) -> std::collections::HashMap<String, u64> {
    [("encoder".to_owned(), busy_ns)].into()
}

fn device(number: usize) -> DeviceMetrics {
    DeviceMetrics {
        device: format!("gpu-0000-{number:02x}-00-0"),
        uuid: format!("GPU-{number}"),
        vendor: "nvidia".into(),
        kind: "gpu".into(),
        model: "H100 \"80GB\"".into(),
        driver_version: "580.0".into(),
        pci_address: format!("0000:{number:02x}:00.0"),
        numa_node: Some(0),
        pool: "default".into(),
        present: true,
        memory_bytes: 80 * GIB,
        sampled_unix_ms: Some(9_000),
        since_unix_ms: 1_000,
        memory_used_bytes: Some(12 * GIB),
        memory_unattributed_bytes: Some(2 * GIB),
        busy_ns: Some(3_500_000_000),
        busy_unattributed_ns: Some(500_000_000),
        busy_released_ns: Some(1_000_000_000),
        energy_mj: Some(700_000),
        energy_unattributed_mj: Some(100_000),
        energy_released_mj: Some(200_000),
        compute_ratio: Some(0.35),
        engine_busy_ns: encoder(600_000_000),
        engine_unattributed_ns: encoder(100_000_000),
        engine_released_ns: encoder(200_000_000),
        ..DeviceMetrics::default()
    }
}

fn allocation(device: &str, number: usize) -> AllocationMetrics {
    let labels = [
        ("accelpool.dev/surface", "dra"),
        ("accelpool.dev/namespace", "team"),
        ("accelpool.dev/name", "claim"),
        ("accelpool.dev/pod", "train-0"),
        ("accelpool.dev/pod-uid", "0f2b"),
    ];
    AllocationMetrics {
        claim: format!("uid-{device}-{number}"),
        request: "gpu".into(),
        device: device.to_owned(),
        portion: "share".into(),
        memory_enforcement: "library".into(),
        compute_enforcement: "library".into(),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        agent: Some(Agent { name: format!("agent-{number}"), namespace: "team".into() }),
        since_unix_ms: 2_000,
        memory_limit_bytes: 20 * GIB,
        compute_permille: 250,
        memory_used_bytes: Some(10 * GIB),
        busy_ns: Some(2_000_000_000),
        compute_ratio: Some(0.2),
        energy_mj: Some(400_000),
        processes: Some(2),
        source: "process".into(),
        engine_busy_ns: encoder(300_000_000),
        ..AllocationMetrics::default()
    }
}

fn agent_of(allocation: &AllocationMetrics) -> AgentMetrics {
    AgentMetrics {
        agent: allocation.agent.clone(),
        device: allocation.device.clone(),
        since_unix_ms: 2_000,
        memory_used_bytes: allocation.memory_used_bytes,
        busy_ns: allocation.busy_ns,
        energy_mj: allocation.energy_mj,
        memory_limit_bytes: allocation.memory_limit_bytes,
        engine_busy_ns: allocation.engine_busy_ns.clone(),
    }
}

/// A gate that has something of everything.
fn gate() -> GateMetrics {
    let count = |word: &str, count| CountByWord { word: word.into(), count };
    GateMetrics {
        up: true,
        grants: 4,
        grants_max: 65_536,
        guarded: vec![count("audit", 0), count("enforce", 2)],
        opens: vec![
            GateOpens { device: String::new(), denied: 1, audited: 0 },
            GateOpens { device: "gpu-0000-1b-00-0".into(), denied: 5, audited: 2 },
        ],
        repairs: 1,
        stale_holders: 2,
        stale_holders_killed: 1,
        verified: vec![count("verified", 2), count("drifted", 0)],
    }
}

/// A node that has one of everything.
fn node() -> GetMetricsResponse {
    let mut first = device(0x1b);
    first.taints = vec![DeviceTaint {
        key: "throttled".into(),
        effect: "None".into(),
        reason: "xid-92: high rate of single bit ECC errors".into(),
    }];
    first.readings = Some(DeviceReadings {
        memory_free_bytes: Some(67 * GIB),
        memory_reserved_bytes: Some(GIB),
        engine_permille: [("compute".to_owned(), 410), ("encoder".to_owned(), 5)].into(),
        power_mw: Some(350_500),
        power_limit_mw: Some(700_000),
        temperature_mc: [("core".to_owned(), 61_000), ("memory".to_owned(), -500)].into(),
        clock_hz: [("compute".to_owned(), 1_980_000_000)].into(),
        throttles: vec![Throttle {
            reason: "thermal".into(),
            active: Some(true),
            accumulated_ns: Some(1_500_000_000),
        }],
        errors: [("ecc-corrected".to_owned(), 7)].into(),
        retirement_pending: Some(false),
        retirement_failed: Some(false),
        traffic: vec![LinkTraffic {
            link: "nvlink".into(),
            direction: "received".into(),
            bytes: 123,
        }],
    });
    first.turns_mode = Some("exclusive".into());
    first.hand_over_ns = Some(60_000);
    // Nothing was read of it yet: absent, not zero.
    let second = DeviceMetrics {
        sampled_unix_ms: None,
        memory_used_bytes: None,
        memory_unattributed_bytes: None,
        busy_ns: None,
        busy_unattributed_ns: None,
        busy_released_ns: None,
        energy_mj: None,
        energy_unattributed_mj: None,
        energy_released_mj: None,
        compute_ratio: None,
        engine_busy_ns: [].into(),
        engine_unattributed_ns: [].into(),
        engine_released_ns: [].into(),
        present: false,
        ..device(0x43)
    };
    let turns = TurnsMetrics {
        granted_permille: 250,
        measured_permille: Some(200),
        throttled_ns: 3_000_000_000,
        turns: 400,
        memory_denied: 1,
        memory_peak_bytes: 11 * GIB,
    };
    let one = AllocationMetrics { turns: Some(turns), ..allocation(&first.device, 1) };
    let two = AllocationMetrics {
        labels: [].into(),
        agent: Some(Agent { name: "bare".into(), namespace: String::new() }),
        memory_used_bytes: None,
        busy_ns: None,
        compute_ratio: None,
        energy_mj: None,
        processes: None,
        source: String::new(),
        engine_busy_ns: [].into(),
        partition: format!("{}-mig-1g-10gb-0", second.device),
        portion: "partition".into(),
        share_id: Some("a".into()),
        ..allocation(&second.device, 2)
    };
    let count = |word: &str, count| CountByWord { word: word.into(), count };
    GetMetricsResponse {
        unix_ms: 10_000,
        agents: vec![agent_of(&one)],
        devices: vec![first, second],
        allocations: vec![one, two],
        vendors: vec![VendorMetrics {
            vendor: "nvidia".into(),
            running: true,
            restarts_by_reason: vec![count("deadline", 2)],
            calls: vec![timing("sample")],
            handles_open: Some(3),
        }],
        gate: Some(gate()),
        daemon: Some(DaemonMetrics {
            version: "1.2.3".into(),
            started_unix_ms: 1_000,
            revision: 42,
            leases: vec![count("prepared", 2), count("preparing", 0), count("releasing", 0)],
            prepares: vec![timing("done")],
            releases: vec![timing("refused")],
            drifts: vec![count("cdi", 1)],
            resident_bytes: Some(12 << 20),
        }),
    }
}

fn fetched(metrics: GetMetricsResponse) -> Fetched {
    let metrics = Some(std::sync::Arc::new(metrics));
    Fetched { metrics, age: Duration::from_millis(250), up: true }
}

fn full_page() -> Page {
    let mut page = page(&fetched(node()));
    page.flag(&series::DRIVER_READY, Labels::default(), true);
    page
}

fn rendered(form: Form) -> Vec<u8> {
    encode(full_page(), "worker-1", &Registry::default(), form)
}

/// Compares with a committed file, or writes it anew with `ACCELPOOL_UPDATE=1`.
#[track_caller]
fn check_file(path: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("ACCELPOOL_UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "`{}` is stale: run `ACCELPOOL_UPDATE=1 cargo test -p accelpool-dra-driver`\n{found}",
        path.display()
    );
}

#[test]
fn the_page_is_as_committed() {
    let text = String::from_utf8(rendered(Form::OpenMetrics)).unwrap();
    check_file("src/metrics/golden/openmetrics.txt", &text);
    let text = String::from_utf8(rendered(Form::Text)).unwrap();
    check_file("src/metrics/golden/classic.txt", &text);
    check_file("src/metrics/golden/dcgm.txt", &compat::page(&node(), "worker-1"));
}

#[test]
fn protobuf_has_native_histograms() {
    let page = full_page();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let families = prometheus_protobuf::encode(&registry).unwrap();
    assert_eq!(families.len(), series::ALL.len());
    let prepare = families.iter().find(|it| it.name == "accelpool_prepare_duration_seconds");
    let histogram = prepare.unwrap().metric[0].histogram.as_ref().unwrap();
    assert_eq!((histogram.sample_count, histogram.schema), (3, 3));
    let spans: Vec<_> =
        histogram.positive_span.iter().map(|span| (span.offset, span.length)).collect();
    assert_eq!(spans, [(-64, 2), (9, 1)]);
    assert_eq!(histogram.positive_delta, [1, 0, 0]);
    let cumulative: Vec<_> = histogram.bucket.iter().map(|it| it.cumulative_count).collect();
    assert_eq!(cumulative, [2, 2, 3]);
    assert!(histogram.exemplars.is_empty(), "it has no spans of its own");
    let bytes = rendered(Form::Protobuf);
    let mut bytes = bytes.as_slice();
    let mut traced = Vec::new();
    while !bytes.is_empty() {
        let family = wire::MetricFamily::decode_length_delimited(&mut bytes).unwrap();
        let metrics = family.metric.iter().filter(|_| family.name == prepare.unwrap().name);
        for histogram in metrics.filter_map(|metric| metric.histogram.as_ref()) {
            let buckets = histogram.bucket.iter().map(|bucket| bucket.exemplar.clone());
            traced.push((buckets.collect::<Vec<_>>(), histogram.exemplars.clone()));
        }
    }
    for (buckets, native) in traced {
        let [Some(first), None, Some(last)] = buckets.as_slice() else { panic!("{buckets:?}") };
        assert_eq!(native, [last.clone(), first.clone()]);
        assert_eq!((first.value, last.value), (0.004, 0.0125));
        let labels = first.label.iter().map(|it| format!("{}={}", it.name, it.value));
        let expected =
            [format!("trace_id={}", "ab".repeat(16)), format!("span_id={}", "cd".repeat(8))];
        assert_eq!(labels.collect::<Vec<_>>(), expected);
        let ended = first.timestamp.as_ref().unwrap();
        assert_eq!((ended.seconds, ended.nanos), (1_764_000_055, 7_000_000));
    }
    assert!(!rendered(Form::Protobuf).is_empty());
}

#[test]
fn every_series_is_there_with_the_labels_that_its_table_promises() {
    let page = full_page();
    for series in series::ALL {
        let samples = page.samples(series);
        assert!(!samples.is_empty(), "{} is never served", series.name);
        for sample in samples {
            let found: BTreeSet<&str> = sample.labels.iter().map(|(key, _)| key).collect();
            for label in series.labels.iter().filter(|label| !label.starts_with('(')) {
                assert!(found.contains(label), "{} lacks {label}: {sample:?}", series.name);
            }
            assert!(sample.labels.iter().all(|(_, value)| !value.is_empty()), "{sample:?}");
            match sample.value {
                Value::Number(value) => assert!(value.is_finite(), "{sample:?}"),
                Value::Durations(_) => assert_eq!(series.kind, Kind::Histogram),
            }
        }
    }
}

#[test]
fn a_full_node_is_bounded() {
    let mut metrics = node();
    metrics.devices = (0..16).map(device).collect();
    let turns = metrics.allocations[0].turns;
    metrics.allocations = metrics
        .devices
        .iter()
        .flat_map(|device| (0..64).map(|number| allocation(&device.device, number)))
        .map(|allocation| AllocationMetrics { turns, ..allocation })
        .collect();
    metrics.agents = metrics.allocations.iter().map(agent_of).collect();
    let page = page(&fetched(metrics));
    // Thirteen series an allocation and four an agent, with one more for each engine; devices
    // and daemon beside them.
    let sharers = 16 * 64;
    assert!(page.len() <= sharers * (14 + 5) + 16 * 36 + 96, "{}", page.len());
    let mut seen = BTreeSet::new();
    for series in series::ALL {
        for sample in page.samples(series) {
            assert!(seen.insert(format!("{} {:?}", series.name, sample.labels)), "{sample:?}");
        }
    }
    let text = encode(page, "worker-1", &Registry::default(), Form::OpenMetrics);
    assert!(text.len() < 4 << 20, "{}", text.len());
}

#[test]
fn without_an_answer_the_page_says_so() {
    let page = page(&Fetched { metrics: None, age: Duration::ZERO, up: false });
    let text = encode(page, "worker-1", &Registry::default(), Form::Text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("accelpool_up{node=\"worker-1\"} 0"), "{text}");
    assert!(!text.contains("accelpool_data_age"), "{text}");
}

#[test]
fn an_old_answer_says_how_old() {
    let mut fetched = fetched(node());
    fetched.age = Duration::from_mins(1);
    fetched.up = false;
    let page = page(&fetched);
    let value = |series: &series::Series| match page.samples(series)[0].value {
        Value::Number(value) => value,
        Value::Durations(_) => panic!("it is a number"),
    };
    assert!((value(&series::DATA_AGE) - 60.0).abs() < 1e-9);
    // The device was read a second before the daemon answered.
    assert!((value(&series::DEVICE_SAMPLE_AGE) - 61.0).abs() < 1e-9);
    assert!(value(&series::UP).abs() < 1e-9);
}

#[track_caller]
fn check_form(accept: &str, expected: Form) {
    assert_eq!(Form::accepted(accept), expected, "{accept}");
}

#[test]
fn who_asks_gets_what_it_likes_best() {
    let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    // Prometheus 2.42, with and without native histograms.
    let text = "application/openmetrics-text;version=1.0.0,\
                application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                */*;q=0.1";
    check_form(text, Form::OpenMetrics);
    check_form(&format!("{protobuf},{text}"), Form::Protobuf);
    check_form(&format!("{protobuf};q=0.2,{text}"), Form::OpenMetrics);
    check_form("application/vnd.google.protobuf;encoding=text", Form::Text);
    check_form("*/*", Form::Text);
    check_form("text/html", Form::Text);
    check_form("", Form::Text);
    check_form("application/openmetrics-text;q=nonsense, text/plain;q=0.001", Form::Text);
}

/// The reference, from the table.
fn reference() -> String {
    let mut text = "# Metrics\n\n\
        What `accelpool-dra` serves under `/metrics`. This page is made from the table in\n\
        `dra-driver/src/metrics/series.rs`; a test keeps it so.\n\n\
        Every series has the label `node`. A label in parentheses is there only where it is\n\
        known; none is ever empty. What nobody measures is absent, which is not zero. Units are\n\
        base units. Series of a claim go with its lease. How the figures are made, the forms of\n\
        the page and the queries that people ask first: [usage.md](usage.md).\n\n\
        | Series | Kind | Labels | What |\n|---|---|---|---|\n"
        .to_owned();
    for series in series::ALL {
        let kind = match series.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        };
        let labels: Vec<_> = series.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels) = (series.full_name(), labels.join(", "));
        writeln!(text, "| `{name}` | {kind} | {labels} | {} |", series.help).unwrap();
    }
    // What parts of the driver count of themselves.
    let mut own = Registry::default();
    crate::calls::CallTimes::new().register(&mut own);
    crate::otel::Counts::default().register(&mut own);
    own.register_collector(Box::new(crate::nri::NriView::off()));
    let page = String::from_utf8(encode(Page::default(), "", &own, Form::Text)).unwrap();
    let lines: Vec<&str> = page.lines().collect();
    for pair in lines.windows(2) {
        let help = pair[0].strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
        let kind = pair[1].strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '));
        if let (Some((name, help)), Some((_, kind))) = (help, kind) {
            let labels = match name {
                "accelpool_kubelet_call_duration_seconds" => "`call`, `result`",
                "accelpool_otlp_items_total" => "`signal`, `result`",
                _ => "",
            };
            let help = help.trim_end_matches('.');
            writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
    }
    text
}

#[test]
fn the_reference_is_made_from_the_table() {
    check_file("../docs/metrics.md", &reference());
}
