//! The machine: three H100 of a DGX, the last of them in MIG mode.

use std::{env, fs, path::PathBuf, process::Command};

use accelpool_tests::{Home, cli};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

pub(crate) const WHOLE: &str = "gpu-0000-1b-00-0";
pub(crate) const CUT: &str = "gpu-0000-df-00-0";
pub(crate) const SMALL: &str = "1g.10gb";

/// Their places in the list of a DGX, which are their minors too.
const DEVICES: [usize; 3] = [0, 1, 7];

/// Never by itself: looks follow from what the test does.
pub(crate) const NEVER: u32 = 600_000;

pub(crate) struct Machine {
    pub(crate) home: Home,
}

impl Machine {
    /// A machine whose daemon looks at devices so often.
    pub(crate) fn new(observe_ms: u32) -> Self {
        let machine = Self { home: Home::new("dgx-h100") };
        for folder in ["dev", "proc/driver/nvidia/gpus", "driver/usr/lib64"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        let majors = "Character devices:\n195 nvidia\n241 nvidia-uvm\n242 nvidia-caps\n";
        fs::write(machine.path("proc/devices"), majors).unwrap();
        for (name, major, minor) in [("nvidiactl", 195, 255), ("nvidia-uvm", 241, 0)] {
            machine.make_node(name, major, minor);
        }
        let text = include_str!("../../../vendors/nvidia/standin/machines/dgx-h100-mig.json");
        let mut described: Value = serde_json::from_str(text).unwrap();
        let all = described["devices"].as_array_mut().unwrap();
        let devices: Vec<Value> = DEVICES.iter().map(|at| all[*at].clone()).collect();
        for device in &devices {
            let of = |key: &str| device[key].as_str().unwrap().to_owned();
            let folder = machine.path("proc/driver/nvidia/gpus").join(of("pci"));
            fs::create_dir(&folder).unwrap();
            let text = format!(
                "Model: {}\nGPU UUID: {}\nDevice Minor: {}\n",
                of("name"),
                of("uuid"),
                device["minor"]
            );
            fs::write(folder.join("information"), text).unwrap();
            // What the library opens has to be there; there is no driver behind 195.
            let name = format!("nvidia{}", device["minor"]);
            machine.make_node(&name, 1, 3);
        }
        let opens: Vec<String> = DEVICES
            .iter()
            .map(|minor| machine.path(&format!("dev/nvidia{minor}")).to_str().unwrap().to_owned())
            .collect();
        described["devices"] = devices.into();
        described["procfs"] = machine.path("proc").to_str().unwrap().into();
        described["opens"] = opens.into();
        described["events"] = json!([]);
        machine.write(&described);
        fs::copy(library(), machine.path("driver/usr/lib64/libnvidia-ml.so.1")).unwrap();
        machine.configure(observe_ms);
        machine
    }

    fn configure(&self, observe_ms: u32) {
        let text = fs::read_to_string(self.home.config()).unwrap();
        let text = text.split("[[vendor]]").next().unwrap();
        let interval = format!("observe_interval_ms = {observe_ms}");
        let text = text.replace("observe_interval_ms = 600000", &interval);
        let text = format!(
            "{text}[[vendor]]\nname = \"nvidia\"\nturns = false\ndriver_root = {:?}\n\
             machine_root = {:?}\n\n[gate]\nroot = \"/sys/fs/cgroup/accelpool-tests-hold-nobody\"\n",
            self.path("driver").to_str().unwrap(),
            self.home.sim().to_str().unwrap(),
        );
        fs::write(self.home.config(), text).unwrap();
    }

    fn make_node(&self, name: &str, major: u64, minor: u64) {
        let mode = Mode::from_bits_truncate(0o666);
        let path = self.path("dev").join(name);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor)).unwrap();
    }

    /// A path of the machine.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.home.sim().join(below)
    }

    fn file(&self) -> PathBuf {
        self.path("driver/usr/lib64/nvml-standin.json")
    }

    fn write(&self, described: &Value) {
        // By rename: the stand-in may be reading it.
        let next = self.file().with_extension("next");
        fs::write(&next, described.to_string()).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    /// Changes what the machine's file says.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.file()).unwrap();
        let mut described: Value = serde_json::from_str(&text).unwrap();
        change(&mut described);
        self.write(&described);
    }

    /// The driver tells of an event of the device at that place.
    pub(crate) fn tell(&self, device: usize, kind: u64, value: u64) {
        self.change(|described| {
            let events = described["events"].as_array_mut().unwrap();
            events.push(json!({ "device": device, "kind": kind, "value": value }));
        });
    }

    /// How many GPU instances there are, whoever knows of them.
    pub(crate) fn instances(&self) -> usize {
        let path = self.file().with_extension("json.mig");
        fs::read_to_string(path).map_or(0, |text| text.matches("\"gpu\":").count())
    }

    /// What `accelpool` prints.
    pub(crate) fn accelpool(&self, arguments: &[&str]) -> Value {
        let output = Command::new(cli())
            .args(arguments)
            .args(["-o", "json"])
            .env("ACCELPOOL_SOCKET", self.home.socket())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "accelpool {arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// How often the daemon's log says it.
    pub(crate) fn logged(&self, words: &str) -> usize {
        fs::read_to_string(self.home.log()).map_or(0, |log| log.matches(words).count())
    }
}

/// The library as cargo has built it beside this test.
fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    let mut files =
        test.ancestors().skip(1).take(2).map(|it| it.join("libaccelpool_nvml_standin.so"));
    files.find(|file| file.exists()).expect("cargo builds the stand-in for this test")
}
