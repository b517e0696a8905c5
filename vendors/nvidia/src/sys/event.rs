//! Events that the driver tells of its own accord.

use std::sync::Arc;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    nvmlEventData_t, nvmlEventSet_t, nvmlSystemEventData_v1_t, nvmlSystemEventSet_t,
    nvmlSystemEventSetCreateRequest_t, nvmlSystemEventSetFreeRequest_t,
    nvmlSystemEventSetWaitRequest_t, nvmlSystemEventTypeGpuDriverBind,
    nvmlSystemEventTypeGpuDriverUnbind, nvmlSystemRegisterEventRequest_t,
};

use super::{CallError, Gpu, Nvml, Plain, check, found, get, struct_version, zeroed};

// SAFETY: a handle, which may be null, and numbers.
unsafe impl Plain for nvmlEventData_t {}

/// A set of devices whose events can be waited for. Keeps the library loaded.
#[derive(Debug)]
pub(crate) struct EventSet {
    nvml: Arc<Nvml>,
    set: nvmlEventSet_t,
}

// SAFETY: the set is a pointer that NVML gave out; NVML does not tie it to a thread, and
// `&mut self` keeps two threads from using it at once.
unsafe impl Send for EventSet {}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The device's UUID as the library gives it; absent if the device no longer says it.
    pub(crate) uuid: Option<String>,
    /// One of `nvmlEventType...`.
    pub(crate) kind: u64,
    /// The XID, where the event is one.
    pub(crate) value: u64,
    /// GPU instance and compute instance, where it is known whose the event is.
    pub(crate) place: Option<(u32, u32)>,
}

impl EventSet {
    pub(crate) fn new(nvml: Arc<Nvml>) -> Result<Self, CallError> {
        const CALL: &str = "nvmlEventSetCreate";
        let function = found(CALL, &nvml.raw().nvmlEventSetCreate)?;
        let mut set: nvmlEventSet_t = std::ptr::null_mut();
        // SAFETY: `set` outlives the call.
        check(CALL, unsafe { function(&raw mut set) })?;
        if set.is_null() {
            return Err(CallError::Nonsense { call: CALL, detail: "a null handle".to_owned() });
        }
        Ok(Self { nvml, set })
    }

    /// True if the set keeps `nvml` loaded, and not one that was loaded earlier.
    pub(crate) fn is_of(&self, nvml: &Arc<Nvml>) -> bool {
        Arc::ptr_eq(&self.nvml, nvml)
    }

    /// Adds those events of `gpu` that are `wanted` and that it can tell.
    ///
    /// True if there are any.
    pub(crate) fn register(&mut self, gpu: Gpu<'_>, wanted: u64) -> Result<bool, CallError> {
        const CALL: &str = "nvmlDeviceRegisterEvents";
        let raw = self.nvml.raw();
        let call = "nvmlDeviceGetSupportedEventTypes";
        // SAFETY: the handle is live; the call writes one number.
        let told = unsafe { get(call, &raw.nvmlDeviceGetSupportedEventTypes, gpu.handle, 0) }?;
        if told & wanted == 0 {
            return Ok(false);
        }
        let function = found(CALL, &raw.nvmlDeviceRegisterEvents)?;
        // SAFETY: both handles are live.
        check(CALL, unsafe { function(gpu.handle, told & wanted, self.set) })?;
        Ok(true)
    }

    /// Waits at most `timeout_ms` for an event.
    pub(crate) fn wait(&mut self, timeout_ms: u32) -> Result<Option<Event>, CallError> {
        const CALL: &str = "nvmlEventSetWait_v2";
        let function = found(CALL, &self.nvml.raw().nvmlEventSetWait_v2)?;
        let mut data: nvmlEventData_t = zeroed();
        // SAFETY: the set is live; `data` outlives the call.
        match check(CALL, unsafe { function(self.set, &raw mut data, timeout_ms) }) {
            Ok(()) => {}
            Err(CallError::Refused { error: NvmlError::Timeout, .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        // A part of a device may tell; it is the device that is at fault.
        let gpu = Gpu::new(CALL, &self.nvml, data.device).ok();
        let gpu = gpu.map(|gpu| gpu.mig_parent().unwrap_or(gpu));
        // Without instances there is none to name, whatever stands there.
        let is_cut = gpu.is_some_and(|gpu| gpu.mig_is_on().unwrap_or(false));
        Ok(Some(Event {
            uuid: gpu.and_then(|gpu| gpu.uuid().ok()),
            kind: data.eventType,
            value: data.eventData,
            place: (is_cut && data.gpuInstanceId != u32::MAX)
                .then_some((data.gpuInstanceId, data.computeInstanceId)),
        }))
    }
}

impl Drop for EventSet {
    fn drop(&mut self) {
        if let Ok(function) = &self.nvml.raw().nvmlEventSetFree {
            // SAFETY: the set is live, and nobody uses it after this.
            let _ = unsafe { function(self.set) };
        }
    }
}

/// A set that tells of the driver taking devices and leaving them. Keeps the library loaded.
///
/// Came with driver 575 (NVML 12.9 of NVIDIA/go-nvml's headers).
#[derive(Debug)]
pub(crate) struct SystemEvents {
    nvml: Arc<Nvml>,
    set: nvmlSystemEventSet_t,
}

// SAFETY: as for `EventSet`.
unsafe impl Send for SystemEvents {}

impl SystemEvents {
    pub(crate) fn new(nvml: Arc<Nvml>) -> Result<Self, CallError> {
        const CREATE: &str = "nvmlSystemEventSetCreate";
        const REGISTER: &str = "nvmlSystemRegisterEvents";
        let function = found(CREATE, &nvml.raw().nvmlSystemEventSetCreate)?;
        let version = struct_version::<nvmlSystemEventSetCreateRequest_t>(1);
        let mut request = nvmlSystemEventSetCreateRequest_t { version, set: std::ptr::null_mut() };
        // SAFETY: `request` outlives the call.
        check(CREATE, unsafe { function(&raw mut request) })?;
        if request.set.is_null() {
            let detail = "a null handle".to_owned();
            return Err(CallError::Nonsense { call: CREATE, detail });
        }
        // From here on dropping it frees the set.
        let events = Self { nvml, set: request.set };
        let function = found(REGISTER, &events.nvml.raw().nvmlSystemRegisterEvents)?;
        let wanted = nvmlSystemEventTypeGpuDriverUnbind | nvmlSystemEventTypeGpuDriverBind;
        let mut request = nvmlSystemRegisterEventRequest_t {
            version: struct_version::<nvmlSystemRegisterEventRequest_t>(1),
            eventTypes: wanted.into(),
            set: events.set,
        };
        // SAFETY: the set is live; `request` outlives the call.
        check(REGISTER, unsafe { function(&raw mut request) })?;
        Ok(events)
    }

    /// True if the driver took a device or left one since the last call. Does not wait.
    pub(crate) fn poll(&mut self) -> Result<bool, CallError> {
        /// Which devices they are is asked anew in any case, so that one event says as much as
        /// many.
        const ROOM: u32 = 8;
        const CALL: &str = "nvmlSystemEventSetWait";
        let function = found(CALL, &self.nvml.raw().nvmlSystemEventSetWait)?;
        let mut data = [nvmlSystemEventData_v1_t { eventType: 0, gpuId: 0 }; ROOM as usize];
        let mut request = nvmlSystemEventSetWaitRequest_t {
            version: struct_version::<nvmlSystemEventSetWaitRequest_t>(1),
            timeoutms: 0,
            set: self.set,
            data: data.as_mut_ptr(),
            dataSize: ROOM,
            numEvent: 0,
        };
        // SAFETY: the set is live; `data` has room for as many as are said, and outlives the call
        // with `request`.
        match check(CALL, unsafe { function(&raw mut request) }) {
            Ok(()) => Ok(request.numEvent > 0),
            Err(CallError::Refused { error: NvmlError::Timeout, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for SystemEvents {
    fn drop(&mut self) {
        if let Ok(function) = &self.nvml.raw().nvmlSystemEventSetFree {
            let version = struct_version::<nvmlSystemEventSetFreeRequest_t>(1);
            let mut request = nvmlSystemEventSetFreeRequest_t { version, set: self.set };
            // SAFETY: the set is live, and nobody uses it after this.
            let _ = unsafe { function(&raw mut request) };
        }
    }
}
