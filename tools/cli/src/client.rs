//! The node API as seen from here: one connection, a deadline and a progress line per call.
//!
//! Converts each answer to `document` where it arrives; nothing behind this file knows the
//! wire. A call is made once: what to do about a failure is for the person to say.

use std::{
    collections::HashMap,
    future::Future,
    io::{self, ErrorKind},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_proto::node::{self, node_client::NodeClient};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    document::{
        ClaimVerification, Device, ExplainClaimResponse, Finding, GetGateResponse, GetNodeResponse,
        GetTopologyResponse, GetTurnsResponse, Lease, ListHoldersResponse, Partition, Pool,
        ReloadConfigResponse,
    },
    failure::Failure,
    output::Progress,
};

/// Reading asks the daemon's memory, never a device.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Changing may cut a partition, which takes a vendor's library several seconds.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(1);

/// 10,000 leases of 8 allocations with labels take about 20 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to the daemon.
pub(crate) struct Client {
    node: NodeClient<Channel>,
    timeout: Option<Duration>,
    progress: Progress,
}

impl Client {
    /// Connects to the daemon's socket.
    pub(crate) async fn connect(
        path: &Path,
        timeout: Option<Duration>,
        progress: Progress,
    ) -> Result<Self, Failure> {
        let stream = connect_socket(path).await?;
        // The channel asks for a connection once at the start, and again if it breaks. Then
        // the call has failed already, so the one connection is all there is.
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async { stream.ok_or_else(|| io::Error::from(ErrorKind::NotConnected)) }
        });
        let channel = Endpoint::from_static("http://accelpoold")
            .connect_with_connector(connector)
            .await
            .map_err(|source| Failure::Transport { path: path.to_owned(), source })?;
        let node = NodeClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { node, timeout, progress })
    }

    /// Which daemon answers and how it is.
    pub(crate) async fn node(&self) -> Result<GetNodeResponse, Failure> {
        let mut node = self.node.clone();
        Ok(self.read(node.get_node(node::GetNodeRequest {})).await?.into())
    }

    /// The devices.
    pub(crate) async fn devices(&self) -> Result<Vec<Device>, Failure> {
        let mut node = self.node.clone();
        let answer = self.read(node.list_devices(node::ListDevicesRequest {})).await?;
        Ok(convert(answer.devices))
    }

    /// The partitions that exist, and with `possible` all that could.
    pub(crate) async fn partitions(
        &self,
        device: Option<String>,
        possible: bool,
    ) -> Result<Vec<Partition>, Failure> {
        let mut node = self.node.clone();
        let device = device.unwrap_or_default();
        let request = node::ListPartitionsRequest { device, possible };
        Ok(convert(self.read(node.list_partitions(request)).await?.partitions))
    }

    /// The pools.
    pub(crate) async fn pools(&self) -> Result<Vec<Pool>, Failure> {
        let mut node = self.node.clone();
        Ok(convert(self.read(node.list_pools(node::ListPoolsRequest {})).await?.pools))
    }

    /// How the device gate stands.
    pub(crate) async fn gate(&self) -> Result<GetGateResponse, Failure> {
        let mut node = self.node.clone();
        Ok(self.read(node.get_gate(node::GetGateRequest {})).await?.into())
    }

    /// Who has devices open; only `device`, if one is named.
    pub(crate) async fn holders(
        &self,
        device: Option<String>,
    ) -> Result<ListHoldersResponse, Failure> {
        let mut node = self.node.clone();
        let request = node::ListHoldersRequest { device: device.unwrap_or_default() };
        Ok(self.read(node.list_holders(request)).await?.into())
    }

    /// What the containers of claims can do; only those of `claim`, if one is named.
    pub(crate) async fn verify(
        &self,
        claim: Option<String>,
    ) -> Result<Vec<ClaimVerification>, Failure> {
        let mut node = self.node.clone();
        let request = node::VerifyClaimsRequest { claim: claim.unwrap_or_default() };
        Ok(convert(self.change(node.verify_claims(request)).await?.claims))
    }

    /// The leases.
    pub(crate) async fn leases(&self) -> Result<Vec<Lease>, Failure> {
        let mut node = self.node.clone();
        Ok(convert(self.read(node.list_claims(node::ListClaimsRequest {})).await?.leases))
    }

    /// The story of one claim.
    pub(crate) async fn explain(&self, claim: &str) -> Result<ExplainClaimResponse, Failure> {
        let mut node = self.node.clone();
        let request = node::ExplainClaimRequest { claim: claim.to_owned() };
        Ok(self.read(node.explain_claim(request)).await?.into())
    }

    /// The topology.
    pub(crate) async fn topology(&self) -> Result<GetTopologyResponse, Failure> {
        let mut node = self.node.clone();
        Ok(self.read(node.get_topology(node::GetTopologyRequest {})).await?.into())
    }

    /// What agents used since a moment.
    pub(crate) async fn usage(
        &self,
        since_unix_ms: u64,
    ) -> Result<node::GetUsageResponse, Failure> {
        let mut node = self.node.clone();
        self.read(node.get_usage(node::GetUsageRequest { since_unix_ms })).await
    }

    /// How shared devices are time-sliced.
    pub(crate) async fn turns(&self) -> Result<GetTurnsResponse, Failure> {
        let mut node = self.node.clone();
        let request = node::GetTurnsRequest { device: String::new() };
        Ok(self.read(node.get_turns(request)).await?.into())
    }

    /// What the daemon finds wrong with itself and its host.
    pub(crate) async fn diagnose(&self) -> Result<Vec<Finding>, Failure> {
        let mut node = self.node.clone();
        Ok(convert(self.read(node.diagnose(node::DiagnoseRequest {})).await?.findings))
    }

    /// Prepares a claim: its lease, and what a process of this host needs to use it.
    pub(crate) async fn prepare(
        &self,
        request: node::PrepareClaimRequest,
    ) -> Result<(Lease, HashMap<String, String>), Failure> {
        let mut node = self.node.clone();
        let answer = self.change(node.prepare_claim(request)).await?;
        let lease = answer.lease.map(Lease::from).ok_or(Failure::Incomplete("lease"))?;
        Ok((lease, answer.environment))
    }

    /// Releases a claim; false if there was nothing to release.
    pub(crate) async fn release(&self, claim: &str) -> Result<bool, Failure> {
        let mut node = self.node.clone();
        let request = node::ReleaseClaimRequest { claim: claim.to_owned() };
        Ok(self.change(node.release_claim(request)).await?.released)
    }

    /// Puts the operator's taint on a device.
    pub(crate) async fn taint(&self, request: node::TaintDeviceRequest) -> Result<Device, Failure> {
        let mut node = self.node.clone();
        let answer = self.change(node.taint_device(request)).await?;
        answer.device.map(Device::from).ok_or(Failure::Incomplete("device"))
    }

    /// Takes a taint off a device.
    pub(crate) async fn untaint(
        &self,
        request: node::UntaintDeviceRequest,
    ) -> Result<Device, Failure> {
        let mut node = self.node.clone();
        let answer = self.change(node.untaint_device(request)).await?;
        answer.device.map(Device::from).ok_or(Failure::Incomplete("device"))
    }

    /// Closes the handles of a vendor, or of all.
    /// They stay closed for `length`, if it is given.
    pub(crate) async fn quiesce(
        &self,
        vendor: Option<String>,
        length: Option<Duration>,
    ) -> Result<(), Failure> {
        let mut node = self.node.clone();
        let vendor = vendor.unwrap_or_default();
        let for_ms = length.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
        self.change(node.quiesce(node::QuiesceRequest { vendor, for_ms })).await.map(|_| ())
    }

    /// Ends the pause of a vendor, or of all. The vendors that were paused.
    pub(crate) async fn resume(&self, vendor: Option<String>) -> Result<Vec<String>, Failure> {
        let mut node = self.node.clone();
        let vendor = vendor.unwrap_or_default();
        Ok(self.change(node.resume(node::ResumeRequest { vendor })).await?.vendors)
    }

    /// Has the daemon read its configuration again.
    pub(crate) async fn reload_config(&self) -> Result<ReloadConfigResponse, Failure> {
        let mut node = self.node.clone();
        Ok(self.change(node.reload_config(node::ReloadConfigRequest {})).await?.into())
    }

    async fn read<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.call(READ_TIMEOUT, call).await
    }

    async fn change<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.call(CHANGE_TIMEOUT, call).await
    }

    /// Waits for one answer. Giving up drops the call, which the daemon sees.
    async fn call<T>(
        &self,
        default: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let timeout = self.timeout.unwrap_or(default);
        match time::timeout(timeout, self.progress.watch(call)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(status)),
            Err(time::error::Elapsed { .. }) => Err(Failure::NoAnswer(timeout)),
        }
    }
}

async fn connect_socket(path: &Path) -> Result<UnixStream, Failure> {
    let source = match UnixStream::connect(path).await {
        Ok(stream) => return Ok(stream),
        Err(source) => source,
    };
    // The kernel says "refused" both for a dead socket and for a plain file.
    let is_other_file = std::fs::metadata(path).is_ok_and(|file| !file.file_type().is_socket());
    if is_other_file && source.kind() == ErrorKind::ConnectionRefused {
        return Err(Failure::NotASocket(PathBuf::from(path)));
    }
    Err(Failure::Connect { path: path.to_owned(), source })
}

fn convert<A, B: From<A>>(wire: Vec<A>) -> Vec<B> {
    wire.into_iter().map(B::from).collect()
}
