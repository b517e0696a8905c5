//! Whose processes may use what a lease holds, as far as the kernel can tell them apart.

use std::fmt;

use crate::WorkloadId;

/// A cgroup of version 2, by the number that the kernel gave it: the inode number of its
/// folder. On a 64-bit kernel it is not used again before the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

impl fmt::Display for CgroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Processes that may use what a lease holds: those of one cgroup, and below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binding {
    /// Those of the cgroup that has this id in its name, as soon as there is one.
    Workload(WorkloadId),
    /// Those of one cgroup.
    Cgroup {
        /// Its path below the mount of cgroup v2.
        path: String,
        /// The cgroup, where it was there and is meant alone: one that is made anew under the
        /// same path is another. Means nothing after the next boot. Without it, whichever
        /// cgroup has that path.
        id: Option<CgroupId>,
    },
}

impl Binding {
    /// The most bindings of one lease: Kubernetes lets 256 pods share a claim.
    pub const MAX: usize = 256;
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "workload {workload}"),
            Self::Cgroup { path, .. } => write!(f, "cgroup `{path}`"),
        }
    }
}
