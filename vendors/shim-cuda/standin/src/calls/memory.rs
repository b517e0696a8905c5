//! Plain device memory, and what other processes share of theirs.

use std::ffi::{c_int, c_uint};

use accelpool_cuda_engine::wire::{Op, Request};

use crate::{
    abi::{
        CAPTURE_UNSUPPORTED, Code, Device, DevicePtr, Handle, INVALID_DEVICE, INVALID_VALUE,
        OUT_OF_MEMORY, Opaque, Out,
    },
    exports::exports,
    memory::{Origin, Piece, map, unmap},
    state::{state, wait_all},
};

exports! {
    fn cuMemAlloc(at: Out<c_uint>, bytes: c_uint) {
        // The ABI of CUDA 2: no address of ours fits.
        let _ = (at, bytes);
        Err(OUT_OF_MEMORY)
    }
    fn cuMemAlloc_v2(at: Out<DevicePtr>, bytes: usize) { allocate(at, bytes as u64, false) }
    fn cuMemAllocPitch(_at: Out<c_uint>, _pitch: Out<c_uint>, _width: c_uint, _rows: c_uint, _unit: c_uint) {
        Err(OUT_OF_MEMORY)
    }
    fn cuMemAllocPitch_v2(at: Out<DevicePtr>, pitch: Out<usize>, width: usize, rows: usize, unit: c_uint) {
        if !matches!(unit, 4 | 8 | 16) || pitch.is_null() {
            return Err(INVALID_VALUE);
        }
        let line = width.checked_next_multiple_of(512).ok_or(OUT_OF_MEMORY)?;
        let bytes = (line as u64).checked_mul(rows as u64).ok_or(OUT_OF_MEMORY)?;
        allocate(at, bytes, false)?;
        pitch.put(line)
    }
    fn cuMemAllocManaged(at: Out<DevicePtr>, bytes: usize, _flags: c_uint) { allocate(at, bytes as u64, true) }
    fn cuMemFree(at: c_uint) { free(u64::from(at)) }
    fn cuMemFree_v2(at: DevicePtr) { free(at) }
    fn cuMemGetInfo(free: Out<c_uint>, whole: Out<c_uint>) {
        let (left, all) = left()?;
        let narrow = |bytes| c_uint::try_from(bytes).unwrap_or(c_uint::MAX);
        free.put(narrow(left))?;
        whole.put(narrow(all))
    }
    fn cuMemGetInfo_v2(free: Out<usize>, whole: Out<usize>) {
        let (left, all) = left()?;
        free.put(usize::try_from(left).unwrap_or(usize::MAX))?;
        whole.put(usize::try_from(all).unwrap_or(usize::MAX))
    }
    fn cuMemGetAddressRange(_base: Out<c_uint>, _bytes: Out<c_uint>, _at: c_uint) { Err(INVALID_VALUE) }
    fn cuMemGetAddressRange_v2(base: Out<DevicePtr>, bytes: Out<usize>, at: DevicePtr) {
        let state = state()?;
        let (start, piece) = state.memory.piece_at(at).ok_or(INVALID_VALUE)?;
        base.put_if(start);
        bytes.put_if(usize::try_from(piece.bytes).unwrap_or(usize::MAX));
        Ok(())
    }
    fn cuIpcGetMemHandle(handle: Out<Opaque>, at: DevicePtr) {
        let state = state()?;
        let piece = state.memory.pieces.get(&at).ok_or(INVALID_VALUE)?;
        let Origin::Own { id, managed: false } = piece.origin else { return Err(INVALID_VALUE) };
        handle.put(opaque(id))
    }
    fn cuIpcOpenMemHandle(at: Out<DevicePtr>, handle: Opaque, _flags: c_uint) { open(at, handle) }
    fn cuIpcOpenMemHandle_v2(at: Out<DevicePtr>, handle: Opaque, _flags: c_uint) { open(at, handle) }
    fn cuIpcCloseMemHandle(at: DevicePtr) {
        let mut state = state()?;
        let piece = *state.memory.pieces.get(&at).ok_or(INVALID_VALUE)?;
        let Origin::Imported(id) = piece.origin else { return Err(INVALID_VALUE) };
        state.return_bytes(id)?;
        state.memory.pieces.remove(&at);
        unmap(at, piece.bytes);
        Ok(())
    }
    fn cuPointerGetAttribute(value: Out<u64>, attribute: c_int, at: DevicePtr) {
        let found = pointer_attribute(attribute, at)?;
        match attribute {
            // These are 32 bits wide.
            ATTRIBUTE_KIND | ATTRIBUTE_MANAGED | ATTRIBUTE_ORDINAL => {
                let narrow = Out::of(value.address().cast::<c_uint>());
                narrow.put(c_uint::try_from(found).map_err(|_| INVALID_VALUE)?)
            }
            _ => value.put(found),
        }
    }
}

const ATTRIBUTE_CONTEXT: c_int = 1;
const ATTRIBUTE_KIND: c_int = 2;
const ATTRIBUTE_DEVICE_POINTER: c_int = 3;
const ATTRIBUTE_MANAGED: c_int = 8;
const ATTRIBUTE_ORDINAL: c_int = 9;
const ATTRIBUTE_START: c_int = 11;
const ATTRIBUTE_SIZE: c_int = 12;

fn pointer_attribute(attribute: c_int, at: DevicePtr) -> Result<u64, Code> {
    let state = state()?;
    let (base, piece) = state.memory.piece_at(at).ok_or(INVALID_VALUE)?;
    Ok(match attribute {
        ATTRIBUTE_CONTEXT => piece.context as u64,
        // CU_MEMORYTYPE_DEVICE
        ATTRIBUTE_KIND => 2,
        ATTRIBUTE_DEVICE_POINTER => at,
        ATTRIBUTE_MANAGED => u64::from(matches!(piece.origin, Origin::Own { managed: true, .. })),
        ATTRIBUTE_ORDINAL => u64::try_from(piece.device).map_err(|_| INVALID_DEVICE)?,
        ATTRIBUTE_START => base,
        ATTRIBUTE_SIZE => piece.bytes,
        _ => return Err(INVALID_VALUE),
    })
}

fn allocate(at: Out<DevicePtr>, bytes: u64, managed: bool) -> Result<(), Code> {
    if at.is_null() {
        return Err(INVALID_VALUE);
    }
    let mut state = state()?;
    if state.captures_forbid() {
        return Err(CAPTURE_UNSUPPORTED);
    }
    let address = state.allocate(bytes, managed)?;
    at.put(address)
}

/// A free waits for the device, as CUDA's does.
fn free(at: DevicePtr) -> Result<(), Code> {
    if at == 0 {
        return Ok(());
    }
    let pending = {
        let state = state()?;
        let context = state.current()?;
        state.memory.pieces.get(&at).ok_or(INVALID_VALUE)?;
        state.pending_of(context)?
    };
    wait_all(pending)?;
    state()?.free(at)
}

fn left() -> Result<(u64, u64), Code> {
    let state = state()?;
    let context = state.current()?;
    let device = state.context(context)?.device;
    let a = u64::try_from(device).map_err(|_| INVALID_DEVICE)?;
    let found = state.link.ask(&Request { a, ..Request::new(Op::MemoryUse) })?;
    Ok((found.x, found.y))
}

/// An allocation's number for another process.
pub(crate) fn opaque(id: u64) -> Opaque {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    Opaque(bytes)
}

/// What `opaque` gave.
pub(crate) fn opened(handle: &Opaque) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&handle.0[..8]);
    u64::from_le_bytes(word)
}

fn open(at: Out<DevicePtr>, handle: Opaque) -> Result<(), Code> {
    let mut state = state()?;
    let context = state.current()?;
    let id = opened(&handle);
    let shared = state.link.ask(&Request { a: id, ..Request::new(Op::Share) })?;
    let (bytes, device) = (shared.x, Device::try_from(shared.y).map_err(|_| INVALID_DEVICE)?);
    let address = map(bytes, true)?;
    let origin = Origin::Imported(id);
    state.memory.pieces.insert(address, Piece { bytes, device, context, origin });
    at.put(address)
}

/// The device that a context of the calling thread is on.
pub(crate) fn current_device() -> Result<(Handle, Device), Code> {
    let state = state()?;
    let context = state.current()?;
    Ok((context, state.context(context)?.device))
}
