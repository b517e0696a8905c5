//! `PodResources`: what the kubelet says of its pods' devices.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

use accelpool_proto::kubelet::v1::{
    self as wire,
    pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::extended::Extended;

struct Lister(Arc<Extended>);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _request: Request<wire::ListPodResourcesRequest>,
    ) -> Result<Response<wire::ListPodResourcesResponse>, Status> {
        let mut pods: BTreeMap<(String, String), Vec<wire::ContainerResources>> = BTreeMap::new();
        for pod in self.0.list_pods() {
            pods.entry(pod).or_default();
        }
        for ((pod, container, resource_name), device_ids) in self.0.held_now() {
            pods.entry(pod).or_default().push(wire::ContainerResources {
                name: container,
                devices: vec![wire::ContainerDevices { resource_name, device_ids, topology: None }],
                ..wire::ContainerResources::default()
            });
        }
        let pod =
            |((namespace, name), containers)| wire::PodResources { name, namespace, containers };
        let pod_resources = pods.into_iter().map(pod).collect();
        Ok(Response::new(wire::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _request: Request<wire::AllocatableResourcesRequest>,
    ) -> Result<Response<wire::AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("this stand-in lists pods only"))
    }

    async fn get(
        &self,
        _request: Request<wire::GetPodResourcesRequest>,
    ) -> Result<Response<wire::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("this stand-in lists pods only"))
    }
}

/// Serves in the folder.
pub(crate) fn serve(
    folder: &Path,
    extended: Arc<Extended>,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let path = folder.join("kubelet.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let server = Server::builder()
        .add_service(PodResourcesListerServer::new(Lister(extended)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    Ok(async move {
        // Ends only with the kubelet.
        drop(server.await);
    })
}
