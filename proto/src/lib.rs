//! Wire types and services, generated from the `.proto` files beside this folder.
//!
//! The generated code is committed, so that a build needs no protobuf compiler;
//! `tests/fresh.rs` makes it anew and fails on a difference. These types are for the
//! wire alone: each program converts them to `accelpool-model` where it reads them.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "almost all of it is generated; the .proto files hold the words"
)]

/// The node API: what the daemon serves on its socket (`accelpool/node/v1/node.proto`).
pub mod node {
    include!("gen/accelpool.node.v1.rs");

    /// The trailer that carries the code of an error with a page in `docs/errors`.
    pub const ERROR_CODE_KEY: &str = "accelpool-error-code";

    /// Where the daemon listens unless its configuration says otherwise.
    pub const DEFAULT_SOCKET: &str = "/run/accelpool/node.sock";
}

/// What the daemon asks of its workers (`accelpool/worker/v1/worker.proto`).
pub mod worker {
    include!("gen/accelpool.worker.v1.rs");
}
