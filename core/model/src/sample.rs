//! Usage of a device by one process, as a vendor measured it.

use std::{collections::BTreeMap, time::Duration};

use crate::{DeviceUuid, Engine, MemoryBytes};

/// What one process used of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The process, in the host's numbering.
    pub pid: u32,
    /// The partition it runs in, if the device is partitioned.
    pub partition: Option<DeviceUuid>,
    /// Device memory that it holds.
    pub memory: MemoryBytes,
    /// Compute time that it used since the previous call for this device; absent where the
    /// vendor does not measure it, which is not the same as none.
    pub compute_busy: Option<Duration>,
    /// Time of the other engines, likewise; what is not measured is absent.
    pub engines: BTreeMap<Engine, Duration>,
}
