//! The driver's own settings of a device: read always, changed when asked.
//!
//! Its time slices are not among them: they have no entry point in NVML.

use accelpool_model::{ComputeMode, DeviceUuid, Settings};
use accelpool_vendor_api::VendorError;

use crate::sys::{CallError, Gpu};

/// How the driver is set for a device; what it does not say is absent.
pub(crate) fn settings(gpu: Gpu<'_>) -> Settings {
    Settings {
        compute_mode: gpu.compute_mode().ok().and_then(compute_mode),
        persistence: gpu.persistence_is_on().ok(),
        accounting: gpu.accounting_is_on().ok(),
    }
}

/// Sets what `wanted` has, and sees that it is so: a driver may take a call and do nothing.
pub(crate) fn configure(
    gpu: Gpu<'_>,
    device: &DeviceUuid,
    wanted: Settings,
) -> Result<(), VendorError> {
    let about = |error: CallError| error.about(device);
    let missing = wanted.beyond(settings(gpu));
    if let Some(mode) = missing.compute_mode {
        gpu.set_compute_mode(number(mode)).map_err(about)?;
    }
    if let Some(on) = missing.persistence {
        gpu.set_persistence(on).map_err(about)?;
    }
    if let Some(on) = missing.accounting {
        gpu.set_accounting(on).map_err(about)?;
    }
    let left = wanted.beyond(settings(gpu));
    if left == Settings::default() {
        return Ok(());
    }
    let detail = format!("the driver took it and did not change: {left}");
    Err(VendorError::Failed { call: "configure", detail })
}

/// `nvmlComputeMode_t` of `nvml.h`; 1, one thread of one process, is gone since CUDA 8.
fn compute_mode(number: u32) -> Option<ComputeMode> {
    match number {
        0 => Some(ComputeMode::Default),
        2 => Some(ComputeMode::Prohibited),
        3 => Some(ComputeMode::ExclusiveProcess),
        _ => None,
    }
}

fn number(mode: ComputeMode) -> u32 {
    match mode {
        ComputeMode::Default => 0,
        ComputeMode::Prohibited => 2,
        ComputeMode::ExclusiveProcess => 3,
    }
}
