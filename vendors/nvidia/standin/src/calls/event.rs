//! Calls about events: each set tells what the file lists, from its beginning.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Call, GPU_BASE, call, mig, on_gpu};
use crate::abi::{Code, EventData, GPU_IS_LOST, Handle, INVALID_ARGUMENT, Out, TIMEOUT};

/// How often a wait looks at the file.
const POLL: Duration = Duration::from_millis(5);

/// Every event that `nvml.h` names.
const ALL: u64 = 0xff9f;

/// What a set knows.
#[derive(Debug, Default)]
struct Set {
    /// Events of the file that it has looked at.
    told: usize,
    /// What is asked for, by device.
    wanted: BTreeMap<Handle, u64>,
    told_lost: bool,
}

static SETS: Mutex<BTreeMap<usize, Set>> = Mutex::new(BTreeMap::new());

fn with_sets<T>(body: impl FnOnce(&mut BTreeMap<usize, Set>) -> T) -> T {
    body(&mut SETS.lock().unwrap_or_else(PoisonError::into_inner))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: Out<Handle>) -> Code {
    call("nvmlEventSetCreate", |_| {
        let next = with_sets(|sets| {
            let next = sets.keys().next_back().map_or(1, |last| last + 1);
            sets.insert(next, Set::default());
            next
        });
        set.put(next)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: Handle) -> Code {
    call("nvmlEventSetFree", |_| {
        with_sets(|sets| sets.remove(&set)).map(drop).ok_or(INVALID_ARGUMENT)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(device: Handle, kinds: Out<u64>) -> Code {
    on_gpu("nvmlDeviceGetSupportedEventTypes", device, |_, _| kinds.put(ALL))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(device: Handle, kinds: u64, set: Handle) -> Code {
    on_gpu("nvmlDeviceRegisterEvents", device, |_, _| {
        with_sets(|sets| {
            let set = sets.get_mut(&set).ok_or(INVALID_ARGUMENT)?;
            *set.wanted.entry(device).or_default() |= kinds;
            Ok(())
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(set: Handle, data: Out<EventData>, timeout_ms: u32) -> Code {
    const SYMBOL: &str = "nvmlEventSetWait_v2";
    let began = Instant::now();
    let timeout = Duration::from_millis(timeout_ms.into());
    loop {
        let mut told = false;
        let code = call(SYMBOL, |call| {
            if let Some(event) = with_sets(|sets| next(call, sets.get_mut(&set)))? {
                data.put(event)?;
                told = true;
            }
            Ok(())
        });
        if told || code != 0 {
            return code;
        }
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return TIMEOUT;
        }
        thread::sleep(left.min(POLL));
    }
}

/// The next event that the set asks for.
fn next(call: &Call, set: Option<&mut Set>) -> Result<Option<EventData>, Code> {
    let set = set.ok_or(INVALID_ARGUMENT)?;
    let lost = set.wanted.keys().any(|device| call.gpu(*device).err() == Some(GPU_IS_LOST));
    if lost && !std::mem::replace(&mut set.told_lost, true) {
        return Err(GPU_IS_LOST);
    }
    while let Some(event) = call.machine.events.get(set.told) {
        set.told += 1;
        let device = GPU_BASE + event.device;
        if set.wanted.get(&device).is_some_and(|wanted| wanted & event.kind != 0) {
            let part = (event.gpu_instance.unwrap_or(0), event.compute_instance.unwrap_or(0));
            let part = mig::mig_handle(event.device, part);
            return Ok(Some(EventData {
                device: if event.by_part { part } else { device },
                kind: event.kind,
                value: event.value,
                gpu_instance: event.gpu_instance.unwrap_or(u32::MAX),
                compute_instance: event.compute_instance.unwrap_or(u32::MAX),
            }));
        }
    }
    Ok(None)
}
