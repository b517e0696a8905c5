//! Calls about the library and the machine.

use std::{
    collections::BTreeMap,
    ffi::c_char,
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use super::{Call, GPU_BASE, INITIALIZED, call, device::version};
use crate::abi::{
    ARGUMENT_VERSION_MISMATCH, Code, Handle, INVALID_ARGUMENT, NOT_SUPPORTED, Out, SUCCESS,
    SystemEventData, SystemEventSetRequest, SystemRegisterRequest, SystemWaitRequest, TIMEOUT,
    UNINITIALIZED,
};

/// What is open while the library is.
static OPENED: Mutex<Vec<File>> = Mutex::new(Vec::new());

fn opened_files() -> MutexGuard<'static, Vec<File>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn initialize(symbol: &'static str) -> Code {
    match Call::begin(symbol) {
        Ok(call) => {
            if INITIALIZED.fetch_add(1, Ordering::SeqCst) == 0 {
                let opened = call.machine.opens.iter().filter_map(|path| File::open(path).ok());
                opened_files().extend(opened);
            }
            SUCCESS
        }
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: u32) -> Code {
    initialize("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    initialize("nvmlInit_v2")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    // It can hang as any other.
    if let Err(code) = Call::begin("nvmlShutdown") {
        return code;
    }
    let less = |count: u32| count.checked_sub(1);
    match INITIALIZED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
        Ok(before) => {
            if before == 1 {
                opened_files().clear();
            }
            SUCCESS
        }
        Err(_) => UNINITIALIZED,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(version: Out<c_char>, len: u32) -> Code {
    call("nvmlSystemGetDriverVersion", |call| {
        call.put_text(&version, len, &call.machine.driver_version)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) -> Code {
    call("nvmlSystemGetCudaDriverVersion_v2", |call| {
        let told = call.machine.cuda_version.ok_or(NOT_SUPPORTED)?;
        version.put(if call.lies() { -1 } else { told })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: Out<u32>) -> Code {
    call("nvmlDeviceGetCount_v2", |call| count.put(call.count(call.machine.devices.len())))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<Handle>) -> Code {
    call("nvmlDeviceGetHandleByIndex_v2", |call| {
        call.gpu_at(index as usize)?;
        device.put(if call.lies() { 0 } else { GPU_BASE + index as usize })
    })
}

/// What a set of system events asks for, and how many events it has seen.
#[derive(Debug, Clone, Copy, Default)]
struct SystemSet {
    wanted: u64,
    told: usize,
}

static SYSTEM_SETS: Mutex<BTreeMap<usize, SystemSet>> = Mutex::new(BTreeMap::new());

fn with_sets<T>(body: impl FnOnce(&mut BTreeMap<usize, SystemSet>) -> T) -> T {
    body(&mut SYSTEM_SETS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A set tells what comes after it was made, unlike sets of events of devices: who hears that a
/// driver left loads the library anew, and would hear it again.
#[unsafe(no_mangle)]
extern "C" fn nvmlSystemEventSetCreate(request: Out<SystemEventSetRequest>) -> Code {
    call("nvmlSystemEventSetCreate", |call| {
        if request.get()?.version != version::<SystemEventSetRequest>(1) {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let told = call.machine.system_events.len();
        let set = with_sets(|sets| {
            let next = sets.keys().next_back().map_or(1, |last| last + 1);
            sets.insert(next, SystemSet { wanted: 0, told });
            next
        });
        let set = if call.lies() { 0 } else { set };
        request.put(SystemEventSetRequest { version: request.get()?.version, set })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemEventSetFree(request: Out<SystemEventSetRequest>) -> Code {
    call("nvmlSystemEventSetFree", |_| {
        let set = request.get()?.set;
        with_sets(|sets| sets.remove(&set)).map(drop).ok_or(INVALID_ARGUMENT)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemRegisterEvents(request: Out<SystemRegisterRequest>) -> Code {
    call("nvmlSystemRegisterEvents", |_| {
        let SystemRegisterRequest { version: asked, kinds, set } = request.get()?;
        if asked != version::<SystemRegisterRequest>(1) {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        with_sets(|sets| {
            sets.get_mut(&set).ok_or(INVALID_ARGUMENT)?.wanted |= kinds;
            Ok(())
        })
    })
}

/// Never waits: the adapter asks between its waits for events of devices.
#[unsafe(no_mangle)]
extern "C" fn nvmlSystemEventSetWait(request: Out<SystemWaitRequest>) -> Code {
    call("nvmlSystemEventSetWait", |call| {
        let asked = request.get()?;
        if asked.version != version::<SystemWaitRequest>(1) {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let events = with_sets(|sets| {
            let set = sets.get_mut(&asked.set).ok_or(INVALID_ARGUMENT)?;
            let events = call.machine.system_events.iter().skip(set.told);
            let events: Vec<SystemEventData> = events
                .filter(|kind| **kind & set.wanted != 0)
                .map(|kind| SystemEventData { kind: *kind, gpu: 0 })
                .take(asked.room as usize)
                .collect();
            set.told = call.machine.system_events.len();
            Ok::<_, Code>(events)
        })?;
        if events.is_empty() {
            return Err(TIMEOUT);
        }
        Out::at(asked.data).put_all(&events)?;
        request.put(SystemWaitRequest { count: call.count(events.len()), ..asked })
    })
}
