//! What it costs to hand a device over: from drained to the next one's first launch.

use std::collections::BTreeMap;

use accelpool_turns::{ClaimKey, DeviceKey, Turns};

use crate::{claim::Claim, sample::Samples};

/// The first launch of a turn that changed hands is waited for this long; later work has other
/// reasons to be late.
const LATE_NS: u64 = 1_000_000;
/// What the device takes beside to change contexts, which nobody sees here: some ten to a hundred
/// microseconds. A turn as short as the software's part alone allows would be lost to it.
const SWITCH_NS: u64 = 50_000;
/// The new sample's part in the mean: an eighth.
const SMOOTHING: u64 = 8;

/// The hand-overs of a component.
#[derive(Default)]
pub(crate) struct HandOvers {
    /// When each device was last drained.
    drained_ns: BTreeMap<DeviceKey, u64>,
    /// Claims that were granted right after another.
    under_way: BTreeMap<ClaimKey, Since>,
    /// The mean of each device.
    means: BTreeMap<DeviceKey, u64>,
}

/// Since when the device was drained, and how much the claim had submitted.
struct Since {
    drained_ns: u64,
    submitted: u64,
}

impl HandOvers {
    /// Nothing of its holder is left on the devices.
    pub(crate) fn drained(&mut self, devices: &[DeviceKey], now: u64) {
        self.drained_ns.extend(devices.iter().map(|device| (*device, now)));
    }

    /// A claim has the turn. One that did not wait has no reason to begin at once.
    pub(crate) fn granted(&mut self, key: ClaimKey, claim: &Claim, now: u64) {
        let drained = claim.devices.iter().filter_map(|it| self.drained_ns.get(it)).max();
        if let Some(&drained_ns) = drained
            && claim.seen.waiting
            && now.saturating_sub(drained_ns) < LATE_NS
        {
            self.under_way.insert(key, Since { drained_ns, submitted: claim.seen.submitted });
        }
    }

    pub(crate) fn forget(&mut self, key: ClaimKey) {
        self.under_way.remove(&key);
    }

    /// Learns from those that have begun.
    pub(crate) fn follow(
        &mut self,
        now: u64,
        claims: &BTreeMap<ClaimKey, Claim>,
        turns: &mut Turns,
        samples: &mut Samples,
    ) {
        let means = &mut self.means;
        self.under_way.retain(|key, since| {
            let took = now.saturating_sub(since.drained_ns);
            let Some(claim) = claims.get(key) else { return false };
            if claim.seen.submitted == since.submitted {
                return took < LATE_NS;
            }
            // What it says of itself counts as far as it can be true.
            let said = came_since(claim, since.drained_ns);
            let took = said.map_or(took, |at| took.min(at - since.drained_ns)).min(LATE_NS);
            turns.hand_over(*key, took + SWITCH_NS);
            samples.hand_over(*key, took);
            for device in &claim.devices {
                let mean = means.entry(*device).or_insert(took);
                *mean = *mean - *mean / SMOOTHING + took / SMOOTHING;
            }
            false
        });
    }

    /// The software's part, in the mean; nought until there was a hand-over.
    pub(crate) fn mean_ns(&self, device: DeviceKey) -> u64 {
        self.means.get(&device).copied().unwrap_or(0)
    }
}

/// When the first of its threads that waited came in since then, as they say.
fn came_since(claim: &Claim, since_ns: u64) -> Option<u64> {
    let came = claim.processes.values().flat_map(|it| it.came_ns(claim.devices.len()));
    came.filter(|at| *at >= since_ns).min()
}
