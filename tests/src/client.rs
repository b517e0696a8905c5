//! A client of the node API that waits for each answer, but not for ever.

use std::{io, path::Path};

use accelpool_proto::node::{
    self as wire, ERROR_CODE_KEY, PrepareClaimRequest, node_client::NodeClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::LONG;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    node: NodeClient<Channel>,
}

/// The code of the page in `docs/errors` that came with a status. `None` means that no daemon
/// said it: the connection broke.
#[must_use]
pub fn page(status: &Status) -> Option<&str> {
    status.metadata().get(ERROR_CODE_KEY)?.to_str().ok()
}

impl Client {
    /// A client of the daemon at `socket`; it connects with its first call.
    ///
    /// # Panics
    ///
    /// If the system has no room for a runtime.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let entered = runtime.enter();
        let channel =
            Endpoint::from_static("http://accelpool").connect_with_connector_lazy(connector);
        drop(entered);
        // Ten thousand leases make a longer message than clients usually take.
        let node = NodeClient::new(channel).max_decoding_message_size(64 << 20);
        Self { runtime, node }
    }

    /// Makes one call.
    ///
    /// # Errors
    ///
    /// What the daemon answers, or that it is gone.
    ///
    /// # Panics
    ///
    /// If there is no answer for minutes.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(NodeClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let answer = self.runtime.block_on(async { timeout(LONG, call(self.node.clone())).await });
        answer.expect("the daemon answers or hangs up").map(Response::into_inner)
    }

    /// Prepares a claim.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    ///
    /// # Panics
    ///
    /// If a claim is prepared without a lease.
    pub fn prepare(&self, request: PrepareClaimRequest) -> Result<wire::Lease, Status> {
        let answer = self.call(async |mut node| node.prepare_claim(request).await)?;
        Ok(answer.lease.expect("a prepared claim has a lease"))
    }

    /// Releases a claim; false if there was nothing to release.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn release(&self, claim: &str) -> Result<bool, Status> {
        let request = wire::ReleaseClaimRequest { claim: claim.to_owned() };
        Ok(self.call(async |mut node| node.release_claim(request).await)?.released)
    }

    /// Puts a taint on a device.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn taint(&self, device: &str, reason: &str) -> Result<(), Status> {
        let request = wire::TaintDeviceRequest {
            device: device.to_owned(),
            effect: "NoSchedule".to_owned(),
            reason: reason.to_owned(),
        };
        self.call(async |mut node| node.taint_device(request).await).map(drop)
    }

    /// Takes the operator's taint off a device.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn untaint(&self, device: &str) -> Result<(), Status> {
        let request =
            wire::UntaintDeviceRequest { device: device.to_owned(), ..Default::default() };
        self.call(async |mut node| node.untaint_device(request).await).map(drop)
    }

    /// The leases.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn claims(&self) -> Result<Vec<wire::Lease>, Status> {
        let request = wire::ListClaimsRequest {};
        Ok(self.call(async |mut node| node.list_claims(request).await)?.leases)
    }

    /// The devices.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn devices(&self) -> Result<Vec<wire::Device>, Status> {
        let request = wire::ListDevicesRequest {};
        Ok(self.call(async |mut node| node.list_devices(request).await)?.devices)
    }

    /// The partitions that exist.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn partitions(&self) -> Result<Vec<wire::Partition>, Status> {
        let request = wire::ListPartitionsRequest::default();
        Ok(self.call(async |mut node| node.list_partitions(request).await)?.partitions)
    }

    /// How the daemon is.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn node(&self) -> Result<wire::GetNodeResponse, Status> {
        let request = wire::GetNodeRequest {};
        self.call(async |mut node| node.get_node(request).await)
    }

    /// What devices, claims and agents use.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn metrics(&self) -> Result<wire::GetMetricsResponse, Status> {
        self.call(async |mut node| node.get_metrics(wire::GetMetricsRequest {}).await)
    }

    /// How shared devices are time-sliced.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn turns(&self) -> Result<wire::GetTurnsResponse, Status> {
        self.call(async |mut node| node.get_turns(wire::GetTurnsRequest::default()).await)
    }

    /// What agents used over time.
    ///
    /// # Errors
    ///
    /// See [`Client::call`].
    pub fn usage(&self) -> Result<wire::GetUsageResponse, Status> {
        let request = wire::GetUsageRequest::default();
        self.call(async |mut node| node.get_usage(request).await)
    }
}
