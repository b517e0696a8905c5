//! Spans on their way to whoever exports them: the daemon has no network, so it tells them over
//! its socket.
//!
//! Nothing waits for a reader. While there is none, a call makes no span at all, whatever its
//! caller asks for.

use std::sync::Arc;

use accelpool_proto::{
    node::{self as wire, SpanKind},
    trace::{Here, Sink, Span, TRACEPARENT},
};
use tokio::sync::broadcast;
use tonic::metadata::MetadataMap;

/// What a reader may fall behind by: a burst of 110 pods with some ten spans each. A span is
/// some 300 bytes.
const BEHIND_MAX: usize = 2048;

/// Where the daemon's spans go. Cloned freely.
#[derive(Clone)]
pub struct Spans(Arc<Told>);

/// Made when somebody first reads: the places for what waits are 16 KiB.
#[derive(Default)]
struct Told(std::sync::OnceLock<broadcast::Sender<Arc<wire::Span>>>);

impl Spans {
    /// Read by nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Each span from now on, as it ends.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<wire::Span>> {
        self.0.0.get_or_init(|| broadcast::Sender::new(BEHIND_MAX)).subscribe()
    }

    /// Begins the span of a call, if its caller asks for one.
    #[must_use]
    pub fn of_call(&self, metadata: &MetadataMap, name: &'static str) -> Span {
        let asked = || metadata.get(TRACEPARENT)?.to_str().ok()?.parse().ok();
        match asked().filter(|_| self.is_read()) {
            None => Span::default(),
            Some(context) => {
                Here::within(Arc::<Told>::clone(&self.0), context).child(name, SpanKind::Server)
            }
        }
    }

    /// Begins the span of what the daemon does by itself.
    #[must_use]
    pub fn of_own(&self, name: &'static str) -> Span {
        if self.is_read() {
            Span::undecided(Arc::<Told>::clone(&self.0), name)
        } else {
            Span::default()
        }
    }

    /// True while somebody reads: else no span is made.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.0.0.get().is_some_and(|told| told.receiver_count() > 0)
    }
}

impl Default for Spans {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for Told {
    fn take(&self, span: wire::Span) {
        if let Some(told) = self.0.get() {
            // Whoever read has hung up meanwhile.
            let _ = told.send(Arc::new(span));
        }
    }
}

#[cfg(test)]
mod tests {
    use accelpool_proto::trace::TraceContext;

    use super::*;

    #[test]
    fn a_span_is_made_for_a_reader_alone() {
        let spans = Spans::new();
        let mut metadata = MetadataMap::new();
        let parent = TraceContext::fresh();
        metadata.insert(TRACEPARENT, parent.to_string().parse().unwrap());
        assert_eq!(spans.of_call(&metadata, "call").here().context(), None);
        assert_eq!(spans.of_own("own").here().context(), None);
        let mut reader = spans.subscribe();
        assert_eq!(spans.of_call(&MetadataMap::new(), "call").here().context(), None);
        drop(spans.of_call(&metadata, "call"));
        let told = reader.try_recv().unwrap();
        assert_eq!(told.trace_id, parent.trace_id.to_be_bytes());
        assert_eq!(told.parent_span_id, parent.span_id.to_be_bytes());
        assert!(!told.undecided);
        let own = spans.of_own("own");
        drop(own.child("step", SpanKind::Internal));
        assert!(reader.try_recv().unwrap().undecided, "its parent is");
        drop((own, reader));
        assert_eq!(spans.of_call(&metadata, "call").here().context(), None);
    }

    #[test]
    fn a_slow_reader_hears_what_it_missed() {
        let spans = Spans::new();
        let mut reader = spans.subscribe();
        for _ in 0..=BEHIND_MAX {
            drop(spans.of_own("own"));
        }
        assert_eq!(reader.try_recv().unwrap_err(), broadcast::error::TryRecvError::Lagged(1));
    }
}
