//! Letting go of a vendor's library: once, or for as long as a pause lasts.

use std::{io, time::Duration};

use accelpool_model::DeviceUuid;
use accelpool_proto::worker::{self as wire, vendor_worker_client::VendorWorkerClient};
use tonic::transport::Channel;
use tracing::warn;

use super::Worker;
use crate::{error::Chain, worker::WorkerError};

/// The one call that a pause does not refuse.
pub(super) const QUIESCE: &str = "quiesce";

impl Worker {
    /// Until when the vendor is paused, in milliseconds since the Unix epoch; `None` if it is not.
    #[must_use]
    pub fn paused_until_ms(&self) -> Option<u64> {
        self.shared.pause.until_ms()
    }

    /// Refuses all calls for so long, and closes every handle.
    ///
    /// The worker ends with it: a call that was on its way would have it open the library again.
    pub async fn pause(&self, length: Duration) -> io::Result<()> {
        self.shared.pause.begin(length)?;
        if let Err(error) = self.quiesce(None).await {
            // A worker that does not close its handles is killed, which closes them.
            warn!(error = %Chain(&error), "worker was killed to close handles");
        }
        self.stop().await;
        Ok(())
    }

    /// Ends a pause; true if there was one.
    pub fn resume(&self) -> io::Result<bool> {
        self.shared.pause.end()
    }

    /// Closes every handle, and if that fails the worker, which closes them for sure.
    pub async fn quiesce(&self, device: Option<&DeviceUuid>) -> Result<(), WorkerError> {
        if self.shared.state.lock().await.connection.is_none() {
            // Nobody to close anything.
            return Ok(());
        }
        let read = self.shared.deadlines.read;
        let request = wire::QuiesceRequest { device_uuid: device.map(ToString::to_string) };
        let answer = self
            .call(QUIESCE, read, async |mut client: VendorWorkerClient<Channel>| {
                client.quiesce(request).await
            })
            .await;
        if answer.is_err() {
            self.stop().await;
        }
        answer.map(|_| ())
    }

    /// Ends the worker; the next call starts a fresh one.
    pub async fn stop(&self) {
        let mut state = self.shared.state.lock().await;
        if let Some(connection) = state.connection.take() {
            connection.life.end().await;
        }
    }
}
