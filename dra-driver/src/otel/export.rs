//! From a span that ended to the collector: a bounded queue, batches, and patience with limits.
//!
//! Nothing waits here but the exporter's own task. What does not fit, what nobody takes and what
//! the collector rejects is counted.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use accelpool_proto::{node, trace::Sink};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    connect::{Answer, Collector, Outgoing},
    encode::{Identity, spans_request},
    settings::{Sampler, Settings, Target},
};
use crate::{node::Node, stop::Stopped};

/// A batch is tried for so long; what ends meanwhile waits in the queue.
const TRY_FOR: Duration = Duration::from_mins(1);
/// The pause before the next try, at first and at most, unless the collector names another.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// The pause before the daemon is asked for its spans again.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// At the end there is time for one more try, no longer.
const LAST_TRY: Duration = Duration::from_secs(3);

/// Who made a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// This driver.
    Driver,
    /// The daemon.
    Daemon,
}

type Labels = [(&'static str, &'static str); 2];

/// What became of what was to be exported.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Family<Labels, Counter<u64, AtomicU64>>);

impl Counts {
    const SIGNALS: [&'static str; 2] = ["traces", "metrics"];
    const RESULTS: [&'static str; 3] = ["sent", "dropped", "rejected"];

    pub(super) fn add(&self, signal: &'static str, result: &'static str, count: u64) {
        self.0.get_or_create(&[("signal", signal), ("result", result)]).inc_by(count);
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        // There from the start, so that the first loss is a rise.
        for signal in Self::SIGNALS {
            for result in Self::RESULTS {
                self.add(signal, result, 0);
            }
        }
        registry.register(
            "accelpool_otlp_items",
            "Spans (traces) and points (metrics) for the OpenTelemetry collector: sent, dropped \
             (the queue was full, or the collector did not take them in time), rejected by it",
            self.0.clone(),
        );
    }
}

/// Takes ended spans. Cloned freely.
#[derive(Clone)]
pub struct Exporter {
    queue: mpsc::Sender<(Maker, node::Span)>,
    counts: Counts,
    sampler: Sampler,
}

impl Exporter {
    /// An exporter and its task, which ends when it is told to.
    pub fn new(
        settings: &Settings,
        target: Target,
        identity: Identity,
        stopped: Stopped,
        registry: &mut Registry,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, inbox) = mpsc::channel(settings.queue_max);
        let counts = Counts::default();
        counts.register(registry);
        let sending = Sending {
            inbox,
            collector: Collector::new(target),
            identity,
            counts: counts.clone(),
            batch_max: settings.batch_max,
            delay: settings.delay,
            stopped,
            complained: false,
        };
        (Self { queue, counts, sampler: settings.sampler }, sending.run())
    }

    fn put(&self, maker: Maker, span: node::Span) {
        if self.queue.try_send((maker, span)).is_err() {
            self.counts.add("traces", "dropped", 1);
        }
    }

    /// Takes the daemon's spans from its socket, for ever.
    pub async fn follow(self, daemon: Node) {
        loop {
            if let Ok(mut spans) = daemon.spans().await {
                while let Ok(Some(told)) = spans.message().await {
                    self.counts.add("traces", "dropped", told.dropped);
                    if let Some(span) = told.span.filter(|span| self.wants(span)) {
                        self.put(Maker::Daemon, span);
                    }
                }
            }
            sleep(FOLLOW_PAUSE).await;
        }
    }

    /// Of traces that the daemon began by itself, the sampler's part.
    fn wants(&self, span: &node::Span) -> bool {
        let Ok(trace_id) = <[u8; 16]>::try_from(span.trace_id.as_slice()) else { return false };
        !span.undecided || self.sampler.keeps(u128::from_be_bytes(trace_id), None)
    }
}

impl Sink for Exporter {
    fn take(&self, span: node::Span) {
        self.put(Maker::Driver, span);
    }
}

struct Sending {
    inbox: mpsc::Receiver<(Maker, node::Span)>,
    collector: Collector,
    identity: Identity,
    counts: Counts,
    batch_max: usize,
    delay: Duration,
    stopped: Stopped,
    /// True from a failure on until the next success: a collector that is away is told of once.
    complained: bool,
}

impl Sending {
    async fn run(mut self) {
        loop {
            let (batch, last) = self.gather().await;
            if !batch.is_empty() {
                self.deliver(batch, last).await;
            }
            if last {
                return;
            }
        }
    }

    /// The next batch: full, or as old as it may become; and whether it is the last.
    async fn gather(&mut self) -> (Vec<(Maker, node::Span)>, bool) {
        let mut batch = Vec::new();
        let stopped = self.stopped.clone();
        let stop = stopped.wait();
        tokio::pin!(stop);
        let mut last = tokio::select! {
            Some(span) = self.inbox.recv() => {
                batch.push(span);
                false
            }
            () = &mut stop => true,
        };
        let until = Instant::now() + self.delay;
        loop {
            while batch.len() < self.batch_max
                && let Ok(span) = self.inbox.try_recv()
            {
                batch.push(span);
            }
            if last || batch.len() >= self.batch_max {
                break;
            }
            tokio::select! {
                Some(span) = self.inbox.recv() => batch.push(span),
                () = sleep_until(until) => break,
                () = &mut stop => last = true,
            }
        }
        // A full one may leave some behind.
        let last = last && batch.len() < self.batch_max;
        (batch, last)
    }

    /// Sends until the collector has it, will not have it, or time is up.
    async fn deliver(&mut self, batch: Vec<(Maker, node::Span)>, last: bool) {
        let count = batch.len() as u64;
        let request = Outgoing::Spans(spans_request(batch, &self.identity));
        let until = Instant::now() + if last { LAST_TRY } else { TRY_FOR };
        let mut pause = PAUSE_FIRST;
        let gave_up = loop {
            let asked = match timeout_at(until, self.collector.send(&request)).await {
                Ok(Answer::Taken { rejected, why }) => {
                    let rejected = rejected.min(count);
                    self.counts.add("traces", "sent", count - rejected);
                    self.counts.add("traces", "rejected", rejected);
                    if rejected > 0 {
                        tracing::warn!(rejected, why, "the collector rejected spans");
                    }
                    self.complained = false;
                    return;
                }
                Ok(Answer::Refused(why)) => break why,
                Ok(Answer::Later { pause: asked, why }) => {
                    self.complain(&why);
                    if Instant::now() + asked.unwrap_or(pause) >= until {
                        break why;
                    }
                    asked
                }
                Err(_) => break "the collector did not answer in time".to_owned(),
            };
            let stopped = self.stopped.clone();
            let until_next = asked.unwrap_or(pause);
            tokio::select! {
                () = sleep(until_next) => {}
                // One more try, of the end's own patience.
                () = stopped.wait(), if !last => {
                    break "the driver ended before the collector took them".to_owned();
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
        };
        self.counts.add("traces", "dropped", count);
        self.complain(&gave_up);
    }

    fn complain(&mut self, why: &str) {
        if !self.complained {
            self.complained = true;
            tracing::warn!(why, "the OpenTelemetry collector does not take spans");
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// A shared exporter as a sink.
impl From<Exporter> for Arc<dyn Sink> {
    fn from(exporter: Exporter) -> Self {
        Arc::new(exporter)
    }
}
