//! What a claim is owed, under which keys, and the settings of the policy.

use std::collections::BTreeSet;

use accelpool_model::{ComputePermille, ShareClass};

/// A claim of one [`crate::Turns`]; the caller gives each its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimKey(pub u32);

/// A device of one [`crate::Turns`]; the caller gives each its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey(pub u32);

/// What a claim is owed beside the others, as a plain ratio: 1 to 1,000,000.
///
/// The caller makes it of the compute time that was granted, times the share's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnWeight(u32);

impl TurnWeight {
    /// The largest: a whole device's thousandths, times the largest weight of a share.
    pub const MAX: u32 = 1_000_000;

    /// The weight as a number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for TurnWeight {
    type Error = TermsError;
    fn try_from(value: u32) -> Result<Self, TermsError> {
        if (1..=Self::MAX).contains(&value) {
            Ok(Self(value))
        } else {
            Err(TermsError::Weight(value))
        }
    }
}

/// What a claim is owed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// How urgent its work is.
    pub class: ShareClass,
    /// What it is owed beside the others.
    pub weight: TurnWeight,
    /// The most it may use of the devices' time, also while nobody else wants them.
    pub cap: Option<ComputePermille>,
    /// Its devices, at least one; several are granted together or not at all.
    pub devices: BTreeSet<DeviceKey>,
}

/// Why terms are not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// The weight lies outside its range.
    #[error("weight {0} is out of range: use 1 to {max}", max = TurnWeight::MAX)]
    Weight(u32),
}

/// What the operator may set, and what a driver's hardware does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The length of a turn until the cost of a hand-over is known.
    pub quantum_start_ns: u64,
    /// The shortest turn.
    pub quantum_min_ns: u64,
    /// The longest turn.
    pub quantum_max_ns: u64,
    /// How long a claim may wait while each other one has a turn.
    pub latency_target_ns: u64,
    /// The part of the time that all work of the real-time class may take before the others.
    pub realtime_budget: ComputePermille,
    /// The period of that budget.
    pub realtime_period_ns: u64,
    /// The device's own time slice between contexts.
    pub hardware_slice_ns: u64,
    /// Grant the successor when at most this much of the predecessor's work is left. Nought
    /// waits for the drain: the gain of an early grant is not established.
    pub early_grant_ns: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            quantum_start_ns: 5_000_000,
            quantum_min_ns: 2_000_000,
            quantum_max_ns: 50_000_000,
            latency_target_ns: 100_000_000,
            realtime_budget: BUDGET,
            realtime_period_ns: 100_000_000,
            hardware_slice_ns: 1_000_000,
            early_grant_ns: 0,
        }
    }
}

/// Four fifths of the time: the rest is never starved.
const BUDGET: ComputePermille = match ComputePermille::new(800) {
    Some(budget) => budget,
    None => ComputePermille::WHOLE,
};
