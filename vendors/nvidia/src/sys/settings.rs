//! What an operator set on a device.

use super::{CallError, Gpu, get};

impl Gpu<'_> {
    /// `NVML_COMPUTEMODE_...`: 0 lets any number of processes compute.
    pub(crate) fn compute_mode(self) -> Result<u32, CallError> {
        let (call, symbol) =
            ("nvmlDeviceGetComputeMode", &self.nvml.raw().nvmlDeviceGetComputeMode);
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get(call, symbol, self.handle, 0) }
    }

    /// Whether the driver keeps the device awake when nobody uses it.
    pub(crate) fn persistence_is_on(self) -> Result<bool, CallError> {
        let (call, symbol) =
            ("nvmlDeviceGetPersistenceMode", &self.nvml.raw().nvmlDeviceGetPersistenceMode);
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get(call, symbol, self.handle, 0) }.map(|mode| mode == 1)
    }
}
