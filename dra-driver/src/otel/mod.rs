//! OpenTelemetry: what calls spend their time on, and what devices do, told to a collector.
//!
//! Off unless the standard `OTEL_*` variables name a collector; then nothing here runs and no
//! span is made. This driver alone speaks to the collector: it reads the daemon's spans from the
//! daemon's socket. Nothing waits for the collector. See docs/tracing.md.

mod connect;
mod encode;
mod export;
mod metrics;
mod settings;

use std::sync::Arc;

use accelpool_proto::{
    node::SpanKind,
    trace::{Here, Sink, Span, TRACEPARENT, TraceContext},
};
use tonic::metadata::MetadataMap;

pub use self::{
    encode::Identity,
    export::{Counts, Exporter},
    metrics::export_metrics,
    settings::{OtelError, Sampler, Settings, Target},
};

/// Makes the spans of this driver; without a collector, none. Cloned freely.
#[derive(Clone, Default)]
pub struct Tracer(Option<(Arc<dyn Sink>, Sampler)>);

impl Tracer {
    /// Has ended spans go to `sink`, of the traces that `sampler` chooses.
    #[must_use]
    pub fn new(sink: Arc<dyn Sink>, sampler: Sampler) -> Self {
        Self(Some((sink, sampler)))
    }

    /// Begins the span of a call, in the trace of its caller if it has one.
    #[must_use]
    pub fn begin(&self, parent: Option<TraceContext>, name: &'static str) -> Span {
        let Some((sink, sampler)) = &self.0 else { return Span::default() };
        let fresh = TraceContext::fresh();
        let trace_id = parent.map_or(fresh.trace_id, |parent| parent.trace_id);
        if !sampler.keeps(trace_id, parent.map(|parent| parent.sampled)) {
            return Span::default();
        }
        let sink = Arc::clone(sink);
        match parent {
            None => Span::root(sink, fresh, name, SpanKind::Server),
            Some(parent) => Here::within(sink, TraceContext { sampled: true, ..parent })
                .child(name, SpanKind::Server),
        }
    }
}

/// The span of whoever calls, if it makes one: the kubelet's, while its tracing is on.
pub(crate) fn caller(metadata: &MetadataMap) -> Option<TraceContext> {
    metadata.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// Writes the trace's id into each line that is logged from now on in the current `tracing` span.
pub(crate) fn name_trace(here: &Here) -> Option<String> {
    let trace_id = here.trace_id()?;
    tracing::Span::current().record("trace", trace_id.as_str());
    Some(trace_id)
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}
