//! A real Prometheus scrapes the real driver over the real daemon: the numbers add up, nothing
//! is missing while a vendor hangs or the daemon is away, and the linter has nothing to say.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use accelpool_cluster::{ApiServer as Address, DRIVER_NAME};
use accelpool_cluster_double::ApiServer;
use accelpool_deploy::dashboards;
use accelpool_dra_driver::{
    config::Config,
    driver::{Driver, Pace, Settings},
    otel,
};
use accelpool_kubelet_double::{Kubelet, Pod, PodClaim};
use accelpool_tests::{
    Client, Daemon, Home,
    prometheus::{Prometheus, get, lint},
    requests::{claim, named, share},
    tenants::{Proc, of_pod, pod_uid},
    wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NODE: &str = "worker-1";
const GPU: &str = "gpu-0000-1b-00-0";
const OTHER: &str = "gpu-0000-43-00-0";
const GIB: u64 = 1 << 30;
/// The label of a pod that says who is billed.
const AGENT_LABEL: &str = "example.com/team";

/// Five pods on one device, and one that has another to itself.
const PODS: u32 = 5;

/// A node that serves `/metrics`, and what it needs to live.
struct Node {
    home: Home,
    proc: Proc,
    _root: TempDir,
    api: Arc<ApiServer>,
    kubelet: Kubelet,
    _driver: Driver,
    address: SocketAddr,
    runtime: Runtime,
}

impl Node {
    fn new() -> Self {
        Self::with(None)
    }

    /// One that traces, for a collector that is never there.
    fn traced() -> Self {
        let read = otel::Settings::from_environment(&|name| {
            let value = match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => "http://127.0.0.1:1",
                "OTEL_METRICS_EXPORTER" => "none",
                _ => return None,
            };
            Some(value.to_owned())
        });
        Self::with(read.expect("the variables make sense"))
    }

    fn with(otel: Option<otel::Settings>) -> Self {
        let home = Home::new("dgx-h100");
        let proc = Proc::new();
        home.sample_every(100, proc.path());
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        let runtime = Runtime::new().expect("a runtime can be made");
        let (api, kubelet, driver) = runtime.block_on(async {
            let api = ApiServer::start(accelpool_cluster_double::Options::default()).await;
            api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
            }));
            let options = accelpool_kubelet_double::Options::new(root.path());
            let kubelet = Kubelet::start(options).expect("the double starts");
            let settings = Settings {
                config: Config {
                    agent_label: Some(AGENT_LABEL.to_owned()),
                    node_socket: home.socket(),
                    kubelet_root: root.path().to_owned(),
                    listen: Some("127.0.0.1:0".parse().expect("it is an address")),
                    ..Config::default()
                },
                node_name: NODE.to_owned(),
                pod_uid: "11111111-1111-4111-8111-111111111111".to_owned(),
                own_pod: None,
                server: Address::Url(api.url().to_owned()),
                pace: Pace::default(),
                otel,
            };
            let driver = Driver::start(settings).await.expect("the driver starts");
            (Arc::new(api), kubelet, driver)
        });
        let address = driver.http.expect("the driver listens");
        Self { home, proc, _root: root, api, kubelet, _driver: driver, address, runtime }
    }

    /// A process in a container of pod `pod`; the answer is its line for the script.
    fn process(&self, pid: u32, pod: u32, device: &str, permille: u32) -> String {
        self.proc.add(pid, pod);
        format!(
            "[[process]]\npid = {pid}\ndevice = \"{device}\"\nmemory = \"{pod}Gi\"\n\
             compute_permille = {permille}\nencoder_permille = {pod}\n"
        )
    }
}

impl Node {
    /// Starts pod `number` as the kubelet does: with the labels that it has at the API server,
    /// and a claim for a share of `device` that the scheduler has allocated.
    fn start_pod(&self, number: u32, labels: &Value, device: &str) -> Pod {
        let (name, uid) = (format!("pod-{number}"), pod_uid(number));
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "team", "name": name, "uid": uid, "labels": labels },
        }));
        let claim = self.api.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "namespace": "team", "name": name },
            "spec": { "devices": {} },
            "status": {
                "allocation": { "devices": { "config": [], "results": [{
                    "request": "gpu", "driver": DRIVER_NAME, "pool": format!("{DRIVER_NAME}/{NODE}"),
                    "device": device, "shareID": pod_uid(100 + number),
                    "consumedCapacity": { "memory": "10Gi", "compute": "200" },
                }] } },
                "reservedFor": [{ "resource": "pods", "name": name, "uid": uid }],
            },
        }));
        let claim_uid = claim["metadata"]["uid"].as_str().expect("the double gives UIDs");
        let drivers = vec![DRIVER_NAME.to_owned()];
        let claims = vec![PodClaim { name: name.clone(), uid: claim_uid.to_owned(), drivers }];
        let pod = Pod { namespace: "team".to_owned(), name, uid, claims };
        self.runtime.block_on(async {
            self.kubelet.log.wait_for("accelpool.dev registered", 1).await;
            self.kubelet.claims.prepare(&pod).await.expect("there is room");
        });
        pod
    }
}

/// True of exactly this number.
fn is(expected: f64) -> impl Fn(f64) -> bool {
    move |value| (value - expected).abs() < f64::EPSILON
}

/// Waits until `query` finds `count` series, all of which are `good`.
fn found(
    prometheus: &Prometheus,
    query: &str,
    count: usize,
    good: impl Fn(f64) -> bool,
) -> Vec<(Value, f64)> {
    let mut last = Vec::new();
    wait_for(query, || {
        last = prometheus.query(query);
        let all = last.len() == count && last.iter().all(|(_, value)| good(*value));
        all.then(|| last.clone())
    })
}

fn prepare_all(client: &Client) {
    for pod in 1..=PODS {
        let request = claim(&format!("c{pod}"), vec![share("gpu", GPU, 10 * GIB, 150)]);
        client.prepare(of_pod(request, pod)).expect("there is room");
    }
    let request = claim("c6", vec![named("gpu", OTHER)]);
    client.prepare(of_pod(request, 6)).expect("it is free");
}

fn start(node: &Node) -> (Daemon, Client) {
    let daemon = node.home.start();
    let client = daemon.client();
    (daemon, client)
}

#[test]
fn prometheus_sees_what_adds_up_and_never_nothing() {
    let node = Node::new();
    let mut script = String::new();
    for pod in 1..=PODS {
        script += &node.process(100 + pod, pod, GPU, 50 * pod);
    }
    script += &node.process(106, 6, OTHER, 700);
    script += &node.process(109, 9, GPU, 20); // a pod that holds nothing
    node.home.script(&script);
    let (daemon, client) = start(&node);
    prepare_all(&client);

    let prometheus = Prometheus::scrape(node.address);
    let busy = "accelpool_allocation_compute_seconds_total";
    let agents = found(&prometheus, busy, 6, |value| value > 0.0);
    let names: Vec<_> = agents.iter().map(|(labels, _)| labels["agent"].as_str()).collect();
    assert!(names.contains(&Some("pod-3")), "{agents:?}");

    // Of one scrape, so to the last digit that a float has.
    let sums = "sum by (device) (accelpool_allocation_compute_seconds_total) \
                + on (device) accelpool_unattributed_compute_seconds_total \
                + on (device) accelpool_released_compute_seconds_total \
                - on (device) accelpool_device_compute_seconds_total";
    found(&prometheus, sums, 2, |value| value.abs() < 1e-6);
    let memory = "sum by (device) (accelpool_allocation_memory_used_bytes) \
                  + on (device) accelpool_unattributed_memory_bytes \
                  - on (device) sum by (device) (accelpool_device_memory_bytes{state=\"used\"})";
    found(&prometheus, memory, 2, is(0.0));
    let engines = "sum by (device, engine) ({__name__=~\
                   \"accelpool_(allocation|unattributed|released)_engine_seconds_total\"}) \
                   - on (device, engine) accelpool_device_engine_seconds_total";
    found(&prometheus, engines, 2, |value| value.abs() < 1e-6);
    let by_agent = "sum by (device) (accelpool_agent_energy_joules_total) \
                    + on (device) accelpool_unattributed_energy_joules_total \
                    - on (device) accelpool_device_energy_joules_total";
    found(&prometheus, by_agent, 2, |value| value.abs() < 1e-3);
    // Words are joined to figures, one to one.
    let joined = "accelpool_allocation_memory_used_bytes * on (node, device, claim_uid, request, \
                  agent) group_left (pod, claim) accelpool_allocation_info";
    found(&prometheus, joined, 6, |value| value > 0.0);
    // Native, since Prometheus asked for protobuf.
    let native = "histogram_count(accelpool_prepare_duration_seconds{result=\"done\"})";
    found(&prometheus, native, 1, |value| value >= 6.0);

    check_pages(node.address);
    check_hang(&node, &prometheus, &script);
    check_absence(&node, &prometheus, daemon);
}

/// Every form is served, and the linter has nothing to say.
fn check_pages(address: SocketAddr) {
    let (status, page) = get(address, "/metrics", "");
    assert_eq!(status, 200);
    assert_eq!(lint(&page), "");
    assert!(!page.contains("=\"\""), "an empty label");
    let (_, page) = get(address, "/metrics", "application/openmetrics-text;version=1.0.0");
    assert!(page.ends_with("# EOF\n"));
    let (_, page) = get(address, "/metrics?compat=dcgm", "");
    let of_pod = |line: &&str| line.starts_with("DCGM_FI_DEV_FB_USED{") && line.contains("pod=");
    assert_eq!(page.lines().filter(of_pod).count(), 6, "{page}");
    let (_, page) = get(address, "/status", "");
    let status: Value = serde_json::from_str(&page).expect("it is JSON");
    assert_eq!(status["daemon"]["up"], true, "{page}");
}

/// While a vendor hangs, every scrape succeeds and everything is there, with its age.
fn check_hang(node: &Node, prometheus: &Prometheus, script: &str) {
    let hang = "[[call]]\nid = \"stuck\"\nmethod = \"sample\"\ntimes = 1000000\nhang = true\n";
    node.home.script(&[script, hang].concat());
    let age = format!("accelpool_device_sample_age_seconds{{device=\"{GPU}\"}}");
    found(prometheus, &age, 1, |value| value > 2.0);
    found(prometheus, "accelpool_up", 1, is(1.0));
    found(prometheus, "min_over_time(up[1h])", 1, is(1.0));
    // Each scrape since the first has had all allocations: none was skipped.
    let gaps = "min_over_time(count(accelpool_allocation_memory_used_bytes)[2s:200ms])";
    found(prometheus, gaps, 1, is(6.0));
    node.home.script(script);
}

/// While the daemon is away the page stays, and says so.
fn check_absence(node: &Node, prometheus: &Prometheus, daemon: Daemon) {
    daemon.kill();
    found(prometheus, "accelpool_up", 1, is(0.0));
    found(prometheus, "accelpool_allocation_memory_used_bytes", 6, |value| value > 0.0);
    found(prometheus, "accelpool_data_age_seconds", 1, |value| value > 1.0);
    let (_daemon, client) = start(node);
    found(prometheus, "accelpool_up", 1, is(1.0));
    // A released lease takes its series along.
    client.release("c1").expect("it can be released");
    let gone = "accelpool_allocation_info{claim_uid=\"c1\"}";
    found(prometheus, gone, 0, |_| true);
    found(prometheus, "accelpool_allocation_info", 5, |_| true);
}

/// Who sees a slow bucket in Prometheus finds one trace of it, from the kubelet to the daemon.
#[test]
fn prometheus_keeps_the_traces_of_durations() {
    const OF_KUBELET: &str = "accelpool_kubelet_call_duration_seconds";
    const OF_DAEMON: &str = "accelpool_prepare_duration_seconds";
    let node = Node::traced();
    let (_daemon, client) = start(&node);
    // The daemon makes spans once the driver reads them, which is a moment after it registers.
    let traced = || {
        let told = client.metrics().expect("the daemon answers").daemon;
        let timings = told.into_iter().flat_map(|daemon| daemon.prepares);
        let mut timings = timings.filter_map(|it| it.timing);
        timings.any(|timing| !timing.exemplars.is_empty())
    };
    for number in 1.. {
        let pod = node.start_pod(number, &json!({}), GPU);
        let ended = node.runtime.block_on(node.kubelet.claims.unprepare(&pod));
        ended.expect("what is prepared can be given back");
        if traced() {
            break;
        }
    }
    let prometheus = Prometheus::scrape(node.address);
    // Debian's Prometheus keeps the exemplar of one bucket of each native histogram, so the whole
    // page says which calls of the kubelet the daemon's traces belong to.
    let (_, page) = get(node.address, "/metrics", "application/openmetrics-text");
    let is_of_kubelet = |trace: &String| {
        let named = format!("trace_id=\"{trace}\"");
        page.lines().any(|line| line.starts_with(OF_KUBELET) && line.contains(&named))
    };
    for histogram in [OF_DAEMON, OF_KUBELET] {
        let kept = wait_for("traces of durations", || {
            Some(prometheus.traces_of(histogram)).filter(|kept| !kept.is_empty())
        });
        assert!(kept.iter().all(is_of_kubelet), "{kept:?} in\n{page}");
    }
}

/// From a pod's label at the API server to the series and to the daemon's own account; and
/// every panel of every dashboard shows something of it.
#[test]
fn a_pods_label_says_who_is_billed_and_every_panel_shows_it() {
    let node = Node::new();
    let script = [
        node.process(101, 1, GPU, 100),
        node.process(102, 2, GPU, 50),
        node.process(103, 3, GPU, 30),
        node.process(109, 9, OTHER, 10), // a pod that holds nothing
    ];
    node.home.script(&script.concat());
    let (_daemon, client) = start(&node);
    let labels = json!({ AGENT_LABEL: "search" });
    node.start_pod(1, &labels, GPU);
    node.start_pod(2, &labels, GPU);

    let prometheus = Prometheus::scrape(node.address);
    found(&prometheus, "accelpool_allocation_info", 2, is(1.0));
    // Prometheus sees it come, so there are claims in the rates.
    node.start_pod(3, &json!({ "app": "lonely" }), GPU);
    let of = |agent: &str| {
        format!("accelpool_agent_memory_used_bytes{{agent=\"{agent}\",namespace=\"team\"}}")
    };
    #[expect(clippy::cast_precision_loss, reason = "a few GiB are exact")]
    let gib = |count: u64| is((count * GIB) as f64);
    found(&prometheus, &of("search"), 1, gib(3));
    found(&prometheus, &of("pod-3"), 1, gib(3));
    let both = "accelpool_allocation_memory_used_bytes{agent=\"search\"}";
    found(&prometheus, both, 2, |value| value > 0.0);
    let mut names: Vec<String> = wait_for("two agents on the node's own account", || {
        let usage = client.usage().expect("the daemon answers");
        let names: Vec<_> = usage.agents.into_iter().map(|agent| agent.name).collect();
        (names.len() == 2).then_some(names)
    });
    names.sort();
    assert_eq!(names, ["pod-3", "search"]);

    for dashboard in dashboards::all() {
        for panel in &dashboard.panels {
            for (query, _) in &panel.queries {
                let query = dashboards::filled(query, "5s");
                let ask = || prometheus.query(&query);
                if panel.may_be_empty {
                    ask(); // which fails where Prometheus does not take it
                } else {
                    let what = format!("{}, {}: {query}", dashboard.name, panel.title);
                    wait_for(&what, || (!ask().is_empty()).then_some(()));
                }
            }
        }
    }
    // A sound node gives no alert: none fires, and none is about to. But for what the stranger
    // of this test deserves.
    let alerts = prometheus.query("ALERTS{alertname!~\"AccelpoolUnattributed|AccelpoolGateDown\"}");
    assert!(alerts.is_empty(), "{alerts:?}");
}

#[test]
fn the_reference_names_every_series_that_is_served() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let reference = fs::read_to_string(reference).expect("there is a reference");
    let node = Node::new();
    node.home.script(&node.process(101, 1, GPU, 500));
    let (_daemon, client) = start(&node);
    prepare_all(&client);
    let page = wait_for("a page with figures", || {
        let (_, page) = get(node.address, "/metrics", "");
        page.contains("accelpool_agent_compute_seconds_total").then_some(page)
    });
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().expect("a family has a name");
        assert!(reference.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
}
