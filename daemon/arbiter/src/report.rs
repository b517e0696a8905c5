//! What can be told: who used what of which device, and how it was shared.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use accelpool_model::{ClaimId, DeviceUuid, MemoryBytes, ShareClass};
use accelpool_turns::{ClaimKey, DeviceKey, Turns};

use crate::{claim::Claim, hand_over::HandOvers};

/// All shared devices and the claims on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Devices, in the order of their identities.
    pub devices: Vec<DeviceTurns>,
    /// One for each claim and device, in that order.
    pub claims: Vec<ClaimTurns>,
    /// What claims had used when they ended, oldest first; the last few hundred.
    pub ended: Vec<Ended>,
    /// The oldest heartbeat that any of it is of, in the daemon's monotonic time.
    pub told_ns: u64,
}

/// How a device is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTurns {
    /// The device.
    pub uuid: DeviceUuid,
    /// open, exclusive or metered.
    pub mode: &'static str,
    /// What the software took of a hand-over, measured; nought until there was one.
    pub hand_over_ns: u64,
}

/// What a claim was given of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTurns {
    /// The claim.
    pub claim: ClaimId,
    /// The device.
    pub device: DeviceUuid,
    /// How urgent its work is.
    pub class: ShareClass,
    /// idle, waiting, running, draining, stuck or parked.
    pub state: &'static str,
    /// What it is owed while all claims of the device want it, in thousandths.
    pub granted_permille: u32,
    /// What it used of the last ten seconds, in thousandths; none before the first second.
    pub measured_permille: Option<u32>,
    /// Device time charged since the daemon armed the claim.
    pub used_ns: u64,
    /// Time for which it wanted the device and was kept waiting.
    pub throttled_ns: u64,
    /// Turns it was given.
    pub turns: u64,
    /// How often it did not drain in time, so that the next was granted beside it.
    pub stuck: u64,
    /// Memory that its processes hold, as they say.
    pub memory_used: MemoryBytes,
    /// The most they have held.
    pub memory_peak: MemoryBytes,
    /// The most they may hold.
    pub memory_quota: MemoryBytes,
    /// Allocations that the quota refused.
    pub memory_denied: u64,
    /// Its registered processes.
    pub processes: Vec<i32>,
    /// Calls of entry points that the shim does not know.
    pub unclassified: u64,
}

/// What a claim had used of a device when it ended, or came to other terms: it then counts from
/// nought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Grows with each, so that whoever adds up knows what it has seen.
    pub number: u64,
    /// The claim.
    pub claim: ClaimId,
    /// The device.
    pub device: DeviceUuid,
    /// Device time charged since the claim was armed.
    pub used_ns: u64,
}

/// What a thread tells of itself, without being asked.
#[derive(Debug, Default)]
pub(crate) struct Told {
    report: Mutex<Report>,
    pub(crate) is_over: AtomicBool,
}

impl Told {
    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        // What is written is written whole.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several for each of the 110 pods of a node, all of which may end between two readings.
pub(crate) const ENDED_MAX: usize = 512;

impl Report {
    /// A claim is over: its rows make room for what it had used.
    pub(crate) fn end(&mut self, claim: &Claim, used_ns: u64) {
        self.claims.retain(|it| it.claim != claim.arming.claim);
        let used_ns = used_ns / claim.devices.len().max(1) as u64;
        self.ended.extend(claim.arming.devices.iter().map(|device| Ended {
            number: 0,
            claim: claim.arming.claim.clone(),
            device: device.uuid.clone(),
            used_ns,
        }));
        // Nobody asks: then it is nobody's business.
        let over = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..over);
    }

    /// Adds what is to be told of one claim, and of its devices.
    pub(crate) fn add(
        &mut self,
        turns: &Turns,
        hand_overs: &HandOvers,
        key: ClaimKey,
        claim: &mut Claim,
        weights: &BTreeMap<DeviceKey, u64>,
        now: u64,
    ) {
        let Some(standing) = turns.report(key) else { return };
        let used_ns = standing.used_ns / claim.devices.len().max(1) as u64;
        claim.measured.look(now, used_ns);
        for (index, (device, armed)) in claim.devices.iter().zip(&claim.arming.devices).enumerate()
        {
            if self.devices.iter().all(|it| it.uuid != armed.uuid) {
                self.devices.push(DeviceTurns {
                    uuid: armed.uuid.clone(),
                    mode: turns.mode(*device).as_str(),
                    hand_over_ns: hand_overs.mean_ns(*device),
                });
            }
            let all = weights.get(device).copied().unwrap_or(1).max(1);
            let granted = u64::from(claim.arming.weight.value()) * 1000 / all;
            let memory = claim.memory(index);
            self.claims.push(ClaimTurns {
                claim: claim.arming.claim.clone(),
                device: armed.uuid.clone(),
                class: claim.arming.class,
                state: standing.state.as_str(),
                granted_permille: u32::try_from(granted).unwrap_or(1000),
                measured_permille: claim.measured.permille(),
                used_ns,
                throttled_ns: standing.throttled_ns,
                turns: standing.turns,
                stuck: claim.stuck,
                memory_used: MemoryBytes::new(memory.used),
                memory_peak: MemoryBytes::new(memory.peak),
                memory_quota: claim.quota(index),
                memory_denied: memory.denied,
                processes: claim.process_ids(),
                unclassified: claim.unclassified(),
            });
        }
    }
}

/// Used time over the last ten seconds, from a look each heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    looks: VecDeque<(u64, u64)>,
}

/// Over how much time a measured share is taken, and from how much on it says something.
const SPAN_NS: u64 = 10_000_000_000;
const SPAN_MIN_NS: u64 = 1_000_000_000;
/// Ten seconds of heartbeats, and some.
const LOOKS_MAX: usize = 128;

impl Measured {
    pub(crate) fn look(&mut self, now_ns: u64, used_ns: u64) {
        self.looks.push_back((now_ns, used_ns));
        while self.looks.len() > LOOKS_MAX
            || self.looks.front().is_some_and(|(at, _)| now_ns.saturating_sub(*at) > SPAN_NS)
        {
            self.looks.pop_front();
        }
    }

    pub(crate) fn permille(&self) -> Option<u32> {
        let ((from, used_from), (to, used_to)) = (*self.looks.front()?, *self.looks.back()?);
        let span = to.saturating_sub(from);
        if span < SPAN_MIN_NS {
            return None;
        }
        let used = u128::from(used_to.saturating_sub(used_from));
        u32::try_from((used * 1000 + u128::from(span / 2)) / u128::from(span)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_measured_over_the_last_ten_seconds() {
        let mut measured = Measured::default();
        for tenth in 0..300_u64 {
            // Nothing in the first ten seconds, a quarter after that.
            let used = tenth.saturating_sub(100) * 25_000_000;
            measured.look(tenth * 100_000_000, used);
            let expected = match tenth {
                0..10 => None,
                10..=100 => Some(0),
                200.. => Some(250),
                _ => continue,
            };
            assert_eq!(measured.permille(), expected, "after {tenth} tenths of a second");
        }
    }
}
