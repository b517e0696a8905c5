//! Tasks that end as a process ends: with everything they have spawned.
//!
//! A gRPC server that is dropped lets its connections live on in tasks of their own, which a
//! killed process does not.

use std::{future::Future, io};

use tokio::runtime::{Builder, Runtime};

/// A runtime of its own. Dropping it ends all that runs in it, at once.
pub struct Apart {
    runtime: Option<Runtime>,
}

impl Apart {
    /// A runtime with one thread.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Runs a task in it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    /// Runs `make` where what it makes belongs to this runtime: listeners, most of all.
    pub fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _guard = self.runtime.as_ref().map(Runtime::enter);
        make()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
