//! What a device tells of itself.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::time::Duration;

use accelpool_model::{
    ClockDomain, DeviceCounters, Direction, Engine, ErrorKind, LinkKind, Sensor, Throttle,
    ThrottleReason,
};
use accelpool_vendor_api::{Vendor, VendorError};
use serde_json::json;

use crate::machine::{DGX_H100, DGX_H100_MIG, Machine, V100_535, uuid};

fn counters(machine: &Machine) -> DeviceCounters {
    machine.vendor().counters(&uuid(1)).unwrap()
}

#[test]
fn everything_that_a_device_measures_is_told() {
    let told = counters(&Machine::new(DGX_H100));
    let memory = told.memory.unwrap();
    let mib = |memory: accelpool_model::MemoryBytes| memory.bytes() >> 20;
    assert_eq!((mib(memory.total), mib(memory.used), mib(memory.free)), (81_559, 2048, 78_952));
    assert_eq!(memory.reserved.map(mib), Some(559));
    let engines = [
        (Engine::Compute, 370),
        (Engine::MemoryInterface, 120),
        (Engine::Encoder, 0),
        (Engine::Decoder, 50),
        (Engine::Jpeg, 0),
        (Engine::OpticalFlow, 0),
    ];
    assert_eq!(told.engines, engines.into());
    assert_eq!(told.power_milliwatts, Some(119_000));
    assert_eq!(told.power_limit_milliwatts, Some(700_000));
    assert_eq!(told.energy_millijoules, Some(91_234_567_890));
    assert_eq!(told.temperatures, [(Sensor::Core, 34_000), (Sensor::Memory, 41_000)].into());
    assert_eq!(told.clocks[&ClockDomain::Memory], 2_619_000_000);
    assert_eq!(told.clocks.len(), 4);
    let throttle = |active, milliseconds: Option<u64>| Throttle {
        active,
        accumulated: milliseconds.map(Duration::from_millis),
    };
    assert_eq!(told.throttles[&ThrottleReason::PowerCap], throttle(Some(true), Some(8000)));
    assert_eq!(told.throttles[&ThrottleReason::Thermal], throttle(Some(true), Some(1500)));
    assert_eq!(told.throttles[&ThrottleReason::HardwareSlowdown], throttle(Some(false), None));
    assert_eq!(told.throttles[&ThrottleReason::BoardLimit], throttle(None, Some(0)));
    assert_eq!(told.errors[&ErrorKind::EccCorrected], 3);
    assert_eq!(told.errors[&ErrorKind::LinkReplay], 4);
    assert_eq!(told.errors[&ErrorKind::LinkCrc], 3);
    assert_eq!(told.errors[&ErrorKind::RowsRemappedCorrected], 1);
    // It retires no pages: that is absent, and not zero.
    assert!(!told.errors.contains_key(&ErrorKind::PagesRetiredCorrected));
    assert_eq!((told.retirement_pending, told.retirement_failed), (Some(false), Some(false)));
    let nvlink = |direction| told.traffic[&(LinkKind::NvLink, direction)];
    assert_eq!((nvlink(Direction::Transmitted), nvlink(Direction::Received)), (4 << 20, 8 << 20));
    assert_eq!(told.traffic[&(LinkKind::Pcie, Direction::Received)], 987_654_321_098);
}

#[test]
fn links_that_count_bytes_each_are_summed() {
    let machine = Machine::new(DGX_H100);
    machine.change(|it| {
        it["figures"]["h100"]["fields"]["202"] = 10.into();
        it["figures"]["h100"]["fields"]["202@17"] = u64::MAX.into();
    });
    let told = counters(&machine).traffic[&(LinkKind::NvLink, Direction::Transmitted)];
    assert_eq!(told, u64::MAX);
}

#[test]
fn what_a_device_does_not_measure_is_absent() {
    let machine = Machine::new(V100_535);
    let device = machine.vendor().discover().unwrap().remove(0).uuid;
    let told = machine.vendor().counters(&device).unwrap();
    assert_eq!(told, DeviceCounters { memory: told.memory, ..DeviceCounters::default() });
    // In MIG mode nobody measures the whole device's engines.
    let told = Machine::new(DGX_H100_MIG).vendor().counters(&uuid(8)).unwrap();
    assert!(!told.engines.contains_key(&Engine::Compute) && told.power_milliwatts.is_some());
}

#[test]
fn an_old_driver_answers_with_the_calls_that_it_has() {
    let machine = Machine::new(DGX_H100);
    machine.without_symbols(&[
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetJpgUtilization",
    ]);
    let told = counters(&machine);
    // The older call counts what is reserved as used.
    assert_eq!(told.memory.map(|it| (it.used.bytes() >> 20, it.reserved)), Some((2607, None)));
    assert_eq!(told.power_milliwatts, Some(118_000));
    assert_eq!(told.energy_millijoules, None);
    assert_eq!(told.throttles[&ThrottleReason::PowerCap].active, Some(true));
    assert!(!told.engines.contains_key(&Engine::Jpeg) && told.errors.is_empty());
}

#[test]
fn nonsense_is_a_gap() {
    let machine = Machine::new(DGX_H100);
    machine.change(|it| {
        it["nonsense"] = json!([
            "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetDecoderUtilization",
            "nvmlDeviceGetFieldValues",
            "nvmlDeviceGetTemperature"
        ]);
    });
    let told = counters(&machine);
    assert_eq!(told.engines.get(&Engine::Compute), None);
    assert_eq!(told.engines.get(&Engine::Decoder), None);
    assert_eq!(told.engines.get(&Engine::MemoryInterface), Some(&120));
    assert!(told.temperatures.is_empty() && told.errors.is_empty());
}

#[test]
fn a_lost_device_has_no_counters() {
    let machine = Machine::new(DGX_H100);
    machine.change(|it| it["devices"][0]["errors"] = json!({ "nvmlDeviceGetFieldValues": 15 }));
    let error = machine.vendor().counters(&uuid(1)).unwrap_err();
    assert!(matches!(error, VendorError::Failed { .. }), "{error}");
}
