//! Where a test plays: cgroups, a BPF file system and device nodes of its own.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode as FileMode, SFlag, makedev, mknod},
};
use tempfile::TempDir;

use crate::{DeviceNumber, DeviceRange, DeviceType, Gate, GateConfig, Guard, Guards, Mode};

/// A major for local use (`Documentation/admin-guide/devices.txt`): to open a node of it
/// gives ENXIO where nothing refuses it sooner.
pub(crate) const MAJOR: u32 = 120;

/// As many majors from [`MAJOR`] on are for local use, and have nodes in a scene.
pub(crate) const MAJORS: u32 = 3;

/// Each of these majors has so many minors with nodes.
pub(crate) const MINORS: u32 = 12;

#[derive(Debug)]
pub(super) struct Scene {
    /// A cgroup of this test alone; the gate's root lies below.
    pub(super) cgroup: PathBuf,
    folder: TempDir,
}

impl Scene {
    /// Sets up, with the gate's root at `root` below the test's cgroup.
    pub(super) fn new() -> Self {
        static SCENES: AtomicU32 = AtomicU32::new(0);
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let name = format!("accelpool-gate-test-{}-{number}", process::id());
        let cgroup = hierarchy().join(name);
        fs::create_dir(&cgroup).expect("root may make cgroups");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let scene = Self { cgroup, folder };
        fs::create_dir(scene.bpffs()).expect("a folder");
        mount(Some("bpf"), &scene.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("root may mount a BPF file system");
        for kind in [DeviceType::Character, DeviceType::Block] {
            for major in MAJOR..MAJOR + MAJORS {
                for minor in 0..MINORS {
                    scene.make_node(device_of(kind, major, minor));
                }
            }
        }
        scene.make_cgroup("root");
        scene
    }

    pub(super) fn config(&self) -> GateConfig {
        GateConfig { root: self.cgroup.join("root"), pins: self.bpffs().join("accelpool") }
    }

    /// A gate that guards every minor of [`MAJOR`].
    pub(super) fn gate(&self, mode: Mode) -> Gate {
        let gate = Gate::open(&self.config()).expect("this kernel can have a gate");
        gate.guard(&whole_major(mode)).expect("there is room");
        gate
    }

    pub(super) fn bpffs(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    /// A cgroup at a path below the test's, with all that lie between.
    pub(super) fn make_cgroup(&self, path: &str) -> PathBuf {
        let cgroup = self.cgroup.join(path);
        fs::create_dir_all(&cgroup).expect("root may make cgroups");
        cgroup
    }

    /// The node of a device.
    pub(super) fn node(&self, device: DeviceNumber) -> PathBuf {
        self.folder.path().join(device.to_string().replace(' ', "-"))
    }

    /// The node of a character device of [`MAJOR`].
    pub(super) fn node_of(&self, minor: u32) -> PathBuf {
        self.node(device(minor))
    }

    fn make_node(&self, device: DeviceNumber) {
        let kind = match device.kind() {
            DeviceType::Character => SFlag::S_IFCHR,
            DeviceType::Block => SFlag::S_IFBLK,
        };
        let number = makedev(device.major().into(), device.minor().into());
        let path = self.node(device);
        mknod(&path, kind, FileMode::from_bits_truncate(0o666), number).expect("root may mknod");
        let made = fs::metadata(&path).expect("it was made");
        assert!(made.file_type().is_char_device() || made.file_type().is_block_device());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A failed test has said more than what follows could add.
        let removed = remove_cgroups(&self.cgroup);
        let unmounted = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
        if !std::thread::panicking() {
            removed.expect("the cgroups are empty");
            unmounted.expect("it was mounted");
        }
    }
}

/// Removes a cgroup and all below it, unless processes are in one.
pub(super) fn remove_cgroups(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn hierarchy() -> PathBuf {
    mounts_of("cgroup2").into_iter().next().expect("the tests of the gate need cgroup v2")
}

/// Where file systems of a kind are mounted.
pub(super) fn mounts_of(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs is mounted");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[2] == kind).map(|fields| PathBuf::from(fields[1])).collect()
}

pub(super) fn device_of(kind: DeviceType, major: u32, minor: u32) -> DeviceNumber {
    DeviceNumber::new(kind, major, minor).expect("a valid number")
}

/// A character device of [`MAJOR`].
pub(super) fn device(minor: u32) -> DeviceNumber {
    device_of(DeviceType::Character, MAJOR, minor)
}

pub(super) fn whole_major(mode: Mode) -> Guards {
    let devices = DeviceRange::whole(DeviceType::Character, MAJOR).expect("a valid major");
    Guards::new([Guard { devices, mode }]).expect("one guard")
}
