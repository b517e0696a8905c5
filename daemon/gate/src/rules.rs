//! The rules of the gate: who may open what, as plain data and one function.
//!
//! The BPF program in `bpf/program.rs` does the same in the kernel; tests compare the two.
//! Nothing here knows the kernel, a path or a claim.

mod guards;

use std::collections::{BTreeMap, BTreeSet};

use crate::device::{Access, DeviceNumber, DeviceRange};

pub use accelpool_model::{CgroupId, GateMode as Mode};
pub use guards::{ConflictingGuards, Guards};
pub(crate) use guards::{prefixes, range_of_prefix};

/// How many levels of cgroups the gate looks at, from the root of the hierarchy downwards.
///
/// A container of the kubelet lies at level 4 or 5, one in a node that is itself a
/// container (kind) at about 10. Deeper cgroups are judged by their ancestors up to here.
pub const LEVELS_MAX: usize = 32;

/// Devices that need a grant, and what becomes of an open without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guard {
    /// The devices.
    pub devices: DeviceRange,
    /// How they are guarded; a pool's mode, as a rule.
    pub mode: Mode,
}

/// What one cgroup, with all below it, may do with one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The cgroup, such as that of a pod.
    pub cgroup: CgroupId,
    /// The device.
    pub device: DeviceNumber,
    /// What it may do.
    pub access: Access,
}

/// What the gate does with one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// The gate has no business with it.
    Untouched,
    /// A grant or an exemption admits it.
    Admitted,
    /// It passes though nothing admits it, and is reported.
    Audited,
    /// It is refused and reported.
    Denied,
}

/// Everything that a decision depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    guards: Guards,
    grants: BTreeMap<(CgroupId, DeviceNumber), Access>,
    exemptions: BTreeSet<CgroupId>,
}

impl Rules {
    /// Rules of these parts. Of two grants of a device to one cgroup the last counts.
    #[must_use]
    pub fn new(
        guards: Guards,
        grants: impl IntoIterator<Item = Grant>,
        exemptions: impl IntoIterator<Item = CgroupId>,
    ) -> Self {
        let grants = grants.into_iter().map(|it| ((it.cgroup, it.device), it.access)).collect();
        Self { guards, grants, exemptions: exemptions.into_iter().collect() }
    }

    /// What is guarded.
    #[must_use]
    pub const fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Who holds what, in the order of cgroup and device.
    pub fn grants(&self) -> impl Iterator<Item = Grant> {
        let grant = |(&(cgroup, device), &access)| Grant { cgroup, device, access };
        self.grants.iter().map(grant)
    }

    /// Which cgroups the gate does not hold.
    pub fn exemptions(&self) -> impl Iterator<Item = CgroupId> {
        self.exemptions.iter().copied()
    }

    /// Decides one attempt of a process. `lineage` is its cgroup with all ancestors, the
    /// hierarchy's root first.
    ///
    /// What several ancestors hold adds up. Making a node is never refused: a node gives
    /// no access before it is opened, and runtimes make every node of the host for a
    /// privileged container, which could not even start if they were refused.
    #[must_use]
    pub fn decide(&self, lineage: &[CgroupId], device: DeviceNumber, wanted: Access) -> Decision {
        let wanted = wanted & Access::READ_WRITE;
        let mode = self.guards.mode_of(device).unwrap_or(Mode::Off);
        if wanted == Access::NONE || mode == Mode::Off {
            return Decision::Untouched;
        }
        let lineage = &lineage[..lineage.len().min(LEVELS_MAX)];
        let granted = lineage.iter().filter_map(|cgroup| self.grants.get(&(*cgroup, device)));
        let held = granted.fold(Access::NONE, |sum, access| sum | *access);
        if held.covers(wanted) || lineage.iter().any(|it| self.exemptions.contains(it)) {
            return Decision::Admitted;
        }
        match mode {
            Mode::Off => Decision::Untouched,
            Mode::Audit => Decision::Audited,
            Mode::Enforce => Decision::Denied,
        }
    }
}

#[cfg(test)]
mod tests;
