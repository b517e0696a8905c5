//! The real daemon under the real driver, between doubles of kubelet and API server: what a
//! pod is promised is what the ledger and the CDI folder have, whoever starts again.

#[expect(dead_code, reason = "the driver's own suite uses all of it")]
#[path = "../../dra-driver/tests/common/collector.rs"]
mod collector;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use accelpool_cluster::{ApiServer as Address, DRIVER_NAME};
use accelpool_cluster_double::ApiServer;
use accelpool_dra_driver::{
    config::Config,
    driver::{Driver, Pace, Settings},
    otel,
    plugin::OwnPod,
};
use accelpool_kubelet_double::{Devices, Kubelet, Options, Pod, PodClaim};
use accelpool_tests::{Daemon, Home, LONG};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

use crate::collector::Collector;

const NODE: &str = "worker-1";
const POOL: &str = "accelpool.dev/worker-1";
const GPU: &str = "accelpool.dev/gpu";
const SMALL: &str = "accelpool.dev/mig-1g.10gb";
const REGISTERED: &str = "accelpool.dev registered";

/// The devices of `dgx-h100`.
const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];

fn gpu(index: usize) -> String {
    format!("gpu-0000-{}-00-0", BUSES[index % BUSES.len()])
}

/// A node with everything on it, whose parts can be stopped and started.
struct Node {
    home: Home,
    daemon: Option<Daemon>,
    api: Arc<ApiServer>,
    options: Options,
    otel: Option<otel::Settings>,
    /// Short, since the path of a socket must be.
    root: TempDir,
}

impl Node {
    /// A node whose pool is offered as `expose` says.
    async fn new(expose: &str) -> Self {
        let home = Home::new("dgx-h100");
        let config = OpenOptions::new().append(true).open(home.config());
        let pool = format!("\n[[pool]]\nname = \"all\"\nexpose = \"{expose}\"\n");
        let mut config = config.expect("the daemon has a configuration");
        config.write_all(pool.as_bytes()).expect("the configuration can be written");
        let daemon = Some(start(&home));
        let api = Arc::new(ApiServer::start(accelpool_cluster_double::Options::default()).await);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
        }));
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        let mut options = Options::new(root.path());
        let wiped = Arc::clone(&api);
        options.wipe = Arc::new(move |_| wiped.wipe_slices(NODE));
        Self { home, daemon, api, options, otel: None, root }
    }

    fn kubelet(&self) -> Kubelet {
        Kubelet::start(self.options.clone()).expect("the double starts")
    }

    async fn driver(&self) -> Driver {
        let settings = Settings {
            config: Config {
                node_socket: self.home.socket(),
                kubelet_root: self.root.path().to_owned(),
                ..Config::default()
            },
            node_name: NODE.to_owned(),
            pod_uid: "11111111-1111-4111-8111-111111111111".to_owned(),
            own_pod: Some(OwnPod { namespace: "accelpool".into(), name: "driver".into() }),
            server: Address::Url(self.api.url().to_owned()),
            pace: Pace {
                reclaim_interval: Duration::from_millis(20),
                reclaim_grace: Duration::from_millis(200),
                ..Pace::default()
            },
            otel: self.otel.clone(),
        };
        Driver::start(settings).await.expect("the driver starts")
    }

    fn kill_daemon(&mut self) {
        self.daemon.take().expect("the daemon runs").kill();
    }

    fn start_daemon(&mut self) {
        self.daemon = Some(start(&self.home));
    }

    /// A pod with one claim that the scheduler has allocated.
    fn pod(&self, name: &str, result: &Value) -> Pod {
        let claim = self.api.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "namespace": "team", "name": name },
            "spec": { "devices": {} },
            "status": {
                "allocation": { "devices": { "results": [result], "config": [] } },
                "reservedFor": [{ "resource": "pods", "name": name, "uid": name }],
            },
        }));
        let uid = claim["metadata"]["uid"].as_str().expect("the double gives UIDs").to_owned();
        let drivers = vec![DRIVER_NAME.to_owned()];
        Pod {
            namespace: "team".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            claims: vec![PodClaim { name: name.to_owned(), uid, drivers }],
        }
    }

    /// The names of the CDI specs.
    fn specs(&self) -> Vec<String> {
        specs(&self.home.cdi())
    }
}

/// Starts a daemon from within a runtime, which its client must not be called in.
fn start(home: &Home) -> Daemon {
    let started = std::thread::scope(|scope| scope.spawn(|| home.start()).join());
    started.expect("the daemon starts")
}

fn specs(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.expect("entries can be read").file_name())
        .map(|name| name.into_string().expect("specs have plain names"))
        .collect()
}

fn whole(device: &str) -> Value {
    json!({ "request": "gpu", "driver": DRIVER_NAME, "pool": POOL, "device": device })
}

fn share(device: &str, index: usize, capacity: &Value) -> Value {
    let mut share = whole(device);
    share["shareID"] = json!(format!("00000000-0000-4000-8000-{index:012}"));
    share["consumedCapacity"] = capacity.clone();
    share
}

fn healthy(devices: &Devices) -> Vec<&str> {
    devices.iter().filter(|(_, device)| device.healthy).map(|(id, _)| id.as_str()).collect()
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, waiting).await.is_ok(), "it never came to be that {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_outlive_everything_that_starts_again() {
    let mut node = Node::new("dra").await;
    let kubelet = node.kubelet();
    let driver = node.driver().await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    let half = json!({ "memory": "40Gi", "compute": "500" });
    let pods = [
        node.pod("share", &share(&gpu(0), 1, &half)),
        node.pod("partition", &whole(&format!("{}-mig-1g-10gb-0", gpu(1)))),
        node.pod("whole", &whole(&gpu(2))),
    ];
    let mut ids = Vec::new();
    for pod in &pods {
        kubelet.claims.prepare(pod).await.expect("the node has room");
        ids.push(kubelet.claims.cdi_ids("team", &pod.name, "gpu"));
    }
    assert_eq!(node.specs().len(), 3);

    node.kill_daemon();
    driver.drain().await;
    node.options.records = kubelet.stop();
    let kubelet = node.kubelet();
    let driver = node.driver().await;
    kubelet.log.wait_for(REGISTERED, 2).await;
    node.start_daemon();
    for (pod, ids) in pods.iter().zip(&ids) {
        kubelet.claims.prepare(pod).await.expect("what is prepared can be prepared again");
        let twice = [ids.clone(), ids.clone()].concat();
        assert_eq!(kubelet.claims.cdi_ids("team", &pod.name, "gpu"), twice);
    }
    assert_eq!(node.specs().len(), 3);
    for pod in &pods {
        kubelet.claims.unprepare(pod).await.expect("what is prepared can be given back");
    }
    assert_eq!(node.specs(), [""; 0]);
    driver.drain().await;
}

/// From the kubelet's call down to each step and each call of a vendor's worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepare_is_one_trace_through_both_programs() {
    let collector = Collector::start().await;
    let mut node = Node::new("dra").await;
    let endpoint = format!("http://{}", collector.grpc);
    let read = otel::Settings::from_environment(&|name| {
        let value = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint.as_str(),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => "grpc",
            "OTEL_BSP_SCHEDULE_DELAY" => "10",
            "OTEL_METRICS_EXPORTER" => "none",
            _ => return None,
        };
        Some(value.to_owned())
    });
    node.otel = read.expect("the variables make sense");
    let kubelet = node.kubelet();
    let driver = node.driver().await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    let pod = node.pod("part", &whole(&format!("{}-mig-1g-10gb-0", gpu(1))));
    // Spans are made once the driver reads them, which is a moment after it registers.
    let named = |name: &str| {
        let all = collector.spans().into_iter().map(|told| told.span);
        all.filter(|span| span.name == name).collect::<Vec<_>>()
    };
    let spans_of_a_prepare = async {
        while named("PrepareClaim").is_empty() {
            kubelet.claims.prepare(&pod).await.expect("the node has room");
            kubelet.claims.unprepare(&pod).await.expect("what is prepared can be given back");
        }
        while named("ReleaseClaim").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, spans_of_a_prepare).await.expect("the daemon's spans arrive");
    let call = named("PrepareClaim").pop().expect("it is there");
    let in_trace = |name: &str| {
        let found = named(name).into_iter().filter(|span| span.trace_id == call.trace_id);
        found.collect::<Vec<_>>()
    };
    eventually("the whole trace arrives", || in_trace("NodePrepareResources").len() == 1).await;
    let parents = [
        ("prepare", "NodePrepareResources", 1),
        ("accelpool.node.v1.Node/PrepareClaim", "prepare", 1),
        ("PrepareClaim", "accelpool.node.v1.Node/PrepareClaim", 1),
        ("plan", "PrepareClaim", 1),
        ("ledger commit", "PrepareClaim", 2),
        ("create_partition", "PrepareClaim", 1),
        ("vendor worker create_partition", "create_partition", 1),
        ("write_spec", "PrepareClaim", 1),
    ];
    for (name, parent, count) in parents {
        let (spans, parents) = (in_trace(name), in_trace(parent));
        let [parent] = parents.as_slice() else { panic!("{parent}: {parents:?}") };
        assert_eq!(spans.len(), count, "{name}: {spans:?}");
        for span in spans {
            assert_eq!(span.parent_span_id, parent.span_id, "{name} in {}", parent.name);
            assert!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{name}");
        }
    }
    let released = named("ReleaseClaim").pop().expect("it is there");
    let removed = named("remove_spec");
    assert!(removed.iter().any(|span| span.parent_span_id == released.span_id), "{removed:?}");
    driver.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_and_ten_pods_start_at_once() {
    let node = Node::new("dra").await;
    let kubelet = node.kubelet();
    let driver = node.driver().await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    let part = json!({ "memory": "5Gi", "compute": "70" });
    let pods: Vec<Pod> = (0..110)
        .map(|index| node.pod(&format!("p{index}"), &share(&gpu(index), index, &part)))
        .collect();
    let mut calls = JoinSet::new();
    for pod in pods.clone() {
        let claims = Arc::clone(&kubelet.claims);
        calls.spawn(async move { claims.prepare(&pod).await });
    }
    for prepared in calls.join_all().await {
        prepared.expect("110 shares fit");
    }
    assert_eq!(node.specs().len(), 110);
    let mut calls = JoinSet::new();
    for pod in pods {
        let claims = Arc::clone(&kubelet.claims);
        calls.spawn(async move { claims.unprepare(&pod).await });
    }
    for released in calls.join_all().await {
        released.expect("what is prepared can be given back");
    }
    assert_eq!(node.specs(), [""; 0]);
    driver.drain().await;
}

/// One ledger for both ways of asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_resources_and_claims_never_share_a_device() {
    let node = Node::new("both").await;
    let kubelet = node.kubelet();
    let driver = node.driver().await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    let extended = &kubelet.extended;
    extended.begin_pod("accelpool", "driver");
    extended.wait_for(GPU, |devices| healthy(devices).len() == 8).await;
    extended.wait_for(SMALL, |devices| healthy(devices).len() == 56).await;

    let ids = extended.allocate(("team", "train"), "main", GPU, 4).await;
    let ids = ids.expect("8 devices are free");
    assert_eq!((ids.len(), node.specs().len()), (4, 4));
    extended.wait_for(SMALL, |devices| healthy(devices).len() == 28).await;

    // The daemon cuts a device for a partition; the device is no longer offered whole.
    extended.allocate(("team", "small"), "main", SMALL, 1).await.expect("28 are free");
    extended.wait_for(GPU, |devices| healthy(devices).len() == 7).await;
    let devices = extended.devices(GPU);
    let cut = devices.iter().find(|(_, device)| !device.healthy).map(|(id, _)| id.clone());
    let cut = cut.expect("one device is cut");
    let greedy = node.pod("greedy", &whole(&cut));
    let refused = timeout(Duration::from_secs(1), kubelet.claims.prepare(&greedy)).await;
    assert!(!matches!(refused, Ok(Ok(()))), "{cut} was given twice");
    kubelet.claims.unprepare(&greedy).await.expect("an unknown claim is released");

    extended.end_pod("team", "train");
    extended.end_pod("team", "small");
    eventually("everything is given back", || node.specs().is_empty()).await;
    extended.wait_for(GPU, |devices| healthy(devices).len() == 8).await;
    driver.drain().await;
}
