//! What a device tells of itself, as it stands on the wire.

use accelpool_model::DeviceCounters;
use accelpool_proto::node as wire;

pub(super) fn readings(counters: &DeviceCounters) -> wire::DeviceReadings {
    let throttles = counters.throttles.iter().map(|(reason, throttle)| wire::Throttle {
        reason: reason.to_string(),
        active: throttle.active,
        accumulated_ns: throttle
            .accumulated
            .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
    });
    let traffic = counters.traffic.iter().map(|((link, direction), bytes)| wire::LinkTraffic {
        link: link.to_string(),
        direction: direction.to_string(),
        bytes: *bytes,
    });
    let temperatures = counters.temperatures.iter();
    wire::DeviceReadings {
        memory_free_bytes: counters.memory.map(|memory| memory.free.bytes()),
        memory_reserved_bytes: counters
            .memory
            .and_then(|memory| memory.reserved)
            .map(accelpool_model::MemoryBytes::bytes),
        engine_permille: counters
            .engines
            .iter()
            .map(|(engine, permille)| (engine.to_string(), u32::from(*permille)))
            .collect(),
        power_mw: counters.power_milliwatts,
        power_limit_mw: counters.power_limit_milliwatts,
        temperature_mc: temperatures.map(|(sensor, it)| (sensor.to_string(), *it)).collect(),
        clock_hz: counters.clocks.iter().map(|(domain, it)| (domain.to_string(), *it)).collect(),
        throttles: throttles.collect(),
        errors: counters.errors.iter().map(|(kind, count)| (kind.to_string(), *count)).collect(),
        retirement_pending: counters.retirement_pending,
        retirement_failed: counters.retirement_failed,
        traffic: traffic.collect(),
    }
}
