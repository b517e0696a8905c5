//! What can be told about a claim and a device.

use crate::{
    ClaimKey, DeviceKey, Mode, Turns,
    claim::{Gate, Parked},
};

/// A claim as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimReport {
    /// Where it stands.
    pub state: ClaimState,
    /// Device time charged since it was added, over all of its devices.
    pub used_ns: u64,
    /// Time for which it wanted a device and was kept waiting.
    pub throttled_ns: u64,
    /// Turns it was given.
    pub turns: u64,
    /// The mean time that its work takes to drain.
    pub drain_ns: u64,
}

/// Where a claim stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimState {
    /// It neither uses a device nor wants to.
    Idle,
    /// It wants a device.
    Waiting,
    /// It uses its devices, alone or beside others.
    Running,
    /// Its turn is over, its last work runs.
    Draining,
    /// It did not drain in time: the hardware slices between it and others.
    Stuck,
    /// Its memory is away, or on its way.
    Parked,
}

impl ClaimState {
    /// The state in lower case, as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stuck => "stuck",
            Self::Parked => "parked",
        }
    }
}

impl Turns {
    /// What can be told about a claim.
    #[must_use]
    pub fn report(&self, key: ClaimKey) -> Option<ClaimReport> {
        let claim = self.claims.get(&key)?;
        let state = match claim.gate {
            _ if claim.parked != Parked::No => ClaimState::Parked,
            Gate::Closed if claim.backlogged => ClaimState::Waiting,
            Gate::Closed => ClaimState::Idle,
            Gate::Open | Gate::Held { .. } if claim.seen.is_idle() => ClaimState::Idle,
            Gate::Open | Gate::Held { .. } => ClaimState::Running,
            Gate::Draining { .. } => ClaimState::Draining,
            Gate::Stuck { .. } | Gate::Sliced { .. } => ClaimState::Stuck,
        };
        Some(ClaimReport {
            state,
            used_ns: claim.used_ns,
            throttled_ns: claim.throttled_ns,
            turns: claim.turns,
            drain_ns: claim.window.drain_ns(),
        })
    }

    /// How a device is shared.
    #[must_use]
    pub fn mode(&self, device: DeviceKey) -> Mode {
        self.devices.get(&device).map_or(Mode::Open, |device| device.mode)
    }

    /// The measured cost of a hand-over of a device; nought until there was one.
    #[must_use]
    pub fn hand_over_cost_ns(&self, device: DeviceKey) -> u64 {
        self.devices.get(&device).map_or(0, |device| device.hand_over_ns)
    }
}
