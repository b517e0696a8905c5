//! The socket, the group that may use it, and whether the caller is in it.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use nix::unistd::{Gid, getegid, geteuid, getgroups};

use super::{Finding, Host};

const GROUP: &str = "accelpool";

/// Who runs this program.
pub(crate) struct Caller {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
}

impl Caller {
    /// The user of this process.
    pub(crate) fn current() -> Self {
        let mut groups: Vec<u32> =
            getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        groups.push(getegid().as_raw());
        Self { uid: geteuid().as_raw(), groups }
    }
}

/// A socket as found.
pub(super) struct Socket {
    pub(super) right_type: bool,
    pub(super) group: u32,
    pub(super) mode: u32,
}

pub(super) fn check(host: &Host, socket: &Path, caller: &Caller) -> Vec<Finding> {
    let groups = host.read("/etc/group").unwrap_or_default();
    let group = find_group(&groups);
    let found = fs::metadata(socket).ok().map(|file| Socket {
        right_type: file.file_type().is_socket(),
        group: file.gid(),
        mode: file.mode() & 0o7777,
    });
    let caller = host.is_here().then_some(caller);
    vec![judge_group(group, caller), judge_socket(socket, found.as_ref(), group)]
}

/// The number of our group in lines such as `accelpool:x:998:ada,bob`.
pub(super) fn find_group(groups: &str) -> Option<u32> {
    let lines = groups.lines().map(|line| line.split(':').collect::<Vec<&str>>());
    let number = |words: Vec<&str>| match words.as_slice() {
        [name, _, number, ..] if *name == GROUP => number.parse().ok(),
        _ => None,
    };
    lines.into_iter().find_map(number)
}

/// Judges the group, and whether the caller is in it where that is known.
pub(super) fn judge_group(group: Option<u32>, caller: Option<&Caller>) -> Finding {
    let Some(group) = group else {
        return Finding::warning(
            "group",
            "there is no group `accelpool`, so only root can ask the daemon",
            "groupadd --system accelpool && systemctl restart accelpoold",
        );
    };
    match caller {
        Some(caller) if caller.uid != 0 && !caller.groups.contains(&group) => Finding::warning(
            "group",
            "you are not in group `accelpool`, so the daemon will not answer you",
            "sudo usermod -aG accelpool $USER, then log in anew",
        ),
        Some(_) | None => Finding::ok("group", "group `accelpool` is there"),
    }
}

pub(super) fn judge_socket(path: &Path, socket: Option<&Socket>, group: Option<u32>) -> Finding {
    let path = path.display();
    let Some(socket) = socket else {
        return Finding::error(
            "socket",
            format!("`{path}` does not exist or is out of your reach"),
            "systemctl start accelpoold, or give its socket with --socket; \
             journalctl -u accelpoold says why it stopped",
        );
    };
    if !socket.right_type {
        return Finding::error(
            "socket",
            format!("`{path}` is not a socket"),
            "give the daemon's socket with --socket, or move the file away",
        );
    }
    let mode = socket.mode;
    if mode & 0o002 != 0 {
        return Finding::warning(
            "socket",
            format!("`{path}` can be opened by everybody (mode {mode:04o})"),
            "restart accelpoold, which sets mode 0660; the daemon also checks each caller itself",
        );
    }
    if group.is_some_and(|group| group != socket.group) {
        return Finding::warning(
            "socket",
            format!("`{path}` belongs to gid {}, not to group `accelpool`", socket.group),
            "systemctl restart accelpoold",
        );
    }
    Finding::ok("socket", format!("`{path}` is there, mode {mode:04o}"))
}
