//! Keeps the calls for one claim in order, while claims do not wait for each other.
//!
//! A prepare that is still under way when its claim is unprepared must not leave anything
//! behind: unpreparing makes every earlier prepare of the claim stale, and its turn at the
//! daemon comes only after theirs is over.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::OwnedMutexGuard;

/// The claims that calls are being made for.
#[derive(Debug, Default, Clone)]
pub struct Sequences {
    claims: Arc<Mutex<HashMap<String, Arc<State>>>>,
}

#[derive(Debug, Default)]
struct State {
    order: Arc<tokio::sync::Mutex<()>>,
    /// How often the claim was unprepared since somebody cared.
    unprepared: AtomicU64,
}

/// One call's place in the order of its claim. The claim is forgotten with the last one.
#[derive(Debug)]
pub struct Sequence {
    claims: Arc<Mutex<HashMap<String, Arc<State>>>>,
    claim: String,
    state: Arc<State>,
    /// `unprepared` when the call began.
    generation: u64,
}

/// The right to speak to the daemon about a claim. Others wait while it lives, also when the
/// call that it was given to is over.
#[derive(Debug)]
pub struct Permit {
    _order: OwnedMutexGuard<()>,
    _sequence: Arc<Sequence>,
}

impl Sequences {
    /// Begins a call that prepares `claim`.
    #[must_use]
    pub fn prepare(&self, claim: &str) -> Arc<Sequence> {
        self.enter(claim, |state| state.unprepared.load(Ordering::Acquire))
    }

    /// Begins a call that unprepares `claim`: calls that prepare it are stale from now on.
    #[must_use]
    pub fn unprepare(&self, claim: &str) -> Arc<Sequence> {
        self.enter(claim, |state| state.unprepared.fetch_add(1, Ordering::AcqRel) + 1)
    }

    fn enter(&self, claim: &str, generation: impl FnOnce(&State) -> u64) -> Arc<Sequence> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::clone(claims.entry(claim.to_owned()).or_default());
        let generation = generation(&state);
        let claims = Arc::clone(&self.claims);
        Arc::new(Sequence { claims, claim: claim.to_owned(), state, generation })
    }
}

impl Sequence {
    /// Waits until no other call for the claim speaks to the daemon.
    pub async fn permit(self: &Arc<Self>) -> Permit {
        let order = Arc::clone(&self.state.order).lock_owned().await;
        Permit { _order: order, _sequence: Arc::clone(self) }
    }

    /// False once the claim was unprepared after this call began.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.state.unprepared.load(Ordering::Acquire) == self.generation
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: nobody else is in a call for the claim.
        if Arc::strong_count(&self.state) == 2 {
            claims.remove(&self.claim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unprepare_makes_earlier_prepares_stale_and_waits_for_them() {
        let sequences = Sequences::default();
        let early = sequences.prepare("a");
        let permit = early.permit().await;
        assert!(early.is_current());

        let unprepare = sequences.unprepare("a");
        assert!(!early.is_current());
        drop(early);
        let waiting = tokio::spawn(async move { drop(unprepare.permit().await) });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the daemon still works for the earlier call");
        drop(permit);
        waiting.await.unwrap();

        assert!(sequences.prepare("a").is_current(), "a later prepare is not stale");
    }

    #[tokio::test]
    async fn claims_are_forgotten_with_their_last_call() {
        let sequences = Sequences::default();
        let (one, two) = (sequences.prepare("a"), sequences.unprepare("a"));
        let permit = one.permit().await;
        drop((one, two));
        assert_eq!(sequences.claims.lock().unwrap().len(), 1, "the permit keeps the order");
        drop(permit);
        assert!(sequences.claims.lock().unwrap().is_empty());
    }
}
