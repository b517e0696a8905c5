//! Words that the device writes or waits for, in a stream's order.

use std::ffi::c_uint;

use accelpool_cuda_engine::wire::{Op, Request};

use crate::{
    abi::{BatchOp, Code, DevicePtr, Handle, INVALID_VALUE, NOT_SUPPORTED, Out},
    exports::{Variant, stream_exports},
    state::state,
};

stream_exports! { variant;
    fn cuStreamWriteValue32/cuStreamWriteValue32_ptsz(stream: Handle, at: DevicePtr, value: c_uint, _flags: c_uint) {
        write(stream, at, u64::from(value), 4, variant)
    }
    fn cuStreamWriteValue32_v2/cuStreamWriteValue32_v2_ptsz(
        stream: Handle, at: DevicePtr, value: c_uint, _flags: c_uint,
    ) { write(stream, at, u64::from(value), 4, variant) }
    fn cuStreamWriteValue64/cuStreamWriteValue64_ptsz(stream: Handle, at: DevicePtr, value: u64, _flags: c_uint) {
        write(stream, at, value, 8, variant)
    }
    fn cuStreamWriteValue64_v2/cuStreamWriteValue64_v2_ptsz(
        stream: Handle, at: DevicePtr, value: u64, _flags: c_uint,
    ) { write(stream, at, value, 8, variant) }
    fn cuStreamWaitValue32/cuStreamWaitValue32_ptsz(stream: Handle, at: DevicePtr, value: c_uint, flags: c_uint) {
        wait(stream, at, u64::from(value), 4, flags, variant)
    }
    fn cuStreamWaitValue32_v2/cuStreamWaitValue32_v2_ptsz(
        stream: Handle, at: DevicePtr, value: c_uint, flags: c_uint,
    ) { wait(stream, at, u64::from(value), 4, flags, variant) }
    fn cuStreamWaitValue64/cuStreamWaitValue64_ptsz(stream: Handle, at: DevicePtr, value: u64, flags: c_uint) {
        wait(stream, at, value, 8, flags, variant)
    }
    fn cuStreamWaitValue64_v2/cuStreamWaitValue64_v2_ptsz(
        stream: Handle, at: DevicePtr, value: u64, flags: c_uint,
    ) { wait(stream, at, value, 8, flags, variant) }
    fn cuStreamBatchMemOp/cuStreamBatchMemOp_ptsz(
        stream: Handle, count: c_uint, ops: Out<BatchOp>, _flags: c_uint,
    ) { batch(stream, count, ops, variant) }
    fn cuStreamBatchMemOp_v2/cuStreamBatchMemOp_v2_ptsz(
        stream: Handle, count: c_uint, ops: Out<BatchOp>, _flags: c_uint,
    ) { batch(stream, count, ops, variant) }
}

fn write(
    stream: Handle,
    at: DevicePtr,
    value: u64,
    bytes: u64,
    variant: Variant,
) -> Result<(), Code> {
    submit(stream, at, variant, Request { c: value, extra: bytes, ..Request::new(Op::Write) })
}

fn wait(
    stream: Handle,
    at: DevicePtr,
    value: u64,
    bytes: u64,
    flags: c_uint,
    variant: Variant,
) -> Result<(), Code> {
    let extra = bytes | u64::from(flags) << 8;
    submit(stream, at, variant, Request { c: value, extra, ..Request::new(Op::WaitValue) })
}

fn submit(stream: Handle, at: DevicePtr, variant: Variant, request: Request) -> Result<(), Code> {
    let mut state = state()?;
    let stream = state.resolve(stream, variant)?;
    let bytes = request.extra & 0xff;
    if !at.is_multiple_of(bytes) || !state.memory.covers(at, bytes) {
        return Err(INVALID_VALUE);
    }
    state.submit(stream, Request { b: at, ..request }).map(|_| ())
}

fn batch(stream: Handle, count: c_uint, ops: Out<BatchOp>, variant: Variant) -> Result<(), Code> {
    if count > 256 {
        return Err(INVALID_VALUE);
    }
    for index in 0..count as usize {
        let op = ops.get_at(index)?;
        let narrow = op.value & u64::from(c_uint::MAX);
        match op.operation {
            1 => wait(stream, op.address, narrow, 4, op.flags, variant)?,
            2 => write(stream, op.address, narrow, 4, variant)?,
            4 => wait(stream, op.address, op.value, 8, op.flags, variant)?,
            5 => write(stream, op.address, op.value, 8, variant)?,
            3 | 6 => {} // writes are in order as it is
            _ => return Err(NOT_SUPPORTED),
        }
    }
    Ok(())
}
