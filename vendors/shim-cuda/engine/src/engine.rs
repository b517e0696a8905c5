//! The handle that a harness holds. One lock around all that the engine knows: the serving
//! thread takes it for each round.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use crate::{
    core::{Core, DeviceUse, ProcessUse},
    fault::Fault,
    machine::{DEVICES_MAX, Machine},
    server,
};

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// More devices than any node has, or none.
    #[error("a machine has 1 to {DEVICES_MAX} devices, not {0}")]
    Devices(usize),
    /// The socket cannot be.
    #[error("failed to listen on `{path}`")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A running engine; it ends when this is dropped.
pub struct Engine {
    core: Arc<Mutex<Core>>,
    stop: server::Stop,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl Engine {
    /// Starts an engine that listens on a socket of this path.
    ///
    /// # Errors
    ///
    /// The machine is impossible, or the socket is.
    pub fn start(machine: Machine, socket: &Path) -> Result<Self, EngineError> {
        if machine.devices.is_empty() || machine.devices.len() > DEVICES_MAX {
            return Err(EngineError::Devices(machine.devices.len()));
        }
        let core = Arc::new(Mutex::new(Core::new(machine, server::now_ns())));
        let listen = |source| EngineError::Listen { path: socket.to_owned(), source };
        let (stop, thread) = server::start(Arc::clone(&core), socket).map_err(listen)?;
        Ok(Self { core, stop, thread: Some(thread), socket: socket.to_owned() })
    }

    /// Where clients connect; the value of `ACCELPOOL_CUDA_STANDIN`.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes something go wrong, for one process or for all that are there.
    pub fn inject(&self, fault: Fault, pid: Option<i32>) {
        self.lock().inject(fault, pid);
        self.stop.look_again();
    }

    /// The processes on a device.
    #[must_use]
    pub fn processes(&self, device: usize) -> Vec<ProcessUse> {
        self.lock().processes(device)
    }

    /// The processes that were on a device and are no more, oldest first.
    #[must_use]
    pub fn former(&self, device: usize) -> Vec<ProcessUse> {
        let core = self.lock();
        core.former.iter().filter(|(of, _)| *of == device).map(|(_, one)| *one).collect()
    }

    /// What became of a device's time and memory.
    #[must_use]
    pub fn total(&self, device: usize) -> DeviceUse {
        self.lock().total(device, server::now_ns())
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}
