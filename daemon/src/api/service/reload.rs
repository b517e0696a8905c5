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
        let reloading = tokio::spawn(async move { reloader.reload().await });
        let reloaded =
            reloading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let Reloaded { changes, restart_needed } = reloaded.map_err(|error| match &error {
            ReloadError::Node(error) => error::status(error),
            ReloadError::Config(invalid) => {
                let words = error::Chain(&error).to_string();
                error::coded(Code::FailedPrecondition, invalid.code(), words)
            }
        })?;
        Ok(ReloadConfigResponse { changes, restart_needed })
    }
}
