//! A worker's life: started on a socket pair, ended by a kill.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use accelpool_proto::worker::vendor_worker_client::VendorWorkerClient;
use accelpool_vendor_api::Vendor;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, process::Child, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

use super::serve;

/// Messages hold at most 256 devices with their profiles; this is many times that.
const MESSAGE_MAX: usize = 16 << 20;

/// How a worker is brought to life.
#[derive(Clone)]
pub enum Launch {
    /// As a child process: this program with these arguments.
    Process {
        /// The program, `accelpoold` itself.
        program: PathBuf,
        /// Its arguments, `vendor-worker` first.
        arguments: Vec<OsString>,
    },
    /// As a task of this process, over the same protocol; a hang then outlives its call.
    /// For tests of what stands above.
    Task(Arc<dyn Vendor>),
}

pub(super) enum Life {
    Process(Box<Child>),
    Task(JoinHandle<()>),
}

impl Launch {
    /// Starts a worker; the connection is made with the first call.
    pub(super) fn start(&self) -> io::Result<(VendorWorkerClient<Channel>, Life)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        let life = match self {
            Launch::Process { program, arguments } => {
                let child = tokio::process::Command::new(program)
                    .args(arguments)
                    // Its only link to the daemon; the worker ends when it closes.
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    .kill_on_drop(true)
                    .spawn()?;
                Life::Process(Box::new(child))
            }
            Launch::Task(vendor) => {
                theirs.set_nonblocking(true)?;
                let serving = serve::serve(Arc::clone(vendor), UnixStream::from_std(theirs)?);
                Life::Task(tokio::spawn(async { drop(serving.await) }))
            }
        };
        ours.set_nonblocking(true)?;
        let mut stream = Some(TokioIo::new(UnixStream::from_std(ours)?));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            // A second connection would be to a worker that died: there is none.
            async { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let channel =
            Endpoint::from_static("http://vendor-worker").connect_with_connector_lazy(connector);
        let client = VendorWorkerClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Ok((client, life))
    }
}

impl Life {
    /// The worker's process, if it is one that runs.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Process(child) => child.id(),
            Self::Task(_) => None,
        }
    }

    /// Kills the worker.
    pub(super) async fn end(self) {
        match self {
            Self::Process(mut child) => {
                // A process in an uninterruptible call stays until the kernel lets it go; it is
                // not waited for.
                let _ = child.start_kill();
                let reap = tokio::time::timeout(Duration::from_millis(200), child.wait());
                let _ = reap.await;
            }
            Self::Task(task) => task.abort(),
        }
    }
}
