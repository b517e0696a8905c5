//! The gate: the kernel refuses a container every accelerator that it was not granted.
//!
//! A BPF program for device cgroups stands at the root of the pods' cgroups. Rules (pure)
//! become instructions (pure), which `sys.rs` brings into the kernel; what changes later
//! changes in maps. The gate adds to the devices' file modes and to the container runtime's own
//! device program: all must allow. It knows no claims, no paths of devices and no policy, and
//! it holds nobody who may move processes out of its root.

mod bpf;
mod denials;
mod device;
mod error;
mod gate;
mod layout;
mod root;
mod rules;
mod sys;
#[cfg(test)]
mod tests;

pub use crate::denials::{Denial, Denials};
pub use crate::device::{
    Access, DeviceNumber, DeviceRange, DeviceType, MAJOR_MAX, MINOR_MAX, NoSuchNumber,
};
pub use crate::error::GateError;
pub use crate::gate::{AttachedProgram, Counts, Defect, Gate, GateConfig, Standing};
pub use crate::rules::{
    CgroupId, ConflictingGuards, Decision, Grant, Guard, Guards, LEVELS_MAX, Mode, Rules,
};
