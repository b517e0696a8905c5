//! Containers as tenants start them: podman with runc, as Debian ships both.
//!
//! podman reads CDI specs from fixed folders of the machine, and a daemon removes every spec
//! there that it has no lease for. Whoever runs containers therefore takes a turn: a lock that
//! all test processes and `tools/demo.sh` share. Nothing here is skipped: a machine without
//! podman fails the suite and is told what to install.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::TempDir;

/// The folder of CDI specs that podman reads and a daemon may write.
pub const CDI_DIR: &str = "/var/run/cdi";

/// `tools/demo.sh` takes the same lock.
const LOCK: &str = "/run/lock/accelpool-cdi.lock";

/// A busybox that needs no libraries: all that a container's root holds.
const BUSYBOX: &str = "/bin/busybox";

/// podman, with [`CDI_DIR`] to itself until it is dropped.
#[derive(Debug)]
pub struct Podman {
    folder: TempDir,
    containers: AtomicU32,
    _turn: File,
}

/// A container that runs until it is dropped.
#[derive(Debug)]
pub struct Container {
    configuration: PathBuf,
    name: String,
}

impl Podman {
    /// Waits for its turn.
    ///
    /// # Panics
    ///
    /// If the machine lacks podman, runc or a static busybox.
    #[must_use]
    pub fn take_turn() -> Self {
        check_installed();
        let turn = File::options().create(true).append(true).open(LOCK);
        let turn = turn.expect("root can make a lock file");
        turn.lock().expect("a file can be locked");
        let folder = tempfile::Builder::new().prefix("accelpool-podman-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        fs::create_dir_all(CDI_DIR).expect("root can make the CDI folder");
        let configuration = folder.path().join("containers.conf");
        fs::write(configuration, CONFIGURATION).expect("the folder takes files");
        Self { folder, containers: AtomicU32::new(0), _turn: turn }
    }

    /// Runs `script` in a new container to its end.
    ///
    /// # Panics
    ///
    /// If podman itself cannot be run.
    #[must_use]
    pub fn run(&self, devices: &[&str], script: &str) -> Output {
        self.run_with(&[], devices, script)
    }

    /// As [`Podman::run`], with more of podman's arguments.
    ///
    /// # Panics
    ///
    /// If podman itself cannot be run.
    #[must_use]
    pub fn run_with(&self, arguments: &[&str], devices: &[&str], script: &str) -> Output {
        let name = self.next_name();
        let verb = [&["run", "--rm"], arguments].concat();
        self.command(&verb, &name, devices, script).output().expect("podman can be run")
    }

    /// Runs `script` in a new container and returns what it printed.
    ///
    /// # Panics
    ///
    /// If the container does not start or `script` fails.
    #[must_use]
    pub fn read(&self, devices: &[&str], script: &str) -> String {
        succeed(&self.run(devices, script))
    }

    /// Starts a container that does nothing until it is dropped.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(&self, devices: &[&str]) -> Container {
        self.start_with(&[], devices)
    }

    /// As [`Podman::start`], with more of podman's arguments.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start_with(&self, arguments: &[&str], devices: &[&str]) -> Container {
        let name = self.next_name();
        let verb = [&["run", "--rm", "--detach"], arguments].concat();
        // Should this process be killed, the container ends by itself all the same.
        let mut command = self.command(&verb, &name, devices, "sleep 600");
        // podman leaves a monitor behind, which would hold a pipe open.
        let status = command.stdout(Stdio::null()).status().expect("podman can be run");
        let container = Container { configuration: self.configuration(), name };
        assert!(status.success(), "the container did not start: {status}");
        container
    }

    /// The configuration by which podman runs on this machine, for others that run it.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("containers.conf")
    }

    fn next_name(&self) -> String {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        format!("accelpool-test-{}-{number}", std::process::id())
    }

    fn command(&self, verb: &[&str], name: &str, devices: &[&str], script: &str) -> Command {
        // Each has a root of its own: runc makes what is to be mounted over in it.
        let root = self.folder.path().join(name);
        fs::create_dir_all(root.join("bin")).expect("the folder takes folders");
        fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox can be copied");
        let mut command = podman(&self.configuration());
        command.args(verb).args(["--name", name, "--network", "none"]);
        for id in devices {
            command.args(["--device", id]);
        }
        command.arg("--rootfs").arg(root).args(["/bin/busybox", "sh", "-c", script]);
        command
    }
}

fn podman(configuration: &Path) -> Command {
    let mut podman = Command::new("podman");
    podman.env("CONTAINERS_CONF", configuration).stdin(Stdio::null());
    podman
}

impl Container {
    /// Runs `script` in it and returns what it printed.
    ///
    /// # Panics
    ///
    /// If the container is gone or `script` fails.
    #[must_use]
    pub fn read(&self, script: &str) -> String {
        let mut command = podman(&self.configuration);
        command.args(["exec", &self.name, "/bin/busybox", "sh", "-c", script]);
        succeed(&command.output().expect("podman can be run"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed =
            podman(&self.configuration).args(["rm", "--force", "--time", "0", &self.name]).output();
        let removed = removed.is_ok_and(|output| output.status.success());
        if !removed {
            eprintln!("container {} could not be removed", self.name);
        }
    }
}

fn check_installed() {
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Daemons' programs lie where the path of a plain user may not lead.
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        folders.into_iter().any(|folder| folder.join(program).is_file())
    };
    let there = on_path("podman") && on_path("runc") && Path::new(BUSYBOX).is_file();
    assert!(
        there,
        "the suite runs real containers: install Debian's podman, runc and busybox-static, \
         which tools/setup.sh does"
    );
}

/// podman's own default limits are more than root may set inside many a container or virtual
/// machine, and systemd need not run there.
const CONFIGURATION: &str = "\
[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]
[engine]
cgroup_manager = \"cgroupfs\"
runtime = \"runc\"
";

#[track_caller]
fn succeed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "podman ended with {}: {said}", output.status);
    String::from_utf8(output.stdout.clone()).expect("busybox prints text")
}
