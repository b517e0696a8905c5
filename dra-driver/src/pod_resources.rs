//! What the kubelet says about its pods' devices (`PodResources`).

use std::{path::Path, sync::Arc, time::Duration};

use accelpool_proto::kubelet::v1::{
    ListPodResourcesRequest, ListPodResourcesResponse,
    pod_resources_lister_client::PodResourcesListerClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// 110 pods with a few hundred devices each.
const LIST_LEN_MAX: usize = 16 * 1024 * 1024;

/// The kubelet, asked for its pods' devices. Cheap to clone; connects when it is asked.
#[derive(Debug, Clone)]
pub(crate) struct PodResources {
    client: PodResourcesListerClient<Channel>,
}

impl PodResources {
    /// The kubelet whose folder is `kubelet_root`.
    #[must_use]
    pub(crate) fn of(kubelet_root: &Path) -> Self {
        let path: Arc<Path> = kubelet_root.join("pod-resources/kubelet.sock").into();
        let connect = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://kubelet.invalid").connect_with_connector_lazy(connect);
        let client = PodResourcesListerClient::new(channel).max_decoding_message_size(LIST_LEN_MAX);
        Self { client }
    }

    /// The devices of every pod that the kubelet knows.
    ///
    /// # Errors
    ///
    /// The kubelet is away, is asked too often, or does not answer within `patience`.
    pub(crate) async fn list(
        &self,
        patience: Duration,
    ) -> Result<ListPodResourcesResponse, Status> {
        let mut client = self.client.clone();
        let answer = timeout(patience, client.list(ListPodResourcesRequest {})).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("not in time")));
        answer.map(tonic::Response::into_inner)
    }
}
