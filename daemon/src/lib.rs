//! `accelpoold`: the daemon that owns the accelerators of one node.
//!
//! A library so that tests can run the node's state inside their own process; the program
//! is in `main.rs`.

#![forbid(unsafe_code)]

pub mod api;
pub mod audit;
mod blocking;
pub mod cdi;
pub mod config;
pub mod environment;
pub mod error;
pub mod fault_point;
pub mod gate;
pub mod holder;
pub mod log;
pub mod mps;
pub mod node;
pub mod reload;
pub mod run;
pub mod timing;
pub mod trace;
pub mod turns;
pub mod usage;
pub mod worker;
