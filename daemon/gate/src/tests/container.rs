//! Real containers: podman with runc, a plain one and a privileged one, as tenants start them.
//!
//! The guarded device is `/dev/zero`, which exists in every container and can be read; it is
//! guarded for the containers of this test alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use super::scene::{Scene, device_of, mounts_of, remove_cgroups};
use crate::{Access, Counts, DeviceType, Gate, Guard, Guards, Mode};

/// A busybox that needs no libraries: all that a container's root holds.
const BUSYBOX: &str = "/bin/busybox";

/// Reads a byte of the device as the image brings it, then of a node made by the container.
const SCRIPT: &str = "head -c 1 /dev/zero | wc -c; \
                      rm -f /tmp/made; mknod /tmp/made c 1 5 && head -c 1 /tmp/made | wc -c";

#[test]
fn a_container_opens_what_its_pod_was_granted_and_nothing_else() {
    let scene = Scene::new();
    let zero = device_of(DeviceType::Character, 1, 5);
    let gate = Gate::open(&scene.config()).expect("this kernel can have a gate");
    let guard = |mode| {
        let guards = Guards::new([Guard { devices: zero.into(), mode }]).expect("one guard");
        gate.guard(&guards).expect("there is room");
    };
    let pod = Pod::new(&scene);
    let id = gate.cgroup(&pod.cgroup).expect("it lies below the root");
    let read_by_both = || [&["--cap-add=mknod"][..], &["--privileged"]].map(|it| pod.run(it));

    guard(Mode::Enforce);
    assert_eq!(read_by_both(), ["0 0", "0 0"], "without a grant");
    guard(Mode::Audit);
    assert_eq!(read_by_both(), ["1 1", "1 1"], "in audit mode");
    guard(Mode::Enforce);
    gate.grant(id, zero, Access::READ_WRITE).expect("there is room");
    assert_eq!(read_by_both(), ["1 1", "1 1"], "with a grant");

    let counts = gate.counts().expect("it can be read");
    let of_zero = counts.into_iter().find(|(device, _)| *device == Some(zero));
    let Counts { audited, denied, .. } = of_zero.expect("it is guarded").1;
    assert_eq!((audited, denied), (4, 4));
}

/// A pod of one container after the other.
struct Pod {
    cgroup: PathBuf,
    /// The path below the hierarchy, as runtimes want it.
    path: String,
    /// Where podman keeps what it needs, apart from the machine's own.
    folder: tempfile::TempDir,
}

impl Pod {
    fn new(scene: &Scene) -> Self {
        let name = scene.cgroup.file_name().expect("it has a name").to_string_lossy();
        let folder = tempfile::tempdir().expect("a temporary folder");
        for part in ["root/bin", "root/tmp"] {
            fs::create_dir_all(folder.path().join(part)).expect("a folder");
        }
        let busybox = folder.path().join("root").join(BUSYBOX.trim_start_matches('/'));
        fs::copy(BUSYBOX, busybox).expect("`apt-get install busybox-static podman runc`");
        let path = format!("/{name}/root/pod");
        Self { cgroup: scene.make_cgroup("root/pod"), path, folder }
    }

    /// What the script prints, with spaces for line ends.
    fn run(&self, arguments: &[&str]) -> String {
        let own = |name: &str| self.folder.path().join(name);
        let output = Command::new("podman")
            .args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--root"])
            .args([own("storage").as_os_str(), "--runroot".as_ref(), own("run").as_os_str()])
            .args(["run", "--rm", "--network=none", "--cgroup-parent", &self.path])
            // podman's defaults need CAP_SYS_RESOURCE, which a test machine may lack.
            .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"])
            .args(arguments)
            .arg("--rootfs")
            .arg(own("root"))
            .args([BUSYBOX, "sh", "-c", SCRIPT])
            .stdin(Stdio::null())
            .output()
            .expect("`apt-get install busybox-static podman runc`");
        assert!(output.status.code().is_some_and(|it| it < 125), "{output:?}");
        let printed = String::from_utf8_lossy(&output.stdout);
        printed.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Pod {
    /// On a machine with cgroup v1 too, runtimes make the same cgroups there.
    fn drop(&mut self) {
        let top = Path::new(&self.path).iter().nth(1).expect("it has three parts");
        for hierarchy in mounts_of("cgroup") {
            remove_when_empty(&hierarchy.join(top));
        }
        remove_when_empty(&self.cgroup);
    }
}

/// podman's monitor leaves some time after its container. Does not wait for ever: what is left
/// then fails the scene.
fn remove_when_empty(cgroup: &Path) {
    for _ in 0..1_000_000 {
        match remove_cgroups(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::yield_now(),
            Ok(()) | Err(_) => return,
        }
    }
}
