//! What each process used of a device.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use accelpool_model::{Engine, MemoryBytes, Sample};
use accelpool_vendor_api::Vendor;
use accelpool_vendor_nvidia::Nvidia;
use serde_json::json;

use crate::machine::{DGX_H100, DGX_H100_MIG, Machine, uuid};

fn sample(vendor: &Nvidia) -> Vec<Sample> {
    vendor.sample(&uuid(1)).unwrap()
}

fn machine(change: &serde_json::Value) -> Machine {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| {
        for (key, value) in change.as_object().unwrap() {
            described["devices"][0][key] = value.clone();
        }
    });
    machine
}

#[test]
fn memory_is_told_once_for_a_process_in_several_lists() {
    let machine = machine(&json!({ "processes": [
        { "pid": 10, "memory_mib": 100 },
        { "pid": 10, "memory_mib": 100, "kind": "graphics" },
        { "pid": 11, "memory_mib": 7, "kind": "mps" },
        { "pid": 12 },
        { "pid": 0, "memory_mib": 1 }
    ]}));
    let found: Vec<(u32, u64)> =
        sample(&machine.vendor()).iter().map(|it| (it.pid, it.memory.bytes() >> 20)).collect();
    assert_eq!(found, [(10, 100), (11, 7), (12, 0)]);
}

#[test]
fn busy_time_is_measured_from_the_second_call_on() {
    let machine = machine(&json!({
        "processes": [{ "pid": 10, "memory_mib": 1 }, { "pid": 11, "memory_mib": 1 }],
        "utilization": [{ "pid": 10, "percent": 100 }, { "pid": 12, "percent": 50 }]
    }));
    let vendor = machine.vendor();
    assert!(sample(&vendor).iter().all(|it| it.compute_busy.is_none()));
    let samples = sample(&vendor);
    let busy = |pid| samples.iter().find(|it| it.pid == pid).unwrap().compute_busy.unwrap();
    assert!(busy(10) > Duration::ZERO);
    assert_eq!(busy(11), Duration::ZERO);
    // One that ended is no longer listed, and was measured all the same.
    assert!(busy(12) > Duration::ZERO && busy(12) < busy(10));
    let ended = samples.iter().find(|it| it.pid == 12).unwrap();
    assert_eq!(ended.memory, MemoryBytes::ZERO);
}

/// Drivers from 550 on tell all engines of all processes in one call; older ones all but two.
#[test]
fn engines_beside_the_multiprocessors_are_told_by_process() {
    let mut told = Vec::new();
    for lacks in [&[][..], &["nvmlDeviceGetProcessesUtilizationInfo"]] {
        let machine = machine(&json!({
            "processes": [{ "pid": 10, "memory_mib": 1 }],
            "utilization": [{
                "pid": 10, "percent": 0, "memory": 40, "encoder": 20, "decoder": 10, "jpeg": 80
            }]
        }));
        machine.without_symbols(lacks);
        let vendor = machine.vendor();
        assert!(sample(&vendor)[0].engines.is_empty());
        let engines = sample(&vendor).remove(0).engines;
        // Each is rounded down to a microsecond.
        let is_twice = |a: Engine, b: Engine| {
            engines[&a].abs_diff(2 * engines[&b]) <= Duration::from_micros(2)
        };
        assert!(is_twice(Engine::MemoryInterface, Engine::Encoder), "{engines:?}");
        assert!(is_twice(Engine::Encoder, Engine::Decoder), "{engines:?}");
        assert!(!engines[&Engine::Decoder].is_zero());
        told.push(engines.into_keys().collect::<Vec<_>>());
    }
    let all = [
        Engine::MemoryInterface,
        Engine::Encoder,
        Engine::Decoder,
        Engine::Jpeg,
        Engine::OpticalFlow,
    ];
    assert_eq!(told, [&all[..], &all[..3]]);
}

#[test]
fn accounting_mode_bills_who_came_and_went_between_two_calls() {
    let machine = machine(&json!({ "accounting": [] }));
    let vendor = machine.vendor();
    assert_eq!(sample(&vendor), []);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let long_ago = now.checked_sub(Duration::from_hours(1)).unwrap().as_micros();
    let long_ago = u64::try_from(long_ago).unwrap();
    machine.change(|described| {
        described["devices"][0]["accounting"] = json!([
            // Lived from long ago to long hence: all of the time between the calls is its own.
            { "pid": 20, "percent": 100, "start_us": long_ago, "lived_ms": 7_200_000, "running": false },
            { "pid": 21, "percent": 100, "start_us": long_ago, "lived_ms": 1, "running": false },
            { "pid": 22, "percent": 100, "start_us": long_ago, "lived_ms": 0, "running": true }
        ]);
    });
    let samples = sample(&vendor);
    let pids: Vec<u32> = samples.iter().map(|it| it.pid).collect();
    assert_eq!(pids, [20]);
    assert!(samples[0].compute_busy.unwrap() < Duration::from_hours(1));
}

#[test]
fn a_process_in_a_partition_is_told_with_it() {
    let machine = Machine::new(DGX_H100_MIG);
    let vendor = machine.vendor();
    let made = vendor.create_partition(&uuid(8), &"1g.10gb".parse().unwrap(), 3).unwrap();
    machine.change(|described| {
        described["devices"][7]["processes"] = json!([
            { "pid": 30, "memory_mib": 9, "gpu_instance": 0, "compute_instance": 0 },
            { "pid": 31, "memory_mib": 9, "gpu_instance": 5, "compute_instance": 0 }
        ]);
    });
    for _ in 0..2 {
        let samples = vendor.sample(&uuid(8)).unwrap();
        let found: Vec<_> = samples.iter().map(|it| (it.pid, it.partition.clone())).collect();
        assert_eq!(found, [(30, Some(made.uuid.clone())), (31, None)]);
        // The driver measures no busy time in MIG mode, which is not the same as none.
        assert!(samples.iter().all(|it| it.compute_busy.is_none()));
    }
}
