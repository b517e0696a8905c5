//! The adapter passes the conformance suite on machines of every kind.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use accelpool_vendor_api::conformance::{self, Options};

use crate::machine::{DGX_H100, DGX_H100_MIG, Machine, V100_535};

const EVERYTHING: Options = Options { cut: true, nodes: true };

/// What is skipped where nothing can be cut.
const CUTTING: [&str; 7] = [
    "unknown_profiles_are_refused",
    "a_partition_comes_and_goes",
    "a_mode_goes_there_and_back",
    "a_second_destruction_succeeds",
    "taken_slices_are_refused",
    "neighbours_are_not_disturbed",
    "one_of_many_creations_wins",
];

#[track_caller]
fn check(machine: &Machine, skipped: &[&str]) {
    let report = conformance::check(&machine.vendor(), EVERYTHING);
    report.assert_passed();
    let found: Vec<&str> = report.skipped().map(|outcome| outcome.check).collect();
    assert_eq!(found, skipped, "{report}");
}

#[test]
fn eight_devices_of_which_two_are_cut() {
    check(&Machine::new(DGX_H100_MIG), &[]);
}

#[test]
fn eight_devices_outside_of_mig_mode() {
    let mut skipped = CUTTING.to_vec();
    skipped.retain(|check| *check != "a_mode_goes_there_and_back");
    check(&Machine::new(DGX_H100), &skipped);
}

#[test]
fn an_old_driver_that_lacks_newer_symbols() {
    let machine = Machine::new(V100_535);
    machine.without_symbols(&[
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetGpuInstanceProfileInfoV",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlInitWithFlags",
    ]);
    check(&machine, &CUTTING);
}

#[test]
fn no_driver() {
    check(&Machine::bare(), &CUTTING);
}

#[test]
fn a_driver_without_a_library() {
    // Devices are listed, and nothing more can be asked about them.
    let machine = Machine::new(V100_535);
    machine.remove_library();
    let report = conformance::check(&machine.vendor(), Options { cut: false, nodes: true });
    let passed = |check: &str| {
        report
            .outcomes
            .iter()
            .any(|it| it.check == check && it.verdict == conformance::Verdict::Passed)
    };
    assert!(passed("device_attributes_fit"), "{report}");
    assert!(passed("device_injections_are_usable"), "{report}");
    assert!(passed("discovery_is_stable"), "{report}");
}
