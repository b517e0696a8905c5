//! A vendor's handles, closed for maintenance and opened again.

use std::time::Duration;

use accelpool_proto::node as wire;
use tonic::{Code, Status};

use super::Service;
use crate::{error, node::NodeError, worker::Worker};

/// The longest pause of a vendor: a day. Who needs longer takes it out of the configuration.
const PAUSE_MAX_MS: u64 = 24 * 60 * 60 * 1000;

impl Service {
    /// Closes every handle; with a length, nothing opens them again for so long.
    pub(super) async fn quiesce_vendors(
        &self,
        request: wire::QuiesceRequest,
    ) -> Result<wire::QuiesceResponse, Status> {
        let wire::QuiesceRequest { vendor, for_ms } = request;
        if for_ms > PAUSE_MAX_MS {
            let words = format!("a pause of {for_ms} ms is too long: at most {PAUSE_MAX_MS}");
            return Err(error::coded(Code::InvalidArgument, error::INVALID_REQUEST, words));
        }
        for worker in self.workers_named(&vendor)? {
            if for_ms > 0 {
                let paused = worker.pause(Duration::from_millis(for_ms)).await;
                paused.map_err(|error| error::pause_failed(worker, &error))?;
                tracing::info!(vendor = %worker.vendor(), for_ms, "vendor paused");
                continue;
            }
            // A worker that does not close its handles is killed, which closes them.
            if let Err(error) = worker.quiesce(None).await {
                tracing::warn!(error = %error::Chain(&error), "worker was killed to close handles");
            }
        }
        Ok(wire::QuiesceResponse {})
    }

    /// Ends pauses.
    pub(super) fn resume_vendors(
        &self,
        request: &wire::ResumeRequest,
    ) -> Result<wire::ResumeResponse, Status> {
        let mut vendors = Vec::new();
        for worker in self.workers_named(&request.vendor)? {
            if worker.resume().map_err(|error| error::pause_failed(worker, &error))? {
                tracing::info!(vendor = %worker.vendor(), "vendor resumed");
                vendors.push(worker.vendor().to_string());
            }
        }
        Ok(wire::ResumeResponse { vendors })
    }

    /// The workers of the vendor of that name, or of all.
    fn workers_named(&self, vendor: &str) -> Result<Vec<&Worker>, Status> {
        let meant = |name: &str| vendor.is_empty() || name == vendor;
        let workers = self.node.workers().iter().filter(|(name, _)| meant(name.as_str()));
        let workers: Vec<&Worker> = workers.map(|(_, worker)| worker).collect();
        if workers.is_empty() && !vendor.is_empty() {
            let name = vendor.chars().take(63).collect();
            return Err(error::status(&NodeError::UnknownVendor(name)));
        }
        Ok(workers)
    }
}
