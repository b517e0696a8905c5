//! The very bundle that is carried to a machine with a GPU, on stand-ins for its libraries.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

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

const DGX_H100: &str = include_str!("../../../vendors/nvidia/standin/machines/dgx-h100.json");
const LIBRARIES: &str = "driver/usr/lib/x86_64-linux-gnu";

/// The target folder's profile, where cargo has put this test.
fn built() -> PathBuf {
    env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}

/// The bundle, made once by the script that makes it for people.
fn bundle() -> &'static Path {
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
struct Machine(TempDir);

impl Machine {
    fn new(described: &Value) -> Self {
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

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
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

    /// Is the driver: lists the tenants that run, and tells of a fault of theirs now and then.
    fn drive(&self, described: &Value, done: &AtomicBool) {
        let mut now = described.clone();
        now["events"] = json!([]);
        while !done.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
            let tenants = self.tenants();
            let listed = |pid: &u32| json!({ "pid": pid, "memory_mib": 300 });
            let listed: Vec<Value> = tenants.iter().map(listed).collect();
            if !tenants.is_empty() {
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

    fn check_with(&self, engine: &Engine) -> (Option<i32>, Value) {
        let mut command = self.command(&["-o", "json", "--patience", "60"]);
        command.env("ACCELPOOL_CUDA_STANDIN", engine.socket());
        read(&command.output().unwrap())
    }

    /// Runs `check` on it, and reads what it printed.
    fn check(&self) -> (Option<i32>, Value) {
        read(&self.run(&["-o", "json", "--patience", "60"]))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = bundle().join("accelpool-hw");
        let mut command = Command::new(program);
        command.arg("check").args(arguments);
        command.arg("--driver-root").arg(self.path("driver"));
        command.arg("--machine-root").arg(self.0.path());
        command.arg("--out").arg(self.path("report"));
        command
    }

    fn snapshot(&self) -> Value {
        let text = fs::read_to_string(self.path("report/snapshot.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// The exit code, and the report that was printed.
#[track_caller]
fn read(ran: &Output) -> (Option<i32>, Value) {
    let report = serde_json::from_slice(&ran.stdout);
    (ran.status.code(), report.unwrap_or_else(|error| panic!("{error}: {ran:?}")))
}

/// The DGX of the stand-in, with two of its GPUs.
fn two_gpus() -> Value {
    let mut described: Value = serde_json::from_str(DGX_H100).unwrap();
    described["devices"].as_array_mut().unwrap().truncate(2);
    described
}

fn rows<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let all = report["rows"].as_array().unwrap();
    let of = all.iter().filter(|row| row["verdict"] == verdict);
    of.map(|row| row["check"].as_str().unwrap()).collect()
}

#[track_caller]
fn is_refused(change: impl FnOnce(&mut Value), expected: &str) {
    let mut described = two_gpus();
    change(&mut described);
    let machine = Machine::new(&described);
    let (code, report) = machine.check();
    assert_eq!((code, &report["outcome"]), (Some(2), &json!("refused")), "{report:#}");
    let told = report["rows"].as_array().unwrap().iter().map(|row| row["detail"].as_str().unwrap());
    let told: Vec<&str> = told.collect();
    assert!(told.iter().any(|detail| detail.contains(expected)), "{told:?}");
    // What was said is kept all the same.
    assert_eq!(machine.snapshot()["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn a_sound_machine_passes_and_is_written_down() {
    let described = two_gpus();
    let machine = Machine::new(&described);
    let uuid = described["devices"][0]["uuid"].as_str().unwrap();
    let devices = vec![cuda::DeviceProfile::new(uuid)];
    let engine = Engine::start(cuda::Machine { devices }, &machine.path("engine.sock")).unwrap();
    let done = AtomicBool::new(false);
    let (code, report) = thread::scope(|scope| {
        scope.spawn(|| machine.drive(&described, &done));
        let checked = machine.check_with(&engine);
        done.store(true, Ordering::SeqCst);
        checked
    });
    assert_eq!(rows(&report, "failed"), Vec::<&str>::new(), "{report:#}");
    assert_eq!((code, &report["outcome"]), (Some(0), &json!("passed")));
    let passed = rows(&report, "passed");
    for check in [
        "discovery_is_stable",
        "the_kernel_lists_the_same_devices",
        "the_kernel_has_the_same_driver",
        "memory_adds_up",
        "an_idle_device_has_no_processes",
        "a_process_of_ours_is_seen",
        "an_event_of_ours_is_told",
        "no_setting_changed",
        "quiesce_closes_every_file",
    ] {
        assert!(passed.contains(&check), "{check}: {report:#}");
    }
    for name in ["report.md", "report.json", "snapshot.json"] {
        assert!(fs::metadata(machine.path("report").join(name)).unwrap().len() > 100, "{name}");
    }
}

/// A machine that answers as the snapshot says is told from the first by nobody.
#[test]
fn a_snapshot_is_replayed_through_the_stand_in() {
    let first = Machine::new(&two_gpus());
    let (_, report) = first.check();
    let snapshot = first.snapshot();
    let again = Machine::new(&snapshot);
    let (code, replayed) = again.check();
    assert_eq!((code, again.snapshot()), (Some(0), snapshot));
    assert_eq!(report["rows"], replayed["rows"]);
}

#[test]
fn people_get_a_table() {
    let machine = Machine::new(&two_gpus());
    let ran = machine.run(&[]);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.starts_with("CHECK") && text.contains("passed: "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_busy_machine_is_refused() {
    is_refused(
        |it| it["devices"][1]["processes"] = json!([{ "pid": 4711, "memory_mib": 5 }]),
        "process 4711 uses it",
    );
    is_refused(|it| it["devices"][0]["mig"] = true.into(), "MIG mode");
    is_refused(|it| it["devices"][0]["compute_mode"] = 3.into(), "compute mode is 3");
    is_refused(|it| it["devices"][0]["recovery_action"] = 1.into(), "asks for recovery");
}

#[test]
fn who_has_a_device_open_is_in_the_way() {
    let machine = Machine::new(&two_gpus());
    let folder = machine.path("proc/815/fd");
    fs::create_dir_all(&folder).unwrap();
    machine.write("proc/815/comm", "python\n");
    symlink("/dev/nvidia0", folder.join("9")).unwrap();
    let (code, report) = machine.check();
    assert_eq!(code, Some(2), "{report:#}");
    assert!(report.to_string().contains("process 815 (python)"), "{report:#}");
    machine.write("proc/815/comm", "nvidia-persistenced\n");
    assert_eq!(machine.check().0, Some(2));
    machine.write("proc/815/comm", "nvidia-persiste\n");
    assert_eq!(machine.check().0, Some(0));
}

#[test]
fn a_library_that_hangs_is_left() {
    let hangs = |symbol: &str, expected: &str| {
        let mut described = two_gpus();
        described["hang"] = json!([symbol]);
        let machine = Machine::new(&described);
        let (code, report) = read(&machine.run(&["-o", "json", "--patience", "8"]));
        assert_eq!(code, Some(3), "{symbol}: {report:#}");
        let last = report["rows"].as_array().unwrap().last().unwrap();
        assert_eq!(last["check"], expected, "{symbol}");
        assert!(last["detail"].as_str().unwrap().contains("hangs"), "{symbol}: {last}");
    };
    thread::scope(|scope| {
        scope.spawn(|| hangs("nvmlInitWithFlags", "the_library_answers"));
        scope.spawn(|| hangs("nvmlDeviceGetUtilizationRates", "the_library_answers"));
        scope.spawn(|| hangs("nvmlEventSetWait_v2", "conformance"));
    });
}

#[test]
fn without_a_library_there_is_nothing_to_check() {
    let machine = Machine::new(&two_gpus());
    let library = machine.path(LIBRARIES).join("libnvidia-ml.so.1");
    fs::write(&library, "not a library").unwrap();
    let (code, report) = machine.check();
    assert_eq!((code, &report["outcome"]), (Some(3), &json!("absent")), "{report:#}");
    fs::remove_file(&library).unwrap();
    assert_eq!(machine.check().0, Some(3));
    fs::remove_dir_all(machine.path("proc/driver")).unwrap();
    let (code, report) = machine.check();
    assert_eq!(code, Some(3));
    assert!(report.to_string().contains("there is no NVIDIA driver"), "{report:#}");
    machine.write(&format!("{LIBRARIES}/nvml-standin.json"), "{}");
    assert_eq!(machine.check().0, Some(3));
}
