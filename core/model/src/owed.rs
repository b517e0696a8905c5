//! What the node still owes: destructions that wait for a device's return.

use crate::{BootId, PartitionStep};

/// A partition that was released while its device was off the bus, and may come back with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedPartition {
    /// The destruction.
    pub step: PartitionStep,
    /// The boot in which it was made: partitions of hardware do not outlive a boot, so one that
    /// is found in another was made by somebody else.
    pub boot: BootId,
}
