//! The gate in the kernel of this machine. Needs root, cgroup v2 and BPF, and podman
//! for one test.
//!
//! Everything happens below a cgroup of the test's own and in a BPF file system of its own,
//! both removed at the end; the gate is attached nowhere else.

mod attacks;
mod container;
mod decisions;
mod denials;
mod killed;
mod opener;
mod random;
mod refusals;
pub(crate) mod scene;
mod standing;
mod switching;
