//! Runs the database engine on bytes that nobody vouches for.
//!
//! redb reports most damage as an error, and asserts on some. Such a panic is an answer
//! here, not a bug of the daemon, so it is caught and kept out of the log. Panics of other
//! threads are printed as ever. Needs `panic = "unwind"`, which is the default of all profiles.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and returns the message of its panic if it panics.
///
/// What `work` changed is not to be used after a panic.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    crate::error::excerpt(text.unwrap_or("the database engine panicked"))
}
