//! Tells the kubelet how each device is, so that a pod's status can say it.
//!
//! Every message is the full list: what is left out would keep its last state until it
//! expires. A device that is tainted by an operator is kept from new work, not ill.

mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

use accelpool_model::{Taint, TaintEffect};
use accelpool_proto::{
    kubelet::v1::{DeviceHealth, DeviceIdentifier, HealthStatus},
    node,
};
use tokio::time::Instant;

pub use self::stream::Health;
use crate::node::Observed;

/// How long the last state is believed while the daemon is away: a restart takes less.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// After so long without a message the kubelet calls the state unknown (its own default).
const TIMEOUT_SECONDS: i64 = 30;

/// What the kubelet keeps of a message (`kubernetes.md` 2.5).
const MESSAGE_LEN_MAX: usize = 1024;

/// The health of every device and held partition; none before the daemon has answered.
#[must_use]
pub fn report(
    observed: &Observed,
    pool: &str,
    now: Instant,
    now_unix_s: i64,
) -> Option<Vec<DeviceHealth>> {
    let state = observed.state.as_ref()?;
    let away = observed.away_since.map(|since| now.saturating_duration_since(since));
    let unknown = away.filter(|away| *away > AWAY_MAX).map(|away| {
        format!("accelpoold has not answered for {} s", away.as_secs())
    });
    let entry = |name: &str, device: Option<&node::Device>| {
        let (health, message) = match (&unknown, device) {
            (Some(message), _) => (HealthStatus::Unknown, message.clone()),
            (None, Some(device)) => assess(device),
            (None, None) => {
                (HealthStatus::Unhealthy, "the device is no longer on the node".to_owned())
            }
        };
        DeviceHealth {
            device: Some(DeviceIdentifier {
                pool_name: pool.to_owned(),
                device_name: name.to_owned(),
            }),
            health: health.into(),
            last_updated_time: now_unix_s,
            health_check_timeout_seconds: TIMEOUT_SECONDS,
            message: shorten(message),
        }
    };
    let by_name = |name: &str| state.devices.iter().find(|device| device.name == name);
    let devices = state.devices.iter().map(|device| entry(&device.name, Some(device)));
    let partitions = held_partitions(state).map(|(name, device)| entry(name, by_name(device)));
    Some(devices.chain(partitions).collect())
}

/// What a device's taints say about its health, with every reason there is.
#[must_use]
pub fn assess(device: &node::Device) -> (HealthStatus, String) {
    let reasons = device.taints.iter().filter(|taint| taint.key != Taint::OPERATOR);
    let message = reasons
        .clone()
        .map(|taint| taint.reason.as_str())
        .chain((!device.present).then_some("the device has left the bus"))
        .collect::<Vec<_>>()
        .join("; ");
    // An effect that this version does not know is taken for the gravest.
    let ill = reasons.clone().any(|taint| taint.effect.parse() != Ok(TaintEffect::None));
    match ill || !device.present {
        true => (HealthStatus::Unhealthy, message),
        false => (HealthStatus::Healthy, message),
    }
}

/// The partitions that leases hold, each with its device.
fn held_partitions(state: &node::WatchNodeResponse) -> impl Iterator<Item = (&str, &str)> {
    let allocations = state.leases.iter().flat_map(|lease| &lease.allocations);
    allocations.filter_map(|allocation| match &allocation.portion {
        Some(node::allocation::Portion::Partition(partition)) => {
            Some((partition.name.as_str(), allocation.device.as_str()))
        }
        Some(node::allocation::Portion::Whole(_) | node::allocation::Portion::Share(_)) | None => {
            None
        }
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
