//! Vendor libraries, each in a process of its own.
//!
//! A library may crash, hang in the kernel or answer nonsense; the daemon may not. So each
//! runs in a `vendor-worker` child that speaks `accelpool.worker.v1` on a socket pair. A
//! call that outlives its deadline costs the worker its life, and the next call starts a
//! fresh one.
//!
//! ```text
//! Idle --call--> Running --deadline or hang-up--> Broken(until) --call after until--> Running
//! ```

mod client;
mod convert;
mod counters;
mod error;
mod handles;
mod pause;
mod process;
mod serve;
mod traits;

pub use self::client::{Deadlines, Discovery, Worker, WorkerStatus};
pub use self::error::WorkerError;
pub use self::process::Launch;
pub use self::serve::{ServeWorkerError, serve_stdin};
