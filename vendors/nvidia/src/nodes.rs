//! Device nodes: which ones a container needs, and that they lead to the driver.
//!
//! The majors of some are given out anew when a module is loaded, so `/proc/devices` is read
//! every time. A node that is missing or leads elsewhere is made anew, as `nvidia-modprobe`
//! does.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use accelpool_model::{DeviceNode, PciAddress};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::roots::{Roots, names, read};

/// A device has one card and one render node.
const DRM_NODES_MAX: usize = 16;

/// Everyone may open the nodes, as the driver's own tool makes them: the gate is elsewhere.
const MODE: u32 = 0o666;

/// Why a device node cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("`/proc/devices` names no `{0}`: is its module loaded?")]
    NoMajor(&'static str),
    #[error("`{0}` does not say which device node it has")]
    NoMinor(PathBuf),
    #[error("failed to make device node `{path}`: {source}")]
    Make { path: PathBuf, source: io::Error },
}

/// The nodes for all of a device.
pub(crate) fn of_device(roots: &Roots, pci: PciAddress, minor: u32) -> Vec<DeviceNode> {
    let devices = read(&roots.procfs.join("devices")).unwrap_or_default();
    let mut nodes = vec![format!("nvidia{minor}"), "nvidiactl".into(), "nvidia-uvm".into()];
    for optional in ["nvidia-uvm-tools", "nvidia-modeset"] {
        if roots.devfs.join(optional).exists() {
            nodes.push(optional.into());
        }
    }
    if let Some(major) = major(&devices, "nvidia-uvm") {
        // Left as they are where they cannot be made: whoever opens them is told.
        let _ = make(&roots.devfs.join("nvidia-uvm"), major, 0, MODE);
        if nodes.iter().any(|node| node == "nvidia-uvm-tools") {
            let _ = make(&roots.devfs.join("nvidia-uvm-tools"), major, 1, MODE);
        }
    }
    let drm = roots.sysfs.join("bus/pci/devices").join(pci.to_string()).join("drm");
    let drm = names(&drm, DRM_NODES_MAX).into_iter().map(|name| format!("dri/{name}"));
    nodes.extend(drm.filter(|node| roots.devfs.join(node).exists()));
    nodes.iter().map(|node| device_node(roots, node)).collect()
}

/// The nodes that open GPU instance `gpu` and its compute instance `compute`.
pub(crate) fn of_instance(
    roots: &Roots,
    minor: u32,
    (gpu, compute): (u32, u32),
) -> Result<Vec<DeviceNode>, NodeError> {
    const DRIVER: &str = "nvidia-caps";
    let devices = read(&roots.procfs.join("devices")).unwrap_or_default();
    let major = major(&devices, DRIVER).ok_or(NodeError::NoMajor(DRIVER))?;
    let instance = roots.procfs.join(format!("driver/nvidia/capabilities/gpu{minor}/mig/gi{gpu}"));
    let mut nodes = Vec::new();
    for access in [instance.join("access"), instance.join(format!("ci{compute}/access"))] {
        let Access { minor, mode } = Access::read(&access).ok_or(NodeError::NoMinor(access))?;
        let name = format!("nvidia-caps/nvidia-cap{minor}");
        make(&roots.devfs.join(&name), major, minor, mode)?;
        nodes.push(device_node(roots, &name));
    }
    Ok(nodes)
}

/// What the driver says of the node of a capability.
struct Access {
    minor: u32,
    mode: u32,
}

impl Access {
    fn read(path: &Path) -> Option<Self> {
        let text = read(path).ok()?;
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(name, _)| name.trim() == key).find_map(|(_, it)| it.trim().parse().ok())
        };
        Some(Self {
            minor: value("DeviceFileMinor")?,
            // Reading is all that a capability takes.
            mode: value("DeviceFileMode").unwrap_or(0o444) & 0o777,
        })
    }
}

/// The major of a character device, from the text of `/proc/devices`.
fn major(devices: &str, name: &str) -> Option<u64> {
    let lines = devices.lines().take_while(|line| line.trim() != "Block devices:");
    let entries = lines.filter_map(|line| line.trim().split_once(' '));
    entries.filter(|(_, it)| it.trim() == name).find_map(|(major, _)| major.parse().ok())
}

/// Makes `path` the character device of that number, unless it is.
fn make(path: &Path, major: u64, minor: u32, mode: u32) -> Result<(), NodeError> {
    let failed = |source| NodeError::Make { path: path.to_owned(), source };
    let device = makedev(major, minor.into());
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_char_device() && found.rdev() == device => return Ok(()),
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(mode), device)
        .map_err(|errno| failed(errno.into()))?;
    // The process's mask took bits away.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, mode).map_err(failed)
}

fn device_node(roots: &Roots, name: &str) -> DeviceNode {
    DeviceNode {
        host_path: roots.devfs.join(name).to_string_lossy().into_owned(),
        container_path: format!("/dev/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n\
        507 nvidia-caps\n506 nvidia-uvm\n\nBlock devices:\n  8 sd\n 12 nvidia-nvswitch\n";

    #[track_caller]
    fn check(name: &str, expected: Option<u64>) {
        assert_eq!(major(DEVICES, name), expected, "{name}");
    }

    #[test]
    fn majors_are_those_of_character_devices() {
        check("nvidia-caps", Some(507));
        check("nvidia-uvm", Some(506));
        check("nvidia-nvswitch", None);
        check("nvidia-cap", None);
    }
}
