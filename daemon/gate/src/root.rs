//! Cgroups as folders: the gate's root, and what lies below it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::{
    error::GateError,
    rules::{CgroupId, LEVELS_MAX},
};

/// A cgroup of version 2, held open so that it cannot be mistaken for a later one.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: File,
    id: CgroupId,
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, GateError> {
        let refuse = |source| GateError::OpenCgroup { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(refuse)?;
        let folder = File::open(&path).map_err(refuse)?;
        let kind = fstatfs(&folder).map_err(io::Error::from).map_err(refuse)?;
        let metadata = folder.metadata().map_err(refuse)?;
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC || !metadata.is_dir() {
            return Err(GateError::NotCgroup2(path));
        }
        Ok(Self { folder, id: CgroupId(metadata.ino()), path })
    }

    /// Opens a cgroup that the gate can hold: this one or one below it.
    pub(crate) fn open_below(&self, path: &Path) -> Result<Self, GateError> {
        let cgroup = Self::open(path)?;
        if !cgroup.path.starts_with(&self.path) {
            return Err(GateError::Outside { cgroup: cgroup.path, root: self.path.clone() });
        }
        if cgroup.lineage()?.len() > LEVELS_MAX {
            return Err(GateError::TooDeep(cgroup.path));
        }
        Ok(cgroup)
    }

    pub(crate) const fn id(&self) -> CgroupId {
        self.id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its id and those of its ancestors, the hierarchy's root first, as far as this mount
    /// shows them.
    pub(crate) fn lineage(&self) -> Result<Vec<CgroupId>, GateError> {
        let mut lineage = Vec::new();
        let mut hierarchy = None;
        for path in self.path.ancestors() {
            let refuse = |source| GateError::OpenCgroup { path: path.to_owned(), source };
            let metadata = path.metadata().map_err(refuse)?;
            if *hierarchy.get_or_insert(metadata.dev()) != metadata.dev() {
                break;
            }
            lineage.push(CgroupId(metadata.ino()));
        }
        lineage.reverse();
        Ok(lineage)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
