//! The gate: the kernel refuses a container every accelerator that it was not granted.
//!
//! A BPF program for device cgroups stands at the root of the pods' cgroups. Rules (pure)
//! become instructions (pure), which `sys.rs` brings into the kernel; what changes later
//! changes in maps. The gate adds to the devices' file modes and to the container runtime's own
//! device program: all must allow. It knows no claims, no paths of devices and no policy, and
//! it holds nobody who may move processes out of its root.
//!
//! ```no_run
//! use accelpool_gate::{
//!     Access, DeviceNumber, DeviceType, Gate, GateConfig, Guard, Guards, Mode,
//! };
//!
//! let gate = Gate::open(&GateConfig {
//!     root: "/sys/fs/cgroup/kubepods.slice".into(),
//!     pins: "/sys/fs/bpf/accelpool".into(),
//! })?;
//! let device = DeviceNumber::new(DeviceType::Character, 195, 0)?;
//! // Grants before guards, so that nobody who holds one is ever refused.
//! let pod = gate.cgroup("/sys/fs/cgroup/kubepods.slice/kubepods-pod6f1a.slice".as_ref())?;
//! gate.grant(pod, device, Access::READ_WRITE)?;
//! gate.guard(&Guards::new([Guard { devices: device.into(), mode: Mode::Enforce }])?)?;
//! let mut denials = gate.denials()?;
//! for denial in denials.wait(std::time::Duration::from_secs(1))? {
//!     println!("process {} wanted {}", denial.process, denial.device);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bpf;
mod denials;
mod device;
mod error;
mod gate;
mod layout;
mod root;
mod rules;
mod step;
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
pub use crate::step::on_step;
