//! What each process used of a device.
//!
//! Memory is what the driver says that a process holds. Busy time, of the multiprocessors and of
//! the engines beside them, is summed from the driver's samples since the previous call; a process
//! that came and went in between is found where the operator has accounting mode on. In MIG mode
//! the driver measures no busy time per process, which is then absent.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use accelpool_model::{DeviceUuid, Engine, MemoryBytes, Sample};
use accelpool_vendor_api::VendorError;

use crate::sys::{Accounting, CallError, Gpu, MigDevice, Process, Utilization};

/// When a device was sampled last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sampled {
    /// Microseconds since the Unix epoch, as the driver stamps its samples.
    at_us: u64,
}

/// A process may run in several parts of a device, but has one entry in each.
type Key = (u32, Option<DeviceUuid>);

/// What a process kept busy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Busy {
    compute: Duration,
    /// Of the engines that the driver measures.
    engines: BTreeMap<Engine, Duration>,
}

/// Samples a device, and says when that was.
pub(crate) fn sample(
    gpu: Gpu<'_>,
    device: &DeviceUuid,
    before: Option<Sampled>,
) -> Result<(Vec<Sample>, Sampled), VendorError> {
    let about = |error: CallError| error.about(device);
    let now = Sampled { at_us: now_us() };
    let processes = gpu.processes().map_err(about)?;
    let partitions = match gpu.mig_is_on() {
        Ok(true) => gpu.mig_devices().map_err(about)?,
        Ok(false) | Err(_) => Vec::new(),
    };
    let memory = gpu.memory_total().map_or(u64::MAX, |total| total);
    let mut samples = BTreeMap::new();
    for process in processes.iter().filter(|process| process.pid > 0) {
        let held = MemoryBytes::new(process.memory_bytes.unwrap_or(0).min(memory));
        let entry: &mut MemoryBytes = samples.entry(key(process, &partitions)).or_default();
        // In several lists the same memory is told several times.
        *entry = held.max(*entry);
    }
    let busy = if partitions.is_empty() { busy(gpu, before, now).map_err(about)? } else { None };
    let mut samples: Vec<Sample> = samples
        .into_iter()
        .map(|((pid, partition), memory)| {
            let own = busy.as_ref().map(|busy| busy.get(&pid).cloned().unwrap_or_default());
            told(pid, partition, memory, own)
        })
        .collect();
    // Those who are no longer listed still used something.
    for (pid, own) in busy.unwrap_or_default() {
        let was_busy = !own.compute.is_zero() || own.engines.values().any(|it| !it.is_zero());
        if pid > 0 && was_busy && samples.iter().all(|sample| sample.pid != pid) {
            samples.push(told(pid, None, MemoryBytes::ZERO, Some(own)));
        }
    }
    Ok((samples, now))
}

fn told(
    pid: u32,
    partition: Option<DeviceUuid>,
    memory: MemoryBytes,
    busy: Option<Busy>,
) -> Sample {
    let compute_busy = busy.as_ref().map(|busy| busy.compute);
    let engines = busy.map(|busy| busy.engines).unwrap_or_default();
    Sample { pid, partition, memory, compute_busy, engines }
}

fn key(process: &Process, partitions: &[MigDevice]) -> Key {
    let known = process.place.and_then(|place| {
        let (_, uuid) = partitions.iter().find(|(known, _)| *known == place)?;
        uuid.parse().ok()
    });
    (process.pid, known)
}

/// Busy time by process since `before`; none where it is not measured, or nothing is to
/// compare with.
fn busy(
    gpu: Gpu<'_>,
    before: Option<Sampled>,
    now: Sampled,
) -> Result<Option<BTreeMap<u32, Busy>>, CallError> {
    let Some(before) = before else { return Ok(None) };
    let samples = match gpu.utilization(before.at_us) {
        Ok(samples) => samples,
        Err(error) if error.is_unsupported() => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut busy = sum(samples, before.at_us, now.at_us);
    for (pid, ended) in ended(gpu) {
        let own = of_ended(ended, before.at_us, now.at_us);
        let known = &mut busy.entry(pid).or_default().compute;
        // The driver's samples may have caught part of it.
        *known = own.max(*known);
    }
    Ok(Some(busy))
}

/// Adds up samples: each speaks for the time since the one before it of the same process.
fn sum(mut samples: Vec<Utilization>, from_us: u64, to_us: u64) -> BTreeMap<u32, Busy> {
    samples.sort_by_key(|sample| (sample.pid, sample.timestamp_us));
    let mut busy: BTreeMap<u32, Busy> = BTreeMap::new();
    let mut last: Option<(u32, u64)> = None;
    for sample in samples {
        let at = sample.timestamp_us.clamp(from_us, to_us.max(from_us));
        let since = last.filter(|(pid, _)| *pid == sample.pid).map_or(from_us, |(_, at)| at);
        let span = at.saturating_sub(since);
        let part = |percent: u32| Duration::from_micros(span.saturating_mul(percent.into()) / 100);
        let own = busy.entry(sample.pid).or_default();
        own.compute += part(sample.multiprocessors);
        for (engine, percent) in engines(&sample) {
            *own.engines.entry(engine).or_default() += part(percent);
        }
        last = Some((sample.pid, at));
    }
    busy
}

/// The engines beside the multiprocessors that a sample tells of.
fn engines(sample: &Utilization) -> impl Iterator<Item = (Engine, u32)> {
    [
        (Engine::MemoryInterface, Some(sample.memory)),
        (Engine::Encoder, Some(sample.encoder)),
        (Engine::Decoder, Some(sample.decoder)),
        (Engine::Jpeg, sample.jpeg),
        (Engine::OpticalFlow, sample.optical_flow),
    ]
    .into_iter()
    .filter_map(|(engine, percent)| Some((engine, percent?)))
}

/// What accounting mode kept of the processes that have ended; nothing where it is off.
fn ended(gpu: Gpu<'_>) -> Vec<(u32, Accounting)> {
    if !gpu.accounting_is_on().unwrap_or(false) {
        return Vec::new();
    }
    let pids = gpu.accounting_pids().unwrap_or_default();
    let kept = pids.into_iter().filter_map(|pid| Some((pid, gpu.accounting(pid).ok()?)));
    kept.filter(|(_, kept)| !kept.running).collect()
}

/// The part of an ended process's busy time that lies in a span.
fn of_ended(kept: Accounting, from_us: u64, to_us: u64) -> Duration {
    let end = kept.start_us.saturating_add(kept.lived_ms.saturating_mul(1000)).min(to_us);
    let lived = end.saturating_sub(kept.start_us.max(from_us));
    Duration::from_micros(lived.saturating_mul(kept.percent.into()) / 100)
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(samples: &[(u32, u64, u32)], expected: &[(u32, u128)]) {
        let samples = samples.iter().map(|(pid, timestamp_us, percent)| Utilization {
            pid: *pid,
            timestamp_us: *timestamp_us,
            multiprocessors: *percent,
            memory: 0,
            encoder: *percent / 2,
            decoder: 0,
            jpeg: None,
            optical_flow: Some(0),
        });
        let busy = sum(samples.collect(), 1000, 2000);
        for busy in busy.values() {
            assert_eq!(busy.engines[&Engine::Encoder], busy.compute / 2);
            assert_eq!(busy.engines[&Engine::OpticalFlow], Duration::ZERO);
            // What is not measured is absent, which is not zero.
            assert!(!busy.engines.contains_key(&Engine::Jpeg));
        }
        let busy: Vec<(u32, u128)> =
            busy.into_iter().map(|(pid, busy)| (pid, busy.compute.as_micros())).collect();
        assert_eq!(busy, expected);
    }

    #[test]
    fn each_sample_speaks_for_the_time_since_the_one_before() {
        check(&[(1, 1500, 100), (1, 2000, 50)], &[(1, 750)]);
        check(&[(1, 2000, 50), (2, 2000, 50), (1, 1500, 100)], &[(1, 750), (2, 500)]);
    }

    #[test]
    fn stamps_outside_the_span_add_nothing_beyond_it() {
        check(&[(1, 0, 100)], &[(1, 0)]);
        check(&[(1, u64::MAX, 100)], &[(1, 1000)]);
    }

    #[test]
    fn an_ended_process_counts_for_its_part_of_the_span() {
        let kept = |start_us, lived_ms, percent| Accounting {
            start_us,
            lived_ms,
            percent,
            running: false,
        };
        let check = |kept, expected| {
            assert_eq!(of_ended(kept, 10_000, 20_000).as_micros(), expected);
        };
        check(kept(12_000, 4, 50), 2_000);
        check(kept(0, 15, 100), 5_000);
        check(kept(0, 5, 100), 0);
        check(kept(u64::MAX, u64::MAX, 100), 0);
    }
}
