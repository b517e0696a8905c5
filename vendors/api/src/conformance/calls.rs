//! Checks of single calls: refusals, samples, events, quiesce, threads.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use accelpool_model::DeviceUuid;

use super::{Stop, Subject, answer, fail, require};
use crate::VendorError;

/// What no device is called.
const NOBODY: &str = "conformance-no-such-device";

/// More events than a machine at rest has waiting.
const EVENTS_MAX: usize = 1024;

/// Far above any delay of a loaded machine: only a wait without end is caught.
const WAIT_MAX: Duration = Duration::from_mins(1);

const THREADS: usize = 8;

pub(super) fn unknown_devices_are_refused(subject: &Subject<'_>) -> Result<(), Stop> {
    let vendor = subject.vendor;
    let nobody: DeviceUuid = NOBODY.parse().expect("the text is a UUID by its rule");
    let profile = "none".parse().expect("the text is a profile name by its rule");
    let must = |call, answer: Result<(), VendorError>, may_lack: bool| match answer {
        Err(VendorError::UnknownDevice(named)) if named == nobody => Ok(()),
        Err(VendorError::Unsupported(_)) if may_lack => Ok(()),
        Ok(()) => fail(format!("{call} succeeds on a device that does not exist")),
        Err(error) => fail(format!("{call} on an unknown device says: {error}")),
    };
    must("partitions", vendor.partitions(&nobody).map(drop), false)?;
    must("create_partition", vendor.create_partition(&nobody, &profile, 0).map(drop), false)?;
    must("destroy_partition", vendor.destroy_partition(&nobody, &profile, 0), false)?;
    must("switch_mode", vendor.switch_mode(&nobody, true), true)?;
    must("sample", vendor.sample(&nobody).map(drop), true)?;
    must("counters", vendor.counters(&nobody).map(drop), true)?;
    must("recovery_action", vendor.recovery_action(&nobody).map(drop), true)?;
    match vendor.probe(&nobody) {
        Err(_) => Ok(()),
        Ok(()) => fail("probe succeeds on a device that does not exist"),
    }
}

pub(super) fn health_is_answered(subject: &Subject<'_>) -> Result<(), Stop> {
    for device in subject.devices()? {
        match subject.vendor.recovery_action(&device.uuid) {
            Ok(_) | Err(VendorError::Unsupported(_)) => {}
            Err(error) => return fail(format!("recovery_action of {}: {error}", device.name)),
        }
        // Any answer will do, but there must be one: the device may really be unsound.
        if let Err(VendorError::UnknownDevice(_)) = subject.vendor.probe(&device.uuid) {
            return fail(format!("probe does not know {}, which is listed", device.name));
        }
    }
    Ok(())
}

pub(super) fn samples_are_consistent(subject: &Subject<'_>) -> Result<(), Stop> {
    let vendor = subject.vendor;
    for device in subject.devices()? {
        let call = format!("sample of {}", device.name);
        for _ in 0..2 {
            let samples = match vendor.sample(&device.uuid) {
                Err(VendorError::Unsupported(_)) => break,
                other => answer(&call, other)?,
            };
            let partitions = answer("partitions", vendor.partitions(&device.uuid))?;
            let mut seen = BTreeSet::new();
            for sample in samples {
                let pid = sample.pid;
                require(pid > 0, || format!("{call} names process 0"))?;
                require(sample.memory <= device.memory, || {
                    format!("{call}: process {pid} holds more memory than there is")
                })?;
                let known = |uuid: &DeviceUuid| partitions.iter().any(|one| one.uuid == *uuid);
                require(sample.partition.as_ref().is_none_or(known), || {
                    format!("{call}: process {pid} is in a partition that is not listed")
                })?;
                require(seen.insert((pid, sample.partition)), || {
                    format!("{call} names process {pid} twice")
                })?;
            }
        }
    }
    Ok(())
}

pub(super) fn counters_are_possible(subject: &Subject<'_>) -> Result<(), Stop> {
    let devices = subject.devices()?;
    let mut measured = devices.is_empty();
    for device in devices {
        let call = format!("counters of {}", device.name);
        let mut energy = 0;
        for _ in 0..2 {
            let counters = match subject.vendor.counters(&device.uuid) {
                Err(VendorError::Unsupported(_)) => break,
                other => answer(&call, other)?,
            };
            measured = true;
            if let Some(memory) = counters.memory {
                let most = memory.total;
                let fits = most <= device.memory && memory.used <= most && memory.free <= most;
                require(fits, || format!("{call}: more memory than there is: {memory:?}"))?;
            }
            for (engine, permille) in counters.engines {
                require(permille <= 1000, || format!("{call}: {engine} is {permille}/1000 busy"))?;
            }
            for (sensor, milli) in counters.temperatures {
                let possible = (-273_150..=1_000_000).contains(&milli);
                require(possible, || format!("{call}: {sensor} has {milli} m\u{b0}C"))?;
            }
            let now = counters.energy_millijoules.unwrap_or(energy);
            require(now >= energy, || format!("{call}: energy fell from {energy} to {now} mJ"))?;
            energy = now;
        }
    }
    if measured { Ok(()) } else { Err(Stop::Skip("no device has counters".to_owned())) }
}

pub(super) fn waiting_for_events_ends(subject: &Subject<'_>) -> Result<(), Stop> {
    for timeout in [Duration::ZERO, Duration::from_millis(50)] {
        let mut events = 0;
        loop {
            let began = Instant::now();
            let event = answer("next_event", subject.vendor.next_event(timeout))?;
            require(began.elapsed() < WAIT_MAX, || {
                format!("next_event took {:?} of {timeout:?}", began.elapsed())
            })?;
            if event.is_none() {
                break;
            }
            events += 1;
            require(events < EVENTS_MAX, || {
                format!("{EVENTS_MAX} events and no end, though nothing happens")
            })?;
        }
    }
    Ok(())
}

pub(super) fn quiesce_is_not_the_end(subject: &Subject<'_>) -> Result<(), Stop> {
    let before = identities(subject)?;
    answer("quiesce", subject.vendor.quiesce(None))?;
    answer("quiesce, a second time", subject.vendor.quiesce(None))?;
    for device in subject.devices()? {
        answer("quiesce of one device", subject.vendor.quiesce(Some(&device.uuid)))?;
        answer("partitions after quiesce", subject.vendor.partitions(&device.uuid))?;
    }
    require(identities(subject)? == before, || "devices differ after quiesce".to_owned())
}

fn identities(subject: &Subject<'_>) -> Result<BTreeSet<DeviceUuid>, Stop> {
    Ok(subject.devices()?.into_iter().map(|device| device.uuid).collect())
}

pub(super) fn may_run_at_once(subject: &Subject<'_>) -> Result<(), Stop> {
    let vendor = subject.vendor;
    let expected = identities(subject)?;
    let read = |order: usize| {
        let mut uuids: Vec<&DeviceUuid> = expected.iter().collect();
        let len = uuids.len().max(1);
        uuids.rotate_left(order % len); // so that threads meet on different devices
        for uuid in uuids {
            answer("partitions", vendor.partitions(uuid))?;
            match vendor.sample(uuid) {
                Ok(_) | Err(VendorError::Unsupported(_)) => {}
                Err(error) => return fail(format!("sample: {error}")),
            }
            match vendor.counters(uuid) {
                Ok(_) | Err(VendorError::Unsupported(_)) => {}
                Err(error) => return fail(format!("counters: {error}")),
            }
        }
        answer("links", vendor.links())?;
        require(identities(subject)? == expected, || {
            "threads at once see different devices".to_owned()
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|order| scope.spawn(move || read(order))).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| fail("a call panicked beside others")));
        ended.collect()
    })
}
