//! How a region's devices are shared, and how long turns are.

use std::collections::BTreeSet;

use crate::{
    DeviceKey, Mode, Turns,
    claim::{Claim, Parked},
    turns::Region,
};

/// Turns go on for this long after the last time that two claims wanted a device, so that a
/// client which pauses does not throw all gates open each time.
const CONTENDED_LINGER_NS: u64 = 20_000_000;
/// A turn is this many times as long as its hand-over: it costs one part in a hundred.
const HAND_OVERS_PER_TURN: u64 = 100;
/// Equal claims may drift this many turns apart before the hardware's slices count as unfair.
const DRIFT_TURNS: u64 = 4;

impl Turns {
    pub(crate) fn mode_of(&self, region: &Region) -> Mode {
        let claims = || region.claims.iter().filter_map(|key| self.claims.get(key));
        let present = || claims().filter(|claim| claim.processes > 0 && claim.parked == Parked::No);
        let wanting: Vec<&Claim> = present().filter(|claim| claim.backlogged).collect();
        let lingers = region.devices.iter().filter_map(|key| self.devices.get(key)).any(|it| {
            it.contended_ns.is_some_and(|at| self.now_ns < at.saturating_add(CONTENDED_LINGER_NS))
        });
        let realtime = present().count() > 1 && self.has_realtime(region);
        match wanting.as_slice() {
            _ if realtime => Mode::Exclusive,
            [] | [_] if lingers => Mode::Exclusive,
            [one] if one.cap.is_some() => Mode::Metered,
            [] if present().any(|claim| claim.cap.is_some()) => Mode::Metered,
            [] | [_] => Mode::Open,
            many if self.hardware_is_fair(region, many) => Mode::Open,
            _ => Mode::Exclusive,
        }
    }

    /// True if the device's own slices give these claims what they are owed, at no higher cost.
    fn hardware_is_fair(&self, region: &Region, claims: &[&Claim]) -> bool {
        let Some(first) = claims.first() else { return true };
        let equal = |claim: &&Claim| {
            claim.terms == first.terms
                && claim.processes == first.processes
                && claim.terms.cap.is_none()
        };
        let times = || claims.iter().map(|claim| claim.virtual_time);
        let drift = times().max().unwrap_or(0) - times().min().unwrap_or(0);
        let drift_max = first.virtual_of(self.quantum(region).saturating_mul(DRIFT_TURNS));
        let cost = self.hand_over_ns(&region.devices);
        let cheap = cost > 0 && cost.saturating_mul(100) < self.settings.hardware_slice_ns;
        cheap && claims.iter().all(equal) && drift <= drift_max
    }

    pub(crate) fn hand_over_ns(&self, devices: &BTreeSet<DeviceKey>) -> u64 {
        let costs =
            devices.iter().filter_map(|key| self.devices.get(key)).map(|it| it.hand_over_ns);
        costs.max().unwrap_or(0)
    }

    /// The length of a turn: long enough for its hand-over, short enough for those who wait.
    pub(crate) fn quantum(&self, region: &Region) -> u64 {
        let settings = &self.settings;
        let quantum = match self.hand_over_ns(&region.devices) {
            0 => settings.quantum_start_ns,
            cost => cost.saturating_mul(HAND_OVERS_PER_TURN),
        };
        let claims = || region.claims.iter().filter_map(|key| self.claims.get(key));
        let waiting = claims().filter(|claim| claim.backlogged).count().max(1) as u64;
        let drain = claims().map(|claim| claim.window.drain_ns()).max().unwrap_or(0);
        let bearable = settings.latency_target_ns.saturating_sub(drain) / waiting;
        quantum.min(bearable).clamp(settings.quantum_min_ns, settings.quantum_max_ns)
    }

    pub(crate) fn quantum_of(&self, devices: &BTreeSet<DeviceKey>) -> u64 {
        let region = self.regions.iter().find(|region| !region.devices.is_disjoint(devices));
        region.map_or(self.settings.quantum_start_ns, |region| self.quantum(region))
    }
}
