//! The configuration read again, for a caller.

use accelpool_proto::node::ReloadConfigResponse;
use tonic::{Code, Status};

use super::Service;
use crate::{
    error,
    reload::{ReloadError, Reloaded},
};

impl Service {
    /// Reads the configuration again; to its end, also if the caller hangs up.
    pub(super) async fn reload(&self) -> Result<ReloadConfigResponse, Status> {
        let reloader = self.reloader.clone();
        let done = tokio::spawn(async move { reloader.reload().await }).await;
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let Reloaded { changes, restart_needed } = done.map_err(|error| match &error {
            ReloadError::Node(error) => error::status(error),
            ReloadError::Config(invalid) => {
                let words = error::Chain(&error).to_string();
                error::coded(Code::FailedPrecondition, invalid.code(), words)
            }
        })?;
        Ok(ReloadConfigResponse { changes, restart_needed })
    }
}
