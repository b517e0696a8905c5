//! A folder that is a machine: the stand-in library, and the trees that the kernel would show.
//!
//! Needs root, since device nodes are real.

#![allow(dead_code, reason = "each suite uses a part")]

use std::{
    env, fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use accelpool_model::DeviceUuid;
use accelpool_vendor_nvidia::{Nvidia, Roots};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const DGX_H100: &str = include_str!("../../standin/machines/dgx-h100.json");
pub(crate) const DGX_H100_MIG: &str = include_str!("../../standin/machines/dgx-h100-mig.json");
pub(crate) const V100_535: &str = include_str!("../../standin/machines/v100-535.json");

const LIBRARY: &str = "driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";
const FILE: &str = "driver/usr/lib/x86_64-linux-gnu/nvml-standin.json";

/// PCIe roots and NUMA nodes of a DGX H100, by the bus of the GPU.
const ROOTS: [(&str, &str, u32); 8] = [
    ("1b", "15", 0),
    ("43", "37", 0),
    ("52", "48", 0),
    ("61", "59", 0),
    ("9d", "97", 1),
    ("c3", "b7", 1),
    ("d1", "c7", 1),
    ("df", "d7", 1),
];

/// Majors as a driver got them; only NVIDIA's first is its own.
const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n\
    241 nvidia-uvm\n242 nvidia-caps\n\nBlock devices:\n  8 sd\n";

/// The loader's names lie before the code; to search all of it takes long.
const NAMES_END: usize = 1 << 18;

/// What a device that answers has at the beginning of its configuration space.
const CONFIG: [u8; 4] = [0xde, 0x10, 0x30, 0x23];

pub(crate) struct Machine {
    dir: TempDir,
}

impl Machine {
    /// The machine that `json` describes, with a driver that works.
    pub(crate) fn new(json: &str) -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        let mut described: Value = serde_json::from_str(json).unwrap();
        described["procfs"] = machine.path("proc").to_str().unwrap().into();
        machine.write(FILE, &described.to_string());
        fs::copy(standin(), machine.path(LIBRARY)).unwrap();
        machine.write("driver/usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07", "");
        let link = machine.path("driver/usr/lib/x86_64-linux-gnu/libcuda.so.1");
        symlink("/usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07", link).unwrap();
        machine.write("driver/usr/bin/nvidia-smi", "");
        machine.write("proc/devices", DEVICES);
        let version = described["driver_version"].as_str().unwrap();
        let version = format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed\n");
        machine.write("proc/driver/nvidia/version", &version);
        for gpu in described["devices"].as_array().unwrap() {
            machine.add_device(gpu);
        }
        let nodes = [("nvidiactl", 195, 255), ("nvidia-uvm", 241, 0), ("nvidia-uvm-tools", 241, 1)];
        for (name, major, minor) in nodes {
            machine.make_node(name, major, minor);
        }
        machine
    }

    /// A machine without driver: nothing but the kernel's own trees.
    pub(crate) fn bare() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        machine.write("proc/devices", "Character devices:\n  1 mem\n");
        machine
    }

    /// What the kernel shows of a GPU.
    pub(crate) fn add_device(&self, gpu: &Value) {
        let (pci, uuid) = (gpu["pci"].as_str().unwrap(), gpu["uuid"].as_str().unwrap());
        let of_bus = ROOTS.into_iter().find(|(bus, ..)| pci[5..].starts_with(bus));
        let (_, root, numa) = of_bus.unwrap_or(ROOTS[0]);
        let real = format!("sys/devices/pci0000:{root}/0000:{root}:01.0/{pci}");
        self.write(&format!("{real}/numa_node"), &format!("{numa}\n"));
        fs::write(self.path(&real).join("config"), CONFIG).unwrap();
        fs::create_dir_all(self.path("sys/bus/pci/devices")).unwrap();
        symlink(self.path(&real), self.path("sys/bus/pci/devices").join(pci)).unwrap();
        let (name, minor) = (gpu["name"].as_str().unwrap(), gpu["minor"].as_u64().unwrap());
        let text = format!(
            "Model: \t\t {name}\nIRQ:   \t\t 18\nGPU UUID: \t {uuid}\nBus Location: \t {pci}\n\
             Device Minor: \t {minor}\nGPU Excluded:\t No\n"
        );
        self.write(&format!("proc/driver/nvidia/gpus/{pci}/information"), &text);
        self.make_node(&format!("nvidia{minor}"), 195, minor);
    }

    pub(crate) fn make_node(&self, name: &str, major: u64, minor: u64) {
        fs::create_dir_all(self.path("dev")).unwrap();
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&self.path("dev").join(name), SFlag::S_IFCHR, mode, makedev(major, minor))
            .expect("device nodes need root and CAP_MKNOD");
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Replaced whole, since somebody may be reading it.
        let next = path.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, path).unwrap();
    }

    pub(crate) fn append(&self, below: &str, text: &str) {
        let path = self.path(below);
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Changes what the machine's file says.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.path(FILE)).unwrap();
        let mut described: Value = serde_json::from_str(&text).unwrap();
        change(&mut described);
        self.write(FILE, &described.to_string());
    }

    /// Takes symbols out of the library, as an older driver lacks them: the loader finds a name
    /// only if it is spelt as asked for.
    pub(crate) fn without_symbols(&self, names: &[&str]) {
        let path = self.path(LIBRARY);
        let mut library = fs::read(&path).unwrap();
        for name in names {
            let spelt = [b"\0", name.as_bytes(), b"\0"].concat();
            let windows = library[..NAMES_END].windows(spelt.len()).enumerate();
            let places: Vec<usize> =
                windows.filter(|(_, bytes)| *bytes == spelt).map(|(place, _)| place).collect();
            assert!(!places.is_empty(), "the stand-in has no {name}");
            for place in places {
                library[place + 1] = b'x';
            }
        }
        fs::write(path, library).unwrap();
    }

    pub(crate) fn remove_library(&self) {
        fs::remove_file(self.path(LIBRARY)).unwrap();
    }

    pub(crate) fn break_library(&self) {
        fs::write(self.path(LIBRARY), "not a library").unwrap();
    }

    /// The device no longer answers on the bus.
    pub(crate) fn unplug(&self, pci: &str) {
        fs::write(self.config(pci), [0xff; 4]).unwrap();
    }

    /// The device answers again.
    pub(crate) fn plug(&self, pci: &str) {
        fs::write(self.config(pci), CONFIG).unwrap();
    }

    fn config(&self, pci: &str) -> PathBuf {
        self.path("sys/bus/pci/devices").join(pci).join("config")
    }

    pub(crate) fn vendor(&self) -> Nvidia {
        Nvidia::new(Roots::new(self.dir.path(), self.path("driver")))
    }

    /// A text with the paths of this machine made the same for every run.
    pub(crate) fn neutral(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "ROOT")
    }
}

/// The UUID of GPU number `number`, from 1, of the DGX machines.
pub(crate) fn uuid(number: usize) -> DeviceUuid {
    let bus = ROOTS[number - 1].0;
    format!("GPU-5a1f000{number}-{bus}00-4c6e-9d10-ac0e{bus}000000").parse().unwrap()
}

/// The library that cargo built beside this test.
fn standin() -> PathBuf {
    let test = env::current_exe().unwrap();
    let folders = test.ancestors().skip(1).take(2);
    let mut files = folders.map(|folder| folder.join("libaccelpool_nvml_standin.so"));
    files.find(|file| Path::exists(file)).expect("cargo builds the stand-in for this test")
}
