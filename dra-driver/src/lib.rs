//! accelpool's Kubernetes face: the daemon's pool as `ResourceSlices` and extended resources,
//! the kubelet's calls as claims on the node API.
//!
//! The only program that knows Kubernetes. It touches no device, no cgroup and no CDI file,
//! and keeps no ledger: a restart loses nothing, because there is nothing to lose.

#![forbid(unsafe_code)]

pub mod calls;
pub mod config;
pub mod confine;
mod denials;
pub mod dra;
pub mod driver;
pub mod health;
pub mod http;
pub mod labels;
pub mod metrics;
pub mod node;
pub mod nri;
pub mod otel;
pub mod plugin;
mod pod_resources;
pub mod registration;
mod report;
pub mod sequence;
pub mod socket;
pub mod status;
pub mod stop;
