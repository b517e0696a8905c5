//! What happens to a simulated node: faults, slow and failing calls, processes, hot-unplug.
//!
//! A script is a text (TOML) beside the state, read again whenever it changes. Entries with an
//! `id` happen once until the simulated machine is power-cycled, however often workers are
//! killed; the others hold for as long as they stand in the script. The README shows each.

mod build;
mod raw;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accelpool_model::{DeviceUuid, ErrorKind, Fault, MemoryBytes, RecoveryAction, ThrottleReason};

use crate::{cut::Place, nesting::from_toml, profile::Profile, refusal::Refusal};

/// Longest script text, in bytes.
pub const SCRIPT_LEN_MAX: usize = 1 << 20;

/// What happens to a simulated node.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub(crate) faults: Vec<ScriptedFault>,
    pub(crate) partitions: Vec<ScriptedPartition>,
    pub(crate) calls: Vec<CallStep>,
    pub(crate) absent: BTreeSet<DeviceUuid>,
    pub(crate) health: BTreeMap<DeviceUuid, Health>,
    pub(crate) processes: Vec<Process>,
}

/// A fault that is told once.
#[derive(Debug, Clone)]
pub(crate) struct ScriptedFault {
    pub(crate) id: String,
    pub(crate) fault: Fault,
}

/// A partition that somebody else makes, once.
#[derive(Debug, Clone)]
pub(crate) struct ScriptedPartition {
    pub(crate) id: String,
    pub(crate) device: DeviceUuid,
    pub(crate) place: Place,
    pub(crate) complete: bool,
}

/// Something that is done to calls of one method.
#[derive(Debug, Clone)]
pub(crate) struct CallStep {
    pub(crate) id: String,
    pub(crate) method: Method,
    /// Only calls for this device; all calls where absent.
    pub(crate) device: Option<DeviceUuid>,
    /// The first call that it is done to, counted from 1 since the step appeared.
    pub(crate) nth: u64,
    /// To how many calls in a row it is done.
    pub(crate) times: u64,
    pub(crate) at: Moment,
    pub(crate) effect: Effect,
}

/// The methods of a vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Discover,
    Links,
    Partitions,
    SwitchMode,
    CreatePartition,
    DestroyPartition,
    Sample,
    Counters,
    NextEvent,
    RecoveryAction,
    Probe,
    Quiesce,
}

impl Method {
    pub(crate) const ALL: [Self; 12] = [
        Self::Discover,
        Self::Links,
        Self::Partitions,
        Self::SwitchMode,
        Self::CreatePartition,
        Self::DestroyPartition,
        Self::Sample,
        Self::Counters,
        Self::NextEvent,
        Self::RecoveryAction,
        Self::Probe,
        Self::Quiesce,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Links => "links",
            Self::Partitions => "partitions",
            Self::SwitchMode => "switch_mode",
            Self::CreatePartition => "create_partition",
            Self::DestroyPartition => "destroy_partition",
            Self::Sample => "sample",
            Self::Counters => "counters",
            Self::NextEvent => "next_event",
            Self::RecoveryAction => "recovery_action",
            Self::Probe => "probe",
            Self::Quiesce => "quiesce",
        }
    }
}

/// When in a call a step acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing has been done yet.
    Before,
    /// The partition is half made or half gone.
    HalfWay,
    /// All is done, the answer is not given.
    After,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    Delay(Duration),
    /// The call never returns.
    Hang,
    Error {
        kind: CallErrorKind,
        message: String,
    },
}

/// Which error a call fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallErrorKind {
    Failed,
    Unsupported,
    UnknownDevice,
    Occupied,
    InUse,
    Library,
}

impl CallErrorKind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Failed,
        Self::Unsupported,
        Self::UnknownDevice,
        Self::Occupied,
        Self::InUse,
        Self::Library,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Unsupported => "unsupported",
            Self::UnknownDevice => "unknown-device",
            Self::Occupied => "occupied",
            Self::InUse => "in-use",
            Self::Library => "library",
        }
    }
}

/// How a device is.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) recovery_action: RecoveryAction,
    /// Why a probe fails; it succeeds where absent.
    pub(crate) probe_error: Option<String>,
    /// What slows it down now.
    pub(crate) throttled: BTreeSet<ThrottleReason>,
    /// Errors that it has counted.
    pub(crate) errors: BTreeMap<ErrorKind, u64>,
}

/// A process that uses a device.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) device: DeviceUuid,
    /// The partition that it runs in; it does not run while there is none.
    pub(crate) partition: Option<Place>,
    pub(crate) memory: MemoryBytes,
    /// Thousandths of the device's time that it keeps busy; absent where not measured.
    pub(crate) compute_permille: Option<u32>,
    /// Likewise of its encoder's time.
    pub(crate) encoder_permille: Option<u32>,
}

/// Why a text is no script for a profile.
#[derive(Debug, thiserror::Error)]
pub enum ParseScriptError {
    /// The text is too long to be one.
    #[error("script has {len} bytes: at most {SCRIPT_LEN_MAX} are read")]
    TooLong {
        /// Length found.
        len: usize,
    },
    /// The text is not TOML, or has keys or types that no script has.
    #[error("script is not readable")]
    Syntax(#[source] toml::de::Error),
    /// A value is not allowed, or does not fit the profile.
    #[error("script has a value that is not allowed")]
    Value(#[source] Refusal),
}

impl Script {
    /// Reads a script for the node that `profile` describes.
    ///
    /// # Errors
    ///
    /// Refuses what is too long, not TOML, has unknown keys, names what the profile lacks, or
    /// has a value out of its range.
    pub fn parse(text: &str, profile: &Profile) -> Result<Self, ParseScriptError> {
        if text.len() > SCRIPT_LEN_MAX {
            return Err(ParseScriptError::TooLong { len: text.len() });
        }
        let raw: raw::Script = from_toml(text).map_err(ParseScriptError::Syntax)?;
        build::script(&raw, profile).map_err(ParseScriptError::Value)
    }
}
