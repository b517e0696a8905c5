//! Functions of the host in a stream's order, and memory of the host.

use std::{
    ffi::{c_int, c_uint, c_void},
    os::fd::AsRawFd,
    thread,
};

use accelpool_cuda_engine::wire::{Op, Request};
use nix::sys::socket::{MsgFlags, recv};

use crate::{
    abi::{Code, DevicePtr, Handle, INVALID_VALUE, Out, SUCCESS, UNKNOWN},
    exports::{Variant, exports, stream_exports},
    graph::{Length, Node},
    memory::{Host, map, unmap},
    state::{HostCall, HostFunction, state},
};

exports! {
    fn cuMemAllocHost(at: Out<u64>, bytes: c_uint) { allocate(at, bytes as usize) }
    fn cuMemAllocHost_v2(at: Out<u64>, bytes: usize) { allocate(at, bytes) }
    fn cuMemHostAlloc(at: Out<u64>, bytes: usize, _flags: c_uint) { allocate(at, bytes) }
    fn cuMemFreeHost(at: u64) {
        let mut state = state()?;
        match state.memory.hosts.get(&at) {
            Some(host) if !host.registered => {
                let bytes = host.bytes;
                state.memory.hosts.remove(&at);
                unmap(at, bytes);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostRegister(at: u64, bytes: usize, _flags: c_uint) { register(at, bytes) }
    fn cuMemHostRegister_v2(at: u64, bytes: usize, _flags: c_uint) { register(at, bytes) }
    fn cuMemHostUnregister(at: u64) {
        let mut state = state()?;
        match state.memory.hosts.get(&at) {
            Some(host) if host.registered => {
                state.memory.hosts.remove(&at);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostGetDevicePointer(device: Out<c_uint>, at: u64, _flags: c_uint) {
        // The ABI of CUDA 2: addresses of 32 bits.
        device.put(c_uint::try_from(at).map_err(|_| INVALID_VALUE)?)
    }
    fn cuMemHostGetDevicePointer_v2(device: Out<DevicePtr>, at: u64, _flags: c_uint) {
        let state = state()?;
        let found = state.memory.hosts.range(..=at).next_back();
        match found {
            Some((base, host)) if at - base < host.bytes => device.put(at),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostGetFlags(flags: Out<c_uint>, at: u64) {
        let known = state()?.memory.hosts.contains_key(&at);
        if known { flags.put(0) } else { Err(INVALID_VALUE) }
    }
}

stream_exports! { variant;
    fn cuLaunchHostFunc/cuLaunchHostFunc_ptsz(
        stream: Handle, function: Option<extern "C" fn(*mut c_void)>, data: *mut c_void,
    ) { plain(stream, function, data, variant) }
    fn cuLaunchHostFunc_v2/cuLaunchHostFunc_v2_ptsz(
        stream: Handle, function: Option<extern "C" fn(*mut c_void)>, data: *mut c_void, _sync: c_uint,
    ) { plain(stream, function, data, variant) }
    fn cuStreamAddCallback/cuStreamAddCallback_ptsz(
        stream: Handle, function: Option<extern "C" fn(Handle, Code, *mut c_void)>, data: *mut c_void,
        _flags: c_uint,
    ) {
        let function = HostFunction::Callback(function.ok_or(INVALID_VALUE)?, stream);
        call(stream, HostCall { function, data: data as usize }, variant)
    }
}

fn plain(
    stream: Handle,
    function: Option<extern "C" fn(*mut c_void)>,
    data: *mut c_void,
    variant: Variant,
) -> Result<(), Code> {
    let function = HostFunction::Plain(function.ok_or(INVALID_VALUE)?);
    call(stream, HostCall { function, data: data as usize }, variant)
}

fn call(stream: Handle, host: HostCall, variant: Variant) -> Result<(), Code> {
    let mut state = state()?;
    let stream = state.resolve(stream, variant)?;
    if let Some(graph) = state.stream(stream)?.capture {
        let node = state.handle();
        let length = Length { ns: 1, traps: false };
        state.graphs.graph(graph)?.nodes.push((node, Node { length, kind: 3 }));
        return Ok(());
    }
    if !state.host_thread {
        let host = state.link.host.clone();
        let worker = thread::Builder::new().name("cuda-host".to_owned());
        worker.spawn(move || serve(host.as_raw_fd())).map_err(|_| UNKNOWN)?;
        state.host_thread = true;
    }
    let token = state.handle() as u64;
    state.hosts.insert(token, host);
    state.submit(stream, Request { b: token, ..Request::new(Op::Host) }).map(|_| ())
}

/// Runs what the engine names, until it is gone.
fn serve(fd: c_int) {
    let mut token = [0; 8];
    while matches!(recv(fd, &mut token, MsgFlags::empty()), Ok(8)) {
        let token = u64::from_le_bytes(token);
        let host = state().ok().and_then(|mut state| state.hosts.remove(&token));
        if let Some(HostCall { function, data }) = host {
            match function {
                HostFunction::Plain(function) => function(data as *mut c_void),
                HostFunction::Callback(function, stream) => {
                    function(stream, SUCCESS, data as *mut c_void);
                }
            }
        }
        if let Ok(state) = state() {
            let done = Request { b: token, ..Request::new(Op::HostDone) };
            if state.link.submit(&done).is_err() {
                return;
            }
        }
    }
}

fn allocate(at: Out<u64>, bytes: usize) -> Result<(), Code> {
    let mut state = state()?;
    state.current()?;
    if bytes == 0 || at.is_null() {
        return Err(INVALID_VALUE);
    }
    let address = map(bytes as u64, true)?;
    state.memory.hosts.insert(address, Host { bytes: bytes as u64, registered: false });
    at.put(address)
}

fn register(at: u64, bytes: usize) -> Result<(), Code> {
    let mut state = state()?;
    state.current()?;
    if at == 0 || bytes == 0 || state.memory.hosts.contains_key(&at) {
        return Err(INVALID_VALUE);
    }
    state.memory.hosts.insert(at, Host { bytes: bytes as u64, registered: true });
    Ok(())
}
