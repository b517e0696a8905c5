//! Decides who has a turn: watchdogs first, then each region by its mode.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Access, ClaimKey, Command, DeviceKey, Mode, Turns,
    claim::{Cause, Claim, Gate, Parked},
    turns::Region,
};

/// A thread that stays in a gate for this long after the close was stopped there.
const ENTERING_MAX_NS: u64 = 10_000_000;
/// Work that does not end for this long after the close spins, or is endless.
const DRAIN_MAX_NS: u64 = 20_000_000;
/// How long a claim that cannot drain runs beside others before it is tried again.
const SLICED_NS: u64 = 1_000_000_000;
/// Real-time work does not wait longer than this for a drain: it runs beside what is left.
const FADE_NS: u64 = 1_000_000;
/// The longest hand-over that is not charged: a quarter of the shortest turn.
const HAND_OVER_FREE_MAX_NS: u64 = 500_000;
/// How often open gates are looked through: while they are used, and while they are not.
const OPEN_LOOK_NS: (u64, u64) = (1_000_000, 10_000_000);
/// How often a drain is looked at: an eighth of what it took so far, within these.
const DRAIN_LOOK_NS: std::ops::RangeInclusive<u64> = 20_000..=500_000;

/// A claim whose cap was reached starts again once a turn of the first length is saved up.
const CAP_REFILL_NS: u64 = 5_000_000;

/// The order in which claims are served: rank, then time, then key.
type Place = (u8, u128, ClaimKey);

impl Turns {
    /// Decides what must change now, and appends it to `commands`.
    pub fn decide(&mut self, now_ns: u64, commands: &mut Vec<Command>) {
        self.advance(now_ns);
        self.watch(commands);
        for region in self.regions.clone() {
            self.note_contention(&region);
            let mode = self.mode_of(&region);
            for key in &region.devices {
                if let Some(device) = self.devices.get_mut(key)
                    && device.mode != mode
                {
                    device.mode = mode;
                    commands.push(Command::Mode { device: *key, mode });
                }
            }
            match mode {
                Mode::Open => self.open_all(&region, commands),
                Mode::Exclusive | Mode::Metered => self.give_turns(&region, commands),
            }
            self.set_windows(&region, mode, commands);
        }
    }

    /// When to look and decide again, if nothing happens before; none if nobody is there.
    #[must_use]
    pub fn next_look(&self) -> Option<u64> {
        self.claims.iter().filter_map(|(key, claim)| self.next_look_at(*key, claim)).min()
    }

    fn next_look_at(&self, key: ClaimKey, claim: &Claim) -> Option<u64> {
        let now = self.now_ns;
        let used = |busy| now + if busy { OPEN_LOOK_NS.0 } else { OPEN_LOOK_NS.1 };
        match claim.gate {
            _ if claim.processes == 0 => None,
            Gate::Closed if claim.backlogged && claim.parked == Parked::No => {
                claim.cap.as_ref().map(|cap| cap.holds_at(CAP_REFILL_NS)).filter(|at| *at > now)
            }
            Gate::Closed => None,
            Gate::Open => Some(used(claim.backlogged)),
            Gate::Sliced { until_ns } => Some(until_ns.min(used(true)).max(now)),
            Gate::Stuck { .. } => Some(used(true)),
            Gate::Draining { closed_ns, .. } => {
                let step = (now.saturating_sub(closed_ns) / 8)
                    .clamp(*DRAIN_LOOK_NS.start(), *DRAIN_LOOK_NS.end());
                Some(now + step)
            }
            Gate::Held { deadline_ns, .. } => {
                let waited_for = self.is_waited_for(key, claim);
                let look = match claim.idle_since_ns {
                    Some(since) if waited_for => (since + claim.grace_ns()).max(now + 1),
                    None if waited_for => now + claim.look_ns,
                    idle => used(idle.is_none()),
                };
                let due = deadline_ns.map(|at| at.saturating_sub(claim.window.drain_ns()));
                Some(due.filter(|due| *due > now).map_or(look, |due| look.min(due)))
            }
        }
    }

    fn watch(&mut self, commands: &mut Vec<Command>) {
        let now = self.now_ns;
        for (key, claim) in &mut self.claims {
            match claim.gate {
                Gate::Draining { closed_ns, .. } => {
                    let late = now.saturating_sub(closed_ns);
                    if late >= DRAIN_MAX_NS || (claim.seen.entering && late >= ENTERING_MAX_NS) {
                        claim.gate = Gate::Stuck { closed_ns };
                        commands.push(Command::Stuck { claim: *key });
                    }
                }
                Gate::Sliced { until_ns } if now >= until_ns => {
                    claim.gate = Gate::Draining { closed_ns: now, cause: Cause::Over };
                    commands.push(Command::Close { claim: *key });
                }
                Gate::Closed if claim.parked == Parked::Wanted => {
                    claim.parked = Parked::Yes;
                    commands.push(Command::Parked { claim: *key });
                }
                Gate::Open | Gate::Held { .. } | Gate::Sliced { .. }
                    if claim.parked == Parked::Wanted =>
                {
                    claim.gate = Gate::Draining { closed_ns: now, cause: Cause::Over };
                    commands.push(Command::Close { claim: *key });
                }
                Gate::Closed
                | Gate::Open
                | Gate::Held { .. }
                | Gate::Stuck { .. }
                | Gate::Sliced { .. } => {}
            }
        }
    }

    fn note_contention(&mut self, region: &Region) {
        let now = self.now_ns;
        let wanting: Vec<&Claim> = region
            .claims
            .iter()
            .filter_map(|key| self.claims.get(key))
            .filter(|claim| claim.backlogged && claim.parked == Parked::No)
            .collect();
        for key in &region.devices {
            let count = wanting.iter().filter(|claim| claim.terms.devices.contains(key)).count();
            if let Some(device) = self.devices.get_mut(key).filter(|_| count > 1) {
                device.contended_ns = Some(now);
            }
        }
    }

    fn open_all(&mut self, region: &Region, commands: &mut Vec<Command>) {
        for key in &region.claims {
            let Some(claim) = self.claims.get_mut(key) else { continue };
            if claim.processes == 0 || claim.parked != Parked::No {
                continue;
            }
            match claim.gate {
                Gate::Open => {}
                // A cap needs the gate: its claim is let in by turns.
                Gate::Held { .. } if claim.cap.is_some() => self.close(*key, Cause::Idle, commands),
                _ if claim.cap.is_some() => {}
                Gate::Closed
                | Gate::Held { .. }
                | Gate::Draining { .. }
                | Gate::Stuck { .. }
                | Gate::Sliced { .. } => {
                    claim.gate = Gate::Open;
                    claim.idle_since_ns = None;
                    claim.busy_ns = self.now_ns;
                    let grant =
                        Command::Grant { claim: *key, access: Access::Open, deadline_ns: None };
                    commands.push(grant);
                }
            }
        }
    }

    fn give_turns(&mut self, region: &Region, commands: &mut Vec<Command>) {
        let quantum = self.quantum(region);
        // The rank of the best claim that wants a device, for each device.
        let mut taken: BTreeMap<DeviceKey, u8> = BTreeMap::new();
        let mut expecting: BTreeSet<DeviceKey> = BTreeSet::new();
        for (rank, _, key) in self.order(region) {
            let Some(claim) = self.claims.get(&key) else { continue };
            let before = claim.terms.devices.iter().filter_map(|device| taken.get(device)).min();
            let before = before.copied();
            match claim.gate {
                Gate::Held { .. } => self.look_at_holder(key, rank, before, quantum, commands),
                Gate::Open if before.is_some() => self.close(key, Cause::Over, commands),
                Gate::Open => self.grant(key, quantum, false, commands),
                Gate::Closed if before.is_none() => self.offer(key, rank, quantum, commands),
                Gate::Stuck { .. } if before.is_none() => {
                    self.slice(key, commands);
                    continue; // it takes the device from nobody
                }
                // Not its turn yet: what is free of its devices may be used meanwhile.
                Gate::Closed => {
                    // The best of those who wait for a device shall be awake when it comes.
                    if claim.terms.devices.is_disjoint(&expecting) {
                        expecting.extend(&claim.terms.devices);
                        self.expect(key, commands);
                    }
                    continue;
                }
                Gate::Stuck { .. } | Gate::Draining { .. } | Gate::Sliced { .. } => {
                    continue;
                }
            }
            if let Some(claim) = self.claims.get(&key) {
                for device in &claim.terms.devices {
                    taken.entry(*device).or_insert(rank);
                }
                if claim.gate == Gate::Closed {
                    expecting.extend(&claim.terms.devices); // it was offered them, and is next
                }
            }
        }
        for key in &region.claims {
            let open = self.claims.get(key).is_some_and(|claim| claim.gate == Gate::Open);
            if open {
                self.close(*key, Cause::Idle, commands); // those that were not in the order
            }
        }
    }

    /// Those who want a turn or have one, best first.
    fn order(&self, region: &Region) -> Vec<Place> {
        let now = u128::from(self.now_ns);
        let mut order: Vec<Place> = region
            .claims
            .iter()
            .filter_map(|key| Some((*key, self.claims.get(key)?)))
            .filter(|(_, claim)| claim.processes > 0 && claim.parked == Parked::No)
            .filter_map(|(key, claim)| {
                let held = matches!(claim.gate, Gate::Held { .. });
                let wants = claim.backlogged && (held || self.may_start(claim));
                let place = match claim.rank() {
                    _ if !wants && held => (3, 0, key), // anybody comes first
                    _ if !wants => return None,
                    0 if held => (0, now, key), // after those who wait already
                    0 => (0, u128::from(claim.waiting_since_ns), key),
                    rank if held => {
                        // As it will stand when its last work is done.
                        let rest = claim.virtual_of(claim.window.drain_ns());
                        (rank, claim.virtual_time + rest, key)
                    }
                    rank => (rank, claim.virtual_time, key),
                };
                Some(place)
            })
            .collect();
        order.sort_unstable();
        order
    }

    fn look_at_holder(
        &mut self,
        key: ClaimKey,
        rank: u8,
        before: Option<u8>,
        quantum: u64,
        commands: &mut Vec<Command>,
    ) {
        let now = self.now_ns;
        let Some(claim) = self.claims.get(&key) else { return };
        let Gate::Held { since_ns, deadline_ns, .. } = claim.gate else { return };
        let waited_for = self.is_waited_for(key, claim);
        let idle = claim.idle_since_ns.is_some_and(|at| now.saturating_sub(at) >= claim.grace_ns());
        let empty = claim.cap.as_ref().is_some_and(|cap| cap.left_ns() == 0);
        let due = deadline_ns.is_some_and(|at| now + claim.window.drain_ns() >= at);
        let end = |since: u64| {
            let own = [&claim.cap, &claim.budget].into_iter().flatten();
            let own = own.map(|bucket| now + bucket.left_ns().max(1)).min();
            let turn = waited_for.then(|| (since + quantum).max(now));
            own.into_iter().chain(turn).min()
        };
        if idle && waited_for {
            self.close(key, Cause::Idle, commands);
        } else if empty || before.is_some_and(|before| before < rank || due) {
            self.close(key, Cause::Over, commands);
        } else if due {
            self.extend(key, end(now), commands); // nobody comes before it: no hand-over
        } else if deadline_ns.is_none() {
            let end = end(since_ns);
            if end.is_some() {
                self.extend(key, end, commands);
            }
        }
    }

    /// Gives the turn to the best claim of its devices, once nobody else uses them.
    fn offer(&mut self, key: ClaimKey, rank: u8, quantum: u64, commands: &mut Vec<Command>) {
        let Some(claim) = self.claims.get(&key) else { return };
        let now = self.now_ns;
        let mut left_max = 0;
        let mut fading = Vec::new();
        for (other, blocker) in &self.claims {
            if *other == key || blocker.terms.devices.is_disjoint(&claim.terms.devices) {
                continue;
            }
            match blocker.gate {
                Gate::Held { .. } | Gate::Open => return self.expect(key, commands),
                Gate::Draining { closed_ns, .. } => {
                    let took = now.saturating_sub(closed_ns);
                    let left = blocker.window.drain_ns().saturating_sub(took);
                    // Past what was expected, nothing is known: that is no reason to hurry.
                    left_max = left_max.max(if left == 0 { u64::MAX } else { left });
                    if took >= FADE_NS || blocker.window.drain_ns() > FADE_NS {
                        fading.push(*other);
                    }
                }
                Gate::Closed | Gate::Stuck { .. } | Gate::Sliced { .. } => {}
            }
        }
        if rank == 0 {
            for other in &fading {
                if let Some(blocker) = self.claims.get_mut(other)
                    && let Gate::Draining { closed_ns, .. } = blocker.gate
                {
                    // It cannot add work; the hardware slices until the rest is done.
                    blocker.gate = Gate::Stuck { closed_ns };
                    left_max = 0;
                }
            }
        }
        let early = left_max > 0 && left_max <= self.settings.early_grant_ns;
        if left_max == 0 || early {
            self.grant(key, quantum, early, commands);
        } else if left_max < u64::MAX {
            commands.push(Command::Expect { claim: key, at_ns: now + left_max });
        }
    }

    /// Tells a claim when the turns of those before it are over, if that is known and new.
    fn expect(&mut self, key: ClaimKey, commands: &mut Vec<Command>) {
        let Some(claim) = self.claims.get(&key) else { return };
        let mut at_ns = 0;
        for (other, blocker) in &self.claims {
            if *other == key || blocker.terms.devices.is_disjoint(&claim.terms.devices) {
                continue;
            }
            match blocker.gate {
                Gate::Held { deadline_ns: Some(end), .. } => at_ns = end.max(at_ns),
                Gate::Held { deadline_ns: None, .. } | Gate::Open => return,
                Gate::Closed | Gate::Draining { .. } | Gate::Stuck { .. } | Gate::Sliced { .. } => {
                }
            }
        }
        if at_ns > self.now_ns
            && let Some(claim) = self.claims.get_mut(&key).filter(|it| it.expected_ns != at_ns)
        {
            claim.expected_ns = at_ns;
            commands.push(Command::Expect { claim: key, at_ns });
        }
    }

    /// Opens the gates of a claim that did not drain and does not progress: what it runs may
    /// wait for work that only it can submit.
    fn slice(&mut self, key: ClaimKey, commands: &mut Vec<Command>) {
        let now = self.now_ns;
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.gate = Gate::Sliced { until_ns: now + SLICED_NS };
        claim.turns += 1;
        let deadline_ns = Some(now + SLICED_NS);
        commands.push(Command::Grant { claim: key, access: Access::Open, deadline_ns });
    }

    fn grant(&mut self, key: ClaimKey, quantum: u64, early: bool, commands: &mut Vec<Command>) {
        let now = self.now_ns;
        let Some(claim) = self.claims.get(&key) else { return };
        let own = [&claim.cap, &claim.budget].into_iter().flatten();
        let own = own.map(|bucket| now + bucket.left_ns().max(1)).min();
        let turn = self.is_waited_for(key, claim).then_some(now + quantum);
        let deadline_ns = own.into_iter().chain(turn).min();
        // The same for everybody, so that nobody gains by starting late on purpose.
        let hand_over = self.hand_over_ns(&claim.terms.devices).min(HAND_OVER_FREE_MAX_NS);
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.expected_ns = 0;
        claim.hand_over_left_ns = hand_over * claim.terms.devices.len() as u64;
        claim.gate = Gate::Held { since_ns: now, deadline_ns, overlapped: early };
        claim.idle_since_ns = None;
        claim.submitted_before = claim.seen.submitted;
        claim.turns += 1;
        commands.push(Command::Grant { claim: key, access: Access::Exclusive, deadline_ns });
    }

    fn extend(&mut self, key: ClaimKey, deadline_ns: Option<u64>, commands: &mut Vec<Command>) {
        let Some(claim) = self.claims.get_mut(&key) else { return };
        if let Gate::Held { deadline_ns: old, .. } = &mut claim.gate {
            *old = deadline_ns;
            commands.push(Command::Extend { claim: key, deadline_ns });
        }
    }

    fn close(&mut self, key: ClaimKey, cause: Cause, commands: &mut Vec<Command>) {
        let Some(claim) = self.claims.get(&key) else { return };
        let quantum = self.quantum_of(&claim.terms.devices);
        let Some(claim) = self.claims.get_mut(&key) else { return };
        claim.note_end(cause);
        if matches!(claim.gate, Gate::Held { .. })
            && cause == Cause::Idle
            && claim.seen.submitted == claim.submitted_before
        {
            // It said that it waits and then did nothing: who rings for fun pays a whole turn.
            claim.hand_over_left_ns = 0;
            claim.charge(quantum.saturating_mul(claim.terms.devices.len() as u64));
        }
        claim.gate = Gate::Draining { closed_ns: self.now_ns, cause };
        commands.push(Command::Close { claim: key });
    }

    /// True if another claim wants one of its devices and could start.
    fn is_waited_for(&self, key: ClaimKey, claim: &Claim) -> bool {
        self.claims.iter().any(|(other_key, other)| {
            *other_key != key
                && other.backlogged
                && other.processes > 0
                && other.parked == Parked::No
                && self.may_start(other)
                && !other.terms.devices.is_disjoint(&claim.terms.devices)
        })
    }

    /// True if the claim's gates may open now: they are shut, its cap allows a turn worth its
    /// hand-over, and if it is stuck, it does not progress by itself.
    fn may_start(&self, claim: &Claim) -> bool {
        let filled = claim.cap.as_ref().is_none_or(|cap| cap.left_ns() >= CAP_REFILL_NS);
        let shut = match claim.gate {
            Gate::Closed | Gate::Open => true,
            Gate::Stuck { closed_ns } => {
                let quiet_since = closed_ns.max(claim.progressed_ns);
                self.now_ns.saturating_sub(quiet_since) >= DRAIN_MAX_NS
            }
            Gate::Held { .. } | Gate::Draining { .. } | Gate::Sliced { .. } => false,
        };
        filled && shut
    }

    fn set_windows(&mut self, region: &Region, mode: Mode, commands: &mut Vec<Command>) {
        let realtime = self.has_realtime(region);
        for key in &region.claims {
            let Some(claim) = self.claims.get(key) else { continue };
            let bounded = match mode {
                Mode::Open => false,
                Mode::Exclusive => realtime || self.is_waited_for(*key, claim),
                Mode::Metered => claim.cap.is_some(),
            };
            let Some(claim) = self.claims.get_mut(key) else { continue };
            if claim.window.set(bounded, realtime) {
                commands.push(Command::Window { claim: *key, bound_us: claim.window.bound_us() });
            }
        }
    }
}
