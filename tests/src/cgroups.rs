//! Where a test's tenants run: cgroups and a BPF file system of its own, and processes in them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A cgroup of this test alone with a gate's root below it, and a BPF file system.
#[derive(Debug)]
pub struct Cgroups {
    folder: TempDir,
    top: PathBuf,
}

impl Cgroups {
    /// Makes them; all goes when it is dropped.
    ///
    /// # Panics
    ///
    /// On a machine without cgroup v2, or not as root.
    #[must_use]
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let cgroup2 = mounts_of("cgroup2").into_iter().next();
        let mount_point = cgroup2.expect("the tests of the gate need cgroup v2");
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("accelpool-gate-e2e-{}-{number}", std::process::id());
        let top = mount_point.join(name);
        fs::create_dir_all(top.join("kubepods")).expect("root may make cgroups");
        let folder = tempfile::Builder::new().prefix("accelpool-bpf-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("root may mount a BPF file system");
        Self { folder, top }
    }

    /// The gate's root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.top.join("kubepods")
    }

    /// The folder of the gate's pin.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.folder.path().join("accelpool")
    }

    /// The `[gate]` table and one pool for all devices, in `mode`.
    #[must_use]
    pub fn config(&self, mode: &str) -> String {
        format!(
            "[gate]\nroot = {:?}\npins = {:?}\n\n[[pool]]\nname = \"all\"\ngate = {mode:?}\n",
            self.root().display().to_string(),
            self.pins().display().to_string()
        )
    }

    /// A cgroup at a path below the gate's root, with all that lie between.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn make(&self, path: &str) -> PathBuf {
        let cgroup = self.root().join(path);
        fs::create_dir_all(&cgroup).expect("root may make cgroups");
        cgroup
    }

    /// The path of a cgroup below the mount, as `/proc/PID/cgroup` shows it.
    ///
    /// # Panics
    ///
    /// Never: the test's own cgroup lies directly below the mount.
    #[must_use]
    pub fn path(&self, cgroup: &Path) -> String {
        let mount = self.top.parent().expect("it has one");
        format!("/{}", cgroup.strip_prefix(mount).expect("it is below").display())
    }
}

impl Default for Cgroups {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        // A failed test has said more than what follows could add.
        let removed = crate::wait_for("empty cgroups", || match remove(&self.top) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !failed => None,
            done => Some(done),
        });
        // On a machine with cgroup v1 too, runtimes make the same cgroups there; where none did,
        // there is nothing to remove.
        let name = self.top.file_name().expect("it has one");
        for hierarchy in mounts_of("cgroup") {
            let _ = remove(&hierarchy.join(name));
        }
        let unmounted = umount2(self.folder.path(), MntFlags::MNT_DETACH);
        if !failed {
            removed.expect("the cgroups are empty");
            unmounted.expect("it was mounted");
        }
    }
}

/// Where file systems of a kind are mounted.
fn mounts_of(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs is mounted");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[2] == kind).map(|fields| fields[1].into()).collect()
}

fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// A process in a cgroup. Killed when dropped.
#[derive(Debug)]
pub struct Tenant(Child);

impl Tenant {
    /// Runs a shell's script in `cgroup` until it is dropped.
    ///
    /// # Panics
    ///
    /// If the shell does not come into the cgroup.
    #[must_use]
    pub fn start(cgroup: &Path, script: &str) -> Self {
        Self::start_with(cgroup, script, Stdio::null())
    }

    /// As [`Tenant::start`], with something open as its standard input.
    ///
    /// # Panics
    ///
    /// If the shell does not come into the cgroup.
    #[must_use]
    pub fn start_with(cgroup: &Path, script: &str, input: Stdio) -> Self {
        let child = shell(cgroup, script).stdin(input).stdout(Stdio::null()).spawn();
        let child = child.expect("a shell can be run");
        let procs = cgroup.join("cgroup.procs");
        crate::wait_for("a process in its cgroup", || {
            let listed = fs::read_to_string(&procs).expect("it can be read");
            listed.lines().any(|line| line.parse() == Ok(child.id())).then_some(())
        });
        Self(child)
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// True if it has not ended.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_none()
    }

    /// Opens a device node for reading and writing in `cgroup`: `admitted` or `refused`. Behind
    /// a simulated node there is no driver, so that to be admitted is ENXIO.
    ///
    /// # Panics
    ///
    /// If something else becomes of it.
    #[must_use]
    pub fn open(cgroup: &Path, node: &Path) -> &'static str {
        let script = format!("exec 3<>{}", node.display());
        let output = shell(cgroup, &script).output().expect("a shell can be run");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match () {
            () if said.contains("Operation not permitted") => "refused",
            () if said.contains("No such device or address") || output.status.success() => {
                "admitted"
            }
            () => panic!("nobody expected this: {said}"),
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(cgroup: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("echo 0 >{}/cgroup.procs; {script}", cgroup.display());
    command.env("LC_ALL", "C").args(["-c", &script]).stdin(Stdio::null());
    command
}
