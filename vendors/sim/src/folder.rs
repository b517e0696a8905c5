//! The folder that stands for the hardware: device nodes, a driver library, state and script.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use accelpool_model::{DeviceNode, Injection, Mount};
use nix::{
    errno::Errno,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

use crate::profile::Node;

/// Everyone may open the nodes, as with the real drivers: the gate is elsewhere.
const NODE_MODE: u32 = 0o666;

/// Where a container finds the simulated driver's library.
const LIBRARY_IN_CONTAINER: &str = "/usr/lib/accelpool-sim/libsim.so";

/// Tells a container which simulated node it runs on.
const PROFILE_VARIABLE: &str = "ACCELPOOL_SIM_PROFILE";

/// Why something in the folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder is the root of the file system, whose `/dev` is the real one.
    #[error("`{0}` cannot hold a simulated machine: use a folder of its own")]
    NotOwn(PathBuf),
    /// Device nodes may not be created.
    #[error(
        "device node `{0}` may not be created: run as root with CAP_MKNOD, \
         on a file system that takes device nodes"
    )]
    NotPermitted(PathBuf),
    /// The majors for experiments are all taken by drivers of this machine.
    #[error("majors 240 to 254 are all in use on this machine (/proc/devices)")]
    NoMajor,
    /// Something else failed.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The folder of one simulated machine.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the folder where it is missing. Its path becomes absolute, since others use it.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let failed =
            |action| move |source| FolderError::File { action, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed("create folder"))?;
        let root = fs::canonicalize(path).map_err(failed("resolve"))?;
        if root.parent().is_none() {
            return Err(FolderError::NotOwn(root));
        }
        Ok(Self { root })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn script_path(&self) -> PathBuf {
        self.root.join("script.toml")
    }

    fn library_path(&self) -> PathBuf {
        self.root.join("lib").join("libsim.so")
    }

    fn node_path(&self, node: &Node) -> PathBuf {
        self.root.join("dev").join(&node.path)
    }

    /// Writes the driver's library, whose content is for the eye only.
    pub(crate) fn write_library(&self) -> Result<(), FolderError> {
        let path = self.library_path();
        let failed = |action| {
            let path = path.clone();
            move |source| FolderError::File { action, path, source }
        };
        let text = "accelpool: simulated driver library\n";
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(()); // a container may have it mounted
        }
        fs::create_dir_all(self.root.join("lib")).map_err(failed("create folder of"))?;
        fs::write(&path, text).map_err(failed("write"))
    }

    /// Makes sure that `node` exists with the right numbers; one that is right is kept.
    pub(crate) fn ensure_node(&self, node: &Node, major: u32) -> Result<(), FolderError> {
        let path = self.node_path(node);
        let failed = |action| {
            let path = path.clone();
            move |source| FolderError::File { action, path, source }
        };
        let device = makedev(u64::from(major), u64::from(node.minor));
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_char_device() && found.rdev() == device => {
                if found.mode() & 0o7777 == NODE_MODE {
                    return Ok(());
                }
                return set_mode(&path).map_err(failed("set the mode of"));
            }
            Ok(_) => fs::remove_file(&path).map_err(failed("remove"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(&self.root);
                fs::create_dir_all(folder).map_err(failed("create folder of"))?;
            }
            Err(source) => return Err(failed("inspect")(source)),
        }
        match mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(NODE_MODE), device) {
            Ok(()) => set_mode(&path).map_err(failed("set the mode of")), // umask took bits away
            Err(Errno::EPERM | Errno::EACCES) => Err(FolderError::NotPermitted(path)),
            Err(error) => Err(failed("create")(error.into())),
        }
    }

    /// Removes a node; one that is gone counts as removed.
    pub(crate) fn remove_node(&self, node: &Node) -> Result<(), FolderError> {
        let path = self.node_path(node);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(FolderError::File { action: "remove", path, source }),
        }
    }

    /// What a container needs to use `nodes`.
    pub(crate) fn injection<'a>(
        &self,
        profile: &str,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> Injection {
        let node = |node: &Node| DeviceNode {
            host_path: self.node_path(node).to_string_lossy().into_owned(),
            container_path: format!("/dev/{}", node.container_path),
        };
        let library = Mount {
            host_path: self.library_path().to_string_lossy().into_owned(),
            container_path: LIBRARY_IN_CONTAINER.to_owned(),
        };
        Injection {
            nodes: nodes.into_iter().map(node).collect(),
            mounts: vec![library],
            env: vec![(PROFILE_VARIABLE.to_owned(), profile.to_owned())],
            ..Injection::default()
        }
    }
}

fn set_mode(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(NODE_MODE))
}

/// The major to use: `wanted`, unless a driver of this machine has it.
///
/// The kernel also hands out 240 to 254 to its own drivers, and a simulated node must never
/// open a real device.
pub(crate) fn free_major(proc_devices: &str, wanted: u32) -> Result<u32, FolderError> {
    let characters = proc_devices.split("Block devices:").next().unwrap_or_default();
    let major_of = |line: &str| line.split_whitespace().next()?.parse::<u32>().ok();
    let taken: Vec<u32> = characters.lines().filter_map(major_of).collect();
    std::iter::once(wanted)
        .chain(240..=254)
        .find(|major| !taken.contains(major))
        .ok_or(FolderError::NoMajor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_of_a_real_driver_is_never_used() {
        let check = |devices: &str, expected: Option<u32>| {
            assert_eq!(free_major(devices, 241).ok(), expected, "{devices}");
        };
        check("", Some(241));
        check("Character devices:\n  1 mem\n254 gpio\n\nBlock devices:\n241 x\n", Some(241));
        check("Character devices:\n241 hidraw\n240 x\n", Some(242));
        let all: Vec<String> = (240..=254).map(|major| format!("{major} x")).collect();
        check(&all.join("\n"), None);
    }
}
