//! Another driver on the same node, which fails as often as it is told to.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use accelpool_kubelet_double::Apart;
use accelpool_proto::kubelet::{
    dra::v1::{self as wire, dra_plugin_server},
    registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server,
    },
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

pub(crate) const NAME: &str = "zzz.example";

/// Starts it with one socket for both services. It ends when what is returned is dropped.
pub(crate) fn start(root: &Path, failures: usize) -> Apart {
    let path = root.join("plugins_registry").join(format!("{NAME}@reg.sock"));
    let apart = Apart::new().unwrap();
    let listener = apart.enter(|| UnixListener::bind(path)).unwrap();
    let serving = Server::builder()
        .add_service(registration_server::RegistrationServer::new(Registrar))
        .add_service(dra_plugin_server::DraPluginServer::new(Driver(AtomicUsize::new(failures))))
        .serve_with_incoming(UnixListenerStream::new(listener));
    apart.spawn(async move { serving.await.unwrap() });
    apart
}

struct Registrar;

#[tonic::async_trait]
impl registration_server::Registration for Registrar {
    async fn get_info(
        &self,
        _request: Request<InfoRequest>,
    ) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: NAME.into(),
            endpoint: String::new(),
            supported_versions: vec!["v1.DRAPlugin".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        _request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

struct Driver(AtomicUsize);

#[tonic::async_trait]
impl dra_plugin_server::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<wire::NodePrepareResourcesRequest>,
    ) -> Result<Response<wire::NodePrepareResourcesResponse>, Status> {
        let left = |left: usize| left.checked_sub(1);
        if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            return Err(Status::internal("told to fail"));
        }
        let claims = request.into_inner().claims.into_iter();
        let claims: HashMap<_, _> =
            claims.map(|claim| (claim.uid, wire::NodePrepareResourceResponse::default())).collect();
        Ok(Response::new(wire::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<wire::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<wire::NodeUnprepareResourcesResponse>, Status> {
        let claims = request.into_inner().claims.into_iter();
        let claims: HashMap<_, _> = claims
            .map(|claim| (claim.uid, wire::NodeUnprepareResourceResponse::default()))
            .collect();
        Ok(Response::new(wire::NodeUnprepareResourcesResponse { claims }))
    }
}
