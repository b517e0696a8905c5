//! What all shims share, and the contract between a tenant's process and the daemon.
//!
//! Three kinds of pages and one socket: the control page (the daemon writes, the tenant reads),
//! the ledger page (one a claim, shared by its processes and the daemon), the process page
//! (one a process), and a `SOCK_SEQPACKET` socket with records of one size. On them stand the
//! gate that a launch passes, the counter that an allocation reserves from, and the states of
//! a client whose daemon may die. No policy is here, and no vendor: the daemon decides who may
//! submit, a shim of a vendor's API knows what submits. Without the feature `std` it needs
//! nothing but a kernel, so that it fits into any process.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod client;
pub mod estimate;
pub mod gate;
pub mod layout;
pub mod mapping;
pub mod quota;
pub mod socket;
pub mod sys;
pub mod turn;
pub mod wire;

/// Where a container finds the folders of its claims, unless [`TURNS_VARIABLE`] says otherwise.
pub const TURNS_FOLDER: &str = "/run/accelpool/turns";

/// The environment variable that names one claim's folder, or a folder of such folders.
pub const TURNS_VARIABLE: &str = "ACCELPOOL_TURNS";

/// The control page, inside a claim's folder.
pub const CONTROL_FILE: &str = "ctrl";

/// The socket, inside a claim's folder.
pub const SOCKET_FILE: &str = "sock";
