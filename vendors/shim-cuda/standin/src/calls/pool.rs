//! Memory pools and what is allocated in a stream's order.

use std::ffi::{c_int, c_uint};

use crate::{
    abi::{
        Code, Device, DevicePtr, Handle, INVALID_HANDLE, INVALID_VALUE, Location, Out, PoolProps,
    },
    calls::memory::current_device,
    exports::{Variant, exports, stream_exports},
    state::{State, state},
};

exports! {
    fn cuMemPoolCreate(pool: Out<Handle>, props: Out<PoolProps>) {
        let props = props.get()?;
        let mut state = state()?;
        state.gpu(props.location.id)?;
        if props.location.kind != LOCATION_DEVICE {
            return Err(INVALID_VALUE);
        }
        let handle = state.handle();
        let device = u64::try_from(props.location.id).map_err(|_| INVALID_VALUE)?;
        state.memory.open_pool(handle, device, props.bytes_max as u64);
        pool.put(handle)
    }
    fn cuMemPoolDestroy(pool: Handle) {
        let mut state = state()?;
        if state.gpus.iter().any(|gpu| gpu.default_pool == pool) {
            return Err(INVALID_VALUE);
        }
        if let Some(open) = state.memory.pools.get_mut(&pool) {
            // What is still allocated dies with it, here.
            open.used = 0;
        }
        state.trim_pool(pool, 0)?;
        state.memory.pools.remove(&pool);
        for gpu in &mut state.gpus {
            if gpu.pool == pool {
                gpu.pool = gpu.default_pool;
            }
        }
        Ok(())
    }
    fn cuMemPoolTrimTo(pool: Handle, keep: usize) { state()?.trim_pool(pool, keep as u64) }
    fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: Out<u64>) {
        let state = state()?;
        let pool = state.memory.pools.get(&pool).ok_or(INVALID_HANDLE)?;
        match attribute {
            1..=3 => Out::of(value.address().cast::<c_int>()).put(1),
            ATTRIBUTE_THRESHOLD => value.put(pool.threshold),
            5 => value.put(pool.reserved),
            ATTRIBUTE_RESERVED_HIGH => value.put(pool.reserved_high),
            7 => value.put(pool.used),
            ATTRIBUTE_USED_HIGH => value.put(pool.used_high),
            13 => value.put(if pool.bytes_max == u64::MAX { 0 } else { pool.bytes_max }),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: Out<u64>) {
        let mut state = state()?;
        let pool = state.memory.pools.get_mut(&pool).ok_or(INVALID_HANDLE)?;
        match attribute {
            1..=3 => Ok(()),
            ATTRIBUTE_THRESHOLD => {
                pool.threshold = value.get()?;
                Ok(())
            }
            ATTRIBUTE_RESERVED_HIGH => {
                pool.reserved_high = pool.reserved;
                Ok(())
            }
            ATTRIBUTE_USED_HIGH => {
                pool.used_high = pool.used;
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemPoolSetAccess(pool: Handle, _map: *const u8, _count: usize) { known(pool) }
    fn cuMemPoolGetAccess(flags: Out<c_uint>, pool: Handle, _location: Out<Location>) {
        known(pool)?;
        flags.put(3)
    }
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: Device) {
        pool.put(state()?.gpu(device)?.default_pool)
    }
    fn cuDeviceGetMemPool(pool: Out<Handle>, device: Device) { pool.put(state()?.gpu(device)?.pool) }
    fn cuDeviceSetMemPool(device: Device, pool: Handle) {
        known(pool)?;
        state()?.gpu_mut(device)?.pool = pool;
        Ok(())
    }
    fn cuMemGetDefaultMemPool(pool: Out<Handle>, location: Out<Location>, _kind: c_int) {
        pool.put(at(&*state()?, location)?.1)
    }
    fn cuMemGetMemPool(pool: Out<Handle>, location: Out<Location>, _kind: c_int) {
        pool.put(at(&*state()?, location)?.0)
    }
    fn cuMemSetMemPool(location: Out<Location>, _kind: c_int, pool: Handle) {
        known(pool)?;
        let mut state = state()?;
        at(&state, location)?;
        state.gpu_mut(location.get()?.id)?.pool = pool;
        Ok(())
    }
}

stream_exports! { variant;
    fn cuMemAllocAsync/cuMemAllocAsync_ptsz(at: Out<DevicePtr>, bytes: usize, stream: Handle) {
        let (_, device) = current_device()?;
        let pool = state()?.gpu(device)?.pool;
        allocate(at, bytes, pool, stream, variant)
    }
    fn cuMemAllocFromPoolAsync/cuMemAllocFromPoolAsync_ptsz(
        at: Out<DevicePtr>, bytes: usize, pool: Handle, stream: Handle,
    ) { allocate(at, bytes, pool, stream, variant) }
    fn cuMemFreeAsync/cuMemFreeAsync_ptsz(at: DevicePtr, stream: Handle) {
        let mut state = state()?;
        state.resolve(stream, variant)?;
        state.free(at)
    }
}

const LOCATION_DEVICE: c_int = 1;
const ATTRIBUTE_THRESHOLD: c_int = 4;
const ATTRIBUTE_RESERVED_HIGH: c_int = 6;
const ATTRIBUTE_USED_HIGH: c_int = 8;

fn known(pool: Handle) -> Result<(), Code> {
    if state()?.memory.pools.contains_key(&pool) { Ok(()) } else { Err(INVALID_HANDLE) }
}

/// The current and the default pool of a place.
fn at(state: &State, location: Out<Location>) -> Result<(Handle, Handle), Code> {
    let location = location.get()?;
    if location.kind != LOCATION_DEVICE {
        return Err(INVALID_VALUE);
    }
    let gpu = state.gpu(location.id)?;
    Ok((gpu.pool, gpu.default_pool))
}

fn allocate(
    at: Out<DevicePtr>,
    bytes: usize,
    pool: Handle,
    stream: Handle,
    variant: Variant,
) -> Result<(), Code> {
    if at.is_null() {
        return Err(INVALID_VALUE);
    }
    let mut state = state()?;
    state.resolve(stream, variant)?;
    let address = state.allocate_from(pool, bytes as u64)?;
    at.put(address)
}
