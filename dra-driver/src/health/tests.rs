//! Each test reads: a node, and what the kubelet is told of it.

use std::sync::Arc;

use accelpool_proto::node as wire;

use super::*;
use crate::node::Snapshot;

fn device(taints: &[(&str, &str, &str)], present: bool) -> wire::Device {
    let taint = |(key, effect, reason): &(&str, &str, &str)| wire::Taint {
        key: (*key).to_owned(),
        effect: (*effect).to_owned(),
        reason: (*reason).to_owned(),
        since_unix_ms: 1,
    };
    wire::Device {
        name: "gpu-0".to_owned(),
        vendor: "sim".to_owned(),
        kind: "gpu".to_owned(),
        present,
        taints: taints.iter().map(taint).collect(),
        partitioning: Some(wire::Partitioning {
            scheme: "mig".to_owned(),
            slices: 8,
            uniform: false,
            profiles: vec![],
        }),
        ..wire::Device::default()
    }
}

fn observed(device: wire::Device, leases: Vec<wire::Lease>) -> Observed {
    let response = wire::WatchNodeResponse { devices: vec![device], leases, ..Default::default() };
    Observed {
        snapshot: Some(Arc::new(Snapshot::from(response))),
        complete: true,
        away_since: None,
    }
}

/// Every line is a device: name, health and message.
#[track_caller]
fn check(observed: &Observed, now: Instant, expected: &[&str]) {
    let report = report(observed, "pool", now, 7).expect("there is a state");
    let line = |health: &DeviceHealth| {
        let device = health.device.clone().expect("every entry names its device");
        assert_eq!((device.pool_name.as_str(), health.last_updated_time), ("pool", 7));
        format!("{} {:?} {}", device.device_name, health.health(), health.message)
    };
    assert_eq!(report.iter().map(line).collect::<Vec<_>>(), expected);
}

#[test]
fn a_device_is_as_its_gravest_taint() {
    let now = Instant::now();
    let one = |taints: &[_], present| observed(device(taints, present), vec![]);
    check(&one(&[], true), now, &["gpu-0 Healthy "]);
    check(&one(&[("throttled", "None", "hot")], true), now, &["gpu-0 Healthy hot"]);
    check(&one(&[("operator", "NoExecute", "mine")], true), now, &["gpu-0 Healthy "]);
    let two = [("throttled", "None", "hot"), ("link", "NoSchedule", "nvlink 3")];
    check(&one(&two, true), now, &["gpu-0 Unhealthy hot; nvlink 3"]);
    check(&one(&[], false), now, &["gpu-0 Unhealthy the device has left the bus"]);
}

#[test]
fn a_partition_that_is_held_is_as_its_device() {
    let portion = wire::PartitionPortion {
        name: "gpu-0-mig-1g-10gb-2".to_owned(),
        profile: "1g.10gb".to_owned(),
        start: 2,
        adopted: false,
    };
    let allocation = wire::Allocation {
        device: "gpu-0".to_owned(),
        portion: Some(wire::allocation::Portion::Partition(portion)),
        ..wire::Allocation::default()
    };
    let lease = wire::Lease {
        claim: "a".to_owned(),
        state: "prepared".to_owned(),
        allocations: vec![allocation],
        ..wire::Lease::default()
    };
    let ill = observed(device(&[("link", "NoExecute", "down")], true), vec![lease]);
    check(&ill, Instant::now(), &["gpu-0 Unhealthy down", "gpu-0-mig-1g-10gb-2 Unhealthy down"]);
}

#[test]
fn what_is_held_under_another_name_is_as_its_device() {
    let allocation = |share_id: &str, portion| wire::Allocation {
        device: "gpu-0".to_owned(),
        share_id: Some(share_id.to_owned()),
        portion: Some(portion),
        ..wire::Allocation::default()
    };
    let share = || wire::allocation::Portion::Share(wire::SharePortion::default());
    let admin = || wire::allocation::Portion::Admin(wire::AdminPortion {});
    let lease = |allocations| wire::Lease { allocations, ..wire::Lease::default() };
    let leases = vec![
        lease(vec![allocation("5f", share()), allocation("admin", admin())]),
        lease(vec![allocation("admin", admin()), allocation("share-1-of-4", share())]),
    ];
    let expected = ["gpu-0 Healthy ", "gpu-0-admin Healthy ", "gpu-0-share-1-of-4 Healthy "];
    check(&observed(device(&[], true), leases), Instant::now(), &expected);
}

#[test]
fn a_daemon_that_stays_away_makes_it_unknown() {
    let mut observed = observed(device(&[], true), vec![]);
    let lost = Instant::now();
    observed.away_since = Some(lost);
    check(&observed, lost + Duration::from_secs(30), &["gpu-0 Healthy "]);
    check(
        &observed,
        lost + Duration::from_secs(31),
        &["gpu-0 Unknown accelpoold has not answered for 31 s"],
    );
}

#[test]
fn nothing_is_said_before_the_daemon_has_spoken() {
    let observed = Observed { snapshot: None, complete: false, away_since: Some(Instant::now()) };
    assert_eq!(report(&observed, "pool", Instant::now(), 7), None);
}

#[test]
fn a_message_fits_and_is_cut_between_characters() {
    assert_eq!(shorten("x".repeat(1024)).len(), 1024);
    let cut = shorten("\u{e9}".repeat(600));
    assert!(cut.len() <= 1024 && cut.ends_with("\u{e9}..."), "{}", cut.len());
}
