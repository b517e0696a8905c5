//! The very bundle that is carried to a machine with a GPU, and a folder that is such a machine.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use accelpool_cuda_engine::{Engine, machine as cuda};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use tempfile::TempDir;

const DGX_H100: &str = include_str!("../../../../vendors/nvidia/standin/machines/dgx-h100.json");
pub(crate) const LIBRARIES: &str = "driver/usr/lib/x86_64-linux-gnu";

/// The target folder's profile, where cargo has put this test.
fn built() -> PathBuf {
    env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}

/// The bundle, made once by the script that makes it for people.
pub(crate) fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<TempDir> = OnceLock::new();
    let made = BUNDLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let made = Command::new(root.join("tools/hw-bundle.sh"))
            .args(["--profile", "dev"])
            .arg(dir.path())
            .env("CARGO_TARGET_DIR", built().parent().unwrap())
            .status();
        assert!(made.unwrap().success());
        dir
    });
    made.path()
}

fn standin(name: &str) -> PathBuf {
    let found = [built().join("deps").join(name), built().join(name)];
    found.into_iter().find(|path| path.exists()).expect("cargo builds stand-ins for this test")
}

/// A folder that is a machine with a GPU or more.
pub(crate) struct Machine(TempDir);

impl Machine {
    pub(crate) fn new(described: &Value) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let libraries = machine.path(LIBRARIES);
        fs::create_dir_all(&libraries).unwrap();
        fs::copy(standin("libaccelpool_nvml_standin.so"), libraries.join("libnvidia-ml.so.1"))
            .unwrap();
        fs::copy(standin("libaccelpool_cuda_standin.so"), libraries.join("libcuda.so.1")).unwrap();
        fs::create_dir_all(machine.path("dev")).unwrap();
        fs::create_dir_all(machine.path("sys/bus/pci/devices")).unwrap();
        machine.describe(described);
        machine.write("proc/devices", "Character devices:\n195 nvidia\n241 nvidia-uvm\n");
        let version = described["driver_version"].as_str().unwrap();
        let version = format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed\n");
        machine.write("proc/driver/nvidia/version", &version);
        for gpu in described["devices"].as_array().unwrap() {
            machine.add(gpu);
        }
        machine.node("nvidiactl", 195, 255);
        machine.node("nvidia-uvm", 241, 0);
        machine
    }

    fn add(&self, gpu: &Value) {
        let (pci, uuid) = (gpu["pci"].as_str().unwrap(), gpu["uuid"].as_str().unwrap());
        let real = format!("sys/devices/pci0000:15/0000:15:01.0/{pci}");
        self.write(&format!("{real}/numa_node"), "0\n");
        symlink(self.path(&real), self.path("sys/bus/pci/devices").join(pci)).unwrap();
        let minor = gpu["minor"].as_u64().unwrap();
        let text = format!(
            "Model: \t\t {}\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n",
            gpu["name"].as_str().unwrap()
        );
        self.write(&format!("proc/driver/nvidia/gpus/{pci}/information"), &text);
        self.node(&format!("nvidia{minor}"), 195, minor);
    }

    fn node(&self, name: &str, major: u64, minor: u64) {
        let (path, mode) = (self.path("dev").join(name), Mode::from_bits_truncate(0o666));
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)).expect("tests run as root");
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// By rename: somebody may be reading it.
    fn describe(&self, described: &Value) {
        let path = self.path(LIBRARIES).join("nvml-standin.json");
        let next = path.with_extension("next");
        fs::write(&next, described.to_string()).unwrap();
        fs::rename(next, path).unwrap();
    }

    /// Is the driver: lists the tenants that run, and if they trap tells of it again and again.
    fn drive(&self, described: &Value, done: &AtomicBool, traps: bool) {
        let mut now = described.clone();
        now["events"] = json!([]);
        while !done.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
            let tenants = self.tenants();
            let listed = |pid: &u32| json!({ "pid": pid, "memory_mib": 300 });
            let listed: Vec<Value> = tenants.iter().map(listed).collect();
            if traps && !tenants.is_empty() {
                let event = json!({ "device": 0, "kind": 8, "value": 43 });
                now["events"].as_array_mut().unwrap().push(event);
            } else if now["devices"][0]["processes"] == json!(listed) {
                continue;
            }
            now["devices"][0]["processes"] = listed.into();
            self.describe(&now);
        }
    }

    /// The tenants that load this machine's libraries.
    fn tenants(&self) -> Vec<u32> {
        let mark = format!("LD_LIBRARY_PATH={}", self.path(LIBRARIES).display());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        let ours = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
        };
        pids.filter(ours).collect()
    }

    /// A command of the bundle, on this machine.
    pub(crate) fn command(&self, command: &str) -> Command {
        let program = bundle().join("accelpool-hw");
        let mut run = Command::new(program);
        run.arg(command);
        run.arg("--driver-root").arg(self.path("driver"));
        run.arg("--machine-root").arg(self.0.path());
        run.arg("--out").arg(self.path("report"));
        run
    }

    /// Runs one while this is the driver.
    pub(crate) fn output(&self, command: &mut Command, described: &Value, traps: bool) -> Output {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| self.drive(described, &done, traps));
            let output = command.output();
            done.store(true, Ordering::SeqCst);
            output.unwrap()
        })
    }
}

/// An engine behind the first of the machine's GPUs.
pub(crate) fn engine(machine: &Machine, described: &Value) -> Engine {
    let uuid = described["devices"][0]["uuid"].as_str().unwrap();
    let devices = vec![cuda::DeviceProfile::new(uuid)];
    Engine::start(cuda::Machine { devices }, &machine.path("engine.sock")).unwrap()
}

/// The DGX of the stand-in, with two of its GPUs.
pub(crate) fn two_gpus() -> Value {
    let mut described: Value = serde_json::from_str(DGX_H100).unwrap();
    described["devices"].as_array_mut().unwrap().truncate(2);
    described
}
