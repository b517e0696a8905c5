//! Layouts and codes of `nvml.h` (API version 13), written down here once more.
//!
//! Not taken from the bindings that the adapter uses, so that one wrong layout does not agree
//! with itself.

use std::ffi::{c_char, c_int, c_uint};

/// `nvmlReturn_t`.
pub(crate) type Code = c_uint;

pub(crate) const SUCCESS: Code = 0;
pub(crate) const UNINITIALIZED: Code = 1;
pub(crate) const INVALID_ARGUMENT: Code = 2;
pub(crate) const NOT_SUPPORTED: Code = 3;
pub(crate) const NOT_FOUND: Code = 6;
pub(crate) const INSUFFICIENT_SIZE: Code = 7;
pub(crate) const TIMEOUT: Code = 10;
pub(crate) const GPU_IS_LOST: Code = 15;
pub(crate) const RESET_REQUIRED: Code = 16;
pub(crate) const IN_USE: Code = 19;
pub(crate) const INSUFFICIENT_RESOURCES: Code = 23;
pub(crate) const ARGUMENT_VERSION_MISMATCH: Code = 25;
pub(crate) const UNKNOWN: Code = 999;

/// A handle: opaque to the caller, a number here.
pub(crate) type Handle = usize;

/// A pointer through which a call answers: null, or room for one `T`.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// What a pointer inside a structure points at.
    pub(crate) fn at(pointer: *mut T) -> Self {
        Self(pointer)
    }
}

impl<T: Copy> Out<T> {
    pub(crate) fn put(&self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: `nvml.h` asks for null, which was ruled out, or room for one `T`. Nothing is
        // assumed about its alignment: some callers cast.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    pub(crate) fn get(&self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: as in `put`; what is read was set by the caller, as `nvml.h` asks.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Fills the array that begins here, which has room for `values`.
    pub(crate) fn put_all(&self, values: &[T]) -> Result<(), Code> {
        if values.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for (index, value) in values.iter().enumerate() {
            // SAFETY: the caller has said that there is room for so many.
            unsafe { self.0.add(index).write_unaligned(*value) };
        }
        Ok(())
    }
}

impl<T: Copy> Out<T> {
    /// The `count` values that are there: for calls that read and write.
    pub(crate) fn get_all(&self, count: usize) -> Result<Vec<T>, Code> {
        if self.0.is_null() || count == 0 {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: the caller has said that there are so many.
        Ok((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }
}

/// A pointer to something that a call reads.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub(crate) fn get(&self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: `nvml.h` asks for null, which was ruled out, or one `T`.
        Ok(unsafe { self.0.read_unaligned() })
    }
}

/// `nvmlPciInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PciInfo {
    pub(crate) bus_id_legacy: [c_char; 16],
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
    pub(crate) device_id: c_uint,
    pub(crate) subsystem_id: c_uint,
    pub(crate) bus_id: [c_char; 32],
}

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemoryV2 {
    pub(crate) version: c_uint,
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// `nvmlUtilization_t`, in percent.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Utilization {
    pub(crate) gpu: c_uint,
    pub(crate) memory: c_uint,
}

/// `nvmlGpuFabricInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FabricInfo {
    pub(crate) cluster: [u8; 16],
    pub(crate) status: Code,
    pub(crate) clique: c_uint,
    pub(crate) state: u8,
}

/// `nvmlGpuFabricInfo_v3_t`; version 2 lacks the last member.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FabricInfoV3 {
    pub(crate) version: c_uint,
    pub(crate) cluster: [u8; 16],
    pub(crate) status: Code,
    pub(crate) clique: c_uint,
    pub(crate) state: u8,
    pub(crate) health_mask: c_uint,
    pub(crate) health_summary: u8,
}

/// `nvmlProcessInfo_v2_t`, which `..._v3` calls fill too.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProcessInfo {
    pub(crate) pid: c_uint,
    pub(crate) used_memory: u64,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UtilizationSample {
    pub(crate) pid: c_uint,
    pub(crate) timestamp: u64,
    pub(crate) sm: c_uint,
    pub(crate) memory: c_uint,
    pub(crate) encoder: c_uint,
    pub(crate) decoder: c_uint,
}

/// `nvmlProcessUtilizationInfo_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UtilizationInfo {
    pub(crate) timestamp: u64,
    pub(crate) pid: c_uint,
    pub(crate) sm: c_uint,
    pub(crate) memory: c_uint,
    pub(crate) encoder: c_uint,
    pub(crate) decoder: c_uint,
    pub(crate) jpeg: c_uint,
    pub(crate) optical_flow: c_uint,
}

/// `nvmlProcessesUtilizationInfo_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UtilizationInfos {
    pub(crate) version: c_uint,
    pub(crate) count: c_uint,
    pub(crate) since: u64,
    pub(crate) entries: *mut UtilizationInfo,
}

/// `nvmlAccountingStats_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AccountingStats {
    pub(crate) gpu_utilization: c_uint,
    pub(crate) memory_utilization: c_uint,
    pub(crate) memory_max: u64,
    pub(crate) time: u64,
    pub(crate) start: u64,
    pub(crate) running: c_uint,
    pub(crate) reserved: [c_uint; 5],
}

/// `nvmlFieldValue_t`; the union is as large as its largest member.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FieldValue {
    pub(crate) field: c_uint,
    pub(crate) scope: c_uint,
    pub(crate) timestamp: i64,
    pub(crate) latency: i64,
    pub(crate) value_type: c_int,
    pub(crate) code: Code,
    pub(crate) value: u64,
}

/// `nvmlGpuInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ProfileInfo {
    pub(crate) id: c_uint,
    pub(crate) p2p: c_uint,
    pub(crate) slices: c_uint,
    pub(crate) instances: c_uint,
    pub(crate) multiprocessors: c_uint,
    pub(crate) copy_engines: c_uint,
    pub(crate) decoders: c_uint,
    pub(crate) encoders: c_uint,
    pub(crate) jpegs: c_uint,
    pub(crate) ofas: c_uint,
    pub(crate) memory_mib: u64,
}

/// `nvmlGpuInstanceProfileInfo_v2_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ProfileInfoV2 {
    pub(crate) version: c_uint,
    pub(crate) id: c_uint,
    pub(crate) p2p: c_uint,
    pub(crate) slices: c_uint,
    pub(crate) instances: c_uint,
    pub(crate) multiprocessors: c_uint,
    pub(crate) copy_engines: c_uint,
    pub(crate) decoders: c_uint,
    pub(crate) encoders: c_uint,
    pub(crate) jpegs: c_uint,
    pub(crate) ofas: c_uint,
    pub(crate) memory_mib: u64,
    pub(crate) name: [c_char; 96],
}

/// `nvmlGpuInstancePlacement_t` and `nvmlComputeInstancePlacement_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Placement {
    pub(crate) start: c_uint,
    pub(crate) size: c_uint,
}

/// `nvmlGpuInstanceInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GpuInstanceInfo {
    pub(crate) device: Handle,
    pub(crate) id: c_uint,
    pub(crate) profile: c_uint,
    pub(crate) placement: Placement,
}

/// `nvmlComputeInstanceProfileInfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ComputeProfileInfo {
    pub(crate) id: c_uint,
    pub(crate) slices: c_uint,
    pub(crate) instances: c_uint,
    pub(crate) multiprocessors: c_uint,
    pub(crate) copy_engines: c_uint,
    pub(crate) decoders: c_uint,
    pub(crate) encoders: c_uint,
    pub(crate) jpegs: c_uint,
    pub(crate) ofas: c_uint,
}

/// `nvmlComputeInstanceInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ComputeInstanceInfo {
    pub(crate) device: Handle,
    pub(crate) gpu_instance: Handle,
    pub(crate) id: c_uint,
    pub(crate) profile: c_uint,
    pub(crate) placement: Placement,
}

/// `nvmlEventData_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct EventData {
    pub(crate) device: Handle,
    pub(crate) kind: u64,
    pub(crate) value: u64,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

/// `nvmlSystemEventSetCreateRequest_v1_t`, and `...Free...`, which is the same.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SystemEventSetRequest {
    pub(crate) version: c_uint,
    pub(crate) set: Handle,
}

/// `nvmlSystemRegisterEventRequest_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SystemRegisterRequest {
    pub(crate) version: c_uint,
    pub(crate) kinds: u64,
    pub(crate) set: Handle,
}

/// `nvmlSystemEventData_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SystemEventData {
    pub(crate) kind: u64,
    pub(crate) gpu: c_uint,
}

/// `nvmlSystemEventSetWaitRequest_v1_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SystemWaitRequest {
    pub(crate) version: c_uint,
    pub(crate) timeout_ms: c_uint,
    pub(crate) set: Handle,
    pub(crate) data: *mut SystemEventData,
    pub(crate) room: c_uint,
    pub(crate) count: c_uint,
}
