//! NVML's error codes in the words of the vendor trait: one exhaustive function.

use accelpool_model::DeviceUuid;
use accelpool_vendor_api::VendorError;
use nvml_wrapper::error::NvmlError;

use crate::sys::CallError;

/// Codes of `nvml.h` that `NvmlError` has no name for.
mod code {
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 23;
    pub(super) const FREQUENCY_NOT_SUPPORTED: u32 = 24;
    pub(super) const ARGUMENT_VERSION_MISMATCH: u32 = 25;
    pub(super) const DEPRECATED: u32 = 26;
    pub(super) const GPU_NOT_FOUND: u32 = 28;
    pub(super) const RESET_TYPE_NOT_SUPPORTED: u32 = 30;
}

/// What a code comes to, whatever was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Driver or device cannot do this; asking again does not help.
    Unsupported,
    /// What was asked about is not there.
    Gone,
    /// Something else takes up what was asked for.
    Occupied,
    /// Somebody uses it.
    InUse,
    /// The library itself is of no use until it is loaded anew.
    Unusable,
    /// The device is lost or needs a reset.
    Lost,
    /// The rest.
    Failed,
}

fn meaning(error: &NvmlError) -> Meaning {
    #[expect(deprecated, reason = "a library may still answer so")]
    match error {
        NvmlError::NotSupported
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::VgpuEccNotSupported
        | NvmlError::UnexpectedVariant(
            code::FREQUENCY_NOT_SUPPORTED
            | code::ARGUMENT_VERSION_MISMATCH
            | code::DEPRECATED
            | code::RESET_TYPE_NOT_SUPPORTED,
        ) => Meaning::Unsupported,
        NvmlError::NotFound | NvmlError::UnexpectedVariant(code::GPU_NOT_FOUND) => Meaning::Gone,
        NvmlError::UnexpectedVariant(code::INSUFFICIENT_RESOURCES) => Meaning::Occupied,
        NvmlError::InUse => Meaning::InUse,
        NvmlError::Uninitialized
        | NvmlError::DriverNotLoaded
        | NvmlError::LibraryNotFound
        | NvmlError::LibRmVersionMismatch
        | NvmlError::LibloadingError(_) => Meaning::Unusable,
        NvmlError::GpuLost | NvmlError::ResetRequired => Meaning::Lost,
        NvmlError::InvalidArg
        | NvmlError::NoPermission
        | NvmlError::AlreadyInitialized
        | NvmlError::InsufficientSize(_)
        | NvmlError::InsufficientPower
        | NvmlError::Timeout
        | NvmlError::IrqIssue
        | NvmlError::CorruptedInfoROM
        | NvmlError::OperatingSystem
        | NvmlError::InsufficientMemory
        | NvmlError::NoData
        | NvmlError::Unknown
        // Not ready (27), invalid state (29), and numbers that nobody has named yet.
        | NvmlError::UnexpectedVariant(_)
        | NvmlError::Utf8Error(_)
        | NvmlError::NulError(_)
        | NvmlError::StringTooLong { .. }
        | NvmlError::IncorrectBits(_)
        | NvmlError::SetReleaseFailed
        | NvmlError::GetPciInfoFailed
        | NvmlError::PciInfoToCFailed => Meaning::Failed,
    }
}

impl CallError {
    fn meaning(&self) -> Meaning {
        match self {
            Self::Refused { error, .. } => meaning(error),
            Self::Nonsense { .. } => Meaning::Failed,
        }
    }

    /// The driver or the device cannot do this.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.meaning() == Meaning::Unsupported
    }

    /// The driver knows another version of the structure.
    pub(crate) fn is_version_mismatch(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                error: NvmlError::UnexpectedVariant(code::ARGUMENT_VERSION_MISMATCH),
                ..
            }
        )
    }

    /// What was asked about is not there.
    pub(crate) fn is_gone(&self) -> bool {
        self.meaning() == Meaning::Gone
    }

    /// An argument is not one that the call takes, such as a number beyond the last.
    pub(crate) fn is_invalid_argument(&self) -> bool {
        matches!(self, Self::Refused { error: NvmlError::InvalidArg, .. })
    }

    /// The device no longer answers, or needs a reset.
    pub(crate) fn is_lost(&self) -> bool {
        self.meaning() == Meaning::Lost
    }

    /// The library must be loaded anew.
    pub(crate) fn is_unusable(&self) -> bool {
        self.meaning() == Meaning::Unusable
    }

    /// The error of a call about `device`.
    pub(crate) fn about(self, device: &DeviceUuid) -> VendorError {
        match self.meaning() {
            Meaning::Gone => VendorError::UnknownDevice(device.clone()),
            Meaning::Occupied => VendorError::Occupied(device.clone()),
            Meaning::InUse => VendorError::InUse {
                device: device.clone(),
                holder: "a process that the driver does not name".to_owned(),
            },
            Meaning::Unsupported | Meaning::Unusable | Meaning::Lost | Meaning::Failed => {
                self.about_nobody()
            }
        }
    }

    /// The error of a call about no device in particular.
    pub(crate) fn about_nobody(self) -> VendorError {
        match self.meaning() {
            Meaning::Unsupported => VendorError::Unsupported(self.to_string()),
            Meaning::Unusable => VendorError::Library(self.to_string()),
            Meaning::Gone
            | Meaning::Occupied
            | Meaning::InUse
            | Meaning::Lost
            | Meaning::Failed => {
                let (call, detail) = match &self {
                    Self::Refused { call, error } => (*call, error.to_string()),
                    Self::Nonsense { call, detail } => (*call, format!("nonsense: {detail}")),
                };
                VendorError::Failed { call, detail }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::error::nvml_try;

    use super::*;

    #[track_caller]
    fn check(code: u32, expected: &str) {
        let device: DeviceUuid = "GPU-1".parse().unwrap();
        let error = nvml_try(code).unwrap_err();
        let error = CallError::Refused { call: "nvmlX", error }.about(&device);
        let words = match &error {
            VendorError::Unsupported(_) => "unsupported",
            VendorError::UnknownDevice(_) => "unknown device",
            VendorError::UnknownProfile { .. } => "unknown profile",
            VendorError::Occupied(_) => "occupied",
            VendorError::InUse { .. } => "in use",
            VendorError::Library(_) => "library",
            VendorError::Failed { .. } => "failed",
        };
        assert_eq!(words, expected, "code {code}: {error}");
    }

    #[test]
    fn every_code_has_a_meaning() {
        let unsupported = [3, 13, 22, 24, 25, 26, 30];
        let library = [1, 9, 12, 18];
        for code in (1..=40).chain([999, u32::MAX]) {
            let expected = match code {
                _ if unsupported.contains(&code) => "unsupported",
                _ if library.contains(&code) => "library",
                6 | 28 => "unknown device",
                19 => "in use",
                23 => "occupied",
                _ => "failed",
            };
            check(code, expected);
        }
    }
}
