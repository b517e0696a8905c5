//! Partitions: made whole or not at all, and what a crash leaves is found and removed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{
    thread,
    time::{Duration, Instant},
};

use accelpool_model::Partition;
use accelpool_vendor_api::{Vendor, VendorError};
use accelpool_vendor_nvidia::Nvidia;
use serde_json::json;

use crate::machine::{DGX_H100_MIG, Machine, uuid};

/// A device in MIG mode.
const CUT: usize = 7;

fn create(vendor: &Nvidia, profile: &str, start: u32) -> Result<Partition, VendorError> {
    vendor.create_partition(&uuid(CUT), &profile.parse().unwrap(), start)
}

fn destroy(vendor: &Nvidia, profile: &str, start: u32) -> Result<(), VendorError> {
    vendor.destroy_partition(&uuid(CUT), &profile.parse().unwrap(), start)
}

/// Compares the partitions that a fresh worker sees.
#[track_caller]
fn check(machine: &Machine, expected: &[&str]) {
    let partitions = machine.vendor().partitions(&uuid(CUT)).unwrap();
    let found: Vec<String> = partitions
        .iter()
        .map(|it| {
            let state = if it.complete { "" } else { ", half-created" };
            format!("{} at {}{state}", it.profile, it.start)
        })
        .collect();
    assert_eq!(found, expected);
}

/// Has a call answer with a code.
fn fail(machine: &Machine, symbol: &str, code: u32) {
    machine.change(|described| described["errors"] = json!({ symbol: code }));
}

fn mend(machine: &Machine) {
    machine.change(|described| described["errors"] = json!({}));
}

#[test]
fn partitions_outlive_their_worker() {
    let machine = Machine::new(DGX_H100_MIG);
    let made = create(&machine.vendor(), "1g.10gb", 2).unwrap();
    assert_eq!(machine.vendor().partitions(&uuid(CUT)).unwrap(), [made]);
    destroy(&machine.vendor(), "1g.10gb", 2).unwrap();
    check(&machine, &[]);
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let machine = Machine::new(DGX_H100_MIG);
    for symbol in [
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetGpuInstanceId",
    ] {
        fail(&machine, symbol, 999);
        let error = create(&machine.vendor(), "3g.40gb", 0).unwrap_err();
        assert!(matches!(error, VendorError::Failed { .. }), "{symbol}: {error}");
        mend(&machine);
        check(&machine, &[]);
    }
}

#[test]
fn a_node_that_cannot_be_had_undoes_the_partition() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.write("proc/devices", "Character devices:\n195 nvidia\n");
    let error = create(&machine.vendor(), "3g.40gb", 0).unwrap_err();
    assert!(error.to_string().contains("nvidia-caps"), "{error}");
    check(&machine, &[]);
}

#[test]
fn what_could_not_be_undone_is_found_half_created() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.change(|described| {
        described["errors"] =
            json!({ "nvmlGpuInstanceCreateComputeInstance": 999, "nvmlGpuInstanceDestroy": 999 });
    });
    create(&machine.vendor(), "3g.40gb", 4).unwrap_err();
    mend(&machine);
    check(&machine, &["3g.40gb at 4, half-created"]);
    let half = machine.vendor().partitions(&uuid(CUT)).unwrap();
    assert_eq!(half[0].uuid.as_str(), format!("{}.gi0", uuid(CUT)));
    // Its slices are taken until it goes.
    let error = create(&machine.vendor(), "1g.10gb", 5).unwrap_err();
    assert_eq!(error, VendorError::Occupied(uuid(CUT)));
    destroy(&machine.vendor(), "3g.40gb", 4).unwrap();
    check(&machine, &[]);
}

/// A worker that is killed half-way leaves what one leaves that never comes back from a call.
#[test]
fn what_a_stuck_worker_left_is_found_and_removed_by_the_next() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.change(|described| {
        described["hang"] = json!(["nvmlGpuInstanceCreateComputeInstance"]);
    });
    let stuck = machine.vendor();
    let stuck = thread::spawn(move || create(&stuck, "3g.40gb", 4));
    let began = Instant::now();
    while machine.vendor().partitions(&uuid(CUT)).unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_mins(1), "the creation never began");
        thread::yield_now();
    }
    check(&machine, &["3g.40gb at 4, half-created"]);
    destroy(&machine.vendor(), "3g.40gb", 4).unwrap();
    check(&machine, &[]);
    assert!(!stuck.is_finished());
}

/// A partition whose MIG device is not found must not pass for half-created, or it would be
/// destroyed under whoever uses it.
#[test]
fn a_partition_in_use_is_never_half_created() {
    let machine = Machine::new(DGX_H100_MIG);
    create(&machine.vendor(), "1g.10gb", 0).unwrap();
    for (symbol, code) in [
        ("nvmlDeviceGetMigDeviceHandleByIndex", 6),
        ("nvmlDeviceGetMigDeviceHandleByIndex", 2),
        ("nvmlDeviceGetGpuInstanceId", 6),
    ] {
        fail(&machine, symbol, code);
        let error = machine.vendor().partitions(&uuid(CUT)).unwrap_err();
        assert!(matches!(error, VendorError::Failed { .. }), "{error}");
    }
    mend(&machine);
    check(&machine, &["1g.10gb at 0"]);
}

#[test]
fn a_partition_with_processes_stays() {
    let machine = Machine::new(DGX_H100_MIG);
    create(&machine.vendor(), "1g.10gb", 0).unwrap();
    machine.change(|described| {
        described["devices"][CUT - 1]["processes"] =
            json!([{ "pid": 4711, "memory_mib": 100, "gpu_instance": 0, "compute_instance": 0 }]);
    });
    let error = destroy(&machine.vendor(), "1g.10gb", 0).unwrap_err();
    let holder = "processes 4711".to_owned();
    assert_eq!(error, VendorError::InUse { device: uuid(CUT), holder });
    check(&machine, &["1g.10gb at 0"]);
}

#[test]
fn nodes_follow_a_major_that_changed() {
    let machine = Machine::new(DGX_H100_MIG);
    let major = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        nix::sys::stat::major(std::fs::metadata(path).unwrap().rdev())
    };
    let made = create(&machine.vendor(), "1g.10gb", 0).unwrap();
    let node = made.injection.nodes.last().unwrap().host_path.clone();
    assert_eq!(major(node.as_ref()), 242);
    machine.write("proc/devices", "Character devices:\n243 nvidia-caps\n244 nvidia-uvm\n");
    assert_eq!(machine.vendor().partitions(&uuid(CUT)).unwrap(), [made]);
    assert_eq!(major(node.as_ref()), 243);
    machine.vendor().discover().unwrap();
    assert_eq!(major(&machine.path("dev/nvidia-uvm")), 244);
}

#[test]
fn an_unnamed_profile_gets_the_name_that_the_driver_would_give() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.without_symbols(&["nvmlDeviceGetGpuInstanceProfileInfoV"]);
    let devices = machine.vendor().discover().unwrap();
    let cut = devices.iter().find_map(|it| it.partitioning.as_ref()).unwrap();
    let names: Vec<&str> = cut.profiles.iter().map(|it| it.name.as_str()).collect();
    let expected = ["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.10gb+me", "1g.20gb"];
    assert_eq!(names, expected);
}

#[track_caller]
fn check_mode(machine: &Machine, on: bool) {
    let vendor = machine.vendor();
    let device = vendor.discover().unwrap().into_iter().find(|it| it.uuid == uuid(CUT)).unwrap();
    assert_eq!(device.mode().map(|mode| mode.on), Some(on));
    let path = machine.path("driver/usr/lib/x86_64-linux-gnu/nvml-standin.json.modes");
    let modes = std::fs::read_to_string(path).unwrap_or_else(|_| "{}".to_owned());
    let modes: serde_json::Value = serde_json::from_str(&modes).unwrap();
    let pending = modes.get(uuid(CUT).as_str()).map(|mode| mode[1] == serde_json::json!(true));
    assert_eq!(pending.unwrap_or(on), on, "something is left pending: {modes}");
}

#[test]
fn mode_is_switched_at_once_or_not_at_all() {
    let machine = Machine::new(DGX_H100_MIG);
    let vendor = machine.vendor();
    vendor.switch_mode(&uuid(CUT), false).unwrap();
    vendor.switch_mode(&uuid(CUT), false).unwrap();
    check_mode(&machine, false);
    assert!(create(&vendor, "1g.10gb", 0).is_err());
    assert_eq!(vendor.partitions(&uuid(CUT)).unwrap(), []);
    vendor.switch_mode(&uuid(CUT), true).unwrap();
    check_mode(&machine, true);
    create(&vendor, "1g.10gb", 0).unwrap();
    let error = vendor.switch_mode(&uuid(CUT), false).unwrap_err().to_string();
    assert!(error.ends_with("is in use: its GPU instances"), "{error}");
    destroy(&vendor, "1g.10gb", 0).unwrap();
    machine.change(|it| {
        it["devices"][CUT - 1]["processes"] = serde_json::json!([{ "pid": 77, "memory_mib": 1 }]);
    });
    let error = vendor.switch_mode(&uuid(CUT), false).unwrap_err().to_string();
    assert!(error.ends_with("is in use: processes 77"), "{error}");
    check_mode(&machine, true);
}

#[test]
fn a_switch_that_would_wait_for_a_reset_is_taken_back() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.change(|it| it["devices"][CUT - 1]["mig_needs_reset"] = true.into());
    let error = machine.vendor().switch_mode(&uuid(CUT), false).unwrap_err();
    assert!(matches!(error, VendorError::InUse { .. }), "{error}");
    check_mode(&machine, true);
}

#[test]
fn a_generation_that_takes_a_reset_is_not_switchable() {
    let machine = Machine::new(DGX_H100_MIG);
    let switchable = |machine: &Machine| {
        let devices = machine.vendor().discover().unwrap();
        devices.iter().find(|it| it.uuid == uuid(CUT)).unwrap().mode().unwrap().switchable
    };
    assert!(switchable(&machine));
    machine.change(|it| it["devices"][CUT - 1]["architecture"] = 7.into());
    assert!(!switchable(&machine));
    let error = machine.vendor().switch_mode(&uuid(CUT), false).unwrap_err();
    assert!(matches!(error, VendorError::Unsupported(_)), "{error}");
    // Where the driver has a field for it, that tells.
    machine.change(|it| it["figures"]["h100"]["fields"]["184"] = 1.into());
    assert!(switchable(&machine));
}
