//! One extended resource at the kubelet: a socket that serves, and its registration.
//!
//! Level-triggered: each look compares what is there with what should be, and mends it. So a
//! kubelet that restarted, wiped its folder, or lost a sibling of ours is all one case.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_model::Chain;
use accelpool_proto::kubelet::v1beta1::{
    self as wire, device_plugin_server::DevicePluginServer, registration_client::RegistrationClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use tonic::transport::{Endpoint as Address, Server, Uri};

use super::service::{OPTIONS, ResourceService};
use crate::{
    socket::{self, BindError, HeldFile, SocketFile},
    stop::Stop,
};

/// Inside `Register` the kubelet dials back, for which it takes up to 10 s.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(15);

/// One resource's socket.
#[derive(Debug)]
pub(super) struct Endpoint {
    service: ResourceService,
    path: PathBuf,
    serving: Option<Serving>,
    /// The socket of the kubelet that knows it.
    registered_with: Option<HeldFile>,
}

#[derive(Debug)]
struct Serving {
    stop: Stop,
    task: JoinHandle<()>,
    file: SocketFile,
}

/// Why a resource is not registered.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error("failed to open the resource's socket")]
    Bind(#[from] BindError),
    #[error("failed to reach the kubelet")]
    Connect(#[from] tonic::transport::Error),
    #[error("the kubelet refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("the kubelet did not answer in time")]
    Slow,
}

impl Endpoint {
    pub(super) fn new(service: ResourceService, path: PathBuf) -> Self {
        Self { service, path, serving: None, registered_with: None }
    }

    /// Registers again at the next look.
    pub(super) fn forget_registration(&mut self) {
        self.registered_with = None;
    }

    /// Makes the resource served and registered with the kubelet that is there. False if that
    /// is worth another try soon.
    pub(super) async fn mend(&mut self, kubelet: &Path) -> bool {
        let Ok(present) = HeldFile::at(kubelet) else { return true };
        let serving = self.serving.as_ref().is_some_and(|serving| serving.file.is_ours());
        if serving && self.registered_with.as_ref().is_some_and(|known| known.is_at(kubelet)) {
            return true;
        }
        let resource = self.service.resource.clone();
        match self.serve_and_register(kubelet, serving).await {
            Ok(()) => {
                tracing::info!(resource, "registered with the kubelet");
                self.registered_with = Some(present);
                true
            }
            Err(error) => {
                tracing::warn!(resource, error = %Chain(&error), "not registered with the kubelet");
                false
            }
        }
    }

    async fn serve_and_register(
        &mut self,
        kubelet: &Path,
        serving: bool,
    ) -> Result<(), RegisterError> {
        if !serving {
            self.end().await;
            self.serving = Some(self.serve()?);
        }
        let register = register(kubelet, &self.path, &self.service.resource);
        timeout(REGISTER_TIMEOUT, register).await.unwrap_or(Err(RegisterError::Slow))
    }

    fn serve(&self) -> Result<Serving, BindError> {
        let (incoming, file) = socket::bind(&self.path)?;
        let (stop, stopped) = Stop::new();
        let service = ResourceService { stopped: stopped.clone(), ..self.service.clone() };
        let server = Server::builder()
            .add_service(DevicePluginServer::new(service))
            .serve_with_incoming_shutdown(incoming, stopped.wait());
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "server of an extended resource ended");
            }
        });
        Ok(Serving { stop, task, file })
    }

    /// Stops serving, with what is in hand, and takes the socket away.
    pub(super) async fn end(&mut self) {
        self.registered_with = None;
        let Some(Serving { stop, task, file }) = self.serving.take() else { return };
        stop.stop();
        let abort = task.abort_handle();
        // Longer than an allocation waits for anything.
        if timeout(REGISTER_TIMEOUT, task).await.is_err() {
            abort.abort();
        }
        file.remove();
    }
}

async fn register(kubelet: &Path, path: &Path, resource: &str) -> Result<(), RegisterError> {
    let kubelet = kubelet.to_owned();
    let channel = Address::from_static("http://kubelet.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let kubelet = kubelet.clone();
            async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
        }))
        .await?;
    let endpoint = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let request = wire::RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: endpoint.unwrap_or_default(),
        resource_name: resource.to_owned(),
        options: Some(OPTIONS),
    };
    let answer = RegistrationClient::new(channel).register(request).await;
    answer.map(|_| ()).map_err(|status| RegisterError::Refused(Box::new(status)))
}
