//! The plugin against real container runtimes: containerd of later releases of Debian, with runc,
//! in folders of its own. What the stand-in takes for granted is seen to hold here.
//!
//! `tools/containerd.sh` gets them. Where it could not, this says so and checks nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use accelpool_dra_driver::nri::NriStatus;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::common::{
    Bench, GPU_0, POD_UID, Setup,
    cri::{Cri, NewContainer},
    daemon::numa_node,
    eventually, result,
    runtime::{events, socket},
    uid_of,
};

const IMAGE: &str = "localhost/busybox:1";

/// A containerd that runs.
struct Containerd {
    program: PathBuf,
    home: PathBuf,
    process: Child,
}

/// The folder of the packages of `release`, if they are there.
fn package(release: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/containerd").join(release);
    if folder.join("usr/bin/containerd").exists() {
        return Some(folder);
    }
    // Straight to the stream: what a test that passes prints is not shown.
    let words = format!("skipped: no containerd of Debian {release}; run tools/containerd.sh\n");
    std::io::stderr().write_all(words.as_bytes()).unwrap();
    None
}

impl Containerd {
    async fn start(package: &Path, home: &Path, nri: &Path) -> Self {
        fs::create_dir_all(home.join("cdi")).unwrap();
        fs::create_dir_all(home.join("cni")).unwrap();
        let program = package.join("usr/bin");
        let is_second = package.ends_with("forky");
        fs::write(home.join("config.toml"), config(is_second, home, nri)).unwrap();
        let process = Self::spawn(&program, home);
        let containerd = Self { program, home: home.to_owned(), process };
        containerd.wait().await;
        containerd.import().await;
        containerd
    }

    fn spawn(program: &Path, home: &Path) -> Child {
        let log = fs::File::create(home.join("log")).unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
        Command::new(program.join("containerd"))
            .arg("--config")
            .arg(home.join("config.toml"))
            .env("PATH", path)
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.program.join("ctr"))
            .arg("--address")
            .arg(self.home.join("c.sock"))
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    async fn wait(&self) {
        let waiting = async {
            while self.ctr(&["version"]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), waiting).await.expect("containerd starts");
    }

    /// Gives it an image: busybox, and nothing else.
    async fn import(&self) {
        let script = "set -e; mkdir -p image/root/bin; cp /bin/busybox image/root/bin/busybox; \
            cd image; ln -sf busybox root/bin/sleep; tar -C root -cf layer.tar .; \
            sum=$(sha256sum layer.tar | cut -d ' ' -f 1); \
            printf '{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"/bin/sleep\",\"1000\"]},\"rootfs\":\
            {\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}' \"$sum\" >config.json; \
            printf '[{\"Config\":\"config.json\",\"RepoTags\":[\"localhost/busybox:1\"],\
            \"Layers\":[\"layer.tar\"]}]' >manifest.json; \
            sed -i \"s/amd64/$(dpkg --print-architecture)/\" config.json; \
            tar -cf ../image.tar manifest.json config.json layer.tar";
        let made = Command::new("sh").args(["-c", script]).current_dir(&self.home).status().await;
        assert!(made.unwrap().success());
        let tar = self.home.join("image.tar");
        self.ctr(&["images", "import", "--local", "--no-unpack", tar.to_str().unwrap()])
            .await
            .unwrap();
    }

    /// What a container is run with.
    async fn spec(&self, id: &str) -> Value {
        let info: Value =
            serde_json::from_str(&self.ctr(&["containers", "info", id]).await.unwrap()).unwrap();
        info["Spec"].clone()
    }

    async fn restart(&mut self) {
        self.process.kill().await.unwrap();
        self.process = Self::spawn(&self.program, &self.home);
        self.wait().await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap()
    }
}

fn config(is_second: bool, home: &Path, nri: &Path) -> String {
    let home = home.display();
    let nri = nri.display();
    let common = format!("root = '{home}/root'\nstate = '{home}/state'\noom_score = 0\n");
    let sections = if is_second {
        format!(
            "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{IMAGE}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             disable_apparmor = true\nenable_cdi = true\ncdi_spec_dirs = ['{home}/cdi']\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{home}/cni'\n"
        )
    } else {
        format!(
            "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = '{IMAGE}'\n\
             restrict_oom_score_adj = true\ndisable_apparmor = true\nenable_cdi = true\n\
             cdi_spec_dirs = ['{home}/cdi']\n\
             [plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '{home}/cni'\n\
             [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n"
        )
    };
    let version = if is_second { 3 } else { 2 };
    format!(
        "version = {version}\n{common}[grpc]\naddress = '{home}/c.sock'\n{sections}\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = false\nsocket_path = '{nri}'\n\
         plugin_path = '{home}/plugins'\nplugin_config_path = '{home}/plugins.d'\n"
    )
}

/// What the daemon would write for a claim of the whole device.
fn write_cdi(home: &Path, name: &str) {
    let variable = name.to_ascii_uppercase().replace('-', "_");
    let spec = json!({
        "cdiVersion": "0.5.0", "kind": "accelpool.dev/claim",
        "devices": [{ "name": name, "containerEdits": {
            "env": [format!("ACCELPOOL_GRANT_{variable}=portion=whole")],
        } }],
    });
    fs::write(home.join("cdi/accelpool.dev-claim.json"), spec.to_string()).unwrap();
}

async fn check(release: &str) {
    let Some(package) = package(release) else { return };
    let mut bench = Bench::new(Setup::default()).await;
    bench.daemon.change(|node| node.pools[0].align_cpus = true);
    // The devices are on a node that this machine has; the other one is not asked for.
    bench.daemon.set_numa_nodes(vec![numa_node(0, 0..1), numa_node(1, 1..2)]);
    let home = bench.folder.path().join("containerd");
    let mut containerd = Containerd::start(&package, &home, &socket(&bench)).await;
    bench.nri = Some(accelpool_dra_driver::config::NriConfig {
        socket: socket(&bench),
        exempt_namespaces: std::collections::BTreeSet::new(),
    });
    let kubelet = bench.kubelet();
    let driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for("accelpool.dev registered", 1).await;
    let mut status = driver.nri.status.clone();
    let connected = |status: &NriStatus| matches!(status, NriStatus::Connected { .. });
    let registered =
        tokio::time::timeout(Duration::from_mins(1), status.wait_for(connected)).await.is_ok();
    assert!(registered, "{:?}\n{}", driver.nri.status.borrow(), containerd.log());

    // Claimed, and asking for more than that.
    let pod = bench.claim("train", &[result("r", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let cdi_name = format!("{}-r-{GPU_0}", uid_of("train"));
    write_cdi(&home, &cdi_name);
    let mut observed = driver.observed.clone();
    observed
        .wait_for(|it| it.snapshot.as_ref().is_some_and(|s| s.leases.len() == 1))
        .await
        .unwrap();
    let cri = Cri::at(&home.join("c.sock"));
    let cgroup = format!("/accelpool-test-{}-{release}", std::process::id());
    let train = cri.run_pod("train", "pod-train", &format!("{cgroup}/pod-train")).await.unwrap();
    let env = [("NVIDIA_VISIBLE_DEVICES", "all"), ("PATH", "/bin")];
    let cdi_id = format!("accelpool.dev/claim={cdi_name}");
    let asked = NewContainer { image: IMAGE, env: &env, cdi_id: Some(&cdi_id) };
    let granted = cri.create(&train, asked).await.unwrap();
    let spec = containerd.spec(&granted).await;
    let has = |spec: &Value, entry: &str| {
        spec["process"]["env"].as_array().unwrap().contains(&json!(entry))
    };
    assert!(has(&spec, "NVIDIA_VISIBLE_DEVICES=void"), "{spec:#}");
    assert_eq!(spec["linux"]["resources"]["cpu"]["cpus"], "0", "{spec:#}");
    assert_eq!(spec["linux"]["resources"]["cpu"]["mems"], "0", "{spec:#}");
    cri.start(&granted).await.unwrap();

    // Neither claimed nor granted.
    let miner = cri.run_pod("miner", "pod-miner", &format!("{cgroup}/pod-miner")).await.unwrap();
    let asked = NewContainer { image: IMAGE, env: &env, cdi_id: None };
    let refused = cri.create(&miner, asked).await.unwrap();
    let spec = containerd.spec(&refused).await;
    assert!(has(&spec, "NVIDIA_VISIBLE_DEVICES=void") && has(&spec, "PATH=/bin"), "{spec:#}");
    assert_eq!(spec["linux"]["resources"]["cpu"]["cpus"], Value::Null);
    eventually("the pod is told", || !events(&bench, "DevicesNotGranted").is_empty()).await;
    assert!(events(&bench, "DevicesNotGranted")[0].starts_with("team/miner"));

    // A runtime that is started anew tells of what runs, and the next container is met.
    containerd.restart().await;
    let again = || driver.nri.counters.snapshot().registrations == 2;
    eventually("the plugin is registered again", again).await;
    let cri = Cri::at(&home.join("c.sock"));
    let again = cri.create(&miner, NewContainer { image: IMAGE, env: &env, cdi_id: None }).await;
    let spec = containerd.spec(&again.unwrap()).await;
    assert!(has(&spec, "NVIDIA_VISIBLE_DEVICES=void"), "{spec:#}");
    let counters = driver.nri.counters.snapshot();
    assert_eq!((counters.containers, counters.attempts, counters.late), (3, 2, 0), "{counters:?}");

    for pod in [train, miner] {
        cri.remove_pod(&pod).await.unwrap();
    }
    driver.drain().await;
    remove_cgroups(&cgroup);
}

/// What the pods' cgroups leave behind, in every hierarchy: empty folders.
fn remove_cgroups(path: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
        let parent = hierarchy.unwrap().path().join(path.trim_start_matches('/'));
        for pod in ["pod-train", "pod-miner"] {
            drop(fs::remove_dir(parent.join(pod)));
        }
        drop(fs::remove_dir(parent));
    }
    let parent = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    for pod in ["pod-train", "pod-miner", ""] {
        drop(fs::remove_dir(parent.join(pod)));
    }
}

#[tokio::test]
async fn containerd_1_7() {
    check("trixie").await;
}

#[tokio::test]
async fn containerd_2() {
    check("forky").await;
}
