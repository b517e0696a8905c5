//! The cgroup of a command that the device gate holds: one of its own below that of `accelpool
//! run`, so that what the claim admits is admitted to the command and what it starts, and to
//! nothing beside it. Where the gate holds nothing of this, there is none.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use crate::document::GetGateResponse;

/// Where the unified hierarchy is mounted, beside version 1 or alone.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// How the folders are called; the number of the process follows.
const PREFIX: &str = "accelpool-run-";

/// A cgroup for one command, removed when this is dropped and the command has ended.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    path: String,
}

impl Place {
    /// Makes one, if the gate holds this process.
    pub(super) fn below_gate(gate: &GetGateResponse) -> io::Result<Option<Self>> {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        // Without a unified hierarchy there is no gate either.
        let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
            return Ok(None);
        };
        // Told as the folder that it is.
        let below = |mount: &&'static str| Some((*mount, gate.root.strip_prefix(mount)?));
        let Some((mount, root)) = MOUNTS.iter().find_map(below) else { return Ok(None) };
        if gate.state != "up" || !is_held(root, &gate.exempt, own) {
            return Ok(None);
        }
        let folder = Path::new(mount).join(own.trim_start_matches('/'));
        remove_left(&folder);
        let name = format!("{PREFIX}{}", process::id());
        let own = own.trim_end_matches('/');
        let place = Self { folder: folder.join(&name), path: format!("{own}/{name}") };
        match fs::create_dir(&place.folder) {
            // Of an earlier process of this number, and empty: those before have ended.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(Some(place)),
        }
    }

    /// The path that the claim is bound to.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The file that takes the process which becomes the command.
    pub(super) fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What the command left running keeps it, without the claim.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Whether a gate on `root` refuses what it guards to processes of the cgroup `own`.
fn is_held(root: &str, exempt: &[String], own: &str) -> bool {
    let is_within = |top: &str| {
        let below = own.strip_prefix(top.trim_end_matches('/'));
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    is_within(root) && !exempt.iter().any(|top| is_within(top))
}

/// Removes what killed ones have left. A folder in use cannot be removed.
fn remove_left(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if number.is_some_and(|number| !Path::new("/proc").join(number).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: &str, expected: bool) {
        let exempt = ["/jobs/system".to_owned()];
        assert_eq!(is_held("/jobs", &exempt, own), expected, "{own}");
    }

    #[test]
    fn the_gate_holds_what_is_below_its_root_and_not_exempt() {
        check("/jobs", true);
        check("/jobs/one/step", true);
        check("/jobsite", false);
        check("/", false);
        check("/jobs/system/x", false);
    }
}
