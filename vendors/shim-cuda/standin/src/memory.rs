//! Device memory: the engine has the account, this process has pages at the addresses.
//!
//! Address space is reserved and never filled unless somebody writes, so that eighty gibibytes
//! of device memory cost nothing here.

use std::{collections::HashMap, ffi::c_void};

use accelpool_cuda_engine::{
    FaultAt,
    wire::{Op, Request},
};

use crate::{
    abi::{
        Code, Device, DevicePtr, Handle, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE,
        OUT_OF_MEMORY,
    },
    state::{ByAddress, State},
};

/// What memory is granted and mapped in.
pub(crate) const GRANULARITY: u64 = 2 << 20;
/// What pools grow by.
const POOL_STEP: u64 = 32 << 20;

/// How a piece of device memory came to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An allocation of its own, by the engine's number; a managed one is the host's too.
    Own { id: u64, managed: bool },
    /// From a pool.
    Pool(Handle),
    /// Another process's, by the engine's number.
    Imported(u64),
    /// Physical memory mapped into a reserved range, by its handle.
    Mapped(u64),
}

#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) bytes: u64,
    pub(crate) device: Device,
    pub(crate) context: Handle,
    pub(crate) origin: Origin,
}

/// Physical memory without an address.
pub(crate) struct Physical {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    pub(crate) device: Device,
    pub(crate) handles: u32,
    pub(crate) mappings: u32,
}

pub(crate) struct Pool {
    pub(crate) device: Device,
    /// The engine's number of what it has reserved, if it has.
    id: Option<u64>,
    pub(crate) reserved: u64,
    pub(crate) reserved_high: u64,
    pub(crate) used: u64,
    pub(crate) used_high: u64,
    pub(crate) threshold: u64,
    pub(crate) bytes_max: u64,
}

/// Host memory that the driver knows.
pub(crate) struct Host {
    pub(crate) bytes: u64,
    pub(crate) registered: bool,
}

#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) pieces: ByAddress<Piece>,
    pub(crate) reserved: ByAddress<u64>,
    pub(crate) hosts: ByAddress<Host>,
    pub(crate) physical: HashMap<u64, Physical>,
    pub(crate) pools: HashMap<Handle, Pool>,
    /// Arrays by their handle: the engine's number.
    pub(crate) arrays: HashMap<Handle, u64>,
}

impl Memory {
    pub(crate) fn open_pool(&mut self, handle: Handle, device: u64, bytes_max: u64) {
        let device = Device::try_from(device).unwrap_or(Device::MAX);
        let bytes_max = if bytes_max == 0 { u64::MAX } else { bytes_max };
        let pool = Pool {
            device,
            id: None,
            reserved: 0,
            reserved_high: 0,
            used: 0,
            used_high: 0,
            threshold: 0,
            bytes_max,
        };
        self.pools.insert(handle, pool);
    }

    /// The piece that an address lies in, and where it begins.
    pub(crate) fn piece_at(&self, address: DevicePtr) -> Option<(DevicePtr, &Piece)> {
        let (base, piece) = self.pieces.range(..=address).next_back()?;
        (address - base < piece.bytes.max(1)).then_some((*base, piece))
    }

    /// Whether all of a range is device memory, or host memory that the driver knows.
    pub(crate) fn covers(&self, address: DevicePtr, bytes: u64) -> bool {
        let mut at = address;
        let Some(end) = address.checked_add(bytes) else { return false };
        while at < end {
            let piece = self.piece_at(at).map(|(base, piece)| base + piece.bytes);
            let host = self.hosts.range(..=at).next_back().map(|(base, host)| base + host.bytes);
            match piece.or(host) {
                Some(until) if until > at => at = until,
                _ => return false,
            }
        }
        true
    }
}

/// Address space for so many bytes; readable and writable, or reserved alone.
pub(crate) fn map(bytes: u64, usable: bool) -> Result<DevicePtr, Code> {
    let len = usize::try_from(bytes.max(1)).map_err(|_| OUT_OF_MEMORY)?;
    let prot = if usable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping where the kernel likes; it overlaps nothing.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(OUT_OF_MEMORY) } else { Ok(at as u64) }
}

/// Gives address space back that `map` gave.
pub(crate) fn unmap(address: DevicePtr, bytes: u64) {
    let Ok(len) = usize::try_from(bytes.max(1)) else { return };
    // SAFETY: the range came from `map` with this length and is in no table any more; whoever
    // still holds a pointer into freed device memory may fault, as on a GPU.
    unsafe { libc::munmap(address as *mut c_void, len) };
}

/// Makes a part of a reserved range usable, or takes that back along with its content.
pub(crate) fn protect(address: DevicePtr, bytes: u64, usable: bool) -> Result<(), Code> {
    let len = usize::try_from(bytes).map_err(|_| INVALID_VALUE)?;
    let prot = if usable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
    let at = address as *mut c_void;
    // SAFETY: the caller has checked that the range lies in one that `map` reserved and that
    // was not given back.
    let failed = unsafe { libc::mprotect(at, len, prot) };
    if !usable {
        // SAFETY: as above; the content of memory that is unmapped is nobody's.
        unsafe { libc::madvise(at, len, libc::MADV_DONTNEED) };
    }
    if failed == 0 { Ok(()) } else { Err(INVALID_VALUE) }
}

impl State {
    /// Bytes of a device, as the engine has them left: its number of them.
    pub(crate) fn ask_bytes(&mut self, device: Device, bytes: u64) -> Result<u64, Code> {
        self.fault(FaultAt::Allocate)?;
        let a = u64::try_from(device).map_err(|_| INVALID_DEVICE)?;
        let request = Request { a, b: bytes, ..Request::new(Op::Allocate) };
        Ok(self.link.ask(&request)?.x)
    }

    pub(crate) fn return_bytes(&mut self, id: u64) -> Result<(), Code> {
        self.link.ask(&Request { a: id, ..Request::new(Op::Free) }).map(|_| ())
    }

    /// An allocation of its own on the current context's device.
    pub(crate) fn allocate(&mut self, bytes: u64, managed: bool) -> Result<DevicePtr, Code> {
        let context = self.current()?;
        let device = self.context(context)?.device;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let id = self.ask_bytes(device, bytes)?;
        let at = match map(bytes, true) {
            Ok(at) => at,
            Err(code) => {
                self.return_bytes(id)?;
                return Err(code);
            }
        };
        let origin = Origin::Own { id, managed };
        self.memory.pieces.insert(at, Piece { bytes, device, context, origin });
        Ok(at)
    }

    /// Gives a piece back, whatever it is; VMM mappings have a call of their own.
    pub(crate) fn free(&mut self, address: DevicePtr) -> Result<(), Code> {
        let piece = *self.memory.pieces.get(&address).ok_or(INVALID_VALUE)?;
        match piece.origin {
            Origin::Own { id, .. } => self.return_bytes(id)?,
            Origin::Pool(pool) => {
                if let Some(pool) = self.memory.pools.get_mut(&pool) {
                    pool.used = pool.used.saturating_sub(piece.bytes);
                }
            }
            Origin::Imported(_) | Origin::Mapped(_) => return Err(INVALID_VALUE),
        }
        self.memory.pieces.remove(&address);
        unmap(address, piece.bytes);
        Ok(())
    }

    /// Memory of a pool, which grows if it must and may.
    pub(crate) fn allocate_from(&mut self, handle: Handle, bytes: u64) -> Result<DevicePtr, Code> {
        let context = self.current()?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let bytes = bytes.next_multiple_of(512);
        let pool = self.memory.pools.get(&handle).ok_or(INVALID_HANDLE)?;
        let (device, used) = (pool.device, pool.used.saturating_add(bytes));
        if used > pool.reserved {
            let wanted = used.checked_next_multiple_of(POOL_STEP).ok_or(OUT_OF_MEMORY)?;
            let wanted = wanted.min(pool.bytes_max);
            if wanted < used {
                return Err(OUT_OF_MEMORY);
            }
            self.resize_pool(handle, wanted)?;
        }
        let at = map(bytes, true)?;
        if let Some(pool) = self.memory.pools.get_mut(&handle) {
            pool.used = used;
            pool.used_high = pool.used_high.max(used);
        }
        let origin = Origin::Pool(handle);
        self.memory.pieces.insert(at, Piece { bytes, device, context, origin });
        Ok(at)
    }

    pub(crate) fn resize_pool(&mut self, handle: Handle, bytes: u64) -> Result<(), Code> {
        let pool = self.memory.pools.get(&handle).ok_or(INVALID_HANDLE)?;
        let (id, device) = (pool.id, pool.device);
        let id = match id {
            Some(id) if bytes == 0 => {
                self.return_bytes(id)?;
                None
            }
            Some(id) => {
                if bytes > pool.reserved {
                    self.fault(FaultAt::Allocate)?;
                }
                self.link.ask(&Request { a: id, b: bytes, ..Request::new(Op::Resize) })?;
                Some(id)
            }
            None if bytes == 0 => None,
            None => Some(self.ask_bytes(device, bytes)?),
        };
        if let Some(pool) = self.memory.pools.get_mut(&handle) {
            (pool.id, pool.reserved) = (id, bytes);
            pool.reserved_high = pool.reserved_high.max(bytes);
        }
        Ok(())
    }

    /// Pools give back what they need not keep, but for `keep` bytes.
    pub(crate) fn trim_pool(&mut self, handle: Handle, keep: u64) -> Result<(), Code> {
        let pool = self.memory.pools.get(&handle).ok_or(INVALID_HANDLE)?;
        let bytes = pool.used.max(keep);
        if bytes < pool.reserved { self.resize_pool(handle, bytes) } else { Ok(()) }
    }

    /// What a synchronization does to all pools: they shrink to their thresholds.
    pub(crate) fn trim_pools(&mut self) -> Result<(), Code> {
        let all: Vec<(Handle, u64)> =
            self.memory.pools.iter().map(|(handle, pool)| (*handle, pool.threshold)).collect();
        all.into_iter().try_for_each(|(handle, keep)| self.trim_pool(handle, keep))
    }

    /// A handle or a mapping of physical memory is gone; with the last, its bytes.
    pub(crate) fn drop_physical(&mut self, handle: u64) -> Result<(), Code> {
        let physical = self.memory.physical.get(&handle).ok_or(INVALID_VALUE)?;
        if physical.handles == 0 && physical.mappings == 0 {
            let id = physical.id;
            self.memory.physical.remove(&handle);
            self.return_bytes(id)?;
        }
        Ok(())
    }

    /// A context takes its own allocations along.
    pub(crate) fn drop_memory_of(&mut self, context: Handle) -> Result<(), Code> {
        let own = self.memory.pieces.iter().filter(|(_, piece)| piece.context == context);
        let own = own.filter(|(_, piece)| matches!(piece.origin, Origin::Own { .. }));
        let own: Vec<DevicePtr> = own.map(|(at, _)| *at).collect();
        own.into_iter().try_for_each(|at| self.free(at))
    }

    /// Fills device memory with one pattern.
    pub(crate) fn fill(&self, to: DevicePtr, pattern: &[u8], count: u64) -> Result<(), Code> {
        let width = pattern.len() as u64;
        let bytes = count.checked_mul(width).ok_or(INVALID_VALUE)?;
        if !self.memory.covers(to, bytes) || !to.is_multiple_of(width) {
            return Err(INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: the range was just found in the tables, and the lock keeps it there.
            unsafe {
                let at = (to + index * width) as *mut u8;
                std::ptr::copy_nonoverlapping(pattern.as_ptr(), at, pattern.len());
            }
        }
        Ok(())
    }
}

/// Copies, where both sides are what they should be.
pub(crate) fn copy_bytes(to: DevicePtr, from: DevicePtr, bytes: u64) -> Result<(), Code> {
    let len = usize::try_from(bytes).map_err(|_| INVALID_VALUE)?;
    if len == 0 {
        return Ok(());
    }
    if to == 0 || from == 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the callers have checked device ranges against the tables, which the lock on
    // the state keeps as they are; host ranges are the caller's promise, as with CUDA.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
    Ok(())
}
