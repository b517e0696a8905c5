//! The daemon as this driver sees it: calls that change, and the state that it watches.
//!
//! Holds nothing that the daemon does not have on disk. While the daemon is away the last
//! state stays readable, marked with the time at which it was lost.

mod error;
mod watch;

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use accelpool_proto::node::{
    BindClaimRequest, Binding, Denial, GetMetricsRequest, GetMetricsResponse, GetTopologyRequest,
    Lease, NumaNode, PreferDevicesRequest, PrepareClaimRequest, ReleaseClaimRequest, SpanKind,
    WatchDenialsRequest, WatchSpansRequest, WatchSpansResponse, binding::Subject,
    node_client::NodeClient,
};
use accelpool_proto::trace::{Here, Span, TRACEPARENT};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

pub use self::{
    error::{NodeError, Trouble},
    watch::{Observed, Observers, Snapshot, follow},
};

/// A daemon that answers no ping for this long is treated as gone, and dialled anew.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The whole state of a node; 64 devices with hundreds of possible partitions each take 4 MiB.
const STATE_LEN_MAX: usize = 16 * 1024 * 1024;

/// A local socket connects at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The daemon's node API. Cheap to clone; connects when it is first used, and again
/// whenever the connection is lost.
#[derive(Debug, Clone)]
pub struct Node {
    client: NodeClient<Channel>,
}

impl Node {
    /// The daemon behind the socket at `path`. Connects to nothing yet.
    ///
    /// # Panics
    ///
    /// Never: the address is a constant that stands for the socket.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let path: Arc<Path> = path.into();
        let channel = Endpoint::from_static("http://accelpoold.invalid")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = Arc::clone(&path);
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Self { client: NodeClient::new(channel).max_decoding_message_size(STATE_LEN_MAX) }
    }

    /// Prepares a claim, or repeats the answer for one that is prepared.
    ///
    /// # Errors
    ///
    /// The daemon is away, or refuses the claim.
    pub async fn prepare(
        &self,
        request: PrepareClaimRequest,
        here: &Here,
    ) -> Result<Lease, NodeError> {
        let span = here.child("accelpool.node.v1.Node/PrepareClaim", SpanKind::Client);
        let called = self.client.clone().prepare_claim(traced(request, &span)).await;
        span.end(&called);
        called?.into_inner().lease.ok_or(NodeError::Empty("a prepared claim"))
    }

    /// Releases a claim, known or not.
    ///
    /// # Errors
    ///
    /// The daemon is away, or cannot release.
    pub async fn release(&self, claim: &str, here: &Here) -> Result<(), NodeError> {
        let request = ReleaseClaimRequest { claim: claim.to_owned() };
        let span = here.child("accelpool.node.v1.Node/ReleaseClaim", SpanKind::Client);
        let called = self.client.clone().release_claim(traced(request, &span)).await;
        span.end(&called);
        called?;
        Ok(())
    }

    /// The daemon's spans, each as it ends.
    ///
    /// # Errors
    ///
    /// The daemon is away.
    pub async fn spans(&self) -> Result<Streaming<WatchSpansResponse>, NodeError> {
        Ok(self.client.clone().watch_spans(WatchSpansRequest {}).await?.into_inner())
    }

    /// Lets the processes of one more cgroup use what a prepared claim holds. Returns what the
    /// runtime is to write into the files of its containers' cgroups.
    ///
    /// # Errors
    ///
    /// The daemon is away, or the claim is not prepared.
    pub async fn bind(
        &self,
        claim: &str,
        subject: Subject,
    ) -> Result<HashMap<String, String>, NodeError> {
        let bindings = vec![Binding { subject: Some(subject), ..Binding::default() }];
        let request = BindClaimRequest { claim: claim.to_owned(), bindings };
        Ok(self.client.clone().bind_claim(request).await?.into_inner().unified)
    }

    /// Each open that the device gate refuses, or lets pass because of the mode alone, from now
    /// on.
    ///
    /// # Errors
    ///
    /// The daemon is away.
    pub async fn denials(&self) -> Result<tonic::Streaming<Denial>, NodeError> {
        Ok(self.client.clone().watch_denials(WatchDenialsRequest {}).await?.into_inner())
    }

    /// What devices, claims and agents use.
    ///
    /// # Errors
    ///
    /// The daemon is away.
    pub async fn metrics(&self) -> Result<GetMetricsResponse, NodeError> {
        Ok(self.client.clone().get_metrics(GetMetricsRequest {}).await?.into_inner())
    }

    /// Asks which of some devices go best together.
    ///
    /// # Errors
    ///
    /// The daemon is away, or does not know one of them.
    pub async fn prefer(&self, request: PreferDevicesRequest) -> Result<Vec<String>, NodeError> {
        Ok(self.client.clone().prefer_devices(request).await?.into_inner().devices)
    }

    /// The NUMA nodes of the host, with their CPUs.
    ///
    /// # Errors
    ///
    /// The daemon is away.
    pub async fn numa_nodes(&self) -> Result<Vec<NumaNode>, NodeError> {
        let topology = self.client.clone().get_topology(GetTopologyRequest {}).await?;
        Ok(topology.into_inner().numa_nodes)
    }
}

/// A call within `span`: the daemon's spans belong to it.
fn traced<T>(message: T, span: &Span) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(context) = span.here().context()
        && let Ok(value) = MetadataValue::try_from(context.to_string())
    {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    request
}
