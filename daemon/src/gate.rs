//! The device gate as the daemon keeps it: who may open what follows the leases.
//!
//! [`Keeper`] holds what is to be true (claims with their cgroups and device nodes, guards,
//! exemptions) and makes the kernel's gate agree with it: at once when a claim is armed or
//! disarmed, and again twice a second, whatever somebody else did to it. What the kernel holds
//! outlives the daemon; a daemon that starts takes nothing back before it has heard all vendors.
//! It decides nothing about claims and knows no Kubernetes: a workload is a word in a cgroup's
//! name.

mod cgroups;
mod denials;
pub mod dmem;
mod guarded;
mod holders;
mod keeper;
mod status;
mod verify;

use std::path::PathBuf;

pub use self::{
    cgroups::{CgroupError, Hierarchy},
    denials::Denial,
    guarded::Family,
    holders::{Holder, Holders, Right},
    keeper::{GateStepError, INTERVAL, Keeper},
    status::{BindingState, GateStatus, GateView},
    verify::{CgroupVerification, ClaimVerification, NodeAnswer, Verification, serve_probe},
};

/// How the gate is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateConfig {
    /// The cgroup to hold, with all below it; without one, the kubelet's, once it is there.
    pub root: Option<PathBuf>,
    /// The folder of the gate's pin, in a BPF file system.
    pub pins: PathBuf,
    /// Cgroups that may open everything, by their paths below the mount of cgroup v2.
    pub exempt: Vec<String>,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { root: None, pins: "/sys/fs/bpf/accelpool".into(), exempt: Vec::new() }
    }
}
