//! What the end-to-end suites share: the real daemon in a folder of its own, a client of its
//! socket, and the rules that must hold whatever happened to it.
//!
//! The suites need root, since device nodes are real, and no accelerator. Nothing here waits a
//! fixed time: it looks again until what it waits for is there, or a deadline of minutes passes.

#![forbid(unsafe_code)]

mod cgroups;
mod client;
mod daemon;
mod driver;
mod home;
mod podman;
mod program;
pub mod prometheus;
pub mod requests;
pub mod rules;
pub mod tenants;
pub mod walk;

use std::time::Duration;

pub use crate::{
    cgroups::{Cgroups, Tenant},
    client::{Client, page},
    daemon::{Daemon, Faults},
    driver::Driver,
    home::Home,
    podman::{CDI_DIR, Container, Podman},
    program::{cli, driver, program, tenant},
};

/// Longer than anything takes on a loaded machine; a test that passes never waits as long.
pub const LONG: Duration = Duration::from_mins(3);

/// Looks again until `look` finds something.
///
/// # Panics
///
/// After [`LONG`], saying what was waited for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = std::time::Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < until, "{what} did not come about in {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
