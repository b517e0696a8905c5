//! Says in each claim's own status how its devices are: prepared, healthy, and what keeps
//! the tenant inside the grant.
//!
//! What is said follows from the daemon's leases alone, so a driver that was restarted says
//! the same again, and a claim whose lease ends is forgotten.

use std::{collections::HashMap, sync::Arc, time::Duration};

use accelpool_cluster::{
    ClaimReference, Cluster, Condition, DeviceStatus, DeviceStatusError, Event, EventRecorder,
    NodeDevice, NodeState, Regarding, SURFACE_DRA, SURFACE_LABEL, Severity,
};
use accelpool_model::Chain;
use accelpool_proto::{
    kubelet::v1::HealthStatus,
    node::{Allocation, Lease, Verification},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    dra::{published_name, scheduled_share_id},
    health, labels,
    node::{Observed, Snapshot},
};

/// The wait after a write that failed, at first and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// Claims that are written in one go before the node is looked at again.
const BATCH: usize = 16;

/// The condition that says a claim's containers may run.
const READY: &str = "Ready";
/// The condition that says the device has no fault.
const HEALTHY: &str = "Healthy";
/// The condition that says the claim's containers have what was granted, as the daemon found
/// when it last looked at them.
const VERIFIED: &str = "Verified";

/// Keeps the status of this node's claims.
pub struct Statuses {
    /// Where claims are written.
    pub cluster: Cluster,
    /// The node, as last seen.
    pub observed: watch::Receiver<Observed>,
    /// Where changes of health are told.
    pub events: EventRecorder,
}

/// What was said last, by claim UID.
type Said = HashMap<String, Vec<DeviceStatus>>;

impl Statuses {
    /// Runs until the node's state ends.
    pub async fn run(mut self) {
        let mut said = Said::new();
        let mut retry = RETRY_FIRST;
        loop {
            let snapshot = self.observed.borrow_and_update().snapshot.clone();
            let written = match snapshot {
                Some(snapshot) => self.write(&snapshot, &mut said).await,
                None => Ok(true),
            };
            let finished = match written {
                Ok(finished) => {
                    retry = RETRY_FIRST;
                    finished
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "status not written");
                    sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                    false
                }
            };
            if finished && self.observed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes what has changed, up to a limit; true if nothing is left to be written.
    async fn write(
        &self,
        snapshot: &Arc<Snapshot>,
        said: &mut Said,
    ) -> Result<bool, DeviceStatusError> {
        let pool = self.cluster.pool_name();
        let wanted: HashMap<String, _> = snapshot
            .leases
            .iter()
            .filter_map(|lease| {
                let claim = claim_of(lease)?;
                let mut statuses = statuses(lease, &snapshot.state, &pool);
                keep_times(&mut statuses, said.get(&claim.uid).map_or(&[], Vec::as_slice));
                Some((claim.uid.clone(), (claim, statuses)))
            })
            .collect();
        said.retain(|uid, _| wanted.contains_key(uid));
        let changed: Vec<_> = wanted
            .into_iter()
            .filter(|(uid, (_, statuses))| said.get(uid) != Some(statuses))
            .collect();
        let finished = changed.len() <= BATCH;
        for (uid, (claim, statuses)) in changed.into_iter().take(BATCH) {
            match self.cluster.set_device_status(&claim, &statuses).await {
                Ok(()) => {}
                Err(error) if is_transient(&error) => return Err(error),
                // The claim is gone, or the API server will refuse the same again.
                Err(error) => tracing::debug!(uid, error = %Chain(&error), "status not taken"),
            }
            let last = said.insert(uid, statuses.clone()).unwrap_or_default();
            for event in health_events(&claim, &last, &statuses) {
                self.events.record(event);
            }
        }
        Ok(finished)
    }
}

fn is_transient(error: &DeviceStatusError) -> bool {
    match error {
        DeviceStatusError::Call { source, .. } => source.is_transient(),
        DeviceStatusError::Gone { .. } | DeviceStatusError::Name(_) => false,
    }
}

/// The claim that a lease belongs to; none if the claim is not Kubernetes', or not ready.
fn claim_of(lease: &Lease) -> Option<ClaimReference> {
    let label = |key: &str| lease.labels.get(key).cloned();
    let ours = label(SURFACE_LABEL)? == SURFACE_DRA && lease.state == "prepared";
    let (namespace, name) = (label(labels::NAMESPACE)?, label(labels::NAME)?);
    ours.then(|| ClaimReference { namespace, name, uid: lease.claim.clone() })
}

fn statuses(lease: &Lease, state: &NodeState, pool: &str) -> Vec<DeviceStatus> {
    let status = |allocation: &Allocation| {
        let device = state.devices.iter().find(|d| d.name.as_str() == allocation.device);
        let enforcement = allocation.enforcement.clone().unwrap_or_default();
        let data = [
            ("memoryEnforcement".to_owned(), enforcement.memory),
            ("computeEnforcement".to_owned(), enforcement.compute),
        ];
        DeviceStatus {
            pool: pool.to_owned(),
            device: published_name(allocation),
            share_id: scheduled_share_id(allocation),
            conditions: [ready(lease), healthy(lease, device)]
                .into_iter()
                .chain(lease.verification.as_ref().map(verified))
                .collect(),
            data: data.into(),
        }
    };
    lease.allocations.iter().map(status).collect()
}

fn ready(lease: &Lease) -> Condition {
    let troubled = !lease.trouble.is_empty();
    Condition {
        kind: READY,
        holds: Some(!troubled),
        reason: if troubled { "Troubled" } else { "Prepared" },
        message: if troubled { lease.trouble.clone() } else { "prepared on the node".to_owned() },
        since_unix_ms: lease.since_unix_ms,
    }
}

fn verified(found: &Verification) -> Condition {
    let (holds, reason) = match found.state.as_str() {
        "verified" => (Some(true), "Verified"),
        "drifted" => (Some(false), "Drifted"),
        "unused" => (None, "Unused"),
        _ => (None, "Unknown"),
    };
    let message = match reason {
        "Verified" => "its containers can open what was granted, and nothing else".to_owned(),
        "Unused" => "no process runs that was given it".to_owned(),
        _ => found.deviations.join("; "),
    };
    Condition { kind: VERIFIED, holds, reason, message, since_unix_ms: found.unix_ms }
}

/// What holds as it did when it was said last does so since then: to look again is no change.
fn keep_times(next: &mut [DeviceStatus], last: &[DeviceStatus]) {
    for status in next {
        let Some(last) =
            last.iter().find(|it| (&it.device, &it.share_id) == (&status.device, &status.share_id))
        else {
            continue;
        };
        for condition in status.conditions.iter_mut().filter(|it| it.kind == VERIFIED) {
            let last = last.conditions.iter().find(|it| it.kind == VERIFIED);
            if let Some(last) = last.filter(|it| it.holds == condition.holds) {
                condition.since_unix_ms = last.since_unix_ms;
            }
        }
    }
}

fn healthy(lease: &Lease, device: Option<&NodeDevice>) -> Condition {
    let (status, message) = match device {
        Some(device) => health::assess(device),
        None => (HealthStatus::Unhealthy, "the device is no longer on the node".to_owned()),
    };
    let holds = match status {
        HealthStatus::Healthy => Some(true),
        HealthStatus::Unhealthy => Some(false),
        HealthStatus::Unknown => None,
    };
    let tainted = device.and_then(|device| device.taints.iter().map(|taint| taint.since_ms).max());
    Condition {
        kind: HEALTHY,
        holds,
        reason: if holds == Some(true) { "NoFault" } else { "DeviceFault" },
        message: if message.is_empty() { "no fault is known".to_owned() } else { message },
        since_unix_ms: tainted.unwrap_or(lease.since_unix_ms),
    }
}

/// What is worth telling of the change from one status to the next.
fn health_events(
    claim: &ClaimReference,
    last: &[DeviceStatus],
    next: &[DeviceStatus],
) -> Vec<Event> {
    let healthy = |status: &DeviceStatus| {
        status.conditions.iter().find(|condition| condition.kind == HEALTHY).cloned()
    };
    let changes = next.iter().filter_map(|next| {
        let was = last.iter().find(|last| last.device == next.device).and_then(healthy);
        let is = healthy(next)?;
        // A device that was sound when it was given is no news.
        let before = was.map_or(Some(true), |was| was.holds);
        (before != is.holds).then_some((next, is))
    });
    let event = |(status, condition): (&DeviceStatus, Condition)| {
        let sound = condition.holds == Some(true);
        Event {
            regarding: Regarding::from(claim),
            severity: if sound { Severity::Normal } else { Severity::Warning },
            reason: if sound { "DeviceRecovered" } else { "DeviceUnhealthy" },
            action: "Watch",
            note: format!("device {}: {}", status.device, condition.message),
            trace_id: None,
        }
    };
    changes.map(event).collect()
}

#[cfg(test)]
mod tests;
