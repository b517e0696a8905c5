//! Contexts, the current one of a thread, and the primary one of a device.

use std::ffi::{c_int, c_uint, c_void};

use accelpool_cuda_engine::FaultAt;

use crate::{
    abi::{
        CAPTURE_UNSUPPORTED, Code, Device, Handle, INVALID_CONTEXT, INVALID_VALUE, Out,
        PRIMARY_CONTEXT_ACTIVE,
    },
    exports::exports,
    state::{State, current, pop_context, push_context, state, wait_all},
};

exports! {
    fn cuCtxCreate(context: Out<Handle>, flags: c_uint, device: Device) { create(context, flags, device) }
    fn cuCtxCreate_v2(context: Out<Handle>, flags: c_uint, device: Device) { create(context, flags, device) }
    fn cuCtxCreate_v3(
        context: Out<Handle>, _affinity: *const c_void, _count: c_int, flags: c_uint, device: Device,
    ) { create(context, flags, device) }
    fn cuCtxCreate_v4(context: Out<Handle>, _params: *const c_void, flags: c_uint, device: Device) {
        create(context, flags, device)
    }
    fn cuCtxDestroy(context: Handle) { destroy(context) }
    fn cuCtxDestroy_v2(context: Handle) { destroy(context) }
    fn cuCtxDetach(context: Handle) { destroy(context) }
    fn cuCtxPushCurrent(context: Handle) { push(context) }
    fn cuCtxPushCurrent_v2(context: Handle) { push(context) }
    fn cuCtxPopCurrent(context: Out<Handle>) { pop(context) }
    fn cuCtxPopCurrent_v2(context: Out<Handle>) { pop(context) }
    fn cuCtxSetCurrent(context: Handle) {
        let known = context == 0 || state()?.contexts.contains_key(&context);
        if !known {
            return Err(INVALID_CONTEXT);
        }
        pop_context();
        if context != 0 {
            push_context(context);
        }
        Ok(())
    }
    fn cuCtxGetCurrent(context: Out<Handle>) {
        drop(state()?);
        context.put(current())
    }
    fn cuCtxGetDevice(device: Out<Device>) { device.put(state()?.context(current())?.device) }
    fn cuCtxGetDevice_v2(device: Out<Device>, context: Handle) {
        let context = if context == 0 { current() } else { context };
        device.put(state()?.context(context)?.device)
    }
    fn cuCtxGetFlags(flags: Out<c_uint>) { flags.put(state()?.context(current())?.flags) }
    fn cuCtxSetFlags(flags: c_uint) {
        state()?.context_mut(current())?.flags = flags;
        Ok(())
    }
    fn cuCtxGetId(context: Handle, id: Out<u64>) {
        let context = if context == 0 { current() } else { context };
        id.put(state()?.context(context)?.id)
    }
    fn cuCtxGetApiVersion(context: Handle, version: Out<c_uint>) {
        state()?.context(if context == 0 { current() } else { context })?;
        version.put(3020)
    }
    fn cuCtxSynchronize() { synchronize(0) }
    fn cuCtxSynchronize_v2(context: Handle) { synchronize(context) }
    fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        state()?.current()?;
        least.put_if(0);
        greatest.put_if(-5);
        Ok(())
    }
    fn cuCtxSetLimit(_limit: c_int, _value: usize) { state()?.current().map(|_| ()) }
    fn cuCtxGetLimit(value: Out<usize>, _limit: c_int) {
        state()?.current()?;
        value.put(1024)
    }
    fn cuCtxSetCacheConfig(_config: c_int) { state()?.current().map(|_| ()) }
    fn cuCtxGetCacheConfig(config: Out<c_int>) {
        state()?.current()?;
        config.put(0)
    }
    fn cuCtxEnablePeerAccess(context: Handle, _flags: c_uint) { state()?.context(context).map(|_| ()) }
    fn cuCtxDisablePeerAccess(context: Handle) { state()?.context(context).map(|_| ()) }
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: Device) {
        let mut state = state()?;
        let held = match state.gpu(device)?.primary {
            Some((handle, held)) => (handle, held + 1),
            None => (state.create_context(device, 0)?, 1),
        };
        state.gpu_mut(device)?.primary = Some(held);
        context.put(held.0)
    }
    fn cuDevicePrimaryCtxRelease(device: Device) { release(device) }
    fn cuDevicePrimaryCtxRelease_v2(device: Device) { release(device) }
    fn cuDevicePrimaryCtxReset(device: Device) { reset(device) }
    fn cuDevicePrimaryCtxReset_v2(device: Device) { reset(device) }
    fn cuDevicePrimaryCtxSetFlags(device: Device, _flags: c_uint) {
        match state()?.gpu(device)?.primary {
            Some(_) => Err(PRIMARY_CONTEXT_ACTIVE),
            None => Ok(()),
        }
    }
    fn cuDevicePrimaryCtxSetFlags_v2(device: Device, _flags: c_uint) { state()?.gpu(device).map(|_| ()) }
    fn cuDevicePrimaryCtxGetState(device: Device, flags: Out<c_uint>, active: Out<c_int>) {
        let is_active = state()?.gpu(device)?.primary.is_some();
        flags.put_if(0);
        active.put_if(c_int::from(is_active));
        Ok(())
    }
}

fn create(out: Out<Handle>, flags: c_uint, device: Device) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    let handle = state()?.create_context(device, flags)?;
    push_context(handle);
    out.put(handle)
}

fn destroy(context: Handle) -> Result<(), Code> {
    state()?.destroy_context(context)?;
    if current() == context {
        pop_context();
    }
    Ok(())
}

fn push(context: Handle) -> Result<(), Code> {
    state()?.context(context)?;
    push_context(context);
    Ok(())
}

fn pop(out: Out<Handle>) -> Result<(), Code> {
    drop(state()?);
    let context = pop_context().ok_or(INVALID_CONTEXT)?;
    out.put_if(context);
    Ok(())
}

fn synchronize(context: Handle) -> Result<(), Code> {
    let mut state = state()?;
    let context = if context == 0 { state.current()? } else { context };
    state.stuck(context)?;
    state.fault(FaultAt::Synchronize)?;
    if state.captures_forbid() {
        return Err(CAPTURE_UNSUPPORTED);
    }
    let pending = state.pending_of(context)?;
    state.trim_pools()?;
    drop(state);
    wait_all(pending)
}

fn release(device: Device) -> Result<(), Code> {
    let mut state = state()?;
    match state.gpu(device)?.primary {
        None => Err(INVALID_CONTEXT),
        Some((handle, 1)) => {
            state.gpu_mut(device)?.primary = None;
            state.destroy_context(handle)
        }
        Some((handle, held)) => {
            state.gpu_mut(device)?.primary = Some((handle, held - 1));
            Ok(())
        }
    }
}

fn reset(device: Device) -> Result<(), Code> {
    let mut state = state()?;
    if let Some((handle, _)) = state.gpu(device)?.primary {
        state.gpu_mut(device)?.primary = None;
        state.destroy_context(handle)?;
    }
    Ok(())
}

impl State {
    /// Whether a capture forbids calls that could wait: one in global mode of anybody, unless
    /// this thread has relaxed its mode.
    pub(crate) fn captures_forbid(&self) -> bool {
        const RELAXED: u32 = 2;
        let relaxed = crate::state::capture_mode() == RELAXED;
        !relaxed && self.graphs.captures.values().any(|mode| *mode != RELAXED)
    }
}
