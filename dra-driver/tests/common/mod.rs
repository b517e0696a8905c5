//! What the suites share: a driver between stand-ins for kubelet, API server and daemon.

#![allow(dead_code, reason = "each suite uses its part")]

pub(crate) mod collector;
pub(crate) mod cri;
pub(crate) mod daemon;
pub(crate) mod logged;
pub(crate) mod other;
mod portion;
pub(crate) mod runtime;

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use accelpool_cluster::{ApiServer as Address, DRIVER_NAME};
use accelpool_cluster_double::ApiServer;
use accelpool_dra_driver::{
    config::{Config, NriConfig},
    driver::{Driver, Pace, Settings},
    otel,
    plugin::OwnPod,
};
use accelpool_kubelet_double::{Kubelet, Options, Pod, PodClaim};
use accelpool_proto::node as wire;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use self::daemon::Daemon;

pub(crate) const NODE: &str = "worker-1";
pub(crate) const POOL: &str = "accelpool.dev/worker-1";
pub(crate) const POD_UID: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const GPU_0: &str = "gpu-0000-1b-00-0";
pub(crate) const GPU_1: &str = "gpu-0000-43-00-0";

/// What the suites change of a bench.
pub(crate) struct Setup {
    pub(crate) devices: Vec<wire::Device>,
    pub(crate) exposure: &'static str,
    pub(crate) replicas: u32,
    pub(crate) pace: Pace,
    pub(crate) print: bool,
    pub(crate) server: accelpool_cluster_double::Options,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            devices: vec![gpu(GPU_0, Some(0)), gpu(GPU_1, Some(1))],
            exposure: "dra",
            replicas: 0,
            pace: Pace::default(),
            print: false,
            server: accelpool_cluster_double::Options::default(),
        }
    }
}

/// Everything around one driver.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) api: Arc<ApiServer>,
    pub(crate) daemon: Daemon,
    pub(crate) options: Options,
    pub(crate) nri: Option<NriConfig>,
    pub(crate) otel: Option<otel::Settings>,
    replicas: u32,
    pace: Pace,
}

impl Bench {
    /// The surroundings, without driver and kubelet.
    pub(crate) async fn new(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let api = Arc::new(ApiServer::start(setup.server).await);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": NODE, "uid": "node-uid" },
        }));
        let daemon = Daemon::start(&folder.path().join("node.sock"), setup.devices, setup.exposure);
        let mut options = Options::new(&folder.path().join("kubelet"));
        let wiped = Arc::clone(&api);
        options.wipe = Arc::new(move |_| wiped.wipe_slices(NODE));
        if setup.print {
            options.log = accelpool_kubelet_double::Log::printing();
        }
        let Setup { replicas, pace, .. } = setup;
        Self { folder, api, daemon, options, nri: None, otel: None, replicas, pace }
    }

    /// The surroundings with a kubelet and a driver that is registered and has published.
    pub(crate) async fn running(setup: Setup) -> (Self, Kubelet, Driver) {
        let bench = Self::new(setup).await;
        let kubelet = bench.kubelet();
        let driver = bench.driver(POD_UID).await;
        kubelet.log.wait_for("accelpool.dev registered", 1).await;
        (bench, kubelet, driver)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.options.root.clone()
    }

    pub(crate) fn kubelet(&self) -> Kubelet {
        Kubelet::start(self.options.clone()).unwrap()
    }

    pub(crate) async fn driver(&self, pod_uid: &str) -> Driver {
        let replicas = match self.replicas {
            0 => BTreeMap::new(),
            count => [("gpus".parse().unwrap(), count)].into(),
        };
        let config = Config {
            node_socket: self.folder.path().join("node.sock"),
            kubelet_root: self.root(),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            nri: self.nri.clone(),
            tls: None,
            agent_label: None,
            replicas,
        };
        let settings = Settings {
            config,
            node_name: NODE.to_owned(),
            pod_uid: pod_uid.to_owned(),
            own_pod: Some(OwnPod { namespace: "accelpool".into(), name: "driver".into() }),
            server: Address::Url(self.api.url().to_owned()),
            pace: self.pace,
            otel: self.otel.clone(),
        };
        Driver::start(settings).await.unwrap()
    }

    /// The program itself, instead of the driver in this process.
    pub(crate) fn program(&self, pod_uid: &str) -> Child {
        let config = self.folder.path().join("dra.toml");
        let (node, root) = (self.folder.path().join("node.sock"), self.root());
        let text = format!(
            "node_socket = '{}'\nkubelet_root = '{}'\nnri.enabled = false\n",
            node.display(),
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        Command::new(env!("CARGO_BIN_EXE_accelpool-dra"))
            .args(["--node-name", NODE, "--pod-uid", pod_uid, "--api-server", self.api.url()])
            .arg("--config")
            .arg(config)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Puts an allocated claim there, as scheduler and controllers leave it, and returns the
    /// pod of the same name that uses it.
    pub(crate) fn claim(&self, name: &str, results: &[Value]) -> Pod {
        self.claim_with(name, results, &json!([]))
    }

    pub(crate) fn claim_with(&self, name: &str, results: &[Value], config: &Value) -> Pod {
        let uid = uid_of(name);
        self.api.put(claim_object(name, &uid, results, config));
        pod(name, &[(name, &uid)])
    }
}

pub(crate) fn claim_object(name: &str, uid: &str, results: &[Value], config: &Value) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "namespace": "team", "name": name, "uid": uid },
        "spec": { "devices": {} },
        "status": {
            "allocation": { "devices": { "results": results, "config": config } },
            "reservedFor": [{ "resource": "pods", "name": name, "uid": format!("pod-{name}") }],
        },
    })
}

pub(crate) fn pod(name: &str, claims: &[(&str, &str)]) -> Pod {
    let claim = |(name, uid): &(&str, &str)| PodClaim {
        name: (*name).to_owned(),
        uid: (*uid).to_owned(),
        drivers: vec![DRIVER_NAME.to_owned()],
    };
    Pod {
        namespace: "team".to_owned(),
        name: name.to_owned(),
        uid: format!("pod-{name}"),
        claims: claims.iter().map(claim).collect(),
    }
}

/// A UID that follows from the name, as long as a real one.
pub(crate) fn uid_of(name: &str) -> String {
    let digits: Vec<String> = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.concat();
    format!("{:0>8.8}-0000-4000-8000-{:0>12.12}", digits.len(), digits)
}

/// An allocation result of this driver.
pub(crate) fn result(request: &str, device: &str) -> Value {
    json!({ "request": request, "driver": DRIVER_NAME, "pool": POOL, "device": device })
}

/// An allocation result that takes a part of a device.
pub(crate) fn share(request: &str, device: &str, share_id: &str) -> Value {
    let mut result = result(request, device);
    result["shareID"] = json!(share_id);
    result["consumedCapacity"] = json!({ "memory": "20Gi", "compute": "250" });
    result
}

pub(crate) fn gpu(name: &str, numa_node: Option<u32>) -> wire::Device {
    wire::Device {
        name: name.into(),
        uuid: format!("GPU-{name}"),
        vendor: "sim".into(),
        kind: "gpu".into(),
        model: "H100".into(),
        architecture: "hopper".into(),
        driver_version: "550.54.15".into(),
        memory_bytes: 80 << 30,
        numa_node,
        share_enforcement: Some(wire::Enforcements {
            memory: "library".into(),
            compute: "library".into(),
            ..wire::Enforcements::default()
        }),
        pool: "gpus".into(),
        present: true,
        ..wire::Device::default()
    }
}

pub(crate) fn taint(key: &str, effect: &str, reason: &str) -> wire::Taint {
    wire::Taint {
        key: key.into(),
        effect: effect.into(),
        reason: reason.into(),
        since_unix_ms: 1_700_000_000_000,
    }
}

/// Waits until `holds`; only a test that fails waits long.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_mins(1), waiting).await;
    assert!(reached.is_ok(), "it never came to be that {what}");
}

/// A page of the driver, with its status.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    get_as(address, path, "*/*").await
}

/// The same, in the form that `accept` says.
pub(crate) async fn get_as(
    address: std::net::SocketAddr,
    path: &str,
    accept: &str,
) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (code, body)
}
