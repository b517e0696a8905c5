//! A device's figures as worker messages and back.
//!
//! Every word has one place; what names no known one came from a worker that speaks another
//! version, and is an error.

use std::{collections::BTreeMap, time::Duration};

use accelpool_model::{
    ClockDomain, DeviceCounters, Direction, Engine, ErrorKind, LinkKind, MemoryBytes,
    MemoryCounters, Sensor, Throttle, ThrottleReason,
};
use accelpool_proto::worker as wire;

use super::convert::{BadAnswer, bad, clip};

pub(super) fn to_wire(counters: &DeviceCounters) -> wire::CountersResponse {
    wire::CountersResponse {
        memory: counters.memory.map(|memory| wire::MemoryCounters {
            total_bytes: memory.total.bytes(),
            used_bytes: memory.used.bytes(),
            free_bytes: memory.free.bytes(),
            reserved_bytes: memory.reserved.map(MemoryBytes::bytes),
        }),
        power_milliwatts: counters.power_milliwatts,
        power_limit_milliwatts: counters.power_limit_milliwatts,
        energy_millijoules: counters.energy_millijoules,
        retirement_pending: counters.retirement_pending,
        retirement_failed: counters.retirement_failed,
        engines: figures(counters.engines.iter().map(|(of, value)| (of.as_str(), (*value).into()))),
        temperatures: counters
            .temperatures
            .iter()
            .map(|(sensor, millidegrees)| wire::Temperature {
                sensor: sensor.to_string(),
                millidegrees: *millidegrees,
            })
            .collect(),
        clocks: figures(counters.clocks.iter().map(|(of, value)| (of.as_str(), *value))),
        throttles: counters.throttles.iter().map(throttle_to_wire).collect(),
        errors: figures(counters.errors.iter().map(|(of, value)| (of.as_str(), *value))),
        traffic: counters
            .traffic
            .iter()
            .map(|((kind, direction), bytes)| wire::Traffic {
                link_kind: kind.to_string(),
                direction: direction.to_string(),
                bytes: *bytes,
            })
            .collect(),
    }
}

fn figures<'a>(figures: impl Iterator<Item = (&'a str, u64)>) -> Vec<wire::Figure> {
    figures.map(|(of, value)| wire::Figure { of: of.to_owned(), value }).collect()
}

/// Time by engine, as a process used it.
pub(super) fn busy_to_wire(engines: &BTreeMap<Engine, Duration>) -> Vec<wire::Figure> {
    let nanoseconds = |busy: &Duration| u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
    figures(engines.iter().map(|(of, busy)| (of.as_str(), nanoseconds(busy))))
}

pub(super) fn busy_from_wire(
    figures: &[wire::Figure],
) -> Result<BTreeMap<Engine, Duration>, BadAnswer> {
    let engines = known("engine", figures, Engine::ALL, Engine::as_str)?;
    Ok(engines.into_iter().map(|(engine, busy)| (engine, Duration::from_nanos(busy))).collect())
}

fn throttle_to_wire((reason, throttle): (&ThrottleReason, &Throttle)) -> wire::Throttle {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    wire::Throttle {
        reason: reason.to_string(),
        active: throttle.active,
        accumulated_ns: throttle.accumulated.map(nanoseconds),
    }
}

pub(super) fn from_wire(answer: &wire::CountersResponse) -> Result<DeviceCounters, BadAnswer> {
    let mut counters = DeviceCounters {
        memory: answer.memory.as_ref().map(|memory| MemoryCounters {
            total: MemoryBytes::new(memory.total_bytes),
            used: MemoryBytes::new(memory.used_bytes),
            free: MemoryBytes::new(memory.free_bytes),
            reserved: memory.reserved_bytes.map(MemoryBytes::new),
        }),
        power_milliwatts: answer.power_milliwatts,
        power_limit_milliwatts: answer.power_limit_milliwatts,
        energy_millijoules: answer.energy_millijoules,
        retirement_pending: answer.retirement_pending,
        retirement_failed: answer.retirement_failed,
        clocks: known("clock", &answer.clocks, ClockDomain::ALL, ClockDomain::as_str)?,
        errors: known("error count", &answer.errors, ErrorKind::ALL, ErrorKind::as_str)?,
        ..DeviceCounters::default()
    };
    for (engine, value) in known("engine", &answer.engines, Engine::ALL, Engine::as_str)? {
        let permille = u16::try_from(value).ok().filter(|permille| *permille <= 1000);
        let permille = permille.ok_or_else(|| bad("engine")(&format!("{engine}: {value}/1000")))?;
        counters.engines.insert(engine, permille);
    }
    for wire::Temperature { sensor, millidegrees } in &answer.temperatures {
        let sensor = word("sensor", sensor, Sensor::ALL, Sensor::as_str)?;
        counters.temperatures.insert(sensor, *millidegrees);
    }
    for wire::Throttle { reason, active, accumulated_ns } in &answer.throttles {
        let reason = word("throttle", reason, ThrottleReason::ALL, ThrottleReason::as_str)?;
        let accumulated = accumulated_ns.map(Duration::from_nanos);
        counters.throttles.insert(reason, Throttle { active: *active, accumulated });
    }
    for wire::Traffic { link_kind, direction, bytes } in &answer.traffic {
        let kind: LinkKind = link_kind.parse().map_err(|error| bad("traffic")(&error))?;
        let direction = word("traffic", direction, Direction::ALL, Direction::as_str)?;
        counters.traffic.insert((kind, direction), *bytes);
    }
    Ok(counters)
}

/// The value that `text` names.
fn word<T: Copy>(
    what: &'static str,
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, BadAnswer> {
    let found = all.iter().copied().find(|value| name(*value) == text);
    found.ok_or_else(|| bad(what)(&clip(text)))
}

fn known<T: Copy + Ord>(
    what: &'static str,
    figures: &[wire::Figure],
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<BTreeMap<T, u64>, BadAnswer> {
    figures.iter().map(|figure| Ok((word(what, &figure.of, all, name)?, figure.value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> DeviceCounters {
        let second = Some(Duration::from_secs(1));
        DeviceCounters {
            memory: Some(MemoryCounters {
                total: MemoryBytes::new(80),
                used: MemoryBytes::new(30),
                free: MemoryBytes::new(49),
                reserved: Some(MemoryBytes::new(1)),
            }),
            engines: Engine::ALL.iter().map(|it| (*it, 1000)).collect(),
            power_milliwatts: Some(1),
            power_limit_milliwatts: Some(2),
            energy_millijoules: Some(3),
            temperatures: Sensor::ALL.iter().map(|it| (*it, -4)).collect(),
            clocks: ClockDomain::ALL.iter().map(|it| (*it, 5)).collect(),
            throttles: ThrottleReason::ALL
                .iter()
                .map(|it| (*it, Throttle { active: Some(true), accumulated: second }))
                .collect(),
            errors: ErrorKind::ALL.iter().map(|it| (*it, 6)).collect(),
            retirement_pending: Some(true),
            retirement_failed: Some(false),
            traffic: Direction::ALL.iter().map(|it| ((LinkKind::NvLink, *it), 7)).collect(),
        }
    }

    #[test]
    fn every_figure_comes_back_as_it_went() {
        for counters in [full(), DeviceCounters::default()] {
            assert_eq!(from_wire(&to_wire(&counters)).unwrap(), counters);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |spoil: fn(&mut wire::CountersResponse), expected: &str| {
            let mut answer = to_wire(&full());
            spoil(&mut answer);
            assert_eq!(from_wire(&answer).unwrap_err().to_string(), expected);
        };
        check(|it| it.engines[0].value = 1001, "engine: compute: 1001/1000");
        check(|it| it.engines[0].of = "warp\u{7} drive".into(), "engine: warp drive");
        check(|it| it.throttles[0].reason = "x".into(), "throttle: x");
        check(|it| it.traffic[0].direction = "up".into(), "traffic: up");
        check(|it| it.temperatures[0].sensor = String::new(), "sensor: ");
    }
}
