//! `accelpoold mps`: the driver's MPS control program in a world of its own.
//!
//! Server and clients share memory through `/dev/shm`, which is the container's own for a client.
//! So the control daemon gets a folder of the device's in that place, which its clients get too,
//! and no other process sees. Where a container brings the driver, its root becomes ours.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd,
};

/// The driver's program.
pub(super) const CONTROL: &str = "nvidia-cuda-mps-control";

/// Where it may be, below the driver's root.
const FOLDERS: [&str; 4] =
    ["usr/bin", "bin", "usr/local/nvidia/bin", "home/kubernetes/bin/nvidia/bin"];

/// Where the folders of the device are seen by the control daemon.
const SEEN_AT: &str = "/run";

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Where the driver is installed.
    pub driver_root: PathBuf,
    /// The device's folder, with `pipe`, `log` and `shm` in it.
    pub folder: PathBuf,
    /// The device that its clients see.
    pub device: String,
    /// As the control daemon itself, or as its client, which passes commands to it.
    pub as_daemon: bool,
}

/// Why it could not be run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum RunControlError {
    #[error("`{CONTROL}` is not below `{root}`: does the driver's installation bring it?")]
    Missing { root: PathBuf },
    #[error("failed to {what}")]
    World { what: &'static str, source: io::Error },
    #[error("failed to run `{program}`")]
    Exec { program: PathBuf, source: io::Error },
}

/// Becomes the driver's program; returns only if it cannot.
///
/// # Errors
///
/// See [`RunControlError`].
pub fn run_control(control: &Control) -> Result<std::convert::Infallible, RunControlError> {
    let program = FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(CONTROL))
        .find(|program| control.driver_root.join(program).is_file())
        .ok_or_else(|| RunControlError::Missing { root: control.driver_root.clone() })?;
    if control.as_daemon {
        share_memory(control)?;
    }
    let program = if control.driver_root == Path::new("/") {
        Path::new("/").join(program)
    } else {
        enter(control)?;
        Path::new("/").join(program)
    };
    let mut command = Command::new(&program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let seen = seen_folder(control);

    command.env("CUDA_MPS_PIPE_DIRECTORY", seen.join("pipe"));
    command.env("CUDA_MPS_LOG_DIRECTORY", seen.join("log"));
    command.env("CUDA_VISIBLE_DEVICES", &control.device);
    if control.as_daemon {
        // In the foreground: whoever started it knows its process.
        command.arg("-f");
    }
    Err(RunControlError::Exec { program, source: command.exec() })
}

/// Where the device's folder is for the program.
fn seen_folder(control: &Control) -> PathBuf {
    if control.driver_root == Path::new("/") {
        control.folder.clone()
    } else {
        Path::new(SEEN_AT).into()
    }
}

/// Puts the device's folder where shared memory lies, for this process and its children alone.
fn share_memory(control: &Control) -> Result<(), RunControlError> {
    own_mounts()?;
    let shm = control.folder.join("shm");
    let at = control.driver_root.join("dev/shm");
    bind(&shm, &at, "put the device's shared memory in place")
}

/// Makes the driver's root this process's, with the device's folder in it.
fn enter(control: &Control) -> Result<(), RunControlError> {
    if !control.as_daemon {
        own_mounts()?;
    }
    let at = control.driver_root.join(SEEN_AT.trim_start_matches('/'));
    bind(&control.folder, &at, "bring the device's folder into the driver's root")?;
    let world =
        |what| move |error: nix::Error| RunControlError::World { what, source: error.into() };
    unistd::chroot(&control.driver_root).map_err(world("enter the driver's root"))?;
    unistd::chdir("/").map_err(world("enter the driver's root"))
}

fn own_mounts() -> Result<(), RunControlError> {
    let what = "leave the host's mounts";
    let world = |error: nix::Error| RunControlError::World { what, source: error.into() };
    unshare(CloneFlags::CLONE_NEWNS).map_err(world)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(world)
}

fn bind(from: &Path, to: &Path, what: &'static str) -> Result<(), RunControlError> {
    let mounted = mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    mounted.map_err(|error| RunControlError::World { what, source: error.into() })
}

impl Control {
    /// The arguments of `accelpoold` that run it.
    #[must_use]
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let role = if self.as_daemon { "daemon" } else { "client" };
        vec![
            "mps".into(),
            role.into(),
            "--driver-root".into(),
            self.driver_root.clone().into(),
            "--folder".into(),
            self.folder.clone().into(),
            "--device".into(),
            self.device.clone().into(),
        ]
    }
}
