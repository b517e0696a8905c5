//! Named places between the steps that change the kernel, where a test stops the process dead.
//!
//! Whoever owns fault points hears of each pass; a release build passes them for nothing.

use std::sync::OnceLock;

type Pass = Box<dyn Fn(&'static str) + Send + Sync>;

static PASS: OnceLock<Pass> = OnceLock::new();

/// Has `pass` called at each of these places, for the life of the process. The first one stays.
pub fn on_step(pass: impl Fn(&'static str) + Send + Sync + 'static) {
    if cfg!(debug_assertions) {
        // A second node in one process has the first one's.
        let _ = PASS.set(Box::new(pass));
    }
}

pub(crate) fn step(name: &'static str) {
    if cfg!(debug_assertions)
        && let Some(pass) = PASS.get()
    {
        pass(name);
    }
}
