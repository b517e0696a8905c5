//! Why a gate cannot stand, or cannot do what it is told.
//!
//! One enum, so that the doctor can say in one sentence what the machine lacks.

use std::{io, path::PathBuf};

use crate::rules::LEVELS_MAX;

/// Why the gate failed.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The folder of the root, or of a cgroup below it, cannot be opened.
    #[error("failed to open the cgroup `{path}`")]
    OpenCgroup {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The machine has no cgroup v2 there.
    #[error("`{0}` is not a cgroup of version 2")]
    NotCgroup2(PathBuf),
    /// The gate does not hold that cgroup.
    #[error("the cgroup `{cgroup}` does not lie below the gate's root `{root}`")]
    Outside {
        /// The cgroup.
        cgroup: PathBuf,
        /// The gate's root.
        root: PathBuf,
    },
    /// The gate would not look that far down.
    #[error("the cgroup `{0}` lies deeper than the {LEVELS_MAX} levels that the gate looks at")]
    TooDeep(PathBuf),
    /// Nothing can be pinned, so the gate would fall with the daemon.
    #[error(
        "`{0}` is not in a BPF file system, and a gate that is not pinned ends with its daemon"
    )]
    NotBpffs(PathBuf),
    /// The folder of the pins cannot be made or read, or a pin not be set.
    #[error("failed to {action} `{path}` in the BPF file system")]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin or its folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else is pinned where the gate's link belongs.
    #[error("what is pinned at `{0}` is not a gate of this layout")]
    ForeignPin(PathBuf),
    /// The process may not use BPF.
    #[error(
        "the process may not {action}: it lacks CAP_BPF, CAP_NET_ADMIN or CAP_SYS_ADMIN, or the kernel is locked down"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
    },
    /// The kernel was built without the system call.
    #[error("the kernel has no bpf system call (CONFIG_BPF_SYSCALL)")]
    NoBpf,
    /// The kernel was built without programs for device cgroups.
    #[error("the kernel runs no BPF programs at cgroups (CONFIG_CGROUP_BPF)")]
    NoCgroupPrograms,
    /// The kernel has no map of that type.
    #[error("the kernel cannot make the map of the gate's {map}")]
    NoMap {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("the kernel does not let a device program call `{helper}`, which the gate needs")]
    NoHelper {
        /// The function, or what the verifier calls it.
        helper: String,
    },
    /// The kernel's verifier refuses the program.
    #[error("the kernel refuses the gate's program: {log}")]
    Refused {
        /// The end of what the verifier had to say.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody's program sits at the root, or above it, and admits no other.
    #[error("a device program at `{0}` or above it was attached to be alone there")]
    RootHeld(PathBuf),
    /// The program cannot be attached.
    #[error("failed to attach the gate to `{root}`")]
    Attach {
        /// The gate's root.
        root: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not say what is attached.
    #[error("failed to {action}")]
    Inspect {
        /// What was asked.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no room for another entry.
    #[error("the gate has no room for more {map}: it holds {entries_max}")]
    Full {
        /// Of what.
        map: &'static str,
        /// How many there may be.
        entries_max: u32,
    },
    /// A map cannot be read or written.
    #[error("failed to {action} the gate's {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Of what.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl GateError {
    /// Whether this machine, as it is set up, cannot have a gate: to try again is of no use.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::NotCgroup2(_)
            | Self::NotBpffs(_)
            | Self::NotPermitted { .. }
            | Self::NoBpf
            | Self::NoCgroupPrograms
            | Self::NoMap { .. }
            | Self::NoHelper { .. }
            | Self::Refused { .. }
            | Self::RootHeld(_)
            | Self::ForeignPin(_) => true,
            Self::OpenCgroup { .. }
            | Self::Outside { .. }
            | Self::TooDeep(_)
            | Self::Pin { .. }
            | Self::Attach { .. }
            | Self::Inspect { .. }
            | Self::Full { .. }
            | Self::Map { .. } => false,
        }
    }
}
