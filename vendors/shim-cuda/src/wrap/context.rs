//! Contexts, and where a program first comes to the driver.

use core::ffi::{c_char, c_int};

use super::{Pointer, wrap, written};
use crate::{
    context, device, lookup, process,
    surface::{self, SUCCESS},
    thread::thread,
};

wrap! {
    fn cuInit(flags: u32) {
        let outcome = surface::cuInit(flags);
        let thread = thread();
        if outcome == SUCCESS && !thread.is_inside() {
            process::attach(thread);
            if process::is_active() {
                device::bind_all(thread);
            }
        }
        outcome
    }

    fn cuGetProcAddress(name: *const c_char, found: *mut Pointer, version: c_int, flags: u64) {
        let there = found.cast();
        let outcome = surface::cuGetProcAddress(name.cast_mut().cast(), there, version, flags);
        if outcome == SUCCESS {
            lookup::replace(name, found, version, flags);
        }
        outcome
    }

    fn cuGetProcAddress_v2(
        name: *const c_char,
        found: *mut Pointer,
        version: c_int,
        flags: u64,
        status: Pointer,
    ) {
        let there = found.cast();
        let name_there = name.cast_mut().cast();
        let outcome = surface::cuGetProcAddress_v2(name_there, there, version, flags, status);
        if outcome == SUCCESS {
            lookup::replace(name, found, version, flags);
        }
        outcome
    }

    fn cuCtxCreate(there: Pointer, flags: u32, number: c_int) {
        let call = || surface::cuCtxCreate(there, flags, number);
        context::create(number, call, || written(there))
    }

    fn cuCtxCreate_v2(there: Pointer, flags: u32, number: c_int) {
        let call = || surface::cuCtxCreate_v2(there, flags, number);
        context::create(number, call, || written(there))
    }

    fn cuCtxCreate_v3(there: Pointer, affinity: Pointer, len: c_int, flags: u32, number: c_int) {
        let call = || surface::cuCtxCreate_v3(there, affinity, len, flags, number);
        context::create(number, call, || written(there))
    }

    fn cuCtxCreate_v4(there: Pointer, parameters: Pointer, flags: u32, number: c_int) {
        let call = || surface::cuCtxCreate_v4(there, parameters, flags, number);
        context::create(number, call, || written(there))
    }

    fn cuCtxDestroy(context: Pointer) {
        context::destroy(context.addr() as u64, || surface::cuCtxDestroy(context))
    }

    fn cuCtxDestroy_v2(context: Pointer) {
        context::destroy(context.addr() as u64, || surface::cuCtxDestroy_v2(context))
    }

    fn cuDevicePrimaryCtxRetain(there: Pointer, number: c_int) {
        let call = || surface::cuDevicePrimaryCtxRetain(there, number);
        context::retain(number, call, || written(there))
    }

    fn cuDevicePrimaryCtxRelease(number: c_int) {
        context::release(number, false, || surface::cuDevicePrimaryCtxRelease(number))
    }

    fn cuDevicePrimaryCtxRelease_v2(number: c_int) {
        context::release(number, false, || surface::cuDevicePrimaryCtxRelease_v2(number))
    }

    fn cuDevicePrimaryCtxReset(number: c_int) {
        context::release(number, true, || surface::cuDevicePrimaryCtxReset(number))
    }

    fn cuDevicePrimaryCtxReset_v2(number: c_int) {
        context::release(number, true, || surface::cuDevicePrimaryCtxReset_v2(number))
    }

    fn cuCtxSetCurrent(context: Pointer) {
        context::switch(|| surface::cuCtxSetCurrent(context))
    }

    fn cuCtxPushCurrent(context: Pointer) {
        context::switch(|| surface::cuCtxPushCurrent(context))
    }

    fn cuCtxPushCurrent_v2(context: Pointer) {
        context::switch(|| surface::cuCtxPushCurrent_v2(context))
    }

    fn cuCtxPopCurrent(there: Pointer) {
        context::switch(|| surface::cuCtxPopCurrent(there))
    }

    fn cuCtxPopCurrent_v2(there: Pointer) {
        context::switch(|| surface::cuCtxPopCurrent_v2(there))
    }

    fn cuCtxAttach(there: Pointer, flags: u32) {
        context::switch(|| surface::cuCtxAttach(there, flags))
    }

    fn cuCtxDetach(context: Pointer) {
        context::switch(|| surface::cuCtxDetach(context))
    }
}
