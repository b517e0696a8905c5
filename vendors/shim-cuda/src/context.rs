//! Contexts: the memory that the driver takes for one is charged once a process and device,
//! and what was allocated in one goes with it.
#![expect(unsafe_code, reason = "calls the driver")]

use core::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::atomic::Ordering,
};

use crate::{
    device::{self, Device},
    map::{Map, Value},
    memory, process,
    surface::{self, OUT_OF_MEMORY, SUCCESS},
    thread::{Thread, thread},
};

/// Contexts that were created, with their devices. Primary ones are not among them.
static CREATED: Map = Map::new();

/// In the child of a fork.
pub(crate) fn forget() {
    CREATED.forget();
}

/// The calling thread's current context.
pub(crate) fn current(thread: &Thread) -> u64 {
    let mut context: *mut c_void = null_mut();
    // SAFETY: the context is written.
    thread.inside(|| unsafe { surface::cuCtxGetCurrent((&raw mut context).cast()) });
    context.expose_provenance() as u64
}

/// Creates a context on a device by `call`; `made` reads which.
pub(crate) fn create(
    number: c_int,
    call: impl FnOnce() -> c_int,
    made: impl FnOnce() -> u64,
) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    thread.forget_device();
    let Some(device) = device::by_number(number) else { return thread.inside(call) };
    if !device.take_context() {
        return OUT_OF_MEMORY;
    }
    let outcome = thread.inside(call);
    if outcome == SUCCESS {
        CREATED.insert(made(), Value { device: number, ..Value::default() });
    } else {
        device.drop_context();
    }
    outcome
}

/// Destroys a context by `call`.
pub(crate) fn destroy(context: u64, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    thread.forget_device();
    let outcome = thread.inside(call);
    if outcome == SUCCESS
        && let Some(value) = CREATED.remove(context)
    {
        memory::context_gone(context);
        if let Some(device) = device::by_number(value.device) {
            device.drop_context();
        }
    }
    outcome
}

/// Retains the primary context of a device by `call`; `made` reads which it is.
pub(crate) fn retain(
    number: c_int,
    call: impl FnOnce() -> c_int,
    made: impl FnOnce() -> u64,
) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    let Some(device) = device::by_number(number) else { return thread.inside(call) };
    let is_first = device.retained.fetch_add(1, Ordering::AcqRel) == 0;
    if is_first && !device.take_context() {
        device.retained.fetch_sub(1, Ordering::AcqRel);
        return OUT_OF_MEMORY;
    }
    let outcome = thread.inside(call);
    if outcome == SUCCESS {
        // Handles of contexts are addresses.
        device.primary.store(usize::try_from(made()).unwrap_or_default(), Ordering::Release);
    } else if device.retained.fetch_sub(1, Ordering::AcqRel) == 1 {
        device.drop_context();
    }
    outcome
}

/// Releases the primary context of a device by `call`, or with `all` resets it.
pub(crate) fn release(number: c_int, all: bool, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    thread.forget_device();
    let outcome = thread.inside(call);
    if outcome == SUCCESS
        && let Some(device) = device::by_number(number)
    {
        let less = |count: u32| if all { (count != 0).then_some(0) } else { count.checked_sub(1) };
        let before = device.retained.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before.is_ok_and(|before| all || before == 1) {
            memory::context_gone(device.primary.swap(0, Ordering::AcqRel) as u64);
            device.drop_context();
        }
    }
    outcome
}

/// Changes which context is current by `call`.
pub(crate) fn switch(call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if !thread.is_inside() {
        thread.forget_device();
    }
    call()
}

impl Device {
    /// One more context; `false` if it is the first and the quota has no room for it.
    fn take_context(&self) -> bool {
        if self.contexts.fetch_add(1, Ordering::AcqRel) != 0 {
            return true;
        }
        let Ok(reservation) = self.reserve(self.reserve_bytes()) else {
            self.contexts.fetch_sub(1, Ordering::AcqRel);
            return false;
        };
        self.context_bytes.store(reservation.commit(), Ordering::Release);
        true
    }

    fn drop_context(&self) {
        if self.contexts.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.release(self.context_bytes.swap(0, Ordering::AcqRel));
        }
    }
}
