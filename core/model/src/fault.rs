//! What goes wrong with a device, and the taint that keeps new work off it.

use std::{fmt, str::FromStr};

use crate::DeviceUuid;

/// Kinds of fault that are treated alike whatever the vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultClass {
    /// The workload's own error; the device is fine.
    Application,
    /// The device slows down to stay within its limits.
    Throttled,
    /// Memory errors that could not be corrected.
    MemoryUncorrectable,
    /// Nobody knows how the device is: its vendor's library is of no use.
    Unobserved,
    /// A link to another device is down or faulty.
    Link,
    /// The device needs a reset before it serves again.
    ResetRequired,
    /// The device no longer answers on the bus.
    FellOffBus,
}

impl FaultClass {
    /// The class as it stands in taints, labels and on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Throttled => "throttled",
            Self::MemoryUncorrectable => "memory-uncorrectable",
            Self::Unobserved => "unobserved",
            Self::Link => "link",
            Self::ResetRequired => "reset-required",
            Self::FellOffBus => "fell-off-bus",
        }
    }

    /// All classes, mildest first.
    pub const ALL: [Self; 7] = [
        Self::Application,
        Self::Throttled,
        Self::MemoryUncorrectable,
        Self::Unobserved,
        Self::Link,
        Self::ResetRequired,
        Self::FellOffBus,
    ];
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One fault of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The device, by identity.
    pub device: DeviceUuid,
    /// How it is treated.
    pub class: FaultClass,
    /// The vendor's code, such as `xid-79`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}

/// What the vendor says must happen before the device is sound again.
///
/// Source of the set: NVML field 230, `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RecoveryAction {
    None,
    ResetDevice,
    RebootNode,
    DrainPeers,
    DrainAndReset,
    RecoverFabric,
}

impl RecoveryAction {
    /// The action as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ResetDevice => "reset-device",
            Self::RebootNode => "reboot-node",
            Self::DrainPeers => "drain-peers",
            Self::DrainAndReset => "drain-and-reset",
            Self::RecoverFabric => "recover-fabric",
        }
    }

    /// All actions.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::ResetDevice,
        Self::RebootNode,
        Self::DrainPeers,
        Self::DrainAndReset,
        Self::RecoverFabric,
    ];
}

impl fmt::Display for RecoveryAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a taint does to work, as Kubernetes names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaintEffect {
    /// Shown, no more.
    None,
    /// Keeps new work off.
    NoSchedule,
    /// Keeps new work off and asks Kubernetes to evict what runs.
    NoExecute,
}

/// A text that names no [`TaintEffect`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("taint effect `{0}` is not known: use None, NoSchedule or NoExecute")]
pub struct UnknownTaintEffect(pub String);

impl TaintEffect {
    /// The effect in Kubernetes' spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::NoSchedule => "NoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

impl FromStr for TaintEffect {
    type Err = UnknownTaintEffect;
    fn from_str(text: &str) -> Result<Self, UnknownTaintEffect> {
        match text {
            "None" => Ok(Self::None),
            "NoSchedule" => Ok(Self::NoSchedule),
            "NoExecute" => Ok(Self::NoExecute),
            other => Err(UnknownTaintEffect(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A mark on a device that keeps new work off it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Name part of the taint's key, such as `fell-off-bus` or `operator`.
    pub key: String,
    /// What it does.
    pub effect: TaintEffect,
    /// The one reason that is shown everywhere.
    pub reason: String,
    /// When it was set, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The device's incarnation when it was set, where the vendor tells.
    pub incarnation: Option<String>,
}

impl Taint {
    /// The key of a taint that an operator set.
    pub const OPERATOR: &'static str = "operator";
}
