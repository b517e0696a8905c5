//! Calls about GPU instances, compute instances and MIG devices.

use super::{Call, GPU_BASE, call, device::version, on_gpu};
use crate::{
    abi::{
        ARGUMENT_VERSION_MISMATCH, Code, ComputeInstanceInfo, ComputeProfileInfo, GpuInstanceInfo,
        Handle, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, In, NOT_FOUND, NOT_SUPPORTED,
        Out, Placement, ProfileInfo, ProfileInfoV2,
    },
    machine::{Gpu, Profile},
    partition::{self, Compute, Instance, Instances},
};

/// `NVML_GPU_INSTANCE_PROFILE_COUNT` and `NVML_COMPUTE_INSTANCE_PROFILE_COUNT`.
const PROFILES: u32 = 18;
const COMPUTE_PROFILES: u32 = 8;

/// A device takes at most so many GPU instances, numbered from 0.
const INSTANCES_MAX: u32 = 15;

/// Handles of parts: the device's place and the part's numbers, above a mark of its kind.
const GPU_INSTANCE: usize = 0x2000_0000;
const COMPUTE_INSTANCE: usize = 0x3000_0000;
const MIG_DEVICE: usize = 0x4000_0000;

/// A part of a device, as its handle says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    index: usize,
    instance: u32,
    compute: u32,
}

impl Part {
    fn handle(self, base: usize) -> Handle {
        base | self.index << 16 | (self.instance as usize) << 8 | self.compute as usize
    }

    fn of(handle: Handle, base: usize) -> Option<Self> {
        if handle & !0x0fff_ffff != base {
            return None;
        }
        let byte = |shift: usize| u32::try_from(handle >> shift & 0xff).ok();
        Some(Self { index: handle >> 16 & 0xfff, instance: byte(8)?, compute: byte(0)? })
    }

    /// The UUID of the MIG device: its device's, with its own numbers at the end.
    pub(super) fn uuid(self, call: &Call) -> Result<String, Code> {
        let gpu = call.gpu_at(self.index)?;
        let known = Instances::open()?
            .of(gpu)
            .any(|it| it.id == self.instance && it.compute.iter().any(|it| it.id == self.compute));
        let uuid = gpu.uuid.strip_prefix("GPU-").unwrap_or(&gpu.uuid);
        let stem = uuid.get(..uuid.len().saturating_sub(4)).unwrap_or(uuid);
        let uuid = format!("MIG-{stem}{:02x}{:02x}", self.instance, self.compute);
        known.then_some(uuid).ok_or(NOT_FOUND)
    }
}

/// The part, if the handle is that of a MIG device.
pub(super) fn mig_device(handle: Handle) -> Option<Part> {
    Part::of(handle, MIG_DEVICE)
}

/// The handle of a MIG device, by its device's place, GPU instance and compute instance.
pub(super) fn mig_handle(index: usize, (instance, compute): (u32, u32)) -> Handle {
    Part { index, instance, compute }.handle(MIG_DEVICE)
}

/// Runs a call about a part of a device.
fn on_part(
    symbol: &'static str,
    part: Option<Part>,
    body: impl FnOnce(&Call, &Gpu, Part) -> Result<(), Code>,
) -> Code {
    call(symbol, |call| {
        let part = part.ok_or(INVALID_ARGUMENT)?;
        body(call, call.gpu_at(part.index)?, part)
    })
}

fn profile_of_kind<'a>(call: &'a Call, gpu: &Gpu, kind: u32) -> Result<&'a Profile, Code> {
    if kind >= PROFILES {
        return Err(INVALID_ARGUMENT);
    }
    call.machine.profiles_of(gpu).iter().find(|it| it.kind == kind).ok_or(NOT_SUPPORTED)
}

fn profile_of_id<'a>(call: &'a Call, gpu: &Gpu, id: u32) -> Result<&'a Profile, Code> {
    call.machine.profiles_of(gpu).iter().find(|it| it.id == id).ok_or(INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(device: Handle, now: Out<u32>, pending: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetMigMode", device, |_, gpu| {
        let mode = partition::mode(gpu)?.ok_or(NOT_SUPPORTED)?;
        now.put(mode.0.into())?;
        pending.put(mode.1.into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetMigMode(device: Handle, mode: u32, activation: Out<Code>) -> Code {
    on_gpu("nvmlDeviceSetMigMode", device, |_, gpu| {
        let (now, _) = partition::mode(gpu)?.ok_or(NOT_SUPPORTED)?;
        let instances = Instances::open()?;
        let idle = gpu.processes.is_empty() && instances.of(gpu).next().is_none();
        let wanted = mode == 1;
        if now == wanted || (idle && !gpu.mig_needs_reset) {
            partition::set_mode(&instances, gpu, (wanted, wanted))?;
            return activation.put(crate::abi::SUCCESS);
        }
        partition::set_mode(&instances, gpu, (now, wanted))?;
        activation.put(if idle { crate::abi::RESET_REQUIRED } else { IN_USE })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: Handle,
    kind: u32,
    at: Out<ProfileInfo>,
) -> Code {
    on_gpu("nvmlDeviceGetGpuInstanceProfileInfo", device, |call, gpu| {
        let profile = profile_of_kind(call, gpu, kind)?;
        at.put(ProfileInfo {
            id: profile.id,
            slices: profile.slices,
            instances: profile.instances_max,
            multiprocessors: profile.multiprocessors,
            memory_mib: profile.memory_mib,
            ..ProfileInfo::default()
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceProfileInfoV(
    device: Handle,
    kind: u32,
    at: Out<ProfileInfoV2>,
) -> Code {
    on_gpu("nvmlDeviceGetGpuInstanceProfileInfoV", device, |call, gpu| {
        if at.get()?.version != version::<ProfileInfoV2>(2) {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let profile = profile_of_kind(call, gpu, kind)?;
        at.put(ProfileInfoV2 {
            version: version::<ProfileInfoV2>(2),
            id: profile.id,
            p2p: 0,
            slices: profile.slices,
            instances: profile.instances_max,
            multiprocessors: profile.multiprocessors,
            copy_engines: 1,
            decoders: 0,
            encoders: 0,
            jpegs: 0,
            ofas: 0,
            memory_mib: profile.memory_mib,
            name: call.field(&format!("MIG {}", profile.name)),
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    device: Handle,
    id: u32,
    at: Out<Placement>,
    count: Out<u32>,
) -> Code {
    on_gpu("nvmlDeviceGetGpuInstancePossiblePlacements_v2", device, |call, gpu| {
        let profile = profile_of_id(call, gpu, id)?;
        let place = |start: &u32| Placement { start: *start, size: profile.size };
        count.put(call.count(profile.starts.len()))?;
        at.put_all(&profile.starts.iter().map(place).collect::<Vec<_>>())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstances(
    device: Handle,
    id: u32,
    at: Out<Handle>,
    count: Out<u32>,
) -> Code {
    on_gpu("nvmlDeviceGetGpuInstances", device, |call, gpu| {
        let instances = Instances::open()?;
        let of_profile = instances.of(gpu).filter(|it| it.profile == id);
        let handle = |it: &Instance| {
            Part { index: device - GPU_BASE, instance: it.id, compute: 0 }.handle(GPU_INSTANCE)
        };
        let handles: Vec<Handle> = of_profile.map(handle).collect();
        count.put(call.count(handles.len()))?;
        at.put_all(&handles)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceCreateGpuInstanceWithPlacement(
    device: Handle,
    id: u32,
    at: In<Placement>,
    made: Out<Handle>,
) -> Code {
    on_gpu("nvmlDeviceCreateGpuInstanceWithPlacement", device, |call, gpu| {
        if partition::mode(gpu)?.is_none_or(|(now, _)| !now) {
            return Err(NOT_SUPPORTED);
        }
        let (profile, place) = (profile_of_id(call, gpu, id)?, at.get()?);
        if place.size != profile.size || !profile.starts.contains(&place.start) {
            return Err(INVALID_ARGUMENT);
        }
        let mut instances = Instances::open()?;
        let overlaps =
            |it: &Instance| it.start < place.start + place.size && place.start < it.start + it.size;
        let alike = instances.of(gpu).filter(|it| it.profile == id).count();
        if instances.of(gpu).any(overlaps) || alike >= profile.instances_max as usize {
            return Err(INSUFFICIENT_RESOURCES);
        }
        let free = |id: &u32| instances.of(gpu).all(|it| it.id != *id);
        let instance = (0..INSTANCES_MAX).find(free).ok_or(INSUFFICIENT_RESOURCES)?;
        partition::tell(call.machine.procfs.as_deref(), gpu, instance, None)?;
        instances.all.push(Instance {
            gpu: gpu.uuid.clone(),
            id: instance,
            profile: id,
            start: place.start,
            size: place.size,
            compute: Vec::new(),
        });
        instances.save()?;
        made.put(Part { index: device - GPU_BASE, instance, compute: 0 }.handle(GPU_INSTANCE))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetInfo(instance: Handle, at: Out<GpuInstanceInfo>) -> Code {
    let part = Part::of(instance, GPU_INSTANCE);
    on_part("nvmlGpuInstanceGetInfo", part, |_, gpu, part| {
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        at.put(GpuInstanceInfo {
            device: GPU_BASE + part.index,
            id: it.id,
            profile: it.profile,
            placement: Placement { start: it.start, size: it.size },
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceDestroy(instance: Handle) -> Code {
    let part = Part::of(instance, GPU_INSTANCE);
    on_part("nvmlGpuInstanceDestroy", part, |call, gpu, part| {
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        if !it.compute.is_empty() {
            return Err(IN_USE);
        }
        instances.all.retain(|it| it.gpu != gpu.uuid || it.id != part.instance);
        partition::untell(call.machine.procfs.as_deref(), gpu, part.instance, None);
        instances.save()
    })
}

/// A compute profile of each number of slices up to those of the instance.
#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    instance: Handle,
    kind: u32,
    engines: u32,
    at: Out<ComputeProfileInfo>,
) -> Code {
    let part = Part::of(instance, GPU_INSTANCE);
    on_part("nvmlGpuInstanceGetComputeInstanceProfileInfo", part, |call, gpu, part| {
        if kind >= COMPUTE_PROFILES || engines != 0 {
            return Err(INVALID_ARGUMENT);
        }
        // NVML_COMPUTE_INSTANCE_PROFILE_...: 1, 2, 3, 4, 7, 8, 6 slices, then 1 again.
        let slices = [1, 2, 3, 4, 7, 8, 6, 0][kind as usize];
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        if slices == 0 || slices > profile_of_id(call, gpu, it.profile)?.slices {
            return Err(NOT_SUPPORTED);
        }
        at.put(ComputeProfileInfo { id: kind, slices, ..ComputeProfileInfo::default() })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstances(
    instance: Handle,
    profile: u32,
    at: Out<Handle>,
    count: Out<u32>,
) -> Code {
    let part = Part::of(instance, GPU_INSTANCE);
    on_part("nvmlGpuInstanceGetComputeInstances", part, |call, gpu, part| {
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        let of_profile = it.compute.iter().filter(|it| it.profile == profile);
        let handles: Vec<Handle> =
            of_profile.map(|it| Part { compute: it.id, ..part }.handle(COMPUTE_INSTANCE)).collect();
        count.put(call.count(handles.len()))?;
        at.put_all(&handles)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceCreateComputeInstance(
    instance: Handle,
    profile: u32,
    made: Out<Handle>,
) -> Code {
    let part = Part::of(instance, GPU_INSTANCE);
    on_part("nvmlGpuInstanceCreateComputeInstance", part, |call, gpu, part| {
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        let id = (0..8).find(|id| it.compute.iter().all(|known| known.id != *id));
        let id = id.ok_or(INSUFFICIENT_RESOURCES)?;
        partition::tell(call.machine.procfs.as_deref(), gpu, part.instance, Some(id))?;
        it.compute.push(Compute { id, profile });
        instances.save()?;
        made.put(Part { compute: id, ..part }.handle(COMPUTE_INSTANCE))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlComputeInstanceGetInfo_v2(compute: Handle, at: Out<ComputeInstanceInfo>) -> Code {
    let part = Part::of(compute, COMPUTE_INSTANCE);
    on_part("nvmlComputeInstanceGetInfo_v2", part, |_, gpu, part| {
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        let it = it.compute.iter().find(|it| it.id == part.compute).ok_or(NOT_FOUND)?;
        at.put(ComputeInstanceInfo {
            device: GPU_BASE + part.index,
            gpu_instance: part.handle(GPU_INSTANCE),
            id: it.id,
            profile: it.profile,
            placement: Placement { start: 0, size: it.profile + 1 },
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlComputeInstanceDestroy(compute: Handle) -> Code {
    let part = Part::of(compute, COMPUTE_INSTANCE);
    on_part("nvmlComputeInstanceDestroy", part, |call, gpu, part| {
        let uses = |it: &crate::machine::Process| it.gpu_instance == Some(part.instance);
        if gpu.processes.iter().any(uses) {
            return Err(IN_USE);
        }
        let mut instances = Instances::open()?;
        let it = instances.find(gpu, part.instance).ok_or(NOT_FOUND)?;
        it.compute.retain(|it| it.id != part.compute);
        let procfs = call.machine.procfs.as_deref();
        partition::untell(procfs, gpu, part.instance, Some(part.compute));
        instances.save()
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetMaxMigDeviceCount", device, |call, gpu| {
        count.put(call.count(if gpu.mig.is_some() { 7 } else { 0 }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Handle,
    index: u32,
    made: Out<Handle>,
) -> Code {
    on_gpu("nvmlDeviceGetMigDeviceHandleByIndex", device, |_, gpu| {
        let instances = Instances::open()?;
        let each = instances.of(gpu).flat_map(|it| {
            it.compute.iter().map(|compute| Part {
                index: device - GPU_BASE,
                instance: it.id,
                compute: compute.id,
            })
        });
        made.put(each.into_iter().nth(index as usize).ok_or(NOT_FOUND)?.handle(MIG_DEVICE))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceId(device: Handle, id: Out<u32>) -> Code {
    let part = mig_device(device);
    on_part("nvmlDeviceGetGpuInstanceId", part, |_, _, part| id.put(part.instance))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeInstanceId(device: Handle, id: Out<u32>) -> Code {
    let part = mig_device(device);
    on_part("nvmlDeviceGetComputeInstanceId", part, |_, _, part| id.put(part.compute))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    device: Handle,
    parent: Out<Handle>,
) -> Code {
    let part = mig_device(device);
    on_part("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part, |_, _, part| {
        parent.put(GPU_BASE + part.index)
    })
}
