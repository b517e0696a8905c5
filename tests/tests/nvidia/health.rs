//! One fault, from the driver's event to all who are told of it, and back.

use std::{fs, sync::Arc};

use accelpool_cluster::{ApiServer as Address, DRIVER_NAME};
use accelpool_cluster_double::ApiServer;
use accelpool_dra_driver::{
    config::Config,
    driver::{Driver, Pace, Settings},
    plugin::OwnPod,
};
use accelpool_kubelet_double::{Kubelet, Options};
use accelpool_tests::{
    Client, Daemon, page,
    requests::{any, claim, named},
    wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::machine::{CUT, Machine, NEVER, SMALL};

const NODE: &str = "worker-1";
const POOL: &str = "accelpool.dev/worker-1";
const REASON: &str = "xid-79: the GPU has fallen off the bus";

/// Of `nvml.h`: an XID, and a change of MIG instances, which has the daemon look at once.
const XID: u64 = 0x8;
const MIG_CHANGE: u64 = 0x100;

/// The Kubernetes driver of the node between doubles of kubelet and API server.
struct Kubernetes {
    runtime: Runtime,
    api: Arc<ApiServer>,
    kubelet: Kubelet,
    driver: Driver,
    _root: TempDir,
}

impl Kubernetes {
    fn new(machine: &Machine) -> Self {
        let runtime = Runtime::new().unwrap();
        let root = tempfile::tempdir().unwrap();
        let (api, kubelet, driver) = runtime.block_on(async {
            let options = accelpool_cluster_double::Options::default();
            let api = Arc::new(ApiServer::start(options).await);
            api.put(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": NODE, "uid": "node-uid" },
            }));
            let kubelet = Kubelet::start(Options::new(root.path())).unwrap();
            let settings = Settings {
                config: Config {
                    node_socket: machine.home.socket(),
                    kubelet_root: root.path().to_owned(),
                    listen: Some("127.0.0.1:0".parse().unwrap()),
                    ..Config::default()
                },
                node_name: NODE.to_owned(),
                pod_uid: "11111111-1111-4111-8111-111111111111".to_owned(),
                own_pod: Some(OwnPod { namespace: "accelpool".into(), name: "driver".into() }),
                otel: None,
                server: Address::Url(api.url().to_owned()),
                pace: Pace::default(),
            };
            (api, kubelet, Driver::start(settings).await.unwrap())
        });
        Self { runtime, api, kubelet, driver, _root: root }
    }

    /// What the kubelet shows of the device, with its message.
    fn health(&self) -> (&'static str, String) {
        self.kubelet.plugins.health.of(DRIVER_NAME, POOL, CUT)
    }

    /// The taints on all entries of the device and its parts in the slices.
    fn taints(&self) -> Vec<Value> {
        let slices = self.api.list("resourceslices");
        let devices = slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array());
        let own = devices
            .flatten()
            .filter(|device| device["name"].as_str().is_some_and(|name| name.starts_with(CUT)));
        let taints = own.filter_map(|device| device["taints"].as_array()).flatten();
        // The entry for administrators has one of its own, whatever the device is like.
        taints.filter(|taint| taint["key"] != "accelpool.dev/admin-only").cloned().collect()
    }

    fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        self.runtime.block_on(async {
            let address = self.driver.http.unwrap();
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        })
    }

    fn end(self) {
        self.runtime.block_on(self.driver.drain());
    }
}

/// The reasons on the device, as the API and the CLI tell them.
fn reasons(machine: &Machine, client: &Client) -> Vec<String> {
    let devices = client.devices().unwrap();
    let device = devices.into_iter().find(|device| device.name == CUT).unwrap();
    let told: Vec<String> = device.taints.into_iter().map(|taint| taint.reason).collect();
    let shown = machine.accelpool(&["devices"]);
    let shown = shown["devices"].as_array().unwrap().iter();
    let shown = shown.into_iter().find(|device| device["name"] == CUT).unwrap();
    let shown: Vec<String> = shown["taints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|taint| taint["reason"].as_str().unwrap().to_owned())
        .collect();
    // A fault may come between the two answers: whoever waits asks again.
    if shown == told { told } else { vec![format!("the CLI says {shown:?}, the API {told:?}")] }
}

/// The audit log's records of that kind about the device.
fn audited(machine: &Machine, kind: &str) -> Vec<String> {
    let folder = machine.home.ledger().with_file_name("audit");
    let shown =
        machine.home.run_program(&["audit", "show", folder.to_str().unwrap(), "-o", "json"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_kind =
        records.filter(|record| record["kind"] == kind && record["devices"] == json!([CUT]));
    of_kind.map(|record| record["message"].as_str().unwrap().to_owned()).collect()
}

/// Has the daemon look at the tainted device once, and waits for what it makes of it.
fn look(machine: &Machine, sound: u32) {
    const LOOKED: &str = "tainted device looked at";
    let before = machine.logged(LOOKED);
    machine.tell(0, MIG_CHANGE, 0);
    wait_for("a look at the tainted device", || (machine.logged(LOOKED) > before).then_some(()));
    let log = fs::read_to_string(machine.home.log()).unwrap();
    let last = log.lines().rfind(|line| line.contains(LOOKED)).unwrap();
    assert!(last.contains(&format!("sound={sound}")), "{last}");
}

/// The claim `kept` and its partition, as they were before anything happened.
fn check_kept(machine: &Machine, client: &Client) {
    let leases = client.claims().unwrap();
    let kept: Vec<_> = leases.iter().map(|it| (it.claim.as_str(), it.state.as_str())).collect();
    assert_eq!(kept, [("kept", "prepared")]);
    assert_eq!(client.partitions().unwrap().len(), 1);
    assert_eq!(machine.instances(), 1);
    assert_eq!(fs::read_dir(machine.home.cdi()).unwrap().count(), 1);
}

#[test]
fn a_fault_has_one_reason_everywhere_and_three_sound_looks_end_it() {
    let machine = Machine::new(NEVER);
    let daemon: Daemon = machine.home.start();
    let client = daemon.client();
    let part = format!("{CUT}-mig-1g-10gb-0");
    client.prepare(claim("kept", vec![named("gpu", &part)])).unwrap();
    let kubernetes = Kubernetes::new(&machine);
    wait_for("a healthy device", || (kubernetes.health().0 == "Healthy").then_some(()));
    assert_eq!(kubernetes.taints(), [Value::Null; 0]);

    // XID 79 of the device that is cut; the driver asks for a reset.
    machine.change(|described| described["devices"][2]["recovery_action"] = json!(1));
    machine.tell(2, XID, 79);
    wait_for("the taint", || (reasons(&machine, &client) == [REASON]).then_some(()));
    let told = wait_for("the kubelet to hear of it", || {
        let (health, message) = kubernetes.health();
        (health == "Unhealthy").then_some(message)
    });
    assert_eq!(told, REASON);
    let taints = wait_for("the slices to have it", || {
        Some(kubernetes.taints()).filter(|taints| !taints.is_empty())
    });
    for taint in taints {
        // A label's value, which has no spaces and no colons.
        assert_eq!(taint["key"], "accelpool.dev/fell-off-bus");
        assert_eq!(taint["effect"], "NoExecute");
        assert_eq!(taint["value"], "xid-79-the-GPU-has-fallen-off-the-bus");
    }
    let series = format!(
        "accelpool_device_taint{{node=\"{NODE}\",device=\"{CUT}\",vendor=\"nvidia\",key=\"fell-off-bus\",\
         effect=\"NoExecute\",reason=\"{REASON}\"}} 1"
    );
    wait_for("the figures", || kubernetes.metrics().contains(&series).then_some(()));
    assert_eq!(audited(&machine, "tainted"), [format!("fell-off-bus:NoExecute {REASON}")]);

    // Who is on it stays until somebody evicts him; nobody comes to it.
    check_kept(&machine, &client);
    // The others are not in MIG mode, and nothing allows to switch them.
    let refused = client.prepare(claim("new", vec![any("gpu", SMALL, 1)])).unwrap_err();
    assert_eq!(page(&refused), Some("AP0130"), "{refused}");
    check_kept(&machine, &client);
    look(&machine, 0);

    // It was reset. Two sound looks are not enough, nor are two after one that was not.
    machine.change(|described| described["devices"][2]["recovery_action"] = json!(0));
    look(&machine, 1);
    look(&machine, 2);
    assert_eq!(reasons(&machine, &client), [REASON]);
    let errors = |errors: Value| machine.change(|it| it["devices"][2]["errors"] = errors);
    errors(json!({ "nvmlDeviceGetComputeRunningProcesses_v3": 999 }));
    look(&machine, 0);
    errors(json!({}));
    look(&machine, 1);
    look(&machine, 2);
    assert_eq!(reasons(&machine, &client), [REASON]);
    assert_eq!(kubernetes.health(), ("Unhealthy", REASON.to_owned()));
    look(&machine, 3);
    wait_for("the taint to go", || reasons(&machine, &client).is_empty().then_some(()));
    wait_for("a healthy device", || (kubernetes.health().0 == "Healthy").then_some(()));
    wait_for("clean slices", || kubernetes.taints().is_empty().then_some(()));
    wait_for("clean figures", || (!kubernetes.metrics().contains(&series)).then_some(()));
    let gone = [format!("fell-off-bus:NoExecute recovered: {REASON}")];
    assert_eq!(audited(&machine, "untainted"), gone);

    check_kept(&machine, &client);
    client.prepare(claim("new", vec![any("gpu", SMALL, 1)])).unwrap();
    assert_eq!(machine.instances(), 2);
    client.release("new").unwrap();
    client.release("kept").unwrap();
    assert_eq!(machine.instances(), 0);
    kubernetes.end();
}

/// Looks at the tainted device until more of them in a row than a taint needs found it sound.
fn look_long(machine: &Machine) {
    const LOOKED: &str = "tainted device looked at";
    let enough = |line: &str| {
        let (_, sound) = line.rsplit_once("sound=")?;
        let sound: u32 = sound.split_whitespace().next()?.parse().ok()?;
        (sound > accelpool_planner::SOUND_LOOKS).then_some(())
    };
    let before = machine.logged(LOOKED);
    wait_for("sound looks", || {
        machine.tell(0, MIG_CHANGE, 0);
        let log = fs::read_to_string(machine.home.log()).unwrap();
        log.lines().filter(|line| line.contains(LOOKED)).skip(before).find_map(enough)
    });
}

/// What the driver told is over: a library that is loaded anew tells it to nobody.
fn forget(machine: &Machine) {
    machine.change(|described| described["events"] = json!([]));
}

/// A driver that cannot say what recovery a fault takes (before 550): the reset must be seen,
/// whatever the probe says, and by a daemon that was not there when it was made, too.
#[test]
fn without_the_drivers_advice_a_taint_waits_for_a_reset() {
    const REASON: &str = "xid-119: timeout of the GPU system processor";
    let machine = Machine::new(NEVER);
    machine.change(|described| {
        for device in described["devices"].as_array_mut().unwrap() {
            device["recovery_action"] = Value::Null;
        }
    });
    let boot = machine.path("proc/sys/kernel/random");
    fs::create_dir_all(&boot).unwrap();
    fs::write(boot.join("boot_id"), "11111111-1111-4111-8111-111111111111\n").unwrap();
    let driver = machine.path("sys/module/nvidia");
    for folder in [&driver, &machine.path("sys/bus/pci/devices/0000:df:00.0")] {
        fs::create_dir_all(folder).unwrap();
    }
    let daemon = machine.home.start();
    machine.tell(2, XID, 119);
    let client = daemon.client();
    wait_for("the taint", || (reasons(&machine, &client) == [REASON]).then_some(()));
    look_long(&machine);
    assert_eq!(reasons(&machine, &client), [REASON]);

    // Nor does a daemon that begins anew take its word for it.
    daemon.kill();
    forget(&machine);
    let daemon = machine.home.start();
    let client = daemon.client();
    look_long(&machine);
    assert_eq!(reasons(&machine, &client), [REASON]);

    // The driver is loaded anew while no daemon is there to see it.
    daemon.kill();
    forget(&machine);
    fs::rename(&driver, driver.with_extension("old")).unwrap();
    fs::create_dir(&driver).unwrap();
    let daemon = machine.home.start();
    let client = daemon.client();
    let gone = || {
        machine.tell(0, MIG_CHANGE, 0);
        reasons(&machine, &client).is_empty().then_some(())
    };
    wait_for("the taint to go", gone);
    let told = [format!("reset-required:NoSchedule recovered: {REASON}")];
    assert_eq!(audited(&machine, "untainted"), told);
}

/// A device that is gone altogether keeps the taint that says why.
#[test]
fn a_device_that_vanishes_keeps_the_reason_that_was_told() {
    let machine = Machine::new(NEVER);
    let daemon = machine.home.start();
    let client = daemon.client();
    machine.tell(2, XID, 79);
    wait_for("the taint", || (reasons(&machine, &client) == [REASON]).then_some(()));
    machine.change(|described| drop(described["devices"].as_array_mut().unwrap().remove(2)));
    fs::remove_dir_all(machine.path("proc/driver/nvidia/gpus/0000:df:00.0")).unwrap();
    machine.tell(0, MIG_CHANGE, 0);
    let is_gone = || {
        let devices = client.devices().unwrap();
        devices.iter().any(|device| device.name == CUT && !device.present).then_some(())
    };
    wait_for("the device to be gone", is_gone);
    assert_eq!(reasons(&machine, &client), [REASON]);
}
