//! Asks the API server which fields it keeps, without writing anything.
//!
//! A server whose feature gate is off drops the fields silently. If it were first told of
//! partitions and then found to have dropped their counters, the scheduler could place two
//! claims on one device in between; so the question is put as a dry run.

use accelpool_model::MemoryBytes;
use k8s_openapi::api::resource::v1::{
    Counter, CounterSet, Device, DeviceCounterConsumption, DeviceTaint, ResourcePool,
    ResourceSlice, ResourceSliceSpec,
};
use kube::api::{Api, ObjectMeta, PostParams};

use crate::{
    Cluster, Features, Layout,
    cluster::{CallError, within_deadline},
    slices::{consumable, decimal},
};

/// What the API server is, and which fields it keeps.
pub(super) async fn probe(cluster: &Cluster) -> Result<Features, CallError> {
    let version = within_deadline(cluster.client.apiserver_version()).await?;
    let layout = layout(&version.major, &version.minor);
    let api: Api<ResourceSlice> = Api::all(cluster.client.clone());
    let dry_run = PostParams { dry_run: true, field_manager: None };
    let question = question(cluster, layout);
    let answer = within_deadline(api.create(&dry_run, &question)).await;
    cluster.counters.probes.add(1);
    match answer {
        Ok(answer) => Ok(features(&answer, layout)),
        // A server so different that it refuses the question gets the plainest model.
        Err(CallError::Refused { code: 400 | 422, message, .. }) => {
            tracing::warn!(message, "the API server refuses the fields it was asked for");
            Ok(Features { counters: false, consumable: false, taints: false, layout })
        }
        Err(error) => Err(error),
    }
}

/// Kubernetes 1.34 wants counters beside the devices that draw on them, later ones apart.
fn layout(major: &str, minor: &str) -> Layout {
    let number = |text: &str| -> u32 {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(u32::MAX)
    };
    if (number(major), number(minor)) <= (1, 34) { Layout::Combined } else { Layout::Separate }
}

fn question(cluster: &Cluster, layout: Layout) -> ResourceSlice {
    const NAME: &str = "probe";
    let counters: std::collections::BTreeMap<_, _> =
        [("slices".to_owned(), Counter { value: decimal(1) })].into();
    let draw = DeviceCounterConsumption { counter_set: NAME.into(), counters: counters.clone() };
    let taint = DeviceTaint {
        key: format!("{}/{NAME}", cluster.driver),
        effect: "NoSchedule".to_owned(),
        ..DeviceTaint::default()
    };
    let device = Device {
        name: NAME.to_owned(),
        capacity: Some(consumable(MemoryBytes::from_gib(1))),
        allow_multiple_allocations: Some(true),
        consumes_counters: Some(vec![draw]),
        taints: Some(vec![taint]),
        ..Device::default()
    };
    let set = CounterSet { name: NAME.to_owned(), counters };
    let name = format!("{NAME}-{}-{}", cluster.driver, cluster.node);
    let metadata = ObjectMeta {
        name: Some(name[..name.len().min(253)].trim_end_matches(['-', '.']).to_owned()),
        ..ObjectMeta::default()
    };
    let pool = ResourcePool { name: cluster.pool_name(), generation: 0, resource_slice_count: 1 };
    let spec = ResourceSliceSpec {
        driver: cluster.driver.clone(),
        node_name: Some(cluster.node.clone()),
        pool,
        devices: Some(vec![device]),
        shared_counters: match layout {
            Layout::Combined => Some(vec![set]),
            Layout::Separate => None,
        },
        ..ResourceSliceSpec::default()
    };
    ResourceSlice { metadata, spec }
}

fn features(answer: &ResourceSlice, layout: Layout) -> Features {
    let devices = || answer.spec.devices.iter().flatten();
    let policies = || devices().flat_map(|device| device.capacity.iter().flatten());
    Features {
        counters: devices().any(|device| device.consumes_counters.is_some()),
        consumable: devices().any(|device| device.allow_multiple_allocations == Some(true))
            && policies().all(|(_, capacity)| capacity.request_policy.is_some()),
        taints: devices().any(|device| device.taints.is_some()),
        layout,
    }
}

/// What is left of `features` after `answer` came back for `sent`; `None` if it came back
/// without a field, but no feature explains it.
pub(super) fn lowered(
    features: Features,
    sent: &ResourceSliceSpec,
    answer: &ResourceSliceSpec,
) -> Option<Features> {
    let lost = |has: fn(&Device) -> bool| {
        let count = |spec: &ResourceSliceSpec| {
            spec.devices.iter().flatten().filter(|device| has(device)).count()
        };
        count(answer) < count(sent)
    };
    let has_policy = |device: &Device| {
        let mut capacities = device.capacity.iter().flatten();
        capacities.any(|(_, capacity)| capacity.request_policy.is_some())
    };
    let counters_lost = lost(|device| device.consumes_counters.is_some())
        || sent.shared_counters.is_some() && answer.shared_counters.is_none();
    let consumable_lost =
        lost(|device| device.allow_multiple_allocations.is_some()) || lost(has_policy);
    let left = Features {
        counters: features.counters && !counters_lost,
        consumable: features.consumable && !consumable_lost,
        taints: features.taints && !lost(|device| device.taints.is_some()),
        layout: features.layout,
    };
    (left != features).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_follows_the_version() {
        for (minor, expected) in [
            ("34", Layout::Combined),
            ("34+", Layout::Combined),
            ("35", Layout::Separate),
            ("36", Layout::Separate),
            ("37+", Layout::Separate),
            ("", Layout::Separate),
        ] {
            assert_eq!(layout("1", minor), expected, "1.{minor}");
        }
    }

    #[track_caller]
    fn check_lowered(drop: fn(&mut Device), expected: Option<(bool, bool, bool)>) {
        let device = Device {
            capacity: Some(consumable(MemoryBytes::from_gib(1))),
            allow_multiple_allocations: Some(true),
            consumes_counters: Some(Vec::new()),
            taints: Some(Vec::new()),
            ..Device::default()
        };
        let spec = |device: &Device| ResourceSliceSpec {
            devices: Some(vec![device.clone()]),
            ..ResourceSliceSpec::default()
        };
        let mut kept = device.clone();
        drop(&mut kept);
        let left = lowered(Features::ALL, &spec(&device), &spec(&kept));
        assert_eq!(left.map(|left| (left.counters, left.consumable, left.taints)), expected);
    }

    #[test]
    fn a_dropped_field_lowers_its_feature() {
        check_lowered(|_| {}, None);
        check_lowered(|device| device.consumes_counters = None, Some((false, true, true)));
        check_lowered(|device| device.allow_multiple_allocations = None, Some((true, false, true)));
        check_lowered(|device| device.taints = None, Some((true, true, false)));
        check_lowered(|device| device.binds_to_node = Some(true), None);
        let no_policy = |device: &mut Device| {
            for capacity in device.capacity.iter_mut().flatten() {
                capacity.1.request_policy = None;
            }
        };
        check_lowered(no_policy, Some((true, false, true)));
    }
}
