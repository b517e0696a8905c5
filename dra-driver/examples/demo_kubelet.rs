//! Walks two pods through the real programs, with doubles of kubelet and API server.
//!
//! `tools/demo-kubelet.sh` builds everything and starts this. Whatever is shown is checked: a
//! surprise ends the demo with an error. The scheduler's part is played here, by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use accelpool_cluster::DRIVER_NAME;
use accelpool_cluster_double::ApiServer;
use accelpool_kubelet_double::{Kubelet, Log, Options, Pod, PodClaim, Times};
use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

const NODE: &str = "demo-node";
const NAMESPACE: &str = "team";

/// Nothing here takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().context("first argument: a folder to work in")?;
    let programs = arguments.next().context("second argument: the folder of the programs")?;
    let demo = Demo::start(&folder, &programs).await?;
    demo.walk().await?;
    demo.end().await
}

struct Demo {
    folder: PathBuf,
    api: Arc<ApiServer>,
    kubelet: Kubelet,
    daemon: Child,
    driver: Child,
}

impl Demo {
    async fn start(folder: &Path, programs: &Path) -> anyhow::Result<Self> {
        title("The daemon starts on a simulated node with 8 GPUs (dgx-h100)");
        let socket = folder.join("run/node.sock");
        let daemon = start_daemon(folder, programs)?;
        wait("the daemon's socket", || socket.exists()).await?;

        title("The kubelet starts: it deletes the node's slices and looks for plugins");
        let api = Arc::new(ApiServer::start(accelpool_cluster_double::Options::default()).await);
        api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "uid": "node-uid" },
        }));
        let wiped = Arc::clone(&api);
        let kubelet = Kubelet::start(Options {
            times: Times::REAL,
            log: Log::printing(),
            wipe: Arc::new(move |_| wiped.wipe_slices(NODE)),
            ..Options::new(&folder.join("kubelet"))
        })?;

        title("The driver starts, registers, and publishes what the daemon has");
        let driver = start_driver(folder, programs, &socket, api.url())?;
        kubelet.log.wait_for("accelpool.dev registered", 1).await;
        let slices = || api.list("resourceslices");
        wait("slices", || devices(&slices()).next().is_some()).await?;
        let count = devices(&slices()).count();
        println!("{} ResourceSlices with {count} devices and partitions", slices().len());
        Ok(Self { folder: folder.to_owned(), api, kubelet, daemon, driver })
    }

    async fn walk(&self) -> anyhow::Result<()> {
        let slices = self.api.list("resourceslices");
        let whole = devices(&slices).find(|(_, device)| device["allowMultipleAllocations"] == true);
        let (pool, whole) = whole.context("a device that can be shared")?;
        let parent = text(&whole["name"])?;
        let small = devices(&slices).find(|(_, device)| {
            let name = device["name"].as_str().unwrap_or_default();
            name.contains("-mig-1g-10gb-") && !name.starts_with(&parent)
        });
        let (_, small) = small.context("a partition of another device")?;
        let small = text(&small["name"])?;

        title("Pod `notebook` is admitted: a quarter of a GPU");
        let notebook = self.pod(
            "notebook",
            &json!({
                "request": "gpu", "driver": DRIVER_NAME, "pool": pool, "device": parent,
                "shareID": "7c1e0f4a-0000-4000-8000-000000000001",
                "consumedCapacity": { "memory": "20Gi", "compute": "250" },
            }),
        );
        self.prepare(&notebook).await?;

        title("Pod `batch` is admitted: a MIG partition, which is created now");
        let batch = self.pod(
            "batch",
            &json!({
                "request": "gpu", "driver": DRIVER_NAME, "pool": pool, "device": small,
            }),
        );
        self.prepare(&batch).await?;

        title("A third pod wants the whole of the shared GPU, and does not get it");
        self.refuse(&pool, &parent).await?;

        title("The shared GPU falls ill: the kubelet is told, and so is the claim");
        self.fall_ill(&pool, &parent).await?;

        title("Both pods end: everything is given back");
        for pod in [&notebook, &batch] {
            self.unprepare(pod).await?;
        }
        let specs = fs::read_dir(self.folder.join("cdi"))?.count();
        ensure!(specs == 0, "{specs} CDI specs are left");
        println!("no CDI spec is left");
        Ok(())
    }

    /// A pod with one claim that the scheduler has allocated.
    fn pod(&self, name: &str, result: &Value) -> Pod {
        let claim = self.api.put(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "namespace": NAMESPACE, "name": name },
            "spec": { "devices": {} },
            "status": {
                "allocation": { "devices": { "results": [result], "config": [] } },
                "reservedFor": [{ "resource": "pods", "name": name, "uid": name }],
            },
        }));
        let uid = claim["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let drivers = vec![DRIVER_NAME.to_owned()];
        Pod {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            claims: vec![PodClaim { name: name.to_owned(), uid, drivers }],
        }
    }

    async fn prepare(&self, pod: &Pod) -> anyhow::Result<()> {
        self.kubelet.claims.prepare(pod).await.map_err(anyhow::Error::msg)?;
        let ids = self.kubelet.claims.cdi_ids(NAMESPACE, &pod.name, "gpu");
        println!("the container runtime gets: {}", ids.join(" "));
        let uid = &pod.claims[0].uid;
        let spec = fs::read_dir(self.folder.join("cdi"))?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().contains(uid.as_str()))
            .context("no CDI spec was written")?;
        println!("and finds it in: {}", spec.path().display());
        let condition = || self.condition(&pod.name, "Ready");
        wait("the claim's status", || condition().is_some()).await?;
        println!("the claim says: {}", condition().unwrap_or_default());
        Ok(())
    }

    /// What would otherwise be waited for up to 40 s is here given up by the kubelet's pod.
    async fn refuse(&self, pool: &str, device: &str) -> anyhow::Result<()> {
        let greedy = self.pod(
            "greedy",
            &json!({
                "request": "gpu", "driver": DRIVER_NAME, "pool": pool, "device": device,
            }),
        );
        let refused = timeout(Duration::from_secs(3), self.kubelet.claims.prepare(&greedy)).await;
        match refused {
            Ok(Ok(())) => bail!("the device was granted twice"),
            Ok(Err(error)) => println!("refused: {error}"),
            Err(_) => {
                println!("it waits for the device; the pod is deleted");
            }
        }
        self.unprepare(&greedy).await
    }

    async fn fall_ill(&self, pool: &str, device: &str) -> anyhow::Result<()> {
        let script = format!(
            "[[fault]]\nid = \"demo\"\ndevice = \"{device}\"\nclass = \"reset-required\"\n\
             code = \"xid-95\"\nmessage = \"uncontained memory error\"\n\n[[health]]\n\
             device = \"{device}\"\nrecovery_action = \"reset-device\"\n"
        );
        let (whole, half) = (self.folder.join("sim/script.toml"), self.folder.join("sim/script"));
        fs::write(&half, script)?;
        fs::rename(half, whole)?;
        let health = &self.kubelet.plugins.health;
        let message = health.wait_for((DRIVER_NAME, pool, device), "Unhealthy").await;
        println!("pod status, allocatedResourcesStatus: Unhealthy: {message}");
        let ill = || self.condition("notebook", "Healthy").filter(|text| text.contains("False"));
        wait("the claim's status", || ill().is_some()).await?;
        println!("the claim says: {}", ill().unwrap_or_default());
        let tainted = || {
            let slices = self.api.list("resourceslices");
            let taints = devices(&slices)
                .find(|(_, found)| found["name"] == device)
                .map(|(_, found)| found["taints"].clone());
            taints.filter(|taints| !taints.is_null())
        };
        wait("the slice's taint", || tainted().is_some()).await?;
        println!("the slice says: {}", tainted().unwrap_or_default());
        Ok(())
    }

    async fn unprepare(&self, pod: &Pod) -> anyhow::Result<()> {
        self.kubelet.claims.unprepare(pod).await.map_err(anyhow::Error::msg)
    }

    /// A condition of a claim's device, in words.
    fn condition(&self, claim: &str, kind: &str) -> Option<String> {
        let claim = self.api.get("resourceclaims", NAMESPACE, claim)?;
        let device = &claim["status"]["devices"][0];
        let conditions = device["conditions"].as_array()?;
        let found = conditions.iter().find(|condition| condition["type"] == kind)?;
        Some(format!(
            "{kind} {} ({}), enforced by {}",
            found["status"].as_str()?,
            found["message"].as_str()?,
            device["data"],
        ))
    }

    async fn end(mut self) -> anyhow::Result<()> {
        title("The driver is told to stop, then the daemon");
        for (name, program) in [("driver", &mut self.driver), ("daemon", &mut self.daemon)] {
            terminate(program)?;
            let ended = timeout(PATIENCE, program.wait()).await.context("it does not end")??;
            ensure!(ended.success(), "the {name} ended with {ended}");
            println!("the {name} has ended");
        }
        self.kubelet.log.wait_for("accelpool.dev deregistered", 1).await;
        Ok(())
    }
}

fn start_daemon(folder: &Path, programs: &Path) -> anyhow::Result<Child> {
    for name in ["state", "run", "cdi", "sim"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\ncdi_dir = {:?}\n\n\
         [[vendor]]\nname = \"sim\"\nprofile = \"dgx-h100\"\ndir = {:?}\n",
        at("state"),
        at("run"),
        at("cdi"),
        at("sim"),
    );
    fs::write(folder.join("node.toml"), text)?;
    let mut command = Command::new(programs.join("accelpoold"));
    command.args(["run", "--config"]).arg(folder.join("node.toml"));
    spawn(command, folder, "daemon.log")
}

fn start_driver(folder: &Path, programs: &Path, socket: &Path, api: &str) -> anyhow::Result<Child> {
    let root = folder.join("kubelet");
    let (socket, root) = (socket.display().to_string(), root.display().to_string());
    let text = format!("node_socket = {socket:?}\nkubelet_root = {root:?}\n");
    fs::write(folder.join("dra.toml"), text)?;
    let mut command = Command::new(programs.join("accelpool-dra"));
    command.args(["--node-name", NODE, "--pod-uid", "demo", "--api-server", api, "--config"]);
    command.arg(folder.join("dra.toml"));
    spawn(command, folder, "driver.log")
}

fn spawn(mut command: Command, folder: &Path, log: &str) -> anyhow::Result<Child> {
    let log = fs::File::create(folder.join(log))?;
    let child = command.stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn();
    child.with_context(|| format!("`{}` does not start", command.as_std().get_program().display()))
}

fn terminate(program: &Child) -> anyhow::Result<()> {
    let pid = program.id().context("it has ended already")?;
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?)
}

/// Every published device, with its pool.
fn devices(slices: &[Value]) -> impl Iterator<Item = (String, Value)> {
    slices.iter().flat_map(|slice| {
        let pool = slice["spec"]["pool"]["name"].as_str().unwrap_or_default().to_owned();
        let devices = slice["spec"]["devices"].as_array().cloned().unwrap_or_default();
        devices.into_iter().map(move |device| (pool.clone(), device))
    })
}

fn text(value: &Value) -> anyhow::Result<String> {
    value.as_str().map(str::to_owned).context("a text")
}

async fn wait(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.with_context(|| format!("waited in vain for {what}"))
}

fn title(text: &str) {
    println!("\n== {text}");
}
