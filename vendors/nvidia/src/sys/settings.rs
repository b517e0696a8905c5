//! What an operator set on a device.

use super::{CallError, Gpu, check, found, get};

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

    /// Lets those compute whom `NVML_COMPUTEMODE_...` says.
    pub(crate) fn set_compute_mode(self, mode: u32) -> Result<(), CallError> {
        const CALL: &str = "nvmlDeviceSetComputeMode";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceSetComputeMode)?;
        // SAFETY: the handle is live; the other argument is a number.
        check(CALL, unsafe { function(self.handle, mode) })
    }

    /// Keeps the device awake, or no longer.
    pub(crate) fn set_persistence(self, on: bool) -> Result<(), CallError> {
        const CALL: &str = "nvmlDeviceSetPersistenceMode";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceSetPersistenceMode)?;
        // SAFETY: the handle is live; the other argument is a number.
        check(CALL, unsafe { function(self.handle, on.into()) })
    }

    /// Has the driver remember what ended processes used, or no longer.
    pub(crate) fn set_accounting(self, on: bool) -> Result<(), CallError> {
        const CALL: &str = "nvmlDeviceSetAccountingMode";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceSetAccountingMode)?;
        // SAFETY: the handle is live; the other argument is a number.
        check(CALL, unsafe { function(self.handle, on.into()) })
    }
}
