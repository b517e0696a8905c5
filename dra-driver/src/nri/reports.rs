//! Who tried to get devices without a grant: an event on the pod and a line in the log, both
//! within limits, since a tenant can do it as often as it likes.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use accelpool_cluster::{Event, EventRecorder, Regarding, Severity};

use super::{pods::Pod, visible::Attempt};

/// Lines at once, one for each pod of a full node; then one each second.
const BURST: u32 = 110;
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells of attempts.
pub(super) struct Reports {
    events: EventRecorder,
    lines: Mutex<Lines>,
}

/// How many lines may still be written.
struct Lines {
    left: u32,
    since: Instant,
    unwritten: u64,
}

impl Lines {
    /// Takes a line, and returns how many were not written before it; none if it must not be.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since);
        let earned = u32::try_from(passed.as_secs() / INTERVAL.as_secs()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = now;
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.unwritten += 1;
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.unwritten))
    }
}

impl Reports {
    pub(super) fn new(events: EventRecorder) -> Self {
        let lines = Lines { left: BURST, since: Instant::now(), unwritten: 0 };
        Self { events, lines: Mutex::new(lines) }
    }

    /// Tells of a container without a grant that asked for devices.
    pub(super) fn attempt(&self, pod: &Pod, container: &str, attempts: &[Attempt]) {
        let asked: Vec<String> = attempts
            .iter()
            .map(|attempt| format!("{}={:?}", attempt.variable, attempt.value))
            .collect();
        let asked = asked.join(", ");
        self.say(|unwritten| {
            let Pod { namespace, name, .. } = pod;
            tracing::warn!(
                namespace,
                pod = name,
                container,
                asked,
                unwritten,
                "a container asked for devices that it was not granted"
            );
        });
        self.events.record(Event {
            regarding: regarding(pod),
            severity: Severity::Warning,
            reason: "DevicesNotGranted",
            action: "CreateContainer",
            note: format!(
                "container {container} asks for accelerators by {asked}; it has no claim, so it \
                 gets none: give it a ResourceClaim, or take the variable out of the image or the \
                 pod"
            ),
            trace_id: None,
        });
    }

    /// Tells of a container that claims a grant which the kubelet knows nothing of.
    pub(super) fn forgery(&self, pod: &Pod, container: &str) {
        self.say(|unwritten| {
            let Pod { namespace, name, .. } = pod;
            tracing::warn!(
                namespace,
                pod = name,
                container,
                unwritten,
                "a container has the variable of a grant that is not its own"
            );
        });
    }

    fn say(&self, write: impl FnOnce(u64)) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unwritten) = lines.take(Instant::now()) {
            write(unwritten);
        }
    }
}

fn regarding(pod: &Pod) -> Regarding {
    let Pod { namespace, name, uid, .. } = pod.clone();
    Regarding::Pod { namespace, name, uid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_limited_and_those_left_out_are_counted() {
        let start = Instant::now();
        let mut lines = Lines { left: 2, since: start, unwritten: 0 };
        let taken: Vec<_> = (0..4).map(|_| lines.take(start)).collect();
        assert_eq!(taken, [Some(0), Some(0), None, None]);
        assert_eq!(lines.take(start + INTERVAL), Some(2));
        assert_eq!(lines.take(start + INTERVAL), None);
        assert_eq!(lines.take(start + INTERVAL * 1000), Some(1));
        assert_eq!(lines.left, BURST - 1);
    }
}
