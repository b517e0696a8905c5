//! The nouns and quantities of accelpool: devices, partitions, claims, leases, plans.
//!
//! Plain data, valid by construction. No serde, no async, no IO: what crosses a wire
//! or a disk is its own versioned type elsewhere and converts into these.

#![forbid(unsafe_code)]

mod binding;
mod chain;
mod claim;
mod counters;
mod device;
mod fault;
mod inventory;
mod name;
mod owed;
mod pci;
mod plan;
mod pool;
mod quantity;
mod sample;
mod topology;
mod traits;

pub use crate::binding::{Binding, CgroupId};
pub use crate::chain::Chain;
pub use crate::claim::{
    Allocation, Claim, Grant, GrantedDevice, Lease, LeaseState, Portion, Request, Share,
    ShareClass, UnknownShareClass, Wanted,
};
pub use crate::counters::{
    ClockDomain, DeviceCounters, Direction, Engine, ErrorKind, MemoryCounters, Sensor, Throttle,
    ThrottleReason,
};
pub use crate::device::{
    Device, DeviceKind, DeviceNode, Enforcement, Enforcements, Injection, Mount, Partition,
    PartitionProfile, Partitioning, PartitioningMode, Placements, UnknownDeviceKind,
    UnknownEnforcement,
};
pub use crate::fault::{Fault, FaultClass, RecoveryAction, Taint, TaintEffect, UnknownTaintEffect};
pub use crate::inventory::{Inventory, Target};
pub use crate::name::{
    BootId, ClaimId, DeviceName, DeviceUuid, NameError, PartitionName, PoolName, ProfileName,
    RequestName, ShareId, VendorName, WorkloadId,
};
pub use crate::owed::OwedPartition;
pub use crate::pci::{BadPciAddress, PciAddress};
pub use crate::plan::{ModeStep, MpsStep, PartitionStep, Plan, Step};
pub use crate::pool::{
    ComputeRule, Exposure, GateMode, OnStaleHolder, OnViolation, Pool, Selector, Sharing,
    UnknownComputeRule, UnknownExposure, UnknownGateMode, UnknownOnStaleHolder, UnknownOnViolation,
    UnknownSharing,
};
pub use crate::quantity::{
    Bandwidth, ComputePermille, MemoryBytes, Placement, QuantityError, Weight,
};
pub use crate::sample::Sample;
pub use crate::topology::{Link, LinkKind, NumaNode, PcieNode, Route, Topology, UnknownLinkKind};
pub use crate::traits::{ComputeMode, DeviceTraits, Peer, PeerPath, Settings, UnknownComputeMode};
