//! The wait for the disk, in the middle of an async task.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` where the task is; other tasks go on elsewhere meanwhile.
///
/// For the one task that syncs. What a claim's steps do in memory and in `run` costs less than
/// the change of threads, and a hundred claims at once would leave a hundred threads behind,
/// each with memory of its own. A runtime with a single thread has no elsewhere.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        work()
    } else {
        tokio::task::block_in_place(work)
    }
}
