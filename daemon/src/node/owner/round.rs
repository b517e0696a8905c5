//! What one round has decided, to be committed, answered and started together.

use accelpool_ledger::Write;
use accelpool_model::ClaimId;
use accelpool_proto::trace::{Here, Span};
use tokio::sync::oneshot;

use crate::node::{
    apply::Job,
    request::{NodeError, Reply, State},
};

/// An answer that waits for the round's commit.
type Answer = Box<dyn FnOnce(Result<(), NodeError>) + Send>;

#[derive(Default)]
pub(super) struct Round {
    pub(super) writes: Vec<Write>,
    pub(super) answers: Vec<Answer>,
    pub(super) jobs: Vec<Job>,
    pub(super) reads: Vec<(Option<ClaimId>, oneshot::Sender<State>)>,
    pub(super) changed: bool,
    /// The spans that its commit is for.
    pub(super) here: Vec<Here>,
    /// Spans that end with it.
    pub(super) spans: Vec<Span>,
}

impl Round {
    /// Has the commit show in the trace of `here`, if there is one.
    pub(super) fn trace(&mut self, here: &Here) {
        if here.context().is_some() {
            self.here.push(here.clone());
        }
    }

    /// Answers `reply` once the round is on disk.
    pub(super) fn answer<T: Send + 'static>(
        &mut self,
        reply: Reply<T>,
        answer: Result<T, NodeError>,
    ) {
        self.answers.push(Box::new(move |committed| {
            // Who asked may have hung up; what was decided stands all the same.
            drop(reply.send(committed.and(answer)));
        }));
    }
}
