//! A few turns, told from beginning to end: for traces.
//!
//! One turn in many, one at a time, and not more than ten a second of a thread: what is told is
//! bounded, whatever tenants do. While nobody wants any, this is a count.

use std::{sync::Arc, time::Duration};

use accelpool_model::{ClaimId, DeviceUuid, ShareClass};
use accelpool_turns::{Access, ClaimKey, Turns};

use crate::arming::Arming;

/// One turn of so many is told. A device in demand gives some hundred a second.
const TURNS_EACH: u32 = 64;
/// The least time between two that are told: tenants that ring for nothing make many turns.
const APART_NS: u64 = 100_000_000;

/// A turn that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Whose it was.
    pub claim: ClaimId,
    /// The devices that it was given, all at once.
    pub devices: Vec<DeviceUuid>,
    /// How urgent the claim's work is.
    pub class: ShareClass,
    /// From the opened gate to the drained device, which is now.
    pub took: Duration,
    /// What it was granted; none if nobody else wanted the devices.
    pub granted: Option<Duration>,
    /// Device time that the claim was charged for it, on each device.
    pub measured: Duration,
    /// From the device that the one before left drained to this one's first work; none if that
    /// was not seen.
    pub hand_over: Option<Duration>,
    /// From the closed gate to the drained device.
    pub drain: Duration,
    /// True if it did not drain in time: others were let in beside it.
    pub stuck: bool,
}

/// Whoever is told of turns. Called by the decision thread: must not wait.
pub trait Witness: Send + Sync {
    /// True if it wants to be told of any.
    fn wants(&self) -> bool;
    /// Takes one.
    fn take(&self, turn: Turn);
}

/// What a thread samples.
pub(crate) struct Samples {
    witness: Option<Arc<dyn Witness>>,
    /// Turns until the next that is looked at.
    left: u32,
    /// Before then none is.
    next_ns: u64,
    open: Option<Open>,
}

/// The turn that is told when it ends.
struct Open {
    key: ClaimKey,
    turn: Turn,
    granted_ns: u64,
    closed_ns: Option<u64>,
    used_before_ns: u64,
}

impl Samples {
    pub(crate) fn new(witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, left: TURNS_EACH, next_ns: 0, open: None }
    }

    /// A claim is given its devices: alone, that is a turn; beside others, it is the end of one.
    pub(crate) fn grant(
        &mut self,
        key: ClaimKey,
        arming: &Arming,
        (access, deadline_ns): (Access, Option<u64>),
        turns: &Turns,
        now: u64,
    ) {
        if access == Access::Open {
            return self.end(key, turns, now);
        }
        let Some(witness) = &self.witness else { return };
        self.left -= 1;
        if self.left > 0 {
            return;
        }
        self.left = TURNS_EACH;
        if self.open.is_some() || now < self.next_ns || !witness.wants() {
            return;
        }
        self.next_ns = now + APART_NS;
        let turn = Turn {
            claim: arming.claim.clone(),
            devices: arming.devices.iter().map(|device| device.uuid.clone()).collect(),
            class: arming.class,
            took: Duration::ZERO,
            granted: granted(deadline_ns, now),
            measured: Duration::ZERO,
            hand_over: None,
            drain: Duration::ZERO,
            stuck: false,
        };
        let used_before_ns = used_ns(turns, key, &turn);
        let granted_ns = now;
        self.open = Some(Open { key, turn, granted_ns, closed_ns: None, used_before_ns });
    }

    /// It may go on until then.
    pub(crate) fn extend(&mut self, key: ClaimKey, deadline_ns: Option<u64>) {
        if let Some(open) = self.of(key) {
            open.turn.granted = granted(deadline_ns, open.granted_ns);
        }
    }

    /// Its first work came so long after the device was free.
    pub(crate) fn hand_over(&mut self, key: ClaimKey, took_ns: u64) {
        if let Some(open) = self.of(key) {
            open.turn.hand_over = Some(Duration::from_nanos(took_ns));
        }
    }

    /// Its gates are shut.
    pub(crate) fn close(&mut self, key: ClaimKey, now: u64) {
        if let Some(open) = self.of(key) {
            open.closed_ns = Some(now);
        }
    }

    /// Nothing of it is left on the devices.
    pub(crate) fn end(&mut self, key: ClaimKey, turns: &Turns, now: u64) {
        self.tell(key, turns, now, false);
    }

    /// It does not drain.
    pub(crate) fn stick(&mut self, key: ClaimKey, turns: &Turns, now: u64) {
        self.tell(key, turns, now, true);
    }

    /// The claim is over or has other terms.
    pub(crate) fn forget(&mut self, key: ClaimKey) {
        self.open.take_if(|open| open.key == key);
    }

    fn of(&mut self, key: ClaimKey) -> Option<&mut Open> {
        self.open.as_mut().filter(|open| open.key == key)
    }

    fn tell(&mut self, key: ClaimKey, turns: &Turns, now: u64, stuck: bool) {
        let Some(open) = self.open.take_if(|open| open.key == key) else { return };
        let Some(witness) = &self.witness else { return };
        let used_ns = used_ns(turns, key, &open.turn).saturating_sub(open.used_before_ns);
        let since = |at_ns: u64| Duration::from_nanos(now.saturating_sub(at_ns));
        witness.take(Turn {
            took: since(open.granted_ns),
            measured: Duration::from_nanos(used_ns),
            drain: open.closed_ns.map(since).unwrap_or_default(),
            stuck,
            ..open.turn
        });
    }
}

fn granted(deadline_ns: Option<u64>, from_ns: u64) -> Option<Duration> {
    deadline_ns.map(|at| Duration::from_nanos(at.saturating_sub(from_ns)))
}

/// What the claim was charged so far, on each of its devices.
fn used_ns(turns: &Turns, key: ClaimKey, turn: &Turn) -> u64 {
    let used_ns = turns.report(key).map_or(0, |standing| standing.used_ns);
    used_ns / turn.devices.len().max(1) as u64
}

#[cfg(test)]
mod tests;
