//! The host's files, below a root folder.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// No file that is read here is longer; what is, is cut.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A host by its root folder: `/`, or where another host's files are mounted.
pub(crate) struct Host {
    root: PathBuf,
}

impl Host {
    /// The host whose files lie below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// True for the host that this program runs on.
    pub(crate) fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where `path` of the host lies.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file; `None` if it cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(path)).ok()?;
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a folder, sorted; none if it cannot be read.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// True if there is something at `path`.
    pub(super) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// What is mounted where. The first process sees the host's mounts also from within a
    /// container; only root may look through its eyes.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        let table = self.read("/proc/1/mounts").or_else(|| self.read("/proc/mounts"));
        parse_mounts(&table.unwrap_or_default())
    }
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: String,
    pub(super) kind: String,
}

/// Reads lines such as `tmpfs /run tmpfs rw,nosuid 0 0`.
pub(super) fn parse_mounts(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        // The kernel writes a space in a name as `\040`; no path that is looked for has one.
        let (point, kind) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Mount { point, kind })
    };
    table.lines().filter_map(mount).collect()
}

/// The mount that `path` lies on: the last of those with the longest point.
pub(super) fn mount_of<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let is_above = |mount: &&Mount| Path::new(path).starts_with(&mount.point);
    mounts.iter().filter(is_above).max_by_key(|mount| mount.point.len())
}
