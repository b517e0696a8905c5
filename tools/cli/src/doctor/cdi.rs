//! The folder of CDI specs. Who may write there gives any device to any container.

use std::{fs, os::unix::fs::MetadataExt};

use super::{
    Finding, Host,
    host::{Mount, mount_of},
};

const CHECK: &str = "cdi-folder";

/// A folder as found.
pub(super) struct Folder<'a> {
    pub(super) path: &'a str,
    pub(super) right_type: bool,
    pub(super) owner: u32,
    pub(super) mode: u32,
    /// The kind of file system that it lies on.
    pub(super) file_system: Option<&'a str>,
}

pub(super) fn check(host: &Host, mounts: &[Mount]) -> Finding {
    // `/var/run` is a link to `/run` on every system with systemd; below another root such
    // a link would lead out of it.
    let is_link = fs::symlink_metadata(host.path("/var/run")).is_ok_and(|file| file.is_symlink());
    let path = if is_link || !host.has("/var/run/cdi") { "/run/cdi" } else { "/var/run/cdi" };
    let Ok(found) = fs::metadata(host.path(path)) else {
        return Finding::warning(
            CHECK,
            format!("`{path}` does not exist or cannot be read"),
            "accelpoold makes it with the first claim; if it does not, mkdir -m 0755 /run/cdi",
        );
    };
    judge(&Folder {
        path,
        right_type: found.is_dir(),
        owner: found.uid(),
        mode: found.mode(),
        file_system: mount_of(mounts, path).map(|mount| mount.kind.as_str()),
    })
}

pub(super) fn judge(folder: &Folder<'_>) -> Finding {
    let Folder { path, owner, .. } = folder;
    if !folder.right_type {
        return Finding::error(CHECK, format!("`{path}` is not a folder"), "move it away");
    }
    let mode = folder.mode & 0o7777;
    if *owner != 0 || mode & 0o022 != 0 {
        return Finding::error(
            CHECK,
            format!(
                "`{path}` belongs to uid {owner} with mode {mode:04o}: who may write specs there \
                 gives any device to any container"
            ),
            &format!("chown root:root {path} && chmod 0755 {path}"),
        );
    }
    match folder.file_system {
        Some("tmpfs" | "ramfs") | None => {
            Finding::ok(CHECK, format!("`{path}` is there and only root writes it"))
        }
        Some(kind) => Finding::warning(
            CHECK,
            format!(
                "`{path}` lies on {kind}, so old specs outlive a reboot though device numbers \
                 may change"
            ),
            "put /run on a tmpfs, as systemd does",
        ),
    }
}
