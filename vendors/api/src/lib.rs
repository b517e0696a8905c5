//! What the node needs from a vendor's library, and nothing more.
//!
//! Calls block, as the libraries do; they run in a `vendor-worker` process that the
//! daemon kills when a call outlives its deadline. An adapter translates and never
//! decides: it holds no claim, no policy and no cache, so that a fresh worker answers
//! as the killed one would have.
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;

use std::time::Duration;

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Fault, Link, Partition, ProfileName, RecoveryAction,
    Sample, Settings,
};

pub use crate::error::VendorError;

/// One vendor's library, loaded and initialized.
///
/// Every method may be called at any time and from any thread, several at once. An
/// [`VendorError::Unsupported`] answer is final for that device and driver; any other
/// error may go away.
pub trait Vendor: Send + Sync {
    /// Lists every device that the library can see, healthy or not, in any order.
    ///
    /// Called at start, after each [`VendorEvent::DevicesChanged`] and every few
    /// seconds. Identities ([`Device::uuid`]) are unique and never change; a device
    /// that is gone from the bus is left out. Memory is in bytes.
    ///
    /// # Errors
    ///
    /// Any; the node then keeps what it saw last.
    fn discover(&self) -> Result<Vec<Device>, VendorError>;

    /// Lists the links between devices, each pair and kind once.
    ///
    /// Called after [`Vendor::discover`]. Bandwidth is in bytes per second and per
    /// direction. Links to devices of other vendors are left out.
    ///
    /// # Errors
    ///
    /// Any; the node then has no links.
    fn links(&self) -> Result<Vec<Link>, VendorError>;

    /// Lists the partitions that exist on a device, half-created ones too.
    ///
    /// Called with [`Vendor::discover`], and before and after partitions are changed.
    /// Profiles and placements that a device offers stand in [`Device::partitioning`].
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`] if the device is gone. A device that cannot be
    /// partitioned has no partitions; that is no error.
    fn partitions(&self, device: &DeviceUuid) -> Result<Vec<Partition>, VendorError>;

    /// Brings a device into its partitioning mode, or out of it: [`PartitioningMode`].
    ///
    /// Called where the operator's configuration allows it, while no claim holds the device. It
    /// either works at once or leaves everything as it was, with nothing pending; a device that
    /// is as asked for stays so.
    ///
    /// [`PartitioningMode`]: accelpool_model::PartitioningMode
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::Unsupported`] where there is no such mode,
    /// [`VendorError::InUse`] while the device has partitions or a process uses it.
    fn switch_mode(&self, device: &DeviceUuid, on: bool) -> Result<(), VendorError>;

    /// Sets the driver as `settings` says; what is absent there stays as it is.
    ///
    /// Called where the operator's configuration wants it, with what is otherwise in
    /// [`Device::traits`]. After it, [`Vendor::discover`] tells the new settings.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::Unsupported`] where the driver has no such
    /// settings, which is the answer of a vendor that has none at all.
    fn configure(&self, device: &DeviceUuid, settings: Settings) -> Result<(), VendorError> {
        let words = format!("{device} has no settings: {settings}");
        Err(VendorError::Unsupported(words))
    }

    /// Creates the partition of `profile` that begins at slice `start`.
    ///
    /// Called once per claimed partition, after the intent is on disk. The answer is
    /// complete: its device nodes exist. A creation that fails may leave a half-created
    /// partition behind, which [`Vendor::partitions`] lists and
    /// [`Vendor::destroy_partition`] removes.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::UnknownProfile`],
    /// [`VendorError::Occupied`] where slices are taken, [`VendorError::InUse`] where
    /// the device cannot be cut while somebody uses it.
    fn create_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<Partition, VendorError>;

    /// Destroys the partition of `profile` at `start`, complete or half-created.
    ///
    /// Called at release, to undo, and to clear up after a crash. One that is already
    /// gone counts as destroyed. Neighbours are not disturbed.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::InUse`] while a process uses it.
    fn destroy_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<(), VendorError>;

    /// Reads what each process used of a device since the previous call for it.
    ///
    /// Called at the sampling pace. Memory is in bytes, compute in busy time; what the
    /// vendor does not measure is absent.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::Unsupported`].
    fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, VendorError>;

    /// Reads what a device tells of itself: utilization, power, clocks, errors.
    ///
    /// Called at the sampling pace, so in as few calls of the library as it takes. What the
    /// vendor does not measure is absent, which is not zero.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::Unsupported`].
    fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, VendorError>;

    /// Waits at most `timeout` for the next event of any device.
    ///
    /// Called in a loop on a thread of its own. Events are delivered at least once and
    /// in order per device.
    ///
    /// # Errors
    ///
    /// Any; the node then falls back to polling until the next call.
    fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, VendorError>;

    /// Says what must happen before a faulty device is sound again.
    ///
    /// Called while a device carries a taint that a fault set.
    ///
    /// # Errors
    ///
    /// [`VendorError::UnknownDevice`], [`VendorError::Unsupported`].
    fn recovery_action(&self, device: &DeviceUuid) -> Result<RecoveryAction, VendorError>;

    /// Checks that a device answers and works, without disturbing who uses it.
    ///
    /// Called before a taint that a fault set is taken away.
    ///
    /// # Errors
    ///
    /// Any means that the device is not sound.
    fn probe(&self, device: &DeviceUuid) -> Result<(), VendorError>;

    /// Closes every handle to `device`, or to all devices, so that its driver can be
    /// unloaded or the device handed to a virtual machine.
    ///
    /// Called on request of an operator and before a partition is destroyed. The next
    /// call of another method may open handles again.
    ///
    /// # Errors
    ///
    /// [`VendorError::Failed`] if a handle could not be closed; the worker is then killed.
    fn quiesce(&self, device: Option<&DeviceUuid>) -> Result<(), VendorError>;
}

/// What a vendor's library tells of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VendorEvent {
    /// A device has a fault.
    Fault(Fault),
    /// Devices or partitions came, went or changed: discover again.
    DevicesChanged,
}
