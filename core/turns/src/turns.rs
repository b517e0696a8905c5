//! The state: claims and devices, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::ShareClass;

use crate::{
    ClaimKey, ClaimReport, DeviceKey, Mode, Seen, Settings, Terms,
    bucket::Bucket,
    claim::{Cause, Claim, Gate, Parked},
};

/// Claims of one component: four times the shares that a device's smallest compute grant of a
/// few thousandths makes sensible; it bounds the time of a decision.
pub const CLAIMS_MAX: usize = 256;

/// A claim whose gates are open counts as busy for this long after its last work.
pub(crate) const BUSY_LINGER_NS: u64 = 5_000_000;

/// Why a claim cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// There are enough.
    #[error("a device and those tied to it already have {CLAIMS_MAX} claims")]
    Full,
    /// The key is in use.
    #[error("the claim takes part already")]
    Known,
    /// There is nothing to share.
    #[error("the claim has no device")]
    NoDevice,
}

/// One connected component of devices and the claims on them.
#[derive(Debug)]
pub struct Turns {
    pub(crate) settings: Settings,
    pub(crate) claims: BTreeMap<ClaimKey, Claim>,
    pub(crate) devices: BTreeMap<DeviceKey, Device>,
    pub(crate) regions: Vec<Region>,
    pub(crate) now_ns: u64,
}

/// What is kept of one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Device {
    /// Virtual time of those who compete: real-time and normal, then idle.
    pub(crate) clocks: [u128; 2],
    pub(crate) mode: Mode,
    /// The measured cost of a hand-over; nought until there was one.
    pub(crate) hand_over_ns: u64,
    /// When two claims last wanted it at once.
    pub(crate) contended_ns: Option<u64>,
}

/// Devices that claims tie together, and those claims.
#[derive(Debug, Clone, Default)]
pub(crate) struct Region {
    pub(crate) devices: BTreeSet<DeviceKey>,
    pub(crate) claims: Vec<ClaimKey>,
}

impl Turns {
    /// A component without claims.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            claims: BTreeMap::new(),
            devices: BTreeMap::new(),
            regions: Vec::new(),
            now_ns: 0,
        }
    }

    /// True if no claim takes part.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// The devices of its claims.
    pub fn devices(&self) -> impl Iterator<Item = DeviceKey> + '_ {
        self.devices.keys().copied()
    }

    /// Takes a claim in. It starts level with those that are there.
    pub fn add(&mut self, now_ns: u64, key: ClaimKey, terms: Terms) -> Result<(), AddError> {
        if self.claims.contains_key(&key) {
            return Err(AddError::Known);
        }
        if self.claims.len() >= CLAIMS_MAX {
            return Err(AddError::Full);
        }
        if terms.devices.is_empty() {
            return Err(AddError::NoDevice);
        }
        self.advance(now_ns);
        self.level(&terms.devices);
        for device in &terms.devices {
            self.devices.entry(*device).or_default();
        }
        let budget = (terms.class == ShareClass::Realtime).then(|| self.budget());
        let mut claim = Claim::new(terms, budget, self.now_ns);
        claim.virtual_time = self.clock_of(&claim);
        self.claims.insert(key, claim);
        self.tie();
        Ok(())
    }

    /// Lets a claim go, and tells what it came to. Its gates are the caller's to revoke.
    pub fn remove(&mut self, now_ns: u64, key: ClaimKey) -> Option<ClaimReport> {
        self.advance(now_ns);
        let last = self.report(key);
        if self.claims.remove(&key).is_some() {
            let used: BTreeSet<DeviceKey> =
                self.claims.values().flat_map(|claim| claim.terms.devices.clone()).collect();
            self.devices.retain(|device, _| used.contains(device));
            self.tie();
        }
        last
    }

    /// Takes another component's claims in, because a new claim will tie both together.
    pub fn absorb(&mut self, now_ns: u64, mut other: Self) {
        self.advance(now_ns);
        other.advance(self.now_ns);
        self.claims.append(&mut other.claims);
        self.devices.append(&mut other.devices);
        self.tie();
    }

    /// Says how many processes the claim has. With the last one, its turn ends at once.
    pub fn set_processes(&mut self, now_ns: u64, key: ClaimKey, processes: u32) {
        self.advance(now_ns);
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.processes = processes;
        if processes == 0 {
            claim.gate = Gate::Closed;
            claim.seen = Seen::default();
            claim.backlogged = false;
            claim.idle_since_ns = None;
            self.end_overlaps(key);
        }
    }

    /// Wants the claim off its devices, so that its memory can be moved away.
    pub fn park(&mut self, now_ns: u64, key: ClaimKey) {
        self.advance(now_ns);
        if let Some(claim) = self.claims.get_mut(&key)
            && claim.parked == Parked::No
        {
            claim.parked = Parked::Wanted;
        }
    }

    /// Lets a parked claim take part again.
    pub fn resume(&mut self, now_ns: u64, key: ClaimKey) {
        self.advance(now_ns);
        if let Some(claim) = self.claims.get_mut(&key) {
            claim.parked = Parked::No;
            claim.backlogged = false; // what it missed while it was away is not saved up
        }
    }

    /// Says what a hand-over of the claim's devices cost: from drained to the next one's work.
    pub fn hand_over(&mut self, key: ClaimKey, took_ns: u64) {
        let Some(claim) = self.claims.get(&key) else { return };
        for device in &claim.terms.devices {
            if let Some(device) = self.devices.get_mut(device) {
                device.hand_over_ns = match device.hand_over_ns {
                    0 => took_ns,
                    old => old - old / 8 + took_ns / 8,
                };
            }
        }
    }

    /// Says what is seen of a claim now.
    pub fn observe(&mut self, now_ns: u64, key: ClaimKey, seen: Seen) {
        self.advance(now_ns);
        let now = self.now_ns;
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let old = std::mem::replace(&mut claim.seen, seen);
        let moved = seen.submitted != old.submitted;
        if seen.completed != old.completed {
            claim.progressed_ns = now;
        }
        match claim.gate {
            Gate::Closed => {
                if seen.waiting && !claim.backlogged {
                    self.wake(key);
                }
            }
            Gate::Open | Gate::Sliced { .. } => {
                if moved || !seen.is_idle() {
                    claim.busy_ns = now;
                    if !claim.backlogged {
                        self.wake(key);
                    }
                } else if now.saturating_sub(claim.busy_ns) > BUSY_LINGER_NS {
                    claim.backlogged = false;
                }
            }
            Gate::Held { .. } => self.observe_holder(key, moved),
            Gate::Draining { closed_ns, cause } => {
                if seen.is_drained() {
                    self.drained(key, closed_ns, cause);
                }
            }
            Gate::Stuck { closed_ns } => {
                if seen.is_drained() {
                    self.drained(key, closed_ns, Cause::Over);
                }
            }
        }
    }

    /// Follows whether the holder works. A pause is charged only if work follows it: who gives
    /// the turn away does not pay for having been looked at late.
    fn observe_holder(&mut self, key: ClaimKey, moved: bool) {
        let now = self.now_ns;
        let Some(claim) = self.claims.get_mut(&key) else { return };
        let idle = claim.seen.is_idle();
        if let Some(since) = claim.idle_since_ns
            && (moved || !idle)
        {
            let gap = now.saturating_sub(since);
            for _ in 0..claim.terms.devices.len() {
                claim.charge(gap);
            }
            claim.note_gap(gap);
            claim.idle_since_ns = None;
        }
        if idle {
            let since = *claim.idle_since_ns.get_or_insert(now);
            if now.saturating_sub(since) > BUSY_LINGER_NS {
                claim.backlogged = false;
            }
        } else {
            claim.busy_ns = now;
            if !claim.backlogged {
                self.wake(key);
            }
        }
    }

    /// A claim that had nothing to do wants a device: it may have saved up one turn, no more.
    fn wake(&mut self, key: ClaimKey) {
        let now = self.now_ns;
        let Some(claim) = self.claims.get(&key) else { return };
        let saved = claim.virtual_of(self.quantum_of(&claim.terms.devices));
        let floor = self.clock_of(claim).saturating_sub(saved);
        if let Some(claim) = self.claims.get_mut(&key) {
            claim.virtual_time = claim.virtual_time.max(floor);
            claim.backlogged = true;
            claim.waiting_since_ns = now;
            if let Some(since) = claim.idle_since_ns.take() {
                claim.note_gap(now.saturating_sub(since));
            }
        }
    }

    fn drained(&mut self, key: ClaimKey, closed_ns: u64, cause: Cause) {
        let (now, realtime) = (self.now_ns, self.realtime_beside(key));
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.gate = Gate::Closed;
        claim.waiting_since_ns = now;
        match cause {
            Cause::Over => {
                claim.window.drained(now.saturating_sub(closed_ns), realtime);
                claim.idle_since_ns = None;
            }
            Cause::Idle => claim.backlogged = claim.seen.waiting,
        }
        self.end_overlaps(key);
    }

    /// Whoever was granted early on this claim's devices is alone there now.
    fn end_overlaps(&mut self, key: ClaimKey) {
        let Some(devices) = self.claims.get(&key).map(|claim| claim.terms.devices.clone()) else {
            return;
        };
        let now = self.now_ns;
        for other in self.claims.values_mut() {
            if let Gate::Held { since_ns, overlapped: overlapped @ true, .. } = &mut other.gate
                && !other.terms.devices.is_disjoint(&devices)
            {
                (*since_ns, *overlapped) = (now, false);
            }
        }
    }

    fn budget(&self) -> Bucket {
        let Settings { realtime_budget: rate, realtime_period_ns: period, .. } = self.settings;
        let burst = u128::from(period) * u128::from(rate.permille()) / 1000;
        Bucket::full(rate, u64::try_from(burst).unwrap_or(u64::MAX), self.now_ns)
    }

    /// The virtual time at which the claim's competitors are.
    pub(crate) fn clock_of(&self, claim: &Claim) -> u128 {
        let devices = claim.terms.devices.iter().filter_map(|device| self.devices.get(device));
        devices.map(|device| device.clocks[claim.clock()]).max().unwrap_or(0)
    }

    /// True if real-time work may come to a device of the claim at any moment.
    pub(crate) fn realtime_beside(&self, key: ClaimKey) -> bool {
        let region = self.regions.iter().find(|region| region.claims.contains(&key));
        region.is_some_and(|region| self.has_realtime(region))
    }

    pub(crate) fn has_realtime(&self, region: &Region) -> bool {
        let mut claims = region.claims.iter().filter_map(|key| self.claims.get(key));
        claims.any(|claim| claim.is_realtime() && claim.processes > 0)
    }

    /// Brings the clocks of devices that a claim is about to tie together to the same time,
    /// each region's claims along with it: times of different regions mean nothing to each other.
    fn level(&mut self, devices: &BTreeSet<DeviceKey>) {
        let touched: Vec<Region> = self
            .regions
            .iter()
            .filter(|region| !region.devices.is_disjoint(devices))
            .cloned()
            .collect();
        for clock in 0..2 {
            let time = |region: &Region, turns: &Self| {
                let devices = region.devices.iter().filter_map(|key| turns.devices.get(key));
                devices.map(|device| device.clocks[clock]).max().unwrap_or(0)
            };
            let latest = touched.iter().map(|region| time(region, self)).max().unwrap_or(0);
            for region in &touched {
                let behind = latest - time(region, self);
                for key in &region.devices {
                    if let Some(device) = self.devices.get_mut(key) {
                        device.clocks[clock] += behind;
                    }
                }
                for key in &region.claims {
                    if let Some(claim) = self.claims.get_mut(key).filter(|it| it.clock() == clock) {
                        claim.virtual_time += behind;
                    }
                }
            }
        }
    }

    /// Finds the regions anew.
    fn tie(&mut self) {
        let mut regions: Vec<Region> = Vec::new();
        for (key, claim) in &self.claims {
            let devices = &claim.terms.devices;
            let mut tied = Region { devices: devices.clone(), claims: vec![*key] };
            regions.retain(|region| {
                let apart = region.devices.is_disjoint(&tied.devices);
                if !apart {
                    tied.devices.extend(&region.devices);
                    tied.claims.extend(&region.claims);
                }
                apart
            });
            regions.push(tied);
        }
        self.regions = regions;
    }
}
