//! Keeps the node's `ResourceSlices` as the daemon's state wants them.
//!
//! One task owns the picture of what the API server has. It wakes for a new state of the
//! node, for a slice that somebody deleted or changed (the kubelet deletes all of them when
//! it starts), or to try again; compares, and writes only the difference.
//!
//! ```text
//! Waiting -> Published <-> Failing(reason)
//! ```

mod plan;
mod probe;
mod watcher;
mod writer;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use accelpool_model::Chain;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};

use self::{
    watcher::{Seen, follow},
    writer::Writer,
};
use crate::{
    Cluster, Event, EventRecorder, Features, NodeState, Regarding, Severity,
    pace::{Backoff, Repairs, dice},
    pages,
};

/// The task that publishes. It ends when this is dropped; the slices stay.
pub struct Publisher {
    progress: watch::Receiver<PublishStatus>,
    task: JoinHandle<()>,
    watcher: JoinHandle<()>,
}

/// How far publishing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishStatus {
    /// What is waited for: the daemon's first word, or the API server's.
    Waiting(&'static str),
    /// What the API server has is what the daemon's state wants.
    Published {
        /// The daemon's revision that is published.
        revision: u64,
        /// The pool's generation.
        generation: i64,
        /// The number of slices.
        slices: usize,
    },
    /// The last attempt failed, for this reason; the next is on its way.
    Failing(String),
}

/// A wipe deletes slice after slice: let it come to its end, then write once.
const SETTLE: Duration = Duration::from_millis(100);
/// If somebody keeps changing the slices, they are set right ever more rarely.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// After such a quiet time the next disturbance is set right at once again.
const QUIET: Duration = Duration::from_mins(1);
/// Waits after a failed attempt.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_mins(1);
/// What the watch may bring while a write is under way.
const SEEN_QUEUE_LEN: usize = 256;

impl Publisher {
    /// Starts publishing. `states` holds `None` until the daemon has spoken; while the daemon
    /// is away the last state stays published.
    #[must_use]
    pub fn spawn(cluster: Cluster, states: watch::Receiver<Option<Arc<NodeState>>>) -> Self {
        let (report, progress) = watch::channel(PublishStatus::Waiting("the daemon"));
        let (sender, seen) = mpsc::channel(SEEN_QUEUE_LEN);
        let watcher = tokio::spawn(follow(cluster.clone(), sender));
        let publishing = Publishing {
            events: EventRecorder::spawn(cluster.clone()),
            writer: Writer::new(cluster.clone()),
            cluster,
            features: None,
            due: None,
            repairs: Repairs::new(SETTLE, SETTLE_MAX, QUIET),
            retries: Backoff::new(RETRY_FIRST, RETRY_MAX),
            omitted: Vec::new(),
            report,
        };
        let task = tokio::spawn(publishing.run(states, seen));
        Self { progress, task, watcher }
    }

    /// How far publishing is, to be looked at or waited on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PublishStatus> {
        self.progress.clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
        self.watcher.abort();
    }
}

/// What the task knows.
struct Publishing {
    cluster: Cluster,
    events: EventRecorder,
    writer: Writer,
    /// What the API server can do; `None` until it has answered once.
    features: Option<Features>,
    /// When slices are compared next, if there is a reason to.
    due: Option<Instant>,
    repairs: Repairs,
    retries: Backoff,
    omitted: Vec<String>,
    report: watch::Sender<PublishStatus>,
}

impl Publishing {
    async fn run(
        mut self,
        mut states: watch::Receiver<Option<Arc<NodeState>>>,
        mut seen: mpsc::Receiver<Seen>,
    ) {
        states.mark_changed();
        let mut states_open = true;
        loop {
            let due = self.due.map(time::Instant::from_std);
            tokio::select! {
                changed = states.changed(), if states_open => match changed {
                    Ok(()) => self.plan_at(Instant::now()),
                    Err(_) => states_open = false, // the last state stays published
                },
                told = seen.recv() => match told {
                    Some(told) => self.take(told, Instant::now()),
                    None => return,
                },
                () = time::sleep_until(due.unwrap_or_else(time::Instant::now)), if due.is_some() => {
                    self.due = None;
                    let state = states.borrow_and_update().clone();
                    self.publish(state).await;
                }
            }
        }
    }

    /// Compares slices at `at`, or sooner if that is planned already.
    fn plan_at(&mut self, at: Instant) {
        // A failed attempt is not hurried on by new states: its wait protects the server.
        let waiting = self.retries.attempts() > 0 && self.due.is_some();
        if !waiting {
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    fn take(&mut self, told: Seen, now: Instant) {
        match told {
            Seen::All(slices, features) => {
                if self.features != Some(features) {
                    self.tell_features(features);
                }
                self.features = Some(features);
                self.writer.replace_all(slices);
                self.retries.reset();
                self.due = Some(now);
            }
            Seen::Written(name, slice) => {
                if self.writer.note_written(name, *slice) {
                    self.disturb(now);
                }
            }
            Seen::Deleted(name, last) => {
                if self.writer.note_deleted(&name, last) {
                    self.disturb(now);
                }
            }
            Seen::Lost(error) => {
                let error = Chain(&error).to_string();
                tracing::warn!(error, "the API server cannot be followed");
                self.report.send_replace(PublishStatus::Failing(error));
            }
        }
    }

    /// Somebody else touched our slices: set them right soon, but not in a quarrel.
    fn disturb(&mut self, now: Instant) {
        self.cluster.counters.slices_disturbed.add(1);
        if let Some(wait) = self.repairs.after(now, self.due.is_some(), dice()) {
            self.plan_at(now + wait);
        }
    }

    async fn publish(&mut self, state: Option<Arc<NodeState>>) {
        let Some(state) = state else { return };
        let Some(features) = self.features else {
            self.report.send_if_modified(|status| match status {
                PublishStatus::Waiting(_) => {
                    *status = PublishStatus::Waiting("the API server");
                    true
                }
                PublishStatus::Published { .. } | PublishStatus::Failing(_) => false,
            });
            return;
        };
        let wanted = pages(&state, features);
        self.tell_omitted(wanted.omitted);
        match self.writer.write(&wanted.pages, features).await {
            Ok(written) => {
                self.retries.reset();
                if let Some(lowered) = written.lowered {
                    self.tell_features(lowered);
                    self.features = Some(lowered);
                    self.due = Some(Instant::now());
                    return;
                }
                self.report.send_replace(PublishStatus::Published {
                    revision: state.revision,
                    generation: written.generation,
                    slices: wanted.pages.len(),
                });
            }
            Err(error) => {
                self.cluster.counters.publish_failures.add(1);
                let text = Chain(&error).to_string();
                tracing::warn!(error = text, "slices not published");
                if !error.is_transient() {
                    self.events.record(node_event(
                        Severity::Warning,
                        "PublishFailed",
                        text.clone(),
                    ));
                }
                self.report.send_replace(PublishStatus::Failing(text));
                self.due = Some(Instant::now() + self.retries.next(dice()));
            }
        }
    }

    fn tell_features(&self, features: Features) {
        let Features { counters, consumable, taints, layout } = features;
        tracing::info!(counters, consumable, taints, ?layout, "what the API server keeps");
        let missing = [
            (counters, "DRAPartitionableDevices: partitions only as far as they exist"),
            (consumable, "DRAConsumableCapacity: shares only of fixed sizes"),
            (taints, "DRADeviceTaints: faulty devices are withdrawn"),
        ];
        let missing: Vec<&str> =
            missing.into_iter().filter(|(kept, _)| !kept).map(|(_, gate)| gate).collect();
        if !missing.is_empty() {
            let note = format!("the API server does not keep fields of {}", missing.join("; "));
            self.events.record(node_event(Severity::Warning, "FeatureGateOff", note));
        }
    }

    fn tell_omitted(&mut self, omitted: Vec<String>) {
        for reason in omitted.iter().filter(|reason| !self.omitted.contains(reason)) {
            tracing::warn!(reason, "left out of the slices");
        }
        self.omitted = omitted;
    }
}

fn node_event(severity: Severity, reason: &'static str, note: String) -> Event {
    Event { regarding: Regarding::Node, severity, reason, action: "Publish", note, trace_id: None }
}
