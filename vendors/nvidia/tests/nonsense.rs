//! Bad input: whatever the library answers, the adapter says something sound.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::time::Duration;

use accelpool_model::{ComputeMode, Settings};
use accelpool_vendor_api::{
    Vendor, VendorError,
    conformance::{self, Options, Verdict},
};
use accelpool_vendor_nvidia::Nvidia;
use serde_json::json;

use crate::machine::{DGX_H100, DGX_H100_MIG, Machine, V100_535, uuid};

/// Every symbol that the adapter asks for and can do without.
const SYMBOLS: [&str; 72] = [
    "nvmlComputeInstanceDestroy",
    "nvmlComputeInstanceGetInfo_v2",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlDeviceGetAccountingMode",
    "nvmlDeviceGetAccountingPids",
    "nvmlDeviceGetAccountingStats",
    "nvmlDeviceGetArchitecture",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetGpuFabricInfo",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
    "nvmlDeviceGetGpuInstanceProfileInfo",
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlDeviceGetGpuInstances",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetJpgUtilization",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetName",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkVersion",
    "nvmlDeviceGetOfaUtilization",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetProcessesUtilizationInfo",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceRegisterEvents",
    "nvmlDeviceSetAccountingMode",
    "nvmlDeviceSetComputeMode",
    "nvmlDeviceSetMigMode",
    "nvmlDeviceSetPersistenceMode",
    "nvmlEventSetCreate",
    "nvmlEventSetWait_v2",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlGpuInstanceDestroy",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
    "nvmlGpuInstanceGetComputeInstances",
    "nvmlGpuInstanceGetInfo",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlSystemEventSetCreate",
    "nvmlSystemEventSetWait",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemRegisterEvents",
];

/// Every code of `nvml.h`, and some that it has not.
fn codes() -> impl Iterator<Item = u32> {
    (1..=31).chain([999, 1000, u32::MAX])
}

/// One code of each meaning: not initialized, not supported, gone, lost, in use, a wrong version
/// of a structure, and unknown.
const SOME_CODES: [u32; 7] = [1, 3, 6, 15, 19, 25, 999];

/// A machine of one device, which can be cut: enough for every call.
fn machine() -> Machine {
    let machine = Machine::new(DGX_H100_MIG);
    machine.change(|described| {
        let devices = described["devices"].as_array_mut().unwrap();
        for gone in devices.drain(..7) {
            let pci = gone["pci"].as_str().unwrap();
            let described = machine.path("proc/driver/nvidia/gpus").join(pci);
            std::fs::remove_dir_all(described).unwrap();
        }
        devices[0]["accounting"] = json!([
            { "pid": 1, "percent": 1, "start_us": 1, "lived_ms": 1, "running": false }
        ]);
    });
    machine
}

/// Calls everything. What is listed must be as sound as ever; the rest may fail.
#[track_caller]
fn exercise(vendor: &Nvidia, what: &str) {
    let profile = "1g.10gb".parse().unwrap();
    let devices = vendor.discover().unwrap_or_default();
    for device in &devices {
        let _ = vendor.partitions(&device.uuid);
        let _ = vendor.switch_mode(&device.uuid, true);
        for on in [true, false] {
            let compute_mode =
                if on { ComputeMode::ExclusiveProcess } else { ComputeMode::Default };
            let settings = Settings {
                compute_mode: Some(compute_mode),
                persistence: Some(on),
                accounting: Some(on),
            };
            let _ = vendor.configure(&device.uuid, settings);
        }
        let _ = vendor.create_partition(&device.uuid, &profile, 0);
        let _ = vendor.sample(&device.uuid);
        let _ = vendor.counters(&device.uuid);
        let _ = vendor.destroy_partition(&device.uuid, &profile, 0);
        let _ = vendor.recovery_action(&device.uuid);
        let _ = vendor.probe(&device.uuid);
    }
    let _ = vendor.links();
    let _ = vendor.next_event(Duration::ZERO);
    // The driver describes it in procfs, whatever its library says.
    let uuids: Vec<_> = devices.iter().map(|device| &device.uuid).collect();
    assert_eq!(uuids, [&uuid(8)], "{what}");
}

#[test]
fn every_code_from_every_call_is_survived() {
    let machine = machine();
    let vendor = machine.vendor();
    for symbol in SYMBOLS {
        for code in codes() {
            machine.change(|described| described["errors"] = json!({ symbol: code }));
            if SOME_CODES.contains(&code) {
                // Everything that is done when the library is opened is done again.
                let _ = vendor.quiesce(None);
            }
            exercise(&vendor, &format!("{symbol} says {code}"));
        }
    }
    machine.change(|described| described["errors"] = json!({}));
    let healed = vendor.discover().unwrap();
    assert!(healed.iter().any(|device| device.partitioning.is_some()));
}

#[test]
fn nonsense_from_every_call_is_survived() {
    let machine = machine();
    let vendor = machine.vendor();
    for symbol in SYMBOLS {
        machine.change(|described| described["nonsense"] = json!([symbol]));
        exercise(&vendor, &format!("{symbol} answers nonsense"));
        let report = conformance::check(&vendor, Options::default());
        let wrong: Vec<_> = report
            .failed()
            .filter(|it| {
                // Calls may fail; what is said of devices must still hold.
                it.check.starts_with("device_") || it.check.starts_with("partitioning_")
            })
            .collect();
        assert!(wrong.is_empty(), "{symbol} answers nonsense\n{report}");
        let panicked = Verdict::Failed("the adapter panicked".to_owned());
        assert!(report.outcomes.iter().all(|it| it.verdict != panicked), "{symbol}\n{report}");
    }
}

/// What is asked of devices outside of MIG mode, or of two of them.
const OF_WHOLE: [&str; 8] = [
    "nvmlDeviceGetAccountingStats",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetProcessesUtilizationInfo",
];

#[test]
fn whole_devices_survive_codes_and_nonsense_too() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| {
        let devices = described["devices"].as_array_mut().unwrap();
        devices.truncate(2);
        devices[0]["accounting"] = json!([
            { "pid": 1, "percent": 1, "start_us": 1, "lived_ms": 1, "running": false }
        ]);
        devices[0]["utilization"] = json!([{ "pid": 1, "percent": 9, "encoder": 9 }]);
    });
    std::fs::remove_dir_all(machine.path("proc/driver/nvidia/gpus")).unwrap();
    let vendor = machine.vendor();
    let sound = |what: &str| {
        let listed: Vec<_> = vendor.discover().unwrap().into_iter().map(|it| it.uuid).collect();
        assert_eq!(listed, [uuid(1), uuid(2)], "{what}");
        for link in vendor.links().unwrap_or_default() {
            assert!(link.strands <= 36 && link.route.switches().count() <= 4, "{what}: {link:?}");
        }
        for sample in vendor.sample(&uuid(1)).unwrap_or_default() {
            let busy = sample.engines.values().chain(sample.compute_busy.as_ref());
            assert!(busy.max() < Some(&Duration::from_hours(1)), "{what}: {sample:?}");
        }
        let _ = vendor.next_event(Duration::ZERO);
    };
    sound("nothing");
    for symbol in OF_WHOLE {
        for code in codes() {
            machine.change(|described| described["errors"] = json!({ symbol: code }));
            sound(&format!("{symbol} says {code}"));
        }
        machine.change(|described| {
            described["errors"] = json!({});
            described["nonsense"] = json!([symbol]);
        });
        sound(&format!("{symbol} answers nonsense"));
        machine.change(|described| described["nonsense"] = json!([]));
    }
}

#[test]
fn any_symbol_may_be_missing() {
    for symbol in SYMBOLS.into_iter().chain(["nvmlInitWithFlags", "nvmlInit_v2", "nvmlShutdown"]) {
        let machine = machine();
        machine.without_symbols(&[symbol]);
        exercise(&machine.vendor(), &format!("{symbol} is missing"));
    }
}

#[test]
fn a_call_that_hangs_holds_up_no_other() {
    let machine = machine();
    machine.change(|described| described["hang"] = json!(["nvmlDeviceGetName"]));
    let vendor = std::sync::Arc::new(machine.vendor());
    let stuck = std::sync::Arc::clone(&vendor);
    let stuck = std::thread::spawn(move || stuck.discover());
    for _ in 0..10 {
        vendor.sample(&uuid(8)).unwrap();
        vendor.probe(&uuid(8)).unwrap();
        assert_eq!(vendor.next_event(Duration::ZERO).unwrap(), None);
    }
    // It is still there: nothing but the end of the process ends it, as with the real one.
    assert!(!stuck.is_finished());
}

#[track_caller]
fn check_library_error(machine: &Machine, words: &str) {
    let error = machine.vendor().partitions(&uuid(8)).unwrap_err();
    let VendorError::Library(text) = &error else { panic!("{error}") };
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_library_that_cannot_be_loaded_says_why() {
    let machine = machine();
    machine.change(|described| described["errors"] = json!({ "nvmlInitWithFlags": 18 }));
    check_library_error(&machine, "version mismatch");
    machine.break_library();
    check_library_error(&machine, "failed to load");
    machine.remove_library();
    check_library_error(&machine, "libnvidia-ml.so.1");
}

#[test]
fn a_driver_that_describes_nobody_is_an_error_and_none_at_all_is_not() {
    let machine = machine();
    machine.remove_library();
    std::fs::remove_dir_all(machine.path("proc/driver/nvidia/gpus")).unwrap();
    assert!(matches!(machine.vendor().discover(), Err(VendorError::Library(_))));
    std::fs::remove_dir_all(machine.path("proc/driver")).unwrap();
    assert_eq!(machine.vendor().discover().unwrap(), []);
    assert_eq!(machine.vendor().probe(&uuid(8)).unwrap_err(), VendorError::UnknownDevice(uuid(8)));
}

#[test]
fn a_library_that_is_mended_is_of_use_again() {
    let machine = machine();
    machine.change(|described| described["errors"] = json!({ "nvmlDeviceGetCount_v2": 1 }));
    let vendor = machine.vendor();
    assert!(vendor.partitions(&uuid(8)).is_err());
    machine.change(|described| described["errors"] = json!({}));
    assert_eq!(vendor.partitions(&uuid(8)).unwrap(), []);
}

/// A machine of `count` devices that the library alone knows of.
fn crowd(count: usize) -> Machine {
    let machine = Machine::new(V100_535);
    machine.change(|described| {
        let one = described["devices"][0].clone();
        let devices = (0..count).map(|index| {
            let mut device = one.clone();
            device["uuid"] = format!("GPU-{index:04x}").into();
            device["pci"] = format!("0001:{index:02x}:00.0").into();
            device["minor"] = index.into();
            device
        });
        described["devices"] = devices.collect::<Vec<_>>().into();
    });
    std::fs::remove_dir_all(machine.path("proc/driver/nvidia/gpus")).unwrap();
    machine
}

#[test]
fn no_device_and_many_devices_are_listed() {
    for count in [0, 1, 64] {
        let found = crowd(count).vendor().discover().unwrap();
        assert_eq!(found.len(), count);
    }
}

#[test]
fn of_two_devices_with_one_uuid_the_first_is_listed() {
    let machine = crowd(3);
    machine.change(|described| described["devices"][2]["uuid"] = "GPU-0000".into());
    let found = machine.vendor().discover().unwrap();
    let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["gpu-0001-00-00-0", "gpu-0001-01-00-0"]);
}

#[test]
fn a_device_that_vanishes_between_two_calls_is_unknown() {
    let machine = crowd(2);
    let vendor = machine.vendor();
    let last = vendor.discover().unwrap().pop().unwrap().uuid;
    machine.change(|described| drop(described["devices"].as_array_mut().unwrap().pop()));
    assert_eq!(vendor.sample(&last).unwrap_err(), VendorError::UnknownDevice(last.clone()));
    assert_eq!(vendor.discover().unwrap().len(), 1);
}
