//! What can go wrong in a vendor's library, in words that fit every vendor.

use accelpool_model::{DeviceUuid, ProfileName};

/// Why a vendor call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VendorError {
    /// The library, driver or device cannot do this; asking again does not help.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// No device of that identity answers.
    #[error("device {0} does not answer")]
    UnknownDevice(DeviceUuid),
    /// The device has no such profile, or not at that placement.
    #[error("device {device} has no profile {profile} at {start}")]
    UnknownProfile {
        /// The device.
        device: DeviceUuid,
        /// The profile asked for.
        profile: ProfileName,
        /// The start asked for.
        start: u32,
    },
    /// Another partition holds the slices.
    #[error("the slices are taken on device {0}")]
    Occupied(DeviceUuid),
    /// A process uses what would be changed.
    #[error("device {device} is in use: {holder}")]
    InUse {
        /// The device.
        device: DeviceUuid,
        /// Who uses it, as far as is known.
        holder: String,
    },
    /// The library could not be loaded or initialized.
    #[error("library is not usable: {0}")]
    Library(String),
    /// The call ran and failed; the text holds the vendor's code and words.
    #[error("{call} failed: {detail}")]
    Failed {
        /// The method.
        call: &'static str,
        /// The vendor's code and words.
        detail: String,
    },
}
