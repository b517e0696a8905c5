//! The quota of device memory: reserve, call the driver, keep or roll back; free, give back.
//!
//! What the driver's functions give out is kept with what it was charged, so that a free
//! gives back just that. What is not known here, as what another process exported, passes.

use core::ffi::c_int;

use core::sync::atomic::{AtomicBool, Ordering};

use accelpool_shim::quota::OverQuota;

use crate::{
    capture, context,
    device::{self, Device},
    fence::Stream,
    map::{Map, Value},
    process,
    surface::{OUT_OF_MEMORY, SUCCESS},
    thread::{Thread, thread},
};

/// Addresses of device memory.
static POINTERS: Map = Map::new();

/// Arrays, mipmapped ones too.
static ARRAYS: Map = Map::new();

/// Addresses of pinned memory of the host.
static HOSTS: Map = Map::new();

/// Physical memory by handle, and mappings of it by address.
static HANDLES: Map = Map::new();
static MAPPINGS: Map = Map::new();

/// The smallest granularity of mappings that any driver has.
const MAPPING_STEP_BYTES: u64 = 1 << 16;

/// A captured allocation was seen: graphs may take memory when they run.
pub(crate) static GRAPHS_ALLOCATE: AtomicBool = AtomicBool::new(false);

/// In the child of a fork, which holds nothing.
pub(crate) fn forget() {
    for map in [&POINTERS, &ARRAYS, &HOSTS, &HANDLES, &MAPPINGS] {
        map.forget();
    }
}

/// Kinds of what an allocation gives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pointer,
    Array,
    Handle,
    /// Pinned memory of the host.
    Host,
    /// The same, by handle.
    HostHandle,
}

impl Kind {
    fn map(self) -> &'static Map {
        match self {
            Self::Pointer => &POINTERS,
            Self::Array => &ARRAYS,
            Self::Handle | Self::HostHandle => &HANDLES,
            Self::Host => &HOSTS,
        }
    }

    /// Whether it is charged to what the claim may pin, and not to a device.
    fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::HostHandle)
    }

    /// Whether it goes with the context in which it was made.
    fn has_context(self) -> bool {
        matches!(self, Self::Pointer | Self::Array | Self::Host)
    }
}

/// The device to charge for what the calling thread allocates now.
pub(crate) fn charged(thread: &Thread) -> Option<&'static Device> {
    if thread.is_inside() || !process::is_active() { None } else { device::current(thread) }
}

/// Allocates `bytes` on a device by `call`; `made` reads what it gave out.
///
/// Outputs stay as they are when the quota refuses, since the driver is not called.
pub(crate) fn allocate(
    device: Option<&Device>,
    kind: Kind,
    bytes: Option<u64>,
    call: impl FnOnce() -> c_int,
    made: impl FnOnce() -> u64,
) -> c_int {
    let thread = thread();
    let Some(device) = device else { return thread.inside(call) };
    // A size that overflows is more than any quota.
    let reserve = |bytes| {
        if kind.is_host() { device.reserve_host(bytes) } else { device.reserve(bytes) }
    };
    let Some(Ok(reservation)) = bytes.map(reserve) else {
        return OUT_OF_MEMORY;
    };
    let outcome = thread.inside(call);
    if outcome == SUCCESS {
        let bytes = reservation.commit();
        // Physical memory by handle goes with no context.
        let context = if kind.has_context() { context::current(thread) } else { 0 };
        let (device, is_host) = (device.number(), kind.is_host());
        let value = Value { bytes, context, device, is_host, handles: 1, ..Value::default() };
        if !kind.map().insert(made(), value) {
            // Without a place to remember it, it stays charged until the process ends.
            return outcome;
        }
    }
    outcome
}

/// Corrects what a pointer is charged to what the driver has really taken; `false` if the quota
/// has no room for that.
pub(crate) fn correct(pointer: u64, bytes: u64) -> bool {
    let has_room = POINTERS.change(pointer, |value| {
        let more = bytes.saturating_sub(value.bytes);
        let reserved = device::by_number(value.device).map(|device| device.reserve(more));
        match reserved {
            Some(Ok(reservation)) => value.bytes += reservation.commit(),
            Some(Err(OverQuota)) => return (false, true),
            None => {}
        }
        (true, true)
    });
    // Nobody's, or never charged.
    has_room.unwrap_or(true)
}

/// Frees by `call` what `key` names.
pub(crate) fn free(kind: Kind, key: u64, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    // Taken out first: as soon as it is free, another thread may get the same address.
    let taken = kind.map().remove(key);
    let outcome = thread.inside(call);
    if let Some(value) = taken {
        if outcome == SUCCESS {
            give_back(value);
        } else {
            kind.map().insert(key, value);
        }
    }
    outcome
}

/// Frees in the order of a stream. The pool keeps the bytes for a while; when what it may keep
/// grows large beside the quota, it is told to give them back.
pub(crate) fn free_in_order(stream: Stream, pointer: u64, call: impl FnOnce() -> c_int) -> c_int {
    if capture::is_capturing(stream) {
        return call();
    }
    let freed = POINTERS.get(pointer);
    let outcome = free(Kind::Pointer, pointer, call);
    if let (SUCCESS, Some(value)) = (outcome, freed)
        && let Some(device) = device::by_number(value.device)
    {
        let pooled = device.pooled_bytes.fetch_add(value.bytes, Ordering::Relaxed) + value.bytes;
        if pooled > device.quota_bytes() / 16 {
            device.pooled_bytes.store(0, Ordering::Relaxed);
            thread().inside(|| device.trim_pools());
        }
    }
    outcome
}

fn give_back(value: Value) {
    if let Some(device) = device::by_number(value.device) {
        if value.is_host {
            device.release_host(value.bytes);
        } else {
            device.release(value.bytes);
        }
    }
}

/// A context is gone, and with it all that was allocated in it.
pub(crate) fn context_gone(context: u64) {
    if context != 0 {
        for map in [&POINTERS, &ARRAYS, &HOSTS] {
            map.sweep(|value| value.context == context, give_back);
        }
    }
}

/// Releases a handle by `call`. The memory is free once no handle and no mapping is left.
pub(crate) fn release_handle(handle: u64, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    let known = drop_reference(handle, |value| value.handles = value.handles.saturating_sub(1));
    let outcome = thread.inside(call);
    match known {
        Some(Dropped::Last(value)) if outcome == SUCCESS => give_back(value),
        Some(Dropped::Last(value)) => {
            HANDLES.insert(handle, Value { handles: 1, ..value });
        }
        Some(Dropped::One) if outcome != SUCCESS => add_handle(handle),
        Some(Dropped::One) | None => {}
    }
    outcome
}

enum Dropped {
    One,
    /// And the value is out of the map.
    Last(Value),
}

fn drop_reference(handle: u64, drop: impl FnOnce(&mut Value)) -> Option<Dropped> {
    HANDLES.change(handle, |value| {
        drop(value);
        let is_last = value.handles == 0 && value.mappings == 0;
        (if is_last { Dropped::Last(*value) } else { Dropped::One }, !is_last)
    })
}

/// A handle was given out once more: retained, or imported where it was made.
pub(crate) fn add_handle(handle: u64) {
    HANDLES.change(handle, |value| {
        value.handles = value.handles.saturating_add(1);
        ((), true)
    });
}

/// The memory behind an address was mapped from a handle.
pub(crate) fn mapped(address: u64, bytes: u64, handle: u64) {
    let known = HANDLES.change(handle, |value| {
        value.mappings = value.mappings.saturating_add(1);
        ((), true)
    });
    if known.is_some() {
        MAPPINGS.insert(address, Value { bytes, other: handle, ..Value::default() });
    }
}

/// A range was unmapped; it holds one mapping or several.
pub(crate) fn unmapped(address: u64, bytes: u64) {
    let Some(end) = address.checked_add(bytes) else { return };
    let mut at = address;
    while at < end {
        let mapping = MAPPINGS.remove(at);
        if let Some(mapping) = mapping {
            let dropped = drop_reference(mapping.other, |value| {
                value.mappings = value.mappings.saturating_sub(1);
            });
            if let Some(Dropped::Last(value)) = dropped {
                give_back(value);
            }
        }
        let step = mapping.map_or(MAPPING_STEP_BYTES, |it| it.bytes.max(MAPPING_STEP_BYTES));
        let Some(next) = at.checked_add(step) else { return };
        at = next;
    }
}
