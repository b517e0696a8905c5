//! Work that waits for a file, in the middle of an async task.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` where the task is; other tasks go on elsewhere meanwhile.
///
/// A claim's way to its answer leads over three such works, and handing each to another thread
/// and back would cost more than most of them. A runtime with a single thread has no elsewhere.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        work()
    } else {
        tokio::task::block_in_place(work)
    }
}
