//! Tells the kubelet how each device is, so that a pod's status can say it.
//!
//! Every message is the full list: what is left out would keep its last state until it
//! expires. A device that is tainted by an operator is kept from new work, not ill.

mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accelpool_cluster::NodeDevice;
use accelpool_model::{Taint, TaintEffect};
use accelpool_proto::kubelet::v1::{DeviceHealth, DeviceIdentifier, HealthStatus};
use tokio::time::Instant;

pub use self::stream::{Health, REPEAT_INTERVAL};
use crate::{
    dra::published_name,
    node::{Observed, Snapshot},
};

/// How long the last state is believed while the daemon is away: a restart takes less.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// After so long without a message the kubelet calls the state unknown (its own default).
const TIMEOUT_SECONDS: i64 = 30;

/// What the kubelet keeps of a message (`kubernetes.md` 2.5).
const MESSAGE_LEN_MAX: usize = 1024;

/// The health of every device and of what is held of it under a name of its own; none before the daemon has answered.
#[must_use]
pub fn report(
    observed: &Observed,
    pool: &str,
    now: Instant,
    now_unix_s: i64,
) -> Option<Vec<DeviceHealth>> {
    let snapshot = observed.snapshot.as_ref()?;
    let away = observed.away_since.map(|since| now.saturating_duration_since(since));
    let unknown = away
        .filter(|away| *away > AWAY_MAX)
        .map(|away| format!("accelpoold has not answered for {} s", away.as_secs()));
    let entry = |(name, device): (String, &NodeDevice)| {
        let (health, message) = match &unknown {
            Some(message) => (HealthStatus::Unknown, message.clone()),
            None => assess(device),
        };
        DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: pool.to_owned(), device_name: name }),
            health: health.into(),
            last_updated_time: now_unix_s,
            health_check_timeout_seconds: TIMEOUT_SECONDS,
            message: shorten(message),
        }
    };
    Some(names(snapshot).map(entry).collect())
}

/// What a device's taints say about its health, with every reason there is.
#[must_use]
pub fn assess(device: &NodeDevice) -> (HealthStatus, String) {
    let reasons = device.taints.iter().filter(|taint| taint.key != Taint::OPERATOR);
    let message = reasons
        .clone()
        .map(|taint| taint.reason.as_str())
        .chain((!device.present).then_some("the device has left the bus"))
        .collect::<Vec<_>>()
        .join("; ");
    let ill = reasons.clone().any(|taint| match taint.effect {
        TaintEffect::NoSchedule | TaintEffect::NoExecute => true,
        TaintEffect::None => false,
    });
    if ill || !device.present {
        (HealthStatus::Unhealthy, message)
    } else {
        (HealthStatus::Healthy, message)
    }
}

/// The names that claims know devices by: the device's own, and those under which something of it
/// is held.
fn names(snapshot: &Snapshot) -> impl Iterator<Item = (String, &NodeDevice)> {
    let mut held: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for allocation in snapshot.leases.iter().flat_map(|lease| &lease.allocations) {
        held.entry(&allocation.device).or_default().insert(published_name(allocation));
    }
    snapshot.state.devices.iter().flat_map(move |device| {
        let own = device.name.as_str();
        let held = held.remove(own).unwrap_or_default();
        let others = held.into_iter().filter(move |name| name != own);
        std::iter::once(own.to_owned()).chain(others).map(move |name| (name, device))
    })
}

/// Cuts a message where the kubelet would, but between characters.
fn shorten(mut message: String) -> String {
    if message.len() > MESSAGE_LEN_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX - "...".len()));
        message.push_str("...");
    }
    message
}
