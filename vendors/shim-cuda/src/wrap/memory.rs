//! Memory: allocation, free, mappings, and what there is of it.

use core::{ffi::c_int, sync::atomic::Ordering};

use super::{Pointer, given, wrap, written};
use crate::{
    capture,
    device::{self, Device},
    fence::Stream,
    memory::{self, GRAPHS_ALLOCATE, Kind},
    process,
    surface::{self, OUT_OF_MEMORY, SUCCESS},
    thread::thread,
};

/// What a row of a pitched allocation is at least a multiple of.
const PITCH_BYTES: u64 = 512;

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: u32 = 1;

/// `CU_MEM_LOCATION_TYPE_HOST`, `_HOST_NUMA`, `_HOST_NUMA_CURRENT`.
const ON_HOST: core::ops::RangeInclusive<u32> = 2..=4;

/// `CUmemAllocationProp`, as far as it is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: u32,
    handle_types: u32,
    location: u32,
    device: c_int,
}

/// `CUDA_ARRAY_DESCRIPTOR`, in its older form and in this one.
#[repr(C)]
#[derive(Clone, Copy)]
struct Array<Size> {
    width: Size,
    height: Size,
    format: u32,
    channels: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`, likewise.
#[repr(C)]
#[derive(Clone, Copy)]
struct Array3d<Size> {
    width: Size,
    height: Size,
    depth: Size,
    format: u32,
    channels: u32,
    flags: u32,
}

/// An array whose pages are mapped later, from memory that is charged by itself:
/// `CUDA_ARRAY3D_SPARSE`, `CUDA_ARRAY3D_DEFERRED_MAPPING`.
const WITHOUT_MEMORY: u32 = 0x40 | 0x80;

fn array_bytes([width, height, depth]: [u64; 3], format: u32, channels: u32) -> Option<u64> {
    let channels = u64::from(channels.max(1));
    // `CUarray_format`; compressed blocks take at most a byte a pixel, with all channels.
    let pixel_bytes = match format {
        0x01 | 0x08 | 0xc0..=0xc5 => channels,
        0x02 | 0x09 | 0x10 | 0xb0 | 0xc6..=0xcb => 2 * channels,
        0x91..=0x9d => 1,
        _ => 4 * channels,
    };
    let pixels = width.checked_mul(height.max(1))?.checked_mul(depth.max(1))?;
    pixels.checked_mul(pixel_bytes)
}

fn pitched_bytes(row: u64, rows: u64) -> Option<u64> {
    row.checked_next_multiple_of(PITCH_BYTES)?.checked_mul(rows)
}

unsafe fn array_3d(descriptor: Pointer) -> Option<u64> {
    // SAFETY: as of the caller, which has a descriptor of this version.
    let Some(it) = (unsafe { given::<Array3d<usize>>(descriptor) }) else { return Some(0) };
    let size = [it.width, it.height, it.depth].map(|it| it as u64);
    if it.flags & WITHOUT_MEMORY == 0 { array_bytes(size, it.format, it.channels) } else { Some(0) }
}

/// Allocates what has an address that is written to `pointer`.
unsafe fn pointer(pointer: Pointer, bytes: Option<u64>, call: impl FnOnce() -> c_int) -> c_int {
    let device = memory::charged(thread());
    // SAFETY: the driver writes the address when it succeeds.
    memory::allocate(device, Kind::Pointer, bytes, call, || unsafe { written(pointer) })
}

/// Pins memory of the host; `made` is where it is.
fn pin(bytes: u64, call: impl FnOnce() -> c_int, made: impl FnOnce() -> u64) -> c_int {
    memory::allocate(memory::charged(thread()), Kind::Host, Some(bytes), call, made)
}

/// The whole pages of a range, from its first byte's to its last byte's.
fn page_bytes(address: Pointer, bytes: usize) -> u64 {
    let into = address.addr() as u64 % device::PAGE_BYTES;
    (bytes as u64).saturating_add(into)
}

unsafe fn array(array: Pointer, bytes: Option<u64>, call: impl FnOnce() -> c_int) -> c_int {
    let device = memory::charged(thread());
    // SAFETY: the driver writes the handle when it succeeds.
    memory::allocate(device, Kind::Array, bytes, call, || unsafe { written(array) })
}

/// Allocates in the order of a stream; in a capture it is a graph that will allocate.
unsafe fn in_order(
    stream: Stream,
    there: Pointer,
    bytes: usize,
    call: impl FnOnce() -> c_int,
) -> c_int {
    if capture::is_capturing(stream) {
        GRAPHS_ALLOCATE.store(true, Ordering::Relaxed);
        return call();
    }
    // SAFETY: as above.
    unsafe { pointer(there, Some(bytes as u64), call) }
}

wrap! {
    fn cuMemAlloc_v2(there: Pointer, bytes: usize) {
        pointer(there, Some(bytes as u64), || surface::cuMemAlloc_v2(there, bytes))
    }

    fn cuMemAllocManaged(there: Pointer, bytes: usize, flags: u32) {
        let call = || surface::cuMemAllocManaged(there, bytes, flags);
        pointer(there, Some(bytes as u64), call)
    }

    fn cuMemAllocPitch_v2(there: Pointer, pitch: Pointer, row: usize, rows: usize, element: u32) {
        if there.is_null() || pitch.is_null() {
            // The driver's to refuse.
            return surface::cuMemAllocPitch_v2(there, pitch, row, rows, element);
        }
        // Into places of our own: rows that the driver makes longer may be more than the quota.
        let (mut address, mut row_bytes) = (0_u64, 0_usize);
        let (made, its_pitch) = ((&raw mut address).cast(), (&raw mut row_bytes).cast());
        let call = || surface::cuMemAllocPitch_v2(made, its_pitch, row, rows, element);
        let outcome = pointer(made, pitched_bytes(row as u64, rows as u64), call);
        if outcome != SUCCESS {
            return outcome;
        }
        if !memory::correct(address, row_bytes.saturating_mul(rows) as u64) {
            memory::free(Kind::Pointer, address, || surface::cuMemFree_v2(address));
            return OUT_OF_MEMORY;
        }
        there.cast::<u64>().write_unaligned(address);
        pitch.cast::<usize>().write_unaligned(row_bytes);
        outcome
    }

    fn cuMemAllocAsync(there: Pointer, bytes: usize, stream: Pointer) {
        let call = || surface::cuMemAllocAsync(there, bytes, stream);
        in_order(Stream::new(stream, false), there, bytes, call)
    }

    fn cuMemAllocAsync_ptsz(there: Pointer, bytes: usize, stream: Pointer) {
        let call = || surface::cuMemAllocAsync_ptsz(there, bytes, stream);
        in_order(Stream::new(stream, true), there, bytes, call)
    }

    fn cuMemAllocFromPoolAsync(there: Pointer, bytes: usize, pool: Pointer, stream: Pointer) {
        let call = || surface::cuMemAllocFromPoolAsync(there, bytes, pool, stream);
        in_order(Stream::new(stream, false), there, bytes, call)
    }

    fn cuMemAllocFromPoolAsync_ptsz(there: Pointer, bytes: usize, pool: Pointer, stream: Pointer) {
        let call = || surface::cuMemAllocFromPoolAsync_ptsz(there, bytes, pool, stream);
        in_order(Stream::new(stream, true), there, bytes, call)
    }

    fn cuMemCreate(handle: Pointer, bytes: usize, properties: Pointer, flags: u64) {
        let call = || surface::cuMemCreate(handle, bytes, properties, flags);
        let is_ours = !thread().is_inside() && process::is_active();
        let place = given::<Properties>(properties).filter(|_| is_ours);
        let (device, kind) = match place {
            Some(it) if it.location == ON_DEVICE => (device::by_number(it.device), Kind::Handle),
            // It needs no context: any device of the claim leads to the claim.
            Some(it) if ON_HOST.contains(&it.location) => (device::all().next(), Kind::HostHandle),
            Some(_) | None => (None, Kind::Handle),
        };
        let made = || written(handle);
        memory::allocate(device, kind, Some(bytes as u64), call, made)
    }

    fn cuArrayCreate_v2(handle: Pointer, descriptor: Pointer) {
        let bytes = given::<Array<usize>>(descriptor).map_or(Some(0), |it| {
            array_bytes([it.width as u64, it.height as u64, 1], it.format, it.channels)
        });
        array(handle, bytes, || surface::cuArrayCreate_v2(handle, descriptor))
    }

    fn cuArray3DCreate_v2(handle: Pointer, descriptor: Pointer) {
        let call = || surface::cuArray3DCreate_v2(handle, descriptor);
        array(handle, array_3d(descriptor), call)
    }

    fn cuMipmappedArrayCreate(handle: Pointer, descriptor: Pointer, levels: u32) {
        // All smaller levels together have at most as much again as the first.
        let bytes = array_3d(descriptor).and_then(|it| it.checked_mul(1 + u64::from(levels > 1)));
        array(handle, bytes, || surface::cuMipmappedArrayCreate(handle, descriptor, levels))
    }

    // The first versions, of 32-bit programs' sizes.

    fn cuMemAlloc(there: Pointer, bytes: u32) {
        let device = memory::charged(thread());
        let call = || surface::cuMemAlloc(there, bytes);
        let made = || u64::from(written::<u32>(there));
        memory::allocate(device, Kind::Pointer, Some(bytes.into()), call, made)
    }

    fn cuMemAllocPitch(there: Pointer, pitch: Pointer, row: u32, rows: u32, element: u32) {
        let device = memory::charged(thread());
        let call = || surface::cuMemAllocPitch(there, pitch, row, rows, element);
        let bytes = pitched_bytes(row.into(), rows.into());
        let made = || u64::from(written::<u32>(there));
        memory::allocate(device, Kind::Pointer, bytes, call, made)
    }

    fn cuArrayCreate(handle: Pointer, descriptor: Pointer) {
        let bytes = given::<Array<u32>>(descriptor).map_or(Some(0), |it| {
            array_bytes([it.width.into(), it.height.into(), 1], it.format, it.channels)
        });
        array(handle, bytes, || surface::cuArrayCreate(handle, descriptor))
    }

    fn cuArray3DCreate(handle: Pointer, descriptor: Pointer) {
        let bytes = given::<Array3d<u32>>(descriptor).map_or(Some(0), |it| {
            let size = [it.width, it.height, it.depth].map(u64::from);
            array_bytes(size, it.format, it.channels)
        });
        array(handle, bytes, || surface::cuArray3DCreate(handle, descriptor))
    }

    fn cuMemFree_v2(pointer: u64) {
        memory::free(Kind::Pointer, pointer, || surface::cuMemFree_v2(pointer))
    }

    fn cuMemFree(pointer: u64) {
        let key = pointer & u64::from(u32::MAX);
        memory::free(Kind::Pointer, key, || surface::cuMemFree(pointer))
    }

    fn cuMemFreeAsync(pointer: u64, stream: Pointer) {
        let call = || surface::cuMemFreeAsync(pointer, stream);
        memory::free_in_order(Stream::new(stream, false), pointer, call)
    }

    fn cuMemFreeAsync_ptsz(pointer: u64, stream: Pointer) {
        let call = || surface::cuMemFreeAsync_ptsz(pointer, stream);
        memory::free_in_order(Stream::new(stream, true), pointer, call)
    }

    fn cuArrayDestroy(array: Pointer) {
        memory::free(Kind::Array, array.addr() as u64, || surface::cuArrayDestroy(array))
    }

    fn cuMipmappedArrayDestroy(array: Pointer) {
        memory::free(Kind::Array, array.addr() as u64, || surface::cuMipmappedArrayDestroy(array))
    }

    fn cuMemHostAlloc(there: Pointer, bytes: usize, flags: u32) {
        pin(bytes as u64, || surface::cuMemHostAlloc(there, bytes, flags), || written(there))
    }

    fn cuMemAllocHost_v2(there: Pointer, bytes: usize) {
        pin(bytes as u64, || surface::cuMemAllocHost_v2(there, bytes), || written(there))
    }

    fn cuMemAllocHost(there: Pointer, bytes: u32) {
        pin(bytes.into(), || surface::cuMemAllocHost(there, bytes), || written(there))
    }

    fn cuMemHostRegister_v2(address: Pointer, bytes: usize, flags: u32) {
        let call = || surface::cuMemHostRegister_v2(address, bytes, flags);
        pin(page_bytes(address, bytes), call, || address.addr() as u64)
    }

    fn cuMemHostRegister(address: Pointer, bytes: usize, flags: u32) {
        let call = || surface::cuMemHostRegister(address, bytes, flags);
        pin(page_bytes(address, bytes), call, || address.addr() as u64)
    }

    fn cuMemFreeHost(address: Pointer) {
        memory::free(Kind::Host, address.addr() as u64, || surface::cuMemFreeHost(address))
    }

    fn cuMemHostUnregister(address: Pointer) {
        memory::free(Kind::Host, address.addr() as u64, || surface::cuMemHostUnregister(address))
    }

    fn cuMemRelease(handle: u64) {
        memory::release_handle(handle, || surface::cuMemRelease(handle))
    }

    fn cuMemRetainAllocationHandle(handle: Pointer, address: Pointer) {
        let outcome = surface::cuMemRetainAllocationHandle(handle, address);
        if outcome == SUCCESS {
            memory::add_handle(written(handle));
        }
        outcome
    }

    fn cuMemImportFromShareableHandle(handle: Pointer, from: Pointer, kind: u32) {
        let outcome = surface::cuMemImportFromShareableHandle(handle, from, kind);
        if outcome == SUCCESS {
            // Known if this process exported it; else the exporter is charged for it.
            memory::add_handle(written(handle));
        }
        outcome
    }

    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let outcome = surface::cuMemMap(address, bytes, offset, handle, flags);
        if outcome == SUCCESS {
            memory::mapped(address, bytes as u64, handle);
        }
        outcome
    }

    fn cuMemUnmap(address: u64, bytes: usize) {
        let outcome = surface::cuMemUnmap(address, bytes);
        if outcome == SUCCESS {
            memory::unmapped(address, bytes as u64);
        }
        outcome
    }

    fn cuMemGetInfo_v2(free: Pointer, total: Pointer) {
        let outcome = surface::cuMemGetInfo_v2(free, total);
        let usage = memory::charged(thread()).and_then(Device::usage);
        if let (SUCCESS, Some((used, quota))) = (outcome, usage) {
            let all = quota.min(written::<usize>(total) as u64);
            let left = all.saturating_sub(used).min(written::<usize>(free) as u64);
            // No more than the driver's own sizes.
            total.cast::<usize>().write(usize::try_from(all).unwrap_or(usize::MAX));
            free.cast::<usize>().write(usize::try_from(left).unwrap_or(usize::MAX));
        }
        outcome
    }

    fn cuMemGetInfo(free: Pointer, total: Pointer) {
        let outcome = surface::cuMemGetInfo(free, total);
        let usage = memory::charged(thread()).and_then(Device::usage);
        if let (SUCCESS, Some((used, quota))) = (outcome, usage) {
            let all = quota.min(written::<u32>(total).into());
            let left = all.saturating_sub(used).min(written::<u32>(free).into());
            total.cast::<u32>().write(u32::try_from(all).unwrap_or(u32::MAX));
            free.cast::<u32>().write(u32::try_from(left).unwrap_or(u32::MAX));
        }
        outcome
    }

    fn cuDeviceTotalMem_v2(bytes: Pointer, number: c_int) {
        let outcome = surface::cuDeviceTotalMem_v2(bytes, number);
        if let (SUCCESS, Some(quota)) = (outcome, total_bytes(number)) {
            let all = quota.min(written::<usize>(bytes) as u64);
            bytes.cast::<usize>().write(usize::try_from(all).unwrap_or(usize::MAX));
        }
        outcome
    }

    fn cuDeviceTotalMem(bytes: Pointer, number: c_int) {
        let outcome = surface::cuDeviceTotalMem(bytes, number);
        if let (SUCCESS, Some(quota)) = (outcome, total_bytes(number)) {
            let all = quota.min(written::<u32>(bytes).into());
            bytes.cast::<u32>().write(u32::try_from(all).unwrap_or(u32::MAX));
        }
        outcome
    }
}

/// What a claim has of a device, for those who ask from outside of the driver.
fn total_bytes(number: c_int) -> Option<u64> {
    let is_ours = !thread().is_inside() && process::is_active();
    is_ours.then(|| device::by_number(number)).flatten().map(Device::quota_bytes)
}
