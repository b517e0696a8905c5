//! A real Prometheus scrapes the real driver over the real daemon: the numbers add up, nothing
//! is missing while a vendor hangs or the daemon is away, and the linter has nothing to say.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use accelpool_cluster::ApiServer as Address;
use accelpool_cluster_double::ApiServer;
use accelpool_dra_driver::{
    config::Config,
    driver::{Driver, Pace, Settings},
};
use accelpool_tests::{
    Client, Daemon, Home,
    prometheus::{Prometheus, get, lint},
    requests::{claim, named, share},
    tenants::{Proc, of_pod},
    wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NODE: &str = "worker-1";
const GPU: &str = "gpu-0000-1b-00-0";
const OTHER: &str = "gpu-0000-43-00-0";
const GIB: u64 = 1 << 30;

/// Five pods on one device, and one that has another to itself.
const PODS: u32 = 5;

/// A node that serves `/metrics`, and what it needs to live.
struct Node {
    home: Home,
    proc: Proc,
    _root: TempDir,
    _api: Arc<ApiServer>,
    _driver: Driver,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Node {
    fn new() -> Self {
        let home = Home::new("dgx-h100");
        let proc = Proc::new();
        home.sample_every(100, proc.path());
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        let runtime = Runtime::new().expect("a runtime can be made");
        let (api, driver) = runtime.block_on(async {
            let api = ApiServer::start(accelpool_cluster_double::Options::default()).await;
            api.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
            }));
            let settings = Settings {
                config: Config {
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
                otel: None,
            };
            (Arc::new(api), Driver::start(settings).await.expect("the driver starts"))
        });
        let address = driver.http.expect("the driver listens");
        Self { home, proc, _root: root, _api: api, _driver: driver, address, _runtime: runtime }
    }

    /// A process in a container of pod `pod`; the answer is its line for the script.
    fn process(&self, pid: u32, pod: u32, device: &str, permille: u32) -> String {
        self.proc.add(pid, pod);
        format!(
            "[[process]]\npid = {pid}\ndevice = \"{device}\"\nmemory = \"{pod}Gi\"\n\
             compute_permille = {permille}\n"
        )
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
