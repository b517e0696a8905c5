//! MIG: profiles and places of a device in MIG mode, and the instances on it.
//!
//! A partition is a GPU instance with one compute instance that covers it. GPU instances are
//! listed, not MIG devices: one without compute instance is half-created, and no MIG device.
//! MIG mode is switched where that is asked for, and then at once or not at all.

mod name;

use accelpool_model::{
    ComputePermille, DeviceUuid, MemoryBytes, Partition, PartitionProfile, Partitioning,
    PartitioningMode, Placements, ProfileName,
};
use accelpool_vendor_api::VendorError;

use crate::{
    files,
    inventory::injection,
    nodes,
    roots::Roots,
    sys::{
        CallError, ComputeInstance, Gpu, GpuInstance, GpuInstancePlace, MigDevice, Nvml, Profile,
        ProfileKind,
    },
};

/// The vendor's word, which is part of the names of partitions.
const SCHEME: &str = "mig";

/// `nvml.h` names 18 profiles of GPU instances today (`NVML_GPU_INSTANCE_PROFILE_COUNT`), and
/// a library knows which of them it has.
const PROFILES_MAX: u32 = 32;

/// `nvml.h` names 8 profiles of compute instances (`NVML_COMPUTE_INSTANCE_PROFILE_COUNT`).
const COMPUTE_PROFILES_MAX: u32 = 8;

/// The first generation whose MIG mode changes without a reset: `NVML_DEVICE_ARCH_HOPPER`.
const HOPPER: u32 = 9;

/// How the device can be cut, and whether it is in the mode for it; none if it never can.
pub(crate) fn partitioning(
    gpu: Gpu<'_>,
    memory: MemoryBytes,
) -> Result<Option<Partitioning>, CallError> {
    let Some(on) = mode(gpu)? else { return Ok(None) };
    let offered = match offered(gpu, memory) {
        Err(error) if !on => return Err(error),
        answer => answer.unwrap_or_default(),
    };
    let slices = offered.iter().flat_map(|it| &it.places);
    let slices = slices.filter_map(|place| place.start.checked_add(place.size)).max();
    // In the mode, and no profile told of: it serves no parts, and still nobody as a whole.
    let Some(slices) = slices.or(on.then_some(0)) else { return Ok(None) };
    let most = offered.iter().map(|it| it.profile.multiprocessors).max().unwrap_or(0);
    let profiles = offered.into_iter().map(|it| it.describe(memory, most)).collect();
    let mode = Some(PartitioningMode { on, switchable: is_switchable(gpu) });
    Ok(Some(Partitioning { scheme: SCHEME.to_owned(), slices, uniform: false, profiles, mode }))
}

/// Whether the device is in MIG mode; none if it has no such mode.
fn mode(gpu: Gpu<'_>) -> Result<Option<bool>, CallError> {
    match gpu.mig_is_on() {
        Err(error) if error.is_unsupported() => Ok(None),
        answer => answer.map(Some),
    }
}

fn is_switchable(gpu: Gpu<'_>) -> bool {
    // Before there was a field for it, the generation told.
    gpu.mig_is_resetless()
        .unwrap_or_else(|_| gpu.architecture().is_ok_and(|architecture| architecture >= HOPPER))
}

/// Brings an idle device into MIG mode, or out of it: at once, or not at all.
pub(crate) fn switch_mode(gpu: Gpu<'_>, device: &DeviceUuid, on: bool) -> Result<(), VendorError> {
    let about = |error: CallError| error.about(device);
    let in_use = |holder: String| VendorError::InUse { device: device.clone(), holder };
    let (now, pending) = gpu.mig_mode().map_err(about)?;
    if now == on && pending == on {
        return Ok(());
    }
    if now != on {
        if !is_switchable(gpu) {
            let words = "MIG mode of this device changes with a reset of the GPU only";
            return Err(VendorError::Unsupported(words.to_owned()));
        }
        let memory = MemoryBytes::new(gpu.memory_total().map_err(about)?);
        for Offered { profile, .. } in existing_shapes(gpu, memory).map_err(about)? {
            if !gpu.instances(profile.id).map_err(about)?.is_empty() {
                return Err(in_use("its GPU instances".to_owned()));
            }
        }
        if !gpu.processes().map_err(about)?.is_empty() {
            return Err(in_use(holders(gpu)));
        }
    }
    let outcome = gpu.set_mig_mode(on).map_err(about)?;
    if outcome.is_ok() && gpu.mig_is_on().map_err(about)? == on {
        return Ok(());
    }
    // Left pending it would come with the next reset, when nobody reckons with it.
    let back = gpu.set_mig_mode(now);
    let why = outcome.err().map_or_else(|| "it did not change".to_owned(), |it| it.to_string());
    match back {
        Ok(_) => Err(in_use(format!("the driver would switch MIG mode at a reset only: {why}"))),
        Err(error) => Err(in_use(format!(
            "the driver will switch MIG mode at the next reset: {why}; taking that back failed: \
             {error}"
        ))),
    }
}

/// A profile that the device offers, with its name and its places.
struct Offered {
    name: ProfileName,
    profile: Profile,
    /// Ascending, all of one size, at least one.
    places: Vec<GpuInstancePlace>,
}

impl Offered {
    fn describe(self, memory: MemoryBytes, multiprocessors: u32) -> PartitionProfile {
        let own = u64::from(self.profile.multiprocessors);
        let permille = (own * 1000).checked_div(multiprocessors.into()).unwrap_or(1);
        let bytes = MemoryBytes::new(self.profile.memory_mib.saturating_mul(1 << 20));
        PartitionProfile {
            name: self.name,
            memory: bytes.min(memory),
            compute: permille.clamp(1, 1000).try_into().unwrap_or(ComputePermille::WHOLE),
            size: self.places.first().map_or(1, |place| place.size),
            placements: Placements::Fixed(self.places.iter().map(|place| place.start).collect()),
            instances_max: self.profile.instances_max,
        }
    }
}

/// The shapes of instances that there can be now: none outside MIG mode.
fn existing_shapes(gpu: Gpu<'_>, memory: MemoryBytes) -> Result<Vec<Offered>, CallError> {
    match mode(gpu)? {
        Some(true) => offered(gpu, memory),
        Some(false) | None => Ok(Vec::new()),
    }
}

fn offered(gpu: Gpu<'_>, memory: MemoryBytes) -> Result<Vec<Offered>, CallError> {
    let mut offered: Vec<Offered> = Vec::new();
    for kind in (0..PROFILES_MAX).map(ProfileKind) {
        let profile = match gpu.profile(kind) {
            Ok(profile) => profile,
            Err(error) if error.is_unsupported() || error.is_invalid_argument() => continue,
            Err(error) => return Err(error),
        };
        let Some(name) = name::of(&profile, memory) else { continue };
        let mut places = match gpu.places(profile.id) {
            // Some drivers tell of places in MIG mode only.
            Err(error) if error.is_unsupported() => continue,
            answer => answer?,
        };
        places.sort_unstable();
        places.dedup();
        let size = places.first().map_or(0, |place| place.size);
        places.retain(|place| place.size == size && place.start.checked_add(size).is_some());
        let known = offered.iter().any(|it| it.name == name || it.profile.id == profile.id);
        if size > 0 && !places.is_empty() && profile.instances_max > 0 && !known {
            offered.push(Offered { name, profile, places });
        }
    }
    Ok(offered)
}

/// The partitions that exist, half-created ones too.
pub(crate) fn partitions(
    roots: &Roots,
    nvml: &Nvml,
    gpu: Gpu<'_>,
    device: &DeviceUuid,
) -> Result<Vec<Partition>, VendorError> {
    let memory = MemoryBytes::new(gpu.memory_total().unwrap_or_default());
    let mut partitions = Vec::new();
    let listing = Listing::new(roots, nvml, gpu, device)?;
    for Offered { name, profile, .. } in
        existing_shapes(gpu, memory).map_err(|it| it.about(device))?
    {
        for instance in gpu.instances(profile.id).map_err(|it| it.about(device))? {
            partitions.push(listing.partition(&name, profile.slices, instance)?);
        }
    }
    Ok(partitions)
}

/// Creates the partition of a profile at a start, or leaves nothing behind.
pub(crate) fn create(
    roots: &Roots,
    nvml: &Nvml,
    gpu: Gpu<'_>,
    device: &DeviceUuid,
    (name, start): (&ProfileName, u32),
) -> Result<Partition, VendorError> {
    let about = |error: CallError| error.about(device);
    let memory = MemoryBytes::new(gpu.memory_total().unwrap_or_default());
    let offered = offered(gpu, memory).map_err(about)?;
    let unknown = || {
        let (device, profile) = (device.clone(), name.clone());
        VendorError::UnknownProfile { device, profile, start }
    };
    let chosen = offered.iter().find(|it| it.name == *name).ok_or_else(unknown)?;
    let place = chosen.places.iter().find(|place| place.start == start).ok_or_else(unknown)?;
    if !gpu.mig_is_on().map_err(about)? {
        let detail = "the device is not in MIG mode".to_owned();
        return Err(VendorError::Failed { call: "create_partition", detail });
    }
    let instance = gpu.create_instance(chosen.profile.id, *place).map_err(about)?;
    let finish = || {
        let slices = chosen.profile.slices;
        let compute = covering_profile(instance, slices).map_err(about)?;
        instance.create_compute_instance(compute).map_err(about)?;
        let listing = Listing::new(roots, nvml, gpu, device)?;
        let partition = listing.partition(name, slices, instance)?;
        if partition.complete {
            return Ok(partition);
        }
        let detail = "the instance was made, but the library does not list it".to_owned();
        Err(VendorError::Failed { call: "create_partition", detail })
    };
    finish().inspect_err(|_| {
        // What cannot be undone now is listed as half-created, and destroyed later.
        let _ = remove(instance);
    })
}

/// Destroys what lies at a place, complete or half-created.
pub(crate) fn destroy(
    gpu: Gpu<'_>,
    device: &DeviceUuid,
    (name, start): (&ProfileName, u32),
) -> Result<(), VendorError> {
    let about = |error: CallError| match error.about(device) {
        VendorError::InUse { device, .. } => VendorError::InUse { device, holder: holders(gpu) },
        other @ (VendorError::Unsupported(_)
        | VendorError::UnknownDevice(_)
        | VendorError::UnknownProfile { .. }
        | VendorError::Occupied(_)
        | VendorError::Library(_)
        | VendorError::Failed { .. }) => other,
    };
    let memory = MemoryBytes::new(gpu.memory_total().unwrap_or_default());
    let offered = existing_shapes(gpu, memory).map_err(about)?;
    let Some(chosen) = offered.iter().find(|it| it.name == *name) else { return Ok(()) };
    for instance in gpu.instances(chosen.profile.id).map_err(about)? {
        if instance.place.start == start {
            remove(instance).map_err(about)?;
        }
    }
    Ok(())
}

fn remove(instance: GpuInstance<'_>) -> Result<(), CallError> {
    for (_, compute) in compute_instances(instance)? {
        compute.destroy()?;
    }
    instance.destroy()
}

/// The processes on a device, for people.
fn holders(gpu: Gpu<'_>) -> String {
    let mut pids: Vec<u32> =
        gpu.processes().unwrap_or_default().iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    if pids.is_empty() {
        return "a process that the driver does not name".to_owned();
    }
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    format!("processes {}", pids.join(", "))
}

/// The number of the compute profile that covers all slices of an instance.
fn covering_profile(instance: GpuInstance<'_>, slices: u32) -> Result<u32, CallError> {
    let profiles = compute_profiles(instance)?;
    let covering = profiles.into_iter().find(|(_, covered)| *covered == slices);
    covering.map(|(id, _)| id).ok_or_else(|| CallError::Nonsense {
        call: "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        detail: format!("no compute profile covers {slices} slices"),
    })
}

/// Numbers and slices of the compute profiles of an instance.
fn compute_profiles(instance: GpuInstance<'_>) -> Result<Vec<(u32, u32)>, CallError> {
    let mut profiles = Vec::new();
    for kind in 0..COMPUTE_PROFILES_MAX {
        match instance.compute_profile(kind) {
            Ok(profile) => profiles.push(profile),
            Err(error) if error.is_unsupported() || error.is_invalid_argument() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(profiles)
}

/// The compute instances in an instance, with the slices that each covers.
fn compute_instances(
    instance: GpuInstance<'_>,
) -> Result<Vec<(u32, ComputeInstance<'_>)>, CallError> {
    let mut instances = Vec::new();
    for (profile, slices) in compute_profiles(instance)? {
        let of_profile = instance.compute_instances(profile)?;
        instances.extend(of_profile.into_iter().map(|compute| (slices, compute)));
    }
    Ok(instances)
}

/// What is needed to describe the instances of one device.
struct Listing<'a> {
    roots: &'a Roots,
    device: &'a DeviceUuid,
    minor: u32,
    pci: accelpool_model::PciAddress,
    mounts: Vec<accelpool_model::Mount>,
    /// UUIDs by GPU instance and compute instance.
    uuids: Vec<MigDevice>,
}

impl<'a> Listing<'a> {
    fn new(
        roots: &'a Roots,
        nvml: &Nvml,
        gpu: Gpu<'_>,
        device: &'a DeviceUuid,
    ) -> Result<Self, VendorError> {
        let about = |error: CallError| error.about(device);
        let failed =
            |detail: &str| VendorError::Failed { call: "partitions", detail: detail.to_owned() };
        let uuids = match gpu.mig_devices() {
            Err(error) if error.is_unsupported() => Vec::new(),
            answer => answer.map_err(about)?,
        };
        let pci = crate::inventory::parse_pci(&gpu.pci().map_err(about)?);
        Ok(Self {
            roots,
            device,
            minor: gpu.minor().map_err(about)?,
            pci: pci.ok_or_else(|| failed("the device does not say where it is"))?,
            mounts: files::mounts(roots, &nvml.driver_version().unwrap_or_default()),
            uuids,
        })
    }

    /// Describes an instance. It is complete if it has a compute instance.
    fn partition(
        &self,
        profile: &ProfileName,
        slices: u32,
        instance: GpuInstance<'_>,
    ) -> Result<Partition, VendorError> {
        let computes = compute_instances(instance).map_err(|error| error.about(self.device))?;
        // One that an operator cut further is his, and in order; only one without any is half.
        let covering = computes.iter().find(|(covered, _)| *covered == slices);
        let compute = covering.or(computes.first()).map(|(_, compute)| compute.id);
        let half = Partition {
            uuid: self.half_created_uuid(instance.id)?,
            device: self.device.clone(),
            profile: profile.clone(),
            start: instance.place.start,
            complete: false,
            injection: accelpool_model::Injection::default(),
        };
        let Some(compute) = compute else { return Ok(half) };
        let place = (instance.id, compute);
        let uuid = self.uuids.iter().find(|(known, _)| *known == place);
        // Never half-created for this: that would have it destroyed under whoever uses it.
        let uuid = uuid.and_then(|(_, uuid)| uuid.parse().ok()).ok_or_else(|| {
            let (gpu, compute) = place;
            let detail = format!("no MIG device for instance {gpu}, compute instance {compute}");
            VendorError::Failed { call: "partitions", detail }
        })?;
        let mut found = nodes::of_device(self.roots, self.pci, self.minor);
        let own = nodes::of_instance(self.roots, self.minor, place).map_err(|error| {
            VendorError::Failed { call: "partitions", detail: error.to_string() }
        })?;
        found.extend(own);
        let injection = injection(found, &self.mounts);
        Ok(Partition { uuid, complete: true, injection, ..half })
    }

    /// NVML gives no UUID to an instance without compute instance; this one is as stable.
    fn half_created_uuid(&self, instance: u32) -> Result<DeviceUuid, VendorError> {
        format!("{}.gi{instance}", self.device).parse().map_err(|error| VendorError::Failed {
            call: "partitions",
            detail: format!("the device's UUID leaves no room for that of a part: {error}"),
        })
    }
}
