//! What the script's processes use of a simulated device, and what the device tells of itself.

use std::time::Duration;

use accelpool_model::{
    ClockDomain, Device, DeviceCounters, Engine, ErrorKind, MemoryBytes, MemoryCounters, Sample,
    Sensor, Throttle, ThrottleReason,
};

use crate::{
    script::{Health, Process},
    state::State,
};

/// Power of a device that does nothing, and of one that is busy, in milliwatts.
const POWER_IDLE: u64 = 60_000;
const POWER_BUSY: u64 = 400_000;

/// What a device tells of itself while `processes` run on it. `drawn` is in microjoules.
pub(crate) fn counters(
    device: &Device,
    processes: &[Sample],
    permille: u16,
    drawn: u64,
    health: Option<&Health>,
) -> DeviceCounters {
    let used: MemoryBytes = processes.iter().map(|process| process.memory).sum();
    let throttle = |reason: &ThrottleReason| {
        let active = Some(health.is_some_and(|health| health.throttled.contains(reason)));
        (*reason, Throttle { active, accumulated: None })
    };
    let errors = |kind: &ErrorKind| {
        (*kind, health.and_then(|health| health.errors.get(kind).copied()).unwrap_or(0))
    };
    DeviceCounters {
        memory: Some(MemoryCounters {
            total: device.memory,
            used,
            free: device.memory.saturating_sub(used),
            reserved: None,
        }),
        engines: [(Engine::Compute, permille)].into(),
        power_milliwatts: Some(power(permille)),
        power_limit_milliwatts: Some(POWER_BUSY),
        energy_millijoules: Some(drawn / 1000),
        temperatures: [(Sensor::Core, 30_000 + i64::from(permille) * 40)].into(),
        clocks: [(ClockDomain::Compute, 1_000_000_000)].into(),
        throttles: ThrottleReason::ALL.iter().map(throttle).collect(),
        errors: ErrorKind::ALL.iter().map(errors).collect(),
        ..DeviceCounters::default()
    }
}

/// Power at a utilization, in milliwatts.
pub(crate) fn power(permille: u16) -> u64 {
    POWER_IDLE + (POWER_BUSY - POWER_IDLE) * u64::from(permille) / 1000
}

/// What one process used; `None` while its partition does not exist.
pub(crate) fn usage(process: &Process, state: &State, elapsed_ns: u64) -> Option<Sample> {
    let partition = match &process.partition {
        None => None,
        Some(place) => {
            let mut records = state.partitions_of(&process.device);
            let record = records.find(|record| record.is_at(&process.device, place))?;
            if !record.complete {
                return None;
            }
            Some(record.uuid.parse().ok()?)
        }
    };
    let busy = |permille: u32| {
        let busy = u128::from(elapsed_ns) * u128::from(permille) / 1000;
        Duration::from_nanos(u64::try_from(busy).unwrap_or(u64::MAX))
    };
    Some(Sample {
        pid: process.pid,
        partition,
        memory: process.memory,
        compute_busy: process.compute_permille.map(busy),
        engines: process
            .encoder_permille
            .map(|it| (Engine::Encoder, busy(it)))
            .into_iter()
            .collect(),
    })
}
