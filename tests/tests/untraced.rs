//! What tracing costs a node that traces nothing: no allocation more, on either side of the
//! socket, for all that a claim is told of on its way.

use std::{
    alloc::System,
    time::{Duration, Instant},
};

use accelpool_daemon::{timing::Timings, trace::Spans};
use accelpool_dra_driver::{
    calls::{Call, CallTimes, Outcome},
    otel::Tracer,
};
use accelpool_proto::{
    node::SpanKind,
    trace::{Span, TRACEPARENT, TraceContext},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tonic::metadata::MetadataMap;

/// Counts allocations; it changes nothing else.
#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const STEPS: [&str; 4] = ["create_partition", "arm_gate", "arm_turns", "write_spec"];

/// As `accelpool-dra` tells of the kubelet's call.
fn in_driver(tracer: &Tracer, calls: &CallTimes, started: Instant, parent: Option<TraceContext>) {
    let root = tracer.begin(parent, "NodePrepareResources");
    let mut claim = root.child("prepare", SpanKind::Internal);
    claim.set("accelpool.claim.uid", "00000000-0000-4000-8000-000000000001");
    claim.set("k8s.namespace.name", "team");
    claim.child("read claim", SpanKind::Client).end(&Ok::<_, &str>(()));
    let call = claim.here().clone().child("Node/PrepareClaim", SpanKind::Client);
    assert_eq!(call.here().context().is_some(), claim.here().trace_id().is_some());
    call.end(&Ok::<_, &str>(()));
    calls.observe(Call::Prepare, Outcome::Done, started, claim.here());
    claim.end(&Err::<(), _>("it broke"));
}

/// As `accelpoold` tells of the driver's.
fn in_daemon(spans: &Spans, timings: &Timings, started: Instant, metadata: &MetadataMap) {
    let mut call = spans.of_call(metadata, "PrepareClaim");
    call.set("accelpool.claim.uid", "00000000-0000-4000-8000-000000000001");
    let here = call.here().clone();
    here.child("plan", SpanKind::Internal).end(&Ok::<_, &str>(()));
    here.child("ledger commit", SpanKind::Internal).end(&Ok::<_, &str>(()));
    for step in STEPS {
        let mut span = here.child(step, SpanKind::Internal);
        span.set_with("accelpool.step", || step);
        span.child("vendor worker", SpanKind::Client).end(&Err::<(), _>("it broke"));
    }
    timings.observe_since("done", started, &here);
    call.end(&Ok::<_, &str>(()));
    let _fault: Span = spans.of_own("fault");
}

#[test]
fn a_node_that_traces_nothing_allocates_nothing_for_it() {
    let (spans, timings, calls) = (Spans::new(), Timings::default(), CallTimes::new());
    let context = TraceContext::fresh();
    // Far from the end of any bucket, so that each time falls into the same.
    let started = Instant::now().checked_sub(Duration::from_mins(1)).expect("clocks go back");
    let mut metadata = MetadataMap::new();
    let value = context.to_string().parse().expect("it is ASCII");
    metadata.insert(TRACEPARENT, value);
    let tracer = Tracer::default();
    let work = || {
        in_driver(&tracer, &calls, started, Some(context));
        in_daemon(&spans, &timings, started, &metadata);
    };
    let count = |work: &dyn Fn()| {
        let region = Region::new(GLOBAL);
        work();
        let change = region.change();
        (change.allocations + change.reallocations, change.bytes_allocated)
    };
    // The first of its kind makes its histogram's bucket.
    work();
    assert_eq!(count(&work), (0, 0));

    // The same with somebody who reads, so that the count can find something.
    let _reader = spans.subscribe();
    let (allocations, bytes) = count(&work);
    assert!(allocations > 30 && bytes > 1000, "{allocations} allocations, {bytes} bytes");
}
