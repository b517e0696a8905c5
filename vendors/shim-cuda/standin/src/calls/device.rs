//! Versions, devices, and what they are.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::{
    abi::{
        self, Code, Device, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, NOT_FOUND, Out, Uuid,
        put_text,
    },
    exports::exports,
    state::{start, state},
};

/// The version of CUDA that this plays.
pub(crate) const VERSION: c_int = 13000;

exports! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        start()
    }
    fn cuDriverGetVersion(version: Out<c_int>) { version.put(VERSION) }
    fn cuGetErrorString(code: Code, text: Out<*const c_char>) { put_name(code, text) }
    fn cuGetErrorName(code: Code, text: Out<*const c_char>) { put_name(code, text) }
    fn cuDeviceGet(device: Out<Device>, ordinal: c_int) {
        state()?.gpu(ordinal)?;
        device.put(ordinal)
    }
    fn cuDeviceGetCount(count: Out<c_int>) {
        let found = c_int::try_from(state()?.gpus.len()).map_err(|_| NO_DEVICE)?;
        count.put(found)
    }
    fn cuDeviceGetName(name: Out<c_char>, room: c_int, device: Device) {
        put_text(name, room, &state()?.gpu(device)?.name)
    }
    fn cuDeviceGetUuid(uuid: Out<Uuid>, device: Device) { uuid.put(Uuid(state()?.gpu(device)?.uuid)) }
    fn cuDeviceGetUuid_v2(uuid: Out<Uuid>, device: Device) { uuid.put(Uuid(state()?.gpu(device)?.uuid)) }
    fn cuDeviceTotalMem(bytes: Out<c_uint>, device: Device) {
        bytes.put(c_uint::try_from(state()?.gpu(device)?.bytes).unwrap_or(c_uint::MAX))
    }
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: Device) {
        bytes.put(usize::try_from(state()?.gpu(device)?.bytes).unwrap_or(usize::MAX))
    }
    fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: Device) {
        state()?.gpu(device)?;
        value.put(attribute_value(attribute))
    }
    fn cuDeviceGetPCIBusId(text: Out<c_char>, room: c_int, device: Device) {
        put_text(text, room, &state()?.gpu(device)?.pci)
    }
    fn cuDeviceGetByPCIBusId(device: Out<Device>, text: *const c_char) {
        let state = state()?;
        let wanted = read_text(text).ok_or(INVALID_VALUE)?;
        let found = state.gpus.iter().position(|gpu| gpu.pci.eq_ignore_ascii_case(&wanted));
        device.put(found.and_then(|at| Device::try_from(at).ok()).ok_or(INVALID_DEVICE)?)
    }
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: Device) {
        state()?.gpu(device)?;
        major.put(9)?;
        minor.put(0)
    }
    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: Device, peer: Device) {
        let state = state()?;
        state.gpu(device)?;
        state.gpu(peer)?;
        can.put(c_int::from(device != peer))
    }
    fn cuGetExportTable(table: Out<*const c_void>, _id: Out<Uuid>) {
        // The tables that CUDA's runtime wants are NVIDIA's own.
        table.put(std::ptr::null())?;
        Err(NOT_FOUND)
    }
}

fn attribute_value(attribute: c_int) -> c_int {
    match attribute {
        1..=4 => 1024,                                 // threads per block, block dimensions
        5 => c_int::MAX,                               // grid
        6 | 7 => 65_535,                               // grid
        8 => 48 << 10,                                 // shared memory
        10 => 32,                                      // warp
        16 => 132,                                     // multiprocessors
        31 | 41 | 45 | 83 | 95 | 102 | 115 | 116 => 1, // concurrent kernels, unified addressing, VMM, pools
        39 => 2048,                                    // threads per multiprocessor
        75 => 9,                                       // compute capability
        _ => 0,
    }
}

pub(crate) fn read_text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null; `cuda.h` asks for a text that ends with NUL.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

fn put_name(code: Code, text: Out<*const c_char>) -> Result<(), Code> {
    let name = match code {
        abi::SUCCESS => c"CUDA_SUCCESS",
        abi::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        abi::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        abi::NOT_INITIALIZED => c"CUDA_ERROR_NOT_INITIALIZED",
        abi::NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        abi::INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        abi::INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        abi::INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        abi::NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        abi::NOT_READY => c"CUDA_ERROR_NOT_READY",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        abi::NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    text.put(name.as_ptr())
}
