//! What happened to each claim lately, for `accelpool explain`.
//!
//! Kept in memory: the ledger holds what is promised, this only tells the story. A claim
//! that was refused is known here although it never had a lease.

use std::collections::{BTreeMap, VecDeque};

use accelpool_model::ClaimId;

/// Events kept of one claim.
const EVENTS_MAX: usize = 16;
/// Claims kept; the one that was quiet for longest goes first.
const CLAIMS_MAX: usize = 1024;

/// Something that happened to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// What kind of thing.
    pub kind: EventKind,
    /// What, in one sentence.
    pub message: String,
    /// The code of the error, if it was one.
    pub error_code: &'static str,
}

/// Kinds of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum EventKind {
    Prepared,
    Refused,
    Failed,
    Released,
    Repaired,
    Recovered,
    Bound,
    Denied,
    Drifted,
    Violated,
}

impl EventKind {
    /// The kind as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Repaired => "repaired",
            Self::Recovered => "recovered",
            Self::Bound => "bound",
            Self::Denied => "denied",
            Self::Drifted => "drifted",
            Self::Violated => "violated",
        }
    }
}

/// The story of the claims that were active last.
#[derive(Debug, Default)]
pub(super) struct History {
    claims: BTreeMap<ClaimId, VecDeque<Event>>,
    /// Claims by last event, oldest first.
    order: VecDeque<ClaimId>,
    counts: BTreeMap<EventKind, u64>,
}

impl History {
    /// Notes an event; true if it is news. The same refusal again only moves its time, so that
    /// a caller who tries for ever neither fills the log nor pushes the rest of the story out.
    pub(super) fn note(&mut self, claim: &ClaimId, event: Event) -> bool {
        *self.counts.entry(event.kind).or_default() += 1;
        self.order.retain(|other| other != claim);
        self.order.push_back(claim.clone());
        if self.order.len() > CLAIMS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.claims.remove(&oldest);
        }
        let events = self.claims.entry(claim.clone()).or_default();
        if let Some(last) = events.back_mut()
            && last.kind == event.kind
            && last.message == event.message
        {
            last.unix_ms = event.unix_ms;
            return false;
        }
        events.push_back(event);
        if events.len() > EVENTS_MAX {
            events.pop_front();
        }
        true
    }

    /// How often each kind of event was noted.
    pub(super) fn counts(&self) -> &BTreeMap<EventKind, u64> {
        &self.counts
    }

    /// The events of `claim`, oldest first.
    pub(super) fn of(&self, claim: &ClaimId) -> Vec<Event> {
        self.claims.get(claim).map(|events| events.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(unix_ms: u64, message: &str) -> Event {
        Event { unix_ms, kind: EventKind::Refused, message: message.into(), error_code: "" }
    }

    #[test]
    fn a_repeated_event_only_moves_its_time() {
        let mut history = History::default();
        let claim = "a".parse().unwrap();
        assert!(history.note(&claim, event(1, "held")));
        assert!(!history.note(&claim, event(2, "held")));
        assert!(history.note(&claim, event(3, "lost")));
        assert_eq!(history.of(&claim), [event(2, "held"), event(3, "lost")]);
    }

    #[test]
    fn the_story_has_limits() {
        let mut history = History::default();
        let first: ClaimId = "c0".parse().unwrap();
        for n in 0..20 {
            history.note(&first, event(n, &n.to_string()));
        }
        assert_eq!(history.of(&first).len(), EVENTS_MAX);
        for n in 1..=CLAIMS_MAX {
            history.note(&format!("c{n}").parse().unwrap(), event(1, "x"));
        }
        assert_eq!(history.of(&first), []);
        assert_eq!(history.claims.len(), CLAIMS_MAX);
    }
}
