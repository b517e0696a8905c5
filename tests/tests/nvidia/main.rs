//! A node with NVIDIA's adapter, on the stand-in for the driver's library: the daemon, its worker
//! and, where it matters, the Kubernetes driver, from a fault or a process to what people see.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod closing;
mod health;
mod machine;
mod used;
