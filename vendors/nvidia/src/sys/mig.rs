//! Calls about the parts of a device: GPU instances and the compute instances in them.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstanceProfileInfo_t,
    nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
    nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t, nvmlReturn_t,
};

use super::{
    CallError, Gpu, Nvml, Plain, check, found, get, get_at, limit, read_text, struct_version,
    zeroed,
};

/// A device has at most 8 instances today; the library writes no more than there are.
const INSTANCES_MAX: u32 = 64;

/// A profile has at most 8 places today.
const PLACES_MAX: u32 = 64;

/// No device has more MIG devices than it has instances.
const MIG_DEVICES_MAX: u32 = 64;

// SAFETY: structures of numbers and handles, which may be null.
unsafe impl Plain for nvmlGpuInstanceProfileInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlGpuInstanceProfileInfo_v2_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlGpuInstanceInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlComputeInstanceInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlComputeInstanceProfileInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlGpuInstancePlacement_t {}

/// `NVML_GPU_INSTANCE_PROFILE_...`: the shapes that the library knows, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProfileKind(pub(crate) u32);

/// A shape of GPU instance, as one device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) kind: ProfileKind,
    /// The number that other calls take.
    pub(crate) id: u32,
    /// The name, where the driver says one.
    pub(crate) name: Option<String>,
    /// Compute slices.
    pub(crate) slices: u32,
    pub(crate) instances_max: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) memory_mib: u64,
}

/// Where a GPU instance lies, in memory slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GpuInstancePlace {
    pub(crate) start: u32,
    pub(crate) size: u32,
}

/// GPU instance and compute instance of a MIG device, and its UUID.
pub(crate) type MigDevice = ((u32, u32), String);

/// A GPU instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GpuInstance<'nvml> {
    nvml: &'nvml Nvml,
    /// Never null, and given out by `nvml`.
    handle: nvmlGpuInstance_t,
    pub(crate) id: u32,
    pub(crate) place: GpuInstancePlace,
}

/// A compute instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ComputeInstance<'nvml> {
    nvml: &'nvml Nvml,
    /// Never null, and given out by `nvml`.
    handle: nvmlComputeInstance_t,
    pub(crate) id: u32,
}

impl<'nvml> Gpu<'nvml> {
    /// Whether the device is in MIG mode now, and whether it will be after its next reset.
    pub(crate) fn mig_mode(self) -> Result<(bool, bool), CallError> {
        const CALL: &str = "nvmlDeviceGetMigMode";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetMigMode)?;
        let (mut current, mut pending) = (0, 0);
        // SAFETY: the handle is live; the two numbers outlive the call.
        check(CALL, unsafe { function(self.handle, &raw mut current, &raw mut pending) })?;
        Ok((current == 1, pending == 1))
    }

    /// Whether the device is in MIG mode now.
    pub(crate) fn mig_is_on(self) -> Result<bool, CallError> {
        self.mig_mode().map(|(current, _)| current)
    }

    /// Asks for MIG mode, or for its end. Says what kept it from taking effect at once, in which
    /// case it is pending.
    pub(crate) fn set_mig_mode(self, on: bool) -> Result<Result<(), CallError>, CallError> {
        const CALL: &str = "nvmlDeviceSetMigMode";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceSetMigMode)?;
        let mut activation = 0;
        // SAFETY: the handle is live; the number outlives the call.
        check(CALL, unsafe { function(self.handle, on.into(), &raw mut activation) })?;
        Ok(check(CALL, activation))
    }

    /// The profile of `kind`, if the device has it.
    pub(crate) fn profile(self, kind: ProfileKind) -> Result<Profile, CallError> {
        let raw = self.nvml.raw();
        let version = struct_version::<nvmlGpuInstanceProfileInfo_v2_t>(2);
        let asked = nvmlGpuInstanceProfileInfo_v2_t { version, ..zeroed() };
        let call = "nvmlDeviceGetGpuInstanceProfileInfoV";
        let symbol = &raw.nvmlDeviceGetGpuInstanceProfileInfoV;
        if symbol.is_ok() {
            // SAFETY: the handle is live; the call writes one structure of the version named.
            match unsafe { get_at(call, symbol, self.handle, kind.0, asked) } {
                Err(error) if error.is_version_mismatch() => {}
                answer => {
                    let it = answer?;
                    return Ok(Profile {
                        kind,
                        id: it.id,
                        // A name that makes no sense is as good as none: it can be made.
                        name: read_text(call, &it.name).ok().filter(|name| !name.is_empty()),
                        slices: it.sliceCount,
                        instances_max: it.instanceCount,
                        multiprocessors: it.multiprocessorCount,
                        memory_mib: it.memorySizeMB,
                    });
                }
            }
        }
        let call = "nvmlDeviceGetGpuInstanceProfileInfo";
        let symbol = &raw.nvmlDeviceGetGpuInstanceProfileInfo;
        let empty = zeroed::<nvmlGpuInstanceProfileInfo_t>();
        // SAFETY: the handle is live; the call writes one structure.
        let it = unsafe { get_at(call, symbol, self.handle, kind.0, empty) }?;
        Ok(Profile {
            kind,
            id: it.id,
            name: None,
            slices: it.sliceCount,
            instances_max: it.instanceCount,
            multiprocessors: it.multiprocessorCount,
            memory_mib: it.memorySizeMB,
        })
    }

    /// Where instances of a profile may lie.
    pub(crate) fn places(self, profile: u32) -> Result<Vec<GpuInstancePlace>, CallError> {
        const CALL: &str = "nvmlDeviceGetGpuInstancePossiblePlacements_v2";
        let symbol = &self.nvml.raw().nvmlDeviceGetGpuInstancePossiblePlacements_v2;
        let function = found(CALL, symbol)?;
        let mut places = [zeroed::<nvmlGpuInstancePlacement_t>(); PLACES_MAX as usize];
        let mut count: c_uint = PLACES_MAX;
        let at = places.as_mut_ptr();
        // SAFETY: the handle is live; there is room for far more places than a device has.
        check(CALL, unsafe { function(self.handle, profile, at, &raw mut count) })?;
        let count = limit(CALL, count, PLACES_MAX)? as usize;
        Ok(places.into_iter().take(count).map(place).collect())
    }

    /// The instances of a profile that exist, with compute instances or without.
    pub(crate) fn instances(self, profile: u32) -> Result<Vec<GpuInstance<'nvml>>, CallError> {
        const CALL: &str = "nvmlDeviceGetGpuInstances";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetGpuInstances)?;
        let mut handles: [nvmlGpuInstance_t; INSTANCES_MAX as usize] =
            [std::ptr::null_mut(); INSTANCES_MAX as usize];
        let mut count: c_uint = INSTANCES_MAX;
        let at = handles.as_mut_ptr();
        // SAFETY: the handle is live; there is room for far more instances than a device has.
        check(CALL, unsafe { function(self.handle, profile, at, &raw mut count) })?;
        let count = limit(CALL, count, INSTANCES_MAX)? as usize;
        handles.iter().take(count).map(|handle| self.instance(CALL, *handle)).collect()
    }

    pub(crate) fn create_instance(
        self,
        profile: u32,
        place: GpuInstancePlace,
    ) -> Result<GpuInstance<'nvml>, CallError> {
        const CALL: &str = "nvmlDeviceCreateGpuInstanceWithPlacement";
        let symbol = &self.nvml.raw().nvmlDeviceCreateGpuInstanceWithPlacement;
        let function = found(CALL, symbol)?;
        let place = nvmlGpuInstancePlacement_t { start: place.start, size: place.size };
        let mut handle: nvmlGpuInstance_t = std::ptr::null_mut();
        // SAFETY: the device's handle is live; place and handle outlive the call.
        check(CALL, unsafe { function(self.handle, profile, &raw const place, &raw mut handle) })?;
        self.instance(CALL, handle)
    }

    fn instance(
        self,
        call: &'static str,
        handle: nvmlGpuInstance_t,
    ) -> Result<GpuInstance<'nvml>, CallError> {
        if handle.is_null() {
            return Err(CallError::Nonsense { call, detail: "a null handle".to_owned() });
        }
        let symbol = &self.nvml.raw().nvmlGpuInstanceGetInfo;
        let empty = zeroed::<nvmlGpuInstanceInfo_t>();
        // SAFETY: the handle is live; the call writes one structure.
        let it = unsafe { get("nvmlGpuInstanceGetInfo", symbol, handle, empty) }?;
        Ok(GpuInstance { nvml: self.nvml, handle, id: it.id, place: place(it.placement) })
    }

    /// UUIDs of the MIG devices, by GPU instance and compute instance.
    pub(crate) fn mig_devices(self) -> Result<Vec<MigDevice>, CallError> {
        let raw = self.nvml.raw();
        let call = "nvmlDeviceGetMaxMigDeviceCount";
        // SAFETY: the handle is live; the call writes one number.
        let count = unsafe { get(call, &raw.nvmlDeviceGetMaxMigDeviceCount, self.handle, 0) }?;
        let mut devices = Vec::new();
        for index in 0..limit(call, count, MIG_DEVICES_MAX)? {
            // Indices have gaps, which some drivers call invalid, and one may go meanwhile.
            let device = match self.mig_device(index) {
                Err(error) if error.is_invalid_argument() => continue,
                answer => gone_is_none(answer)?,
            };
            let Some(device) = device else { continue };
            let Some(known) = gone_is_none(device.mig_identity())? else { continue };
            devices.push(known);
        }
        Ok(devices)
    }

    /// The device that a MIG device is a part of; an error if this is none.
    pub(super) fn mig_parent(self) -> Result<Gpu<'nvml>, CallError> {
        let call = "nvmlDeviceGetDeviceHandleFromMigDeviceHandle";
        let symbol = &self.nvml.raw().nvmlDeviceGetDeviceHandleFromMigDeviceHandle;
        let null: nvmlDevice_t = std::ptr::null_mut();
        // SAFETY: the handle is live; the call writes one handle.
        let handle = unsafe { get(call, symbol, self.handle, null) }?;
        Gpu::new(call, self.nvml, handle)
    }

    fn mig_device(self, index: u32) -> Result<Gpu<'nvml>, CallError> {
        let call = "nvmlDeviceGetMigDeviceHandleByIndex";
        let symbol = &self.nvml.raw().nvmlDeviceGetMigDeviceHandleByIndex;
        let null: nvmlDevice_t = std::ptr::null_mut();
        // SAFETY: the handle is live; the call writes one handle.
        let handle = unsafe { get_at(call, symbol, self.handle, index, null) }?;
        Gpu::new(call, self.nvml, handle)
    }

    fn mig_identity(self) -> Result<MigDevice, CallError> {
        let raw = self.nvml.raw();
        let call = "nvmlDeviceGetGpuInstanceId";
        // SAFETY: the handle is live; the call writes one number.
        let gpu = unsafe { get(call, &raw.nvmlDeviceGetGpuInstanceId, self.handle, 0) }?;
        let call = "nvmlDeviceGetComputeInstanceId";
        // SAFETY: the handle is live; the call writes one number.
        let compute = unsafe { get(call, &raw.nvmlDeviceGetComputeInstanceId, self.handle, 0) }?;
        Ok(((gpu, compute), self.uuid()?))
    }
}

impl<'nvml> GpuInstance<'nvml> {
    /// Number and compute slices of the compute profile of `kind`, if the instance has it.
    pub(crate) fn compute_profile(self, kind: u32) -> Result<(u32, u32), CallError> {
        const CALL: &str = "nvmlGpuInstanceGetComputeInstanceProfileInfo";
        /// `NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED`, the only one there is.
        const ENGINES_SHARED: c_uint = 0;
        let symbol = &self.nvml.raw().nvmlGpuInstanceGetComputeInstanceProfileInfo;
        let function = found(CALL, symbol)?;
        let mut it: nvmlComputeInstanceProfileInfo_t = zeroed();
        let at = &raw mut it;
        // SAFETY: the handle is live; the call writes one structure.
        check(CALL, unsafe { function(self.handle, kind, ENGINES_SHARED, at) })?;
        Ok((it.id, it.sliceCount))
    }

    /// The compute instances of a compute profile that exist in it.
    pub(crate) fn compute_instances(
        self,
        profile: u32,
    ) -> Result<Vec<ComputeInstance<'nvml>>, CallError> {
        const CALL: &str = "nvmlGpuInstanceGetComputeInstances";
        let function = found(CALL, &self.nvml.raw().nvmlGpuInstanceGetComputeInstances)?;
        let mut handles: [nvmlComputeInstance_t; INSTANCES_MAX as usize] =
            [std::ptr::null_mut(); INSTANCES_MAX as usize];
        let mut count: c_uint = INSTANCES_MAX;
        let at = handles.as_mut_ptr();
        // SAFETY: the handle is live; there is room for far more instances than a device has.
        check(CALL, unsafe { function(self.handle, profile, at, &raw mut count) })?;
        let count = limit(CALL, count, INSTANCES_MAX)? as usize;
        handles.iter().take(count).map(|handle| self.compute_instance(CALL, *handle)).collect()
    }

    pub(crate) fn create_compute_instance(
        self,
        profile: u32,
    ) -> Result<ComputeInstance<'nvml>, CallError> {
        const CALL: &str = "nvmlGpuInstanceCreateComputeInstance";
        let symbol = &self.nvml.raw().nvmlGpuInstanceCreateComputeInstance;
        let null: nvmlComputeInstance_t = std::ptr::null_mut();
        // SAFETY: the handle is live; the call writes one handle.
        let handle = unsafe { get_at(CALL, symbol, self.handle, profile, null) }?;
        self.compute_instance(CALL, handle)
    }

    fn compute_instance(
        self,
        call: &'static str,
        handle: nvmlComputeInstance_t,
    ) -> Result<ComputeInstance<'nvml>, CallError> {
        if handle.is_null() {
            return Err(CallError::Nonsense { call, detail: "a null handle".to_owned() });
        }
        let symbol = &self.nvml.raw().nvmlComputeInstanceGetInfo_v2;
        let empty = zeroed::<nvmlComputeInstanceInfo_t>();
        // SAFETY: the handle is live; the call writes one structure.
        let it = unsafe { get("nvmlComputeInstanceGetInfo_v2", symbol, handle, empty) }?;
        Ok(ComputeInstance { nvml: self.nvml, handle, id: it.id })
    }

    /// Destroys it. The handle is of no use afterwards, which the library says if asked.
    pub(crate) fn destroy(self) -> Result<(), CallError> {
        destroy("nvmlGpuInstanceDestroy", &self.nvml.raw().nvmlGpuInstanceDestroy, self.handle)
    }
}

impl ComputeInstance<'_> {
    /// Destroys it. The handle is of no use afterwards, which the library says if asked.
    pub(crate) fn destroy(self) -> Result<(), CallError> {
        let symbol = &self.nvml.raw().nvmlComputeInstanceDestroy;
        destroy("nvmlComputeInstanceDestroy", symbol, self.handle)
    }
}

fn destroy<H, E>(
    call: &'static str,
    symbol: &Result<unsafe extern "C" fn(H) -> nvmlReturn_t, E>,
    handle: H,
) -> Result<(), CallError> {
    let function = found(call, symbol)?;
    // SAFETY: the library gave the handle out and checks it; `gone_is_none` takes the answer
    // about one whose instance is gone.
    let code = unsafe { function(handle) };
    gone_is_none(check(call, code)).map(|_| ())
}

/// What is no longer there is no error.
fn gone_is_none<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

fn place(raw: nvmlGpuInstancePlacement_t) -> GpuInstancePlace {
    GpuInstancePlace { start: raw.start, size: raw.size }
}
