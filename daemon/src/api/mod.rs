//! The node API on its unix socket: the daemon's only door.
//!
//! Reading needs membership of the configured group, changing needs uid 0; the kernel says
//! who calls (`SO_PEERCRED`). Requests become model types here, checked in full, before the
//! node hears of them.

mod access;
mod listen;
mod request;
mod response;
mod service;

pub use self::access::Access;
pub use self::listen::{BindError, Listener};
pub use self::request::{BadRequest, claim_from_wire};
pub use self::service::{About, Service};
