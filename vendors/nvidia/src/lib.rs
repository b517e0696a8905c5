//! NVIDIA's devices behind the vendor trait, through the driver's own NVML.
//!
//! The library is found and loaded at run time and each of its symbols on its own, so that the
//! same program runs without a driver, with a broken one, and with any from 535 on: what a
//! driver lacks is unsupported, no more. It translates and never decides. See the README for what
//! comes from where.

mod counters;
mod error;
mod events;
mod fallback;
mod files;
mod health;
mod inventory;
mod kmsg;
mod library;
mod links;
mod mig;
mod nodes;
mod roots;
mod settings;
#[cfg(feature = "snapshot")]
mod snapshot;
mod sys;
mod uevent;
mod usage;
mod xid;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Link, Partition, ProfileName, RecoveryAction, Sample,
    Settings,
};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};

pub use crate::roots::Roots;
use crate::{
    events::Watch,
    library::{Caller, Library},
    sys::Nvml,
    usage::Sampled,
};

/// The names of all of NVIDIA's drivers begin so in `/proc/devices`: `nvidia`, `nvidia-uvm`,
/// `nvidia-caps` and so on. Every device of theirs is an accelerator or leads to one.
pub const DRIVERS: &str = "nvidia";

/// The NVIDIA devices of one machine.
#[derive(Debug)]
pub struct Nvidia {
    roots: Roots,
    library: Library,
    /// Held while instances are made or destroyed, so that one undoing does not meet another.
    changes: Mutex<()>,
    watch: Mutex<Watch>,
    /// When each device was sampled last. A fresh worker begins anew and measures nothing at
    /// its first call.
    sampled: Mutex<BTreeMap<DeviceUuid, Sampled>>,
}

impl Nvidia {
    /// The devices of the machine at `roots`. Opens nothing yet.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self {
            roots,
            library: Library::new(),
            changes: Mutex::default(),
            watch: Mutex::default(),
            sampled: Mutex::default(),
        }
    }

    /// All that the library says, in the form that the stand-in reads; none without a driver.
    ///
    /// # Errors
    ///
    /// If the library cannot be loaded, or cannot say what devices there are.
    #[cfg(feature = "snapshot")]
    pub fn snapshot(&self) -> Result<Option<serde_json::Value>, VendorError> {
        self.with(
            || Ok(None),
            |nvml| match snapshot::machine(nvml) {
                Ok(machine) => Ok(Some(machine)),
                Err(error) => Err(error.about_nobody()),
            },
        )
    }

    /// Runs `call` with the library; `none` is the answer of a machine without driver.
    fn with<T>(
        &self,
        none: impl FnOnce() -> Result<T, VendorError>,
        call: impl FnOnce(&Arc<Nvml>) -> Result<T, VendorError>,
    ) -> Result<T, VendorError> {
        self.library.with(&self.roots, Caller::Asking, |nvml| match nvml {
            Some(nvml) => call(nvml),
            None => none(),
        })
    }
}

/// Takes a lock. Poison means a panic elsewhere; what these locks guard is sound at any time.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown<T>(device: &DeviceUuid) -> impl FnOnce() -> Result<T, VendorError> {
    let device = device.clone();
    || Err(VendorError::UnknownDevice(device))
}

impl Vendor for Nvidia {
    fn discover(&self) -> Result<Vec<Device>, VendorError> {
        let listed =
            self.with(|| Ok(Vec::new()), |nvml| inventory::devices(&self.roots, Some(nvml)));
        match listed {
            // The library is of no use, but the driver still says who is there.
            Err(error @ VendorError::Library(_)) => {
                let described = inventory::devices(&self.roots, None)?;
                if described.is_empty() { Err(error) } else { Ok(described) }
            }
            answer => answer,
        }
    }

    fn links(&self) -> Result<Vec<Link>, VendorError> {
        self.with(|| Ok(Vec::new()), |nvml| links::links(nvml))
    }

    fn partitions(&self, device: &DeviceUuid) -> Result<Vec<Partition>, VendorError> {
        self.with(unknown(device), |nvml| {
            let gpu = inventory::find(&self.roots, nvml, device)?;
            mig::partitions(&self.roots, nvml, gpu, device)
        })
    }

    fn switch_mode(&self, device: &DeviceUuid, on: bool) -> Result<(), VendorError> {
        self.with(unknown(device), |nvml| {
            let _alone = locked(&self.changes);
            let gpu = inventory::find(&self.roots, nvml, device)?;
            mig::switch_mode(gpu, device, on)
        })
    }

    fn configure(&self, device: &DeviceUuid, settings: Settings) -> Result<(), VendorError> {
        self.with(unknown(device), |nvml| {
            let _alone = locked(&self.changes);
            let gpu = inventory::find(&self.roots, nvml, device)?;
            settings::configure(gpu, device, settings)
        })
    }

    fn create_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<Partition, VendorError> {
        self.with(unknown(device), |nvml| {
            let _alone = locked(&self.changes);
            let gpu = inventory::find(&self.roots, nvml, device)?;
            mig::create(&self.roots, nvml, gpu, device, (profile, start))
        })
    }

    fn destroy_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<(), VendorError> {
        self.with(unknown(device), |nvml| {
            let _alone = locked(&self.changes);
            let gpu = inventory::find(&self.roots, nvml, device)?;
            mig::destroy(gpu, device, (profile, start))
        })
    }

    fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, VendorError> {
        self.with(unknown(device), |nvml| {
            let gpu = inventory::find(&self.roots, nvml, device)?;
            let before = locked(&self.sampled).get(device).copied();
            let (samples, now) = usage::sample(gpu, device, before)?;
            locked(&self.sampled).insert(device.clone(), now);
            Ok(samples)
        })
    }

    fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, VendorError> {
        self.with(unknown(device), |nvml| {
            let gpu = inventory::find(&self.roots, nvml, device)?;
            counters::counters(gpu, device)
        })
    }

    fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, VendorError> {
        events::next(&self.roots, &self.library, &self.watch, timeout)
    }

    fn recovery_action(&self, device: &DeviceUuid) -> Result<RecoveryAction, VendorError> {
        self.with(unknown(device), |nvml| {
            let gpu = inventory::find(&self.roots, nvml, device)?;
            events::recovery_action(gpu, device)
        })
    }

    fn probe(&self, device: &DeviceUuid) -> Result<(), VendorError> {
        self.with(unknown(device), |nvml| {
            let gpu = inventory::find(&self.roots, nvml, device)?;
            events::probe(&self.roots, gpu, device)
        })?;
        // Not inside the library: whoever waits there has the watch.
        match locked(&self.watch).ailment(device) {
            Some(detail) => Err(VendorError::Failed { call: "probe", detail }),
            None => Ok(()),
        }
    }

    fn quiesce(&self, _device: Option<&DeviceUuid>) -> Result<(), VendorError> {
        // NVML opens and closes all devices at once, so to close one is to close all.
        if self.library.close(|| locked(&self.watch).close()) {
            return Ok(());
        }
        let detail = "something still uses the library".to_owned();
        Err(VendorError::Failed { call: "quiesce", detail })
    }
}
