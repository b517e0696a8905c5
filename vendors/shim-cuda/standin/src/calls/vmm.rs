//! Virtual memory: address ranges, physical memory, and the one in the other.

use std::{
    ffi::{c_int, c_uint, c_void},
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd},
};

use accelpool_cuda_engine::wire::{Op, Request};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{
    abi::{
        AllocationProp, Code, Device, DevicePtr, INVALID_DEVICE, INVALID_VALUE, Location,
        NOT_SUPPORTED, Opaque, Out, UNKNOWN,
    },
    calls::memory::{opaque, opened},
    exports::exports,
    memory::{GRANULARITY, Origin, Physical, Piece, map, protect, unmap},
    state::state,
};

exports! {
    fn cuMemAddressReserve(at: Out<DevicePtr>, bytes: usize, _align: usize, _hint: DevicePtr, _flags: u64) {
        let bytes = whole(bytes)?;
        if at.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut state = state()?;
        let address = map(bytes, false)?;
        state.memory.reserved.insert(address, bytes);
        at.put(address)
    }
    fn cuMemAddressFree(at: DevicePtr, bytes: usize) {
        let mut state = state()?;
        let known = state.memory.reserved.get(&at).copied();
        let mapped = state.memory.pieces.range(at..at.saturating_add(bytes as u64)).next().is_some();
        if known != Some(bytes as u64) || mapped {
            return Err(INVALID_VALUE);
        }
        state.memory.reserved.remove(&at);
        unmap(at, bytes as u64);
        Ok(())
    }
    fn cuMemCreate(handle: Out<u64>, bytes: usize, props: Out<AllocationProp>, _flags: u64) {
        let props = props.get()?;
        let bytes = whole(bytes)?;
        if handle.is_null() || props.location.kind != LOCATION_DEVICE {
            return Err(INVALID_VALUE);
        }
        let mut state = state()?;
        state.gpu(props.location.id)?;
        let id = state.ask_bytes(props.location.id, bytes)?;
        let device = props.location.id;
        let number = state.handle() as u64;
        let physical = Physical { id, bytes, device, handles: 1, mappings: 0 };
        state.memory.physical.insert(number, physical);
        handle.put(number)
    }
    fn cuMemRelease(handle: u64) {
        let mut state = state()?;
        let physical = state.memory.physical.get_mut(&handle).ok_or(INVALID_VALUE)?;
        physical.handles = physical.handles.checked_sub(1).ok_or(INVALID_VALUE)?;
        state.drop_physical(handle)
    }
    fn cuMemMap(at: DevicePtr, bytes: usize, offset: usize, handle: u64, _flags: u64) {
        let bytes = whole(bytes)?;
        let mut state = state()?;
        let physical = state.memory.physical.get(&handle).ok_or(INVALID_VALUE)?;
        if offset != 0 || bytes > physical.bytes || physical.handles == 0 {
            return Err(INVALID_VALUE);
        }
        let device = physical.device;
        let reserved = state.memory.reserved.range(..=at).next_back();
        let fits = reserved.is_some_and(|(base, len)| at + bytes <= base + len);
        let before = state.memory.pieces.range(..at.saturating_add(bytes)).next_back();
        let taken = before.is_some_and(|(base, piece)| base + piece.bytes > at);
        if !fits || taken {
            return Err(INVALID_VALUE);
        }
        protect(at, bytes, true)?;
        let piece = Piece { bytes, device, context: 0, origin: Origin::Mapped(handle) };
        state.memory.pieces.insert(at, piece);
        if let Some(physical) = state.memory.physical.get_mut(&handle) {
            physical.mappings += 1;
        }
        Ok(())
    }
    fn cuMemUnmap(at: DevicePtr, bytes: usize) {
        let mut state = state()?;
        let end = at.saturating_add(bytes as u64);
        let inside: Vec<(DevicePtr, Piece)> =
            state.memory.pieces.range(at..end).map(|(at, piece)| (*at, *piece)).collect();
        let exact = inside.iter().map(|(_, piece)| piece.bytes).sum::<u64>() == bytes as u64;
        if inside.is_empty() || !exact {
            return Err(INVALID_VALUE);
        }
        for (at, piece) in inside {
            let Origin::Mapped(handle) = piece.origin else { return Err(INVALID_VALUE) };
            state.memory.pieces.remove(&at);
            protect(at, piece.bytes, false)?;
            if let Some(physical) = state.memory.physical.get_mut(&handle) {
                physical.mappings = physical.mappings.saturating_sub(1);
            }
            state.drop_physical(handle)?;
        }
        Ok(())
    }
    fn cuMemSetAccess(at: DevicePtr, bytes: usize, _access: *const c_void, _count: usize) {
        if state()?.memory.covers(at, bytes as u64) { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuMemGetAccess(flags: Out<u64>, _location: Out<Location>, at: DevicePtr) {
        state()?.memory.piece_at(at).ok_or(INVALID_VALUE)?;
        flags.put(3)
    }
    fn cuMemGetAllocationGranularity(bytes: Out<usize>, _props: Out<AllocationProp>, _option: c_int) {
        bytes.put(usize::try_from(GRANULARITY).map_err(|_| INVALID_VALUE)?)
    }
    fn cuMemGetAllocationPropertiesFromHandle(props: Out<AllocationProp>, handle: u64) {
        let state = state()?;
        let physical = state.memory.physical.get(&handle).ok_or(INVALID_VALUE)?;
        let location = Location { kind: LOCATION_DEVICE, id: physical.device };
        let windows = std::ptr::null_mut();
        props.put(AllocationProp { kind: 1, handle_types: 0, location, windows, flags: [0; 8] })
    }
    fn cuMemRetainAllocationHandle(handle: Out<u64>, at: DevicePtr) {
        let mut state = state()?;
        let (_, piece) = state.memory.piece_at(at).ok_or(INVALID_VALUE)?;
        let Origin::Mapped(number) = piece.origin else { return Err(INVALID_VALUE) };
        let physical = state.memory.physical.get_mut(&number).ok_or(INVALID_VALUE)?;
        physical.handles += 1;
        handle.put(number)
    }
    fn cuMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: c_int, _flags: u64) {
        let state = state()?;
        let id = state.memory.physical.get(&handle).ok_or(INVALID_VALUE)?.id;
        match kind {
            POSIX_DESCRIPTOR => {
                let file = memfd_create(c"cuda-standin-memory", MFdFlags::MFD_CLOEXEC).map_err(|_| UNKNOWN)?;
                nix::unistd::write(&file, &id.to_le_bytes()).map_err(|_| UNKNOWN)?;
                Out::of(out.cast::<c_int>()).put(file.into_raw_fd())
            }
            FABRIC => Out::of(out.cast::<Opaque>()).put(opaque(id)),
            _ => Err(NOT_SUPPORTED),
        }
    }
    fn cuMemImportFromShareableHandle(handle: Out<u64>, from: *mut c_void, kind: c_int) {
        let id = match kind {
            POSIX_DESCRIPTOR => {
                let raw = c_int::try_from(from as usize).map_err(|_| INVALID_VALUE)?;
                // SAFETY: the caller lends the descriptor for the length of the call.
                let file = unsafe { BorrowedFd::borrow_raw(raw) };
                let mut word = [0; 8];
                let got = nix::sys::uio::pread(file, &mut word, 0).map_err(|_| INVALID_VALUE)?;
                if got != 8 {
                    return Err(INVALID_VALUE);
                }
                let _ = file.as_raw_fd();
                u64::from_le_bytes(word)
            }
            FABRIC => opened(&Out::of(from.cast::<Opaque>()).get()?),
            _ => return Err(NOT_SUPPORTED),
        };
        let mut state = state()?;
        let shared = state.link.ask(&Request { a: id, ..Request::new(Op::Share) })?;
        let device = Device::try_from(shared.y).map_err(|_| INVALID_DEVICE)?;
        let number = state.handle() as u64;
        let physical = Physical { id, bytes: shared.x, device, handles: 1, mappings: 0 };
        state.memory.physical.insert(number, physical);
        handle.put(number)
    }
    fn cuCheckpointProcessGetState(pid: c_int, out: Out<c_uint>) {
        let found = checkpoint(pid, ASK)?;
        out.put(found)
    }
    fn cuCheckpointProcessLock(pid: c_int, _arguments: *mut c_void) { checkpoint(pid, 1).map(|_| ()) }
    fn cuCheckpointProcessCheckpoint(pid: c_int, _arguments: *mut c_void) { checkpoint(pid, 2).map(|_| ()) }
    fn cuCheckpointProcessRestore(pid: c_int, _arguments: *mut c_void) { checkpoint(pid, 1).map(|_| ()) }
    fn cuCheckpointProcessUnlock(pid: c_int, _arguments: *mut c_void) { checkpoint(pid, 0).map(|_| ()) }
}

const LOCATION_DEVICE: c_int = 1;
const POSIX_DESCRIPTOR: c_int = 1;
const FABRIC: c_int = 8;
/// To the engine: change nothing.
const ASK: u64 = 3;

fn whole(bytes: usize) -> Result<u64, Code> {
    let bytes = bytes as u64;
    if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) { Err(INVALID_VALUE) } else { Ok(bytes) }
}

fn checkpoint(pid: c_int, to: u64) -> Result<c_uint, Code> {
    let a = u64::try_from(pid).map_err(|_| INVALID_VALUE)?;
    let found = state()?.link.ask(&Request { a, b: to, ..Request::new(Op::Checkpoint) })?;
    c_uint::try_from(found.x).map_err(|_| UNKNOWN)
}
