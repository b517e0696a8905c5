//! Copies and fills. The bytes move when the call is made; on the device it takes time.
//!
//! What goes between host and device leaves the kernels' turn alone, as copy engines do.

use std::ffi::{c_uint, c_void};

use crate::{
    abi::{Code, DevicePtr, Handle, INVALID_VALUE, Out},
    calls::launch::run,
    exports::{Variant, stream_exports},
    graph::Length,
    memory::copy_bytes,
    state::state,
};

stream_exports! { variant;
    fn cuMemcpy/cuMemcpy_ptds(to: DevicePtr, from: DevicePtr, bytes: usize) {
        copy(to, from, bytes, Side::Any, 0, variant, true)
    }
    fn cuMemcpyAsync/cuMemcpyAsync_ptsz(to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle) {
        copy(to, from, bytes, Side::Any, stream, variant, false)
    }
    fn cuMemcpyPeer/cuMemcpyPeer_ptds(
        to: DevicePtr, _to_context: Handle, from: DevicePtr, _from_context: Handle, bytes: usize,
    ) { copy(to, from, bytes, Side::Device, 0, variant, true) }
    fn cuMemcpyPeerAsync/cuMemcpyPeerAsync_ptsz(
        to: DevicePtr, _to_context: Handle, from: DevicePtr, _from_context: Handle, bytes: usize, stream: Handle,
    ) { copy(to, from, bytes, Side::Device, stream, variant, false) }
    fn cuMemcpyHtoD_v2/cuMemcpyHtoD_v2_ptds(to: DevicePtr, from: *const c_void, bytes: usize) {
        copy(to, from as u64, bytes, Side::ToDevice, 0, variant, true)
    }
    fn cuMemcpyHtoDAsync_v2/cuMemcpyHtoDAsync_v2_ptsz(
        to: DevicePtr, from: *const c_void, bytes: usize, stream: Handle,
    ) { copy(to, from as u64, bytes, Side::ToDevice, stream, variant, false) }
    fn cuMemcpyDtoH_v2/cuMemcpyDtoH_v2_ptds(to: *mut c_void, from: DevicePtr, bytes: usize) {
        copy(to as u64, from, bytes, Side::ToHost, 0, variant, true)
    }
    fn cuMemcpyDtoHAsync_v2/cuMemcpyDtoHAsync_v2_ptsz(
        to: *mut c_void, from: DevicePtr, bytes: usize, stream: Handle,
    ) { copy(to as u64, from, bytes, Side::ToHost, stream, variant, false) }
    fn cuMemcpyDtoD_v2/cuMemcpyDtoD_v2_ptds(to: DevicePtr, from: DevicePtr, bytes: usize) {
        copy(to, from, bytes, Side::Device, 0, variant, true)
    }
    fn cuMemcpyDtoDAsync_v2/cuMemcpyDtoDAsync_v2_ptsz(
        to: DevicePtr, from: DevicePtr, bytes: usize, stream: Handle,
    ) { copy(to, from, bytes, Side::Device, stream, variant, false) }
    fn cuMemsetD8_v2/cuMemsetD8_v2_ptds(to: DevicePtr, value: u8, count: usize) {
        fill(to, &[value], count, 0, variant)
    }
    fn cuMemsetD16_v2/cuMemsetD16_v2_ptds(to: DevicePtr, value: u16, count: usize) {
        fill(to, &value.to_ne_bytes(), count, 0, variant)
    }
    fn cuMemsetD32_v2/cuMemsetD32_v2_ptds(to: DevicePtr, value: c_uint, count: usize) {
        fill(to, &value.to_ne_bytes(), count, 0, variant)
    }
    fn cuMemsetD8Async/cuMemsetD8Async_ptsz(to: DevicePtr, value: u8, count: usize, stream: Handle) {
        fill(to, &[value], count, stream, variant)
    }
    fn cuMemsetD16Async/cuMemsetD16Async_ptsz(to: DevicePtr, value: u16, count: usize, stream: Handle) {
        fill(to, &value.to_ne_bytes(), count, stream, variant)
    }
    fn cuMemsetD32Async/cuMemsetD32Async_ptsz(to: DevicePtr, value: c_uint, count: usize, stream: Handle) {
        fill(to, &value.to_ne_bytes(), count, stream, variant)
    }
    fn cuMemsetD2D8_v2/cuMemsetD2D8_v2_ptds(to: DevicePtr, pitch: usize, value: u8, width: usize, rows: usize) {
        fill_rows(to, pitch, &[value], [width, rows], 0, variant)
    }
    fn cuMemsetD2D16_v2/cuMemsetD2D16_v2_ptds(
        to: DevicePtr, pitch: usize, value: u16, width: usize, rows: usize,
    ) { fill_rows(to, pitch, &value.to_ne_bytes(), [width, rows], 0, variant) }
    fn cuMemsetD2D32_v2/cuMemsetD2D32_v2_ptds(
        to: DevicePtr, pitch: usize, value: c_uint, width: usize, rows: usize,
    ) { fill_rows(to, pitch, &value.to_ne_bytes(), [width, rows], 0, variant) }
    fn cuMemsetD2D8Async/cuMemsetD2D8Async_ptsz(
        to: DevicePtr, pitch: usize, value: u8, width: usize, rows: usize, stream: Handle,
    ) { fill_rows(to, pitch, &[value], [width, rows], stream, variant) }
    fn cuMemsetD2D16Async/cuMemsetD2D16Async_ptsz(
        to: DevicePtr, pitch: usize, value: u16, width: usize, rows: usize, stream: Handle,
    ) { fill_rows(to, pitch, &value.to_ne_bytes(), [width, rows], stream, variant) }
    fn cuMemsetD2D32Async/cuMemsetD2D32Async_ptsz(
        to: DevicePtr, pitch: usize, value: c_uint, width: usize, rows: usize, stream: Handle,
    ) { fill_rows(to, pitch, &value.to_ne_bytes(), [width, rows], stream, variant) }
    fn cuMemcpyBatchAsync/cuMemcpyBatchAsync_ptsz(
        to: Out<DevicePtr>, from: Out<DevicePtr>, sizes: Out<usize>, count: usize,
        _attributes: *mut c_void, _indices: *mut usize, _attributes_count: usize, _failed: *mut usize,
        stream: Handle,
    ) { batch(to, from, sizes, count, stream, variant) }
    fn cuMemcpyBatchAsync_v2/cuMemcpyBatchAsync_v2_ptsz(
        to: Out<DevicePtr>, from: Out<DevicePtr>, sizes: Out<usize>, count: usize,
        _attributes: *mut c_void, _indices: *mut usize, _attributes_count: usize, stream: Handle,
    ) { batch(to, from, sizes, count, stream, variant) }
}

/// Which sides of a copy are on the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Any,
    Device,
    ToDevice,
    ToHost,
}

/// What a device moves within itself in a nanosecond: 1 TB/s.
const BYTES_A_NS: u64 = 1000;
/// A copy engine's work is no kernel's time.
const BESIDE_NS: u64 = 1;

fn copy(
    to: DevicePtr,
    from: DevicePtr,
    bytes: usize,
    side: Side,
    stream: Handle,
    variant: Variant,
    wait: bool,
) -> Result<(), Code> {
    let bytes = bytes as u64;
    let length = {
        let state = state()?;
        state.current()?;
        let on_device = |at| state.memory.covers(at, bytes);
        let right = match side {
            Side::Any => true,
            Side::Device => on_device(to) && on_device(from),
            Side::ToDevice => on_device(to),
            Side::ToHost => on_device(from),
        };
        if !right {
            return Err(INVALID_VALUE);
        }
        copy_bytes(to, from, bytes)?;
        let within = side == Side::Device;
        Length { ns: if within { bytes / BYTES_A_NS + 1 } else { BESIDE_NS }, traps: false }
    };
    run(length, stream, variant, NODE_MEMCPY)?;
    if wait { finish(stream, variant) } else { Ok(()) }
}

fn batch(
    to: Out<DevicePtr>,
    from: Out<DevicePtr>,
    sizes: Out<usize>,
    count: usize,
    stream: Handle,
    variant: Variant,
) -> Result<(), Code> {
    for index in 0..count {
        let (to, from) = (to.get_at(index)?, from.get_at(index)?);
        copy(to, from, sizes.get_at(index)?, Side::Any, stream, variant, false)?;
    }
    Ok(())
}

/// `CU_GRAPH_NODE_TYPE_MEMCPY`.
const NODE_MEMCPY: u32 = 1;
/// `CU_GRAPH_NODE_TYPE_MEMSET`.
pub(crate) const NODE_MEMSET: u32 = 2;

/// A fill; the host does not wait for it, as CUDA's does not for device memory.
fn fill(
    to: DevicePtr,
    pattern: &[u8],
    count: usize,
    stream: Handle,
    variant: Variant,
) -> Result<(), Code> {
    let count = count as u64;
    {
        let state = state()?;
        state.current()?;
        state.fill(to, pattern, count)?;
    }
    let ns = count * pattern.len() as u64 / BYTES_A_NS + 1;
    run(Length { ns, traps: false }, stream, variant, NODE_MEMSET)
}

fn fill_rows(
    to: DevicePtr,
    pitch: usize,
    pattern: &[u8],
    [width, rows]: [usize; 2],
    stream: Handle,
    variant: Variant,
) -> Result<(), Code> {
    for row in 0..rows {
        let at = to + (row * pitch) as u64;
        fill(at, pattern, width, stream, variant)?;
    }
    Ok(())
}

fn finish(stream: Handle, variant: Variant) -> Result<(), Code> {
    let pending = {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        state.pending(stream)?
    };
    pending.wait()
}
