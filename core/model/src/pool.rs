//! Pools: named sets of this node's devices with one exposure and one sharing policy.

use std::{fmt, str::FromStr};

use crate::{Device, DeviceKind, DeviceName, MemoryBytes, PoolName, Settings, VendorName};

/// A named set of devices. A device belongs to the first pool whose selector takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// Which devices it takes.
    pub selector: Selector,
    /// Where its devices are offered.
    pub exposure: Exposure,
    /// How its devices may be cut.
    pub sharing: Sharing,
    /// Whether a device's partitioning mode may be switched for a claim, while nobody holds it.
    pub switch_mode: bool,
    /// What the device gate does with an open that no grant admits.
    pub gate: GateMode,
    /// What becomes of a process that has a device open without a grant.
    pub on_stale_holder: OnStaleHolder,
    /// What the compute time of a share means.
    pub compute: ComputeRule,
    /// How much memory of the host the processes of a share may pin; none for no limit.
    pub host_memory: Option<MemoryBytes>,
    /// What becomes of a claim that takes more of a shared device than it was granted.
    pub on_violation: OnViolation,
    /// Whether its shares are served by NVIDIA's MPS.
    pub mps: bool,
    /// How the driver is to be set for its devices; what is absent stays as it is.
    pub settings: Settings,
    /// Whether containers with its devices run on the CPUs that are near to them.
    pub align_cpus: bool,
}

/// Which devices are meant: each field that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// One of these names, if any is given.
    pub names: Vec<DeviceName>,
    /// Of this kind.
    pub kind: Option<DeviceKind>,
    /// Driven by this vendor's adapter.
    pub vendor: Option<VendorName>,
    /// With this text in the model's name, in any case.
    pub model: Option<String>,
}

impl Selector {
    /// True if `device` is meant.
    #[must_use]
    pub fn matches(&self, device: &Device) -> bool {
        let model =
            |text: &String| device.model.to_ascii_lowercase().contains(&text.to_ascii_lowercase());
        (self.names.is_empty() || self.names.contains(&device.name))
            && self.kind.is_none_or(|kind| kind == device.kind)
            && self.vendor.as_ref().is_none_or(|vendor| *vendor == device.vendor)
            && self.model.as_ref().is_none_or(model)
    }
}

/// Where the devices of a pool are offered. Node-local claims can always ask for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Exposure {
    /// As `ResourceSlices`.
    #[default]
    Dra,
    /// As extended resources.
    DevicePlugin,
    /// As both, on one ledger.
    Both,
}

/// A text that names no [`Exposure`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exposure `{0}` is not known: use dra, device-plugin or both")]
pub struct UnknownExposure(pub String);

impl Exposure {
    /// The exposure as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dra => "dra",
            Self::DevicePlugin => "device-plugin",
            Self::Both => "both",
        }
    }
}

impl FromStr for Exposure {
    type Err = UnknownExposure;
    fn from_str(text: &str) -> Result<Self, UnknownExposure> {
        match text {
            "dra" => Ok(Self::Dra),
            "device-plugin" => Ok(Self::DevicePlugin),
            "both" => Ok(Self::Both),
            other => Err(UnknownExposure(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the devices of a pool may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// Whole, shared or partitioned, as each claim asks.
    #[default]
    Any,
    /// Only whole.
    Exclusive,
    /// Whole or shared, never partitioned.
    Shares,
    /// Whole or partitioned, never shared.
    Partitions,
}

/// A text that names no [`Sharing`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sharing `{0}` is not known: use any, exclusive, shares or partitions")]
pub struct UnknownSharing(pub String);

impl Sharing {
    /// The policy as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Exclusive => "exclusive",
            Self::Shares => "shares",
            Self::Partitions => "partitions",
        }
    }

    /// True if shares are allowed.
    #[must_use]
    pub const fn allows_shares(self) -> bool {
        matches!(self, Self::Any | Self::Shares)
    }

    /// True if partitions are allowed.
    #[must_use]
    pub const fn allows_partitions(self) -> bool {
        matches!(self, Self::Any | Self::Partitions)
    }
}

impl FromStr for Sharing {
    type Err = UnknownSharing;
    fn from_str(text: &str) -> Result<Self, UnknownSharing> {
        match text {
            "any" => Ok(Self::Any),
            "exclusive" => Ok(Self::Exclusive),
            "shares" => Ok(Self::Shares),
            "partitions" => Ok(Self::Partitions),
            other => Err(UnknownSharing(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the device gate does with an open that no grant admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum GateMode {
    /// It passes, and nobody hears of it.
    Off,
    /// It passes, is counted and reported.
    #[default]
    Audit,
    /// It is refused, counted and reported.
    Enforce,
}

/// A text that names no [`GateMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gate mode `{0}` is not known: use off, audit or enforce")]
pub struct UnknownGateMode(pub String);

impl GateMode {
    /// The word as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

impl FromStr for GateMode {
    type Err = UnknownGateMode;
    fn from_str(text: &str) -> Result<Self, UnknownGateMode> {
        match text {
            "off" => Ok(Self::Off),
            "audit" => Ok(Self::Audit),
            "enforce" => Ok(Self::Enforce),
            other => Err(UnknownGateMode(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for GateMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What becomes of a process that has a device open without a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnStaleHolder {
    /// It is reported.
    #[default]
    Report,
    /// It is reported and killed.
    Kill,
}

/// A text that names no [`OnStaleHolder`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what becomes of a stale holder, `{0}` is not known: use report or kill")]
pub struct UnknownOnStaleHolder(pub String);

impl OnStaleHolder {
    /// The word as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Kill => "kill",
        }
    }
}

impl FromStr for OnStaleHolder {
    type Err = UnknownOnStaleHolder;
    fn from_str(text: &str) -> Result<Self, UnknownOnStaleHolder> {
        match text {
            "report" => Ok(Self::Report),
            "kill" => Ok(Self::Kill),
            other => Err(UnknownOnStaleHolder(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for OnStaleHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the compute time of a share means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ComputeRule {
    /// What it gets at least; what others leave, it may use too.
    #[default]
    Guarantee,
    /// What it gets at least and at most, also while nobody else wants the device.
    Cap,
}

/// A text that names no [`ComputeRule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compute rule `{0}` is not known: use guarantee or cap")]
pub struct UnknownComputeRule(pub String);

impl ComputeRule {
    /// The word as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guarantee => "guarantee",
            Self::Cap => "cap",
        }
    }
}

impl FromStr for ComputeRule {
    type Err = UnknownComputeRule;
    fn from_str(text: &str) -> Result<Self, UnknownComputeRule> {
        match text {
            "guarantee" => Ok(Self::Guarantee),
            "cap" => Ok(Self::Cap),
            other => Err(UnknownComputeRule(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for ComputeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What becomes of a claim that takes more of a shared device than it was granted, or of a
/// process that uses one and takes part in no turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnViolation {
    /// It is reported.
    #[default]
    Report,
    /// It is reported, and the cgroup of its processes is frozen.
    Freeze,
    /// It is reported, and the cgroup of its processes is killed.
    Kill,
}

/// A text that names no [`OnViolation`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what becomes of a violation, `{0}` is not known: use report, freeze or kill")]
pub struct UnknownOnViolation(pub String);

impl OnViolation {
    /// The word as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
        }
    }
}

impl FromStr for OnViolation {
    type Err = UnknownOnViolation;
    fn from_str(text: &str) -> Result<Self, UnknownOnViolation> {
        match text {
            "report" => Ok(Self::Report),
            "freeze" => Ok(Self::Freeze),
            "kill" => Ok(Self::Kill),
            other => Err(UnknownOnViolation(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for OnViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
