//! What a vendor tells of a device beyond what every device has.

use std::{fmt, str::FromStr};

use crate::DeviceName;

/// What is known beyond what every device has; what is not known is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceTraits {
    /// Version of what programs are compiled for, such as CUDA's compute capability `9.0`.
    pub compute_capability: Option<String>,
    /// Newest version of the vendor's programming interface that the driver serves, such as
    /// `13.0` of CUDA.
    pub runtime_version: Option<String>,
    /// How other devices of the vendor reach its memory, in the order of their addresses.
    pub peers: Vec<Peer>,
    /// How the driver is set for it.
    pub settings: Settings,
    /// Stays the same until something made the device begin anew: a boot, its driver loaded
    /// again, the device found again on its bus. Means nothing but "the same" or "another".
    pub incarnation: Option<String>,
}

/// Another device, and how it and this one reach each other's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The other device.
    pub device: DeviceName,
    /// By which way; none if they do not.
    pub path: Option<PeerPath>,
    /// `ok`, or in the driver's words why they do not.
    pub status: String,
}

/// The way from one device's memory to another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerPath {
    /// Over the bus of the host.
    Pcie,
    /// Over a link of the vendor's own between the two.
    Link,
    /// Over such links and a switch.
    Switch,
}

impl PeerPath {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Pcie, Self::Link, Self::Switch];

    /// The way as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcie => "pcie",
            Self::Link => "link",
            Self::Switch => "switch",
        }
    }
}

/// The driver's own settings: of a device, what it is set to; of a pool, what is wanted. Absent
/// is not known, or not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Who may compute on it.
    pub compute_mode: Option<ComputeMode>,
    /// Whether the driver keeps it awake while nobody uses it.
    pub persistence: Option<bool>,
    /// Whether the driver remembers what ended processes used.
    pub accounting: Option<bool>,
}

impl Settings {
    /// What of `self` is wanted and not so in `current`; a setting that is not known cannot be
    /// changed either.
    #[must_use]
    pub fn beyond(self, current: Self) -> Self {
        fn differing<T: PartialEq>(wanted: Option<T>, current: Option<T>) -> Option<T> {
            wanted.filter(|wanted| current.is_some_and(|current| current != *wanted))
        }
        Self {
            compute_mode: differing(self.compute_mode, current.compute_mode),
            persistence: differing(self.persistence, current.persistence),
            accounting: differing(self.accounting, current.accounting),
        }
    }

    /// What of `self` is wanted and not known in `current`: the driver does not have it.
    #[must_use]
    pub fn unknown_to(self, current: Self) -> Self {
        Self {
            compute_mode: self.compute_mode.filter(|_| current.compute_mode.is_none()),
            persistence: self.persistence.filter(|_| current.persistence.is_none()),
            accounting: self.accounting.filter(|_| current.accounting.is_none()),
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        let told = [
            self.compute_mode.map(|mode| format!("compute mode {mode}")),
            self.persistence.map(|on| format!("persistence {}", switch(on))),
            self.accounting.map(|on| format!("accounting {}", switch(on))),
        ];
        f.write_str(&told.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// Who may compute on a device, as the driver enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComputeMode {
    /// Any number of processes.
    Default,
    /// One process at a time.
    ExclusiveProcess,
    /// Nobody.
    Prohibited,
}

/// A text that names no [`ComputeMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compute mode `{0}` is not known: use default, exclusive-process or prohibited")]
pub struct UnknownComputeMode(pub String);

impl ComputeMode {
    /// The mode as the configuration writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ExclusiveProcess => "exclusive-process",
            Self::Prohibited => "prohibited",
        }
    }
}

impl FromStr for ComputeMode {
    type Err = UnknownComputeMode;
    fn from_str(text: &str) -> Result<Self, UnknownComputeMode> {
        match text {
            "default" => Ok(Self::Default),
            "exclusive-process" => Ok(Self::ExclusiveProcess),
            "prohibited" => Ok(Self::Prohibited),
            other => Err(UnknownComputeMode(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for ComputeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_and_otherwise_is_changed() {
        let wanted = Settings {
            compute_mode: Some(ComputeMode::ExclusiveProcess),
            persistence: Some(true),
            accounting: None,
        };
        let check = |current: Settings, expected: &str| {
            assert_eq!(wanted.beyond(current).to_string(), expected);
        };
        check(Settings::default(), "");
        check(wanted, "");
        let off = Settings { persistence: Some(false), accounting: Some(true), ..wanted };
        check(off, "persistence on");
        let shared = Settings { compute_mode: Some(ComputeMode::Default), ..off };
        check(shared, "compute mode exclusive-process, persistence on");
        let unknown = |current: Settings| wanted.unknown_to(current).to_string();
        assert_eq!(unknown(off), "");
        assert_eq!(unknown(Settings { persistence: None, ..off }), "persistence on");
    }
}
