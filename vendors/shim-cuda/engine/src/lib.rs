//! The engine behind the stand-in for CUDA's driver: what the GPUs of a machine would do.
//!
//! Client processes reach it through one socket each and read what is complete from one page
//! each. It runs submissions of all of them one after the other in the time that they claim,
//! context by context in slices, and keeps the device's bytes. A client that dies takes its
//! contexts and bytes along. It refuses to compute anything.

mod core;
pub mod device;
mod engine;
mod fault;
pub mod machine;
pub mod page;
mod process;
mod server;
pub mod suite;
pub mod wire;

pub use crate::core::{DeviceUse, ProcessUse, RUN_TRAPS};
pub use engine::{Engine, EngineError};
pub use fault::{Fault, FaultAt};
