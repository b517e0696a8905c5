//! The device gate as the daemon keeps it, in the kernel of this machine: tenants in cgroups of
//! their own open simulated devices while claims come and go, and while somebody meddles.

mod churn;
mod containers;
mod crash;
mod leases;
mod looking;
mod meddling;
mod scene;
mod switching;
