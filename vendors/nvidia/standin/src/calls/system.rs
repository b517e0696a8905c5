//! Calls about the library and the machine.

use std::{ffi::c_char, sync::atomic::Ordering};

use super::{Call, GPU_BASE, INITIALIZED, call};
use crate::abi::{Code, Handle, Out, SUCCESS, UNINITIALIZED};

fn initialize(symbol: &'static str) -> Code {
    match Call::begin(symbol) {
        Ok(_) => {
            INITIALIZED.fetch_add(1, Ordering::SeqCst);
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
    let less = |count: u32| count.checked_sub(1);
    match INITIALIZED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
        Ok(_) => SUCCESS,
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
