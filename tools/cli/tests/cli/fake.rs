//! A daemon that is made up: it answers from a `State` and keeps what it was asked to change.
//!
//! Some names make it misbehave, so that a test can ask for a refusal or for silence.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use accelpool_proto::node::{
    self,
    node_server::{Node, NodeServer},
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{Notify, oneshot},
};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};

use crate::node::{State, lease, whole};

/// A claim that is refused with a code that has a page.
pub(crate) const TOO_MUCH: &str = "too-much";
/// A claim that the caller may not touch.
pub(crate) const FORBIDDEN: &str = "forbidden";
/// A claim that is answered once [`Fake::let_go`] was called.
pub(crate) const SLOW: &str = "slow";
/// A claim that is answered without a lease.
pub(crate) const HOLLOW: &str = "hollow";

/// The daemon; it ends with the test.
pub(crate) struct Fake {
    folder: TempDir,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// A daemon that listens on a socket in a folder of its own.
    pub(crate) fn start(state: State) -> Self {
        Self::start_in(state, "node.sock")
    }

    /// A daemon that listens on `path` in a folder of its own.
    pub(crate) fn start_in(state: State, path: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(path);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Notify::new());
        let service = Service { state, asked: asked.clone(), gate: gate.clone() };
        let (stop, end) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let path = socket.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                let server = Server::builder().add_service(NodeServer::new(service));
                tokio::select! {
                    ended = server.serve_with_incoming(UnixListenerStream::new(listener)) => {
                        ended.unwrap();
                    }
                    _ = end => {}
                }
            });
        });
        is_ready.recv().unwrap();
        Self { folder, socket, asked, gate, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The changes that were asked for, as text.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Answers the call about [`SLOW`] that waits, or the next one.
    pub(crate) fn let_go(&self) {
        self.gate.notify_one();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the made-up daemon panicked");
        }
    }
}

struct Service {
    state: State,
    asked: Arc<Mutex<Vec<String>>>,
    gate: Arc<Notify>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    async fn change(&self, claim: &str, asked: String) -> Result<(), Status> {
        self.asked.lock().unwrap().push(asked);
        match claim {
            TOO_MUCH => {
                let message =
                    "memory of a share of device gpu-0000-43-00-0 must be 1 to 80Gi, not 90Gi";
                let mut status = Status::new(Code::OutOfRange, message);
                status.metadata_mut().insert(node::ERROR_CODE_KEY, "AP0105".parse().unwrap());
                Err(status)
            }
            FORBIDDEN => Err(Status::permission_denied("changing needs root, you are uid 1000")),
            SLOW => {
                self.gate.notified().await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn device(&self, name: &str) -> Result<node::Device, Status> {
        let device = self.state.devices.iter().find(|device| device.name == name);
        let unknown = || Status::not_found(format!("device `{name}` is not known"));
        device.cloned().ok_or_else(unknown)
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn get_node(&self, _: Request<node::GetNodeRequest>) -> Answer<node::GetNodeResponse> {
        Ok(Response::new(self.state.node.clone()))
    }

    async fn list_devices(
        &self,
        _: Request<node::ListDevicesRequest>,
    ) -> Answer<node::ListDevicesResponse> {
        let devices = self.state.devices.clone();
        Ok(Response::new(node::ListDevicesResponse { devices }))
    }

    async fn list_partitions(
        &self,
        request: Request<node::ListPartitionsRequest>,
    ) -> Answer<node::ListPartitionsResponse> {
        let request = request.into_inner();
        if !request.device.is_empty() {
            self.device(&request.device)?;
        }
        let mut partitions = self.state.partitions.clone();
        partitions.retain(|partition| {
            let is_meant = request.device.is_empty() || partition.device == request.device;
            let exists = matches!(&*partition.state, "exists" | "half-created");
            is_meant && (exists || request.possible)
        });
        Ok(Response::new(node::ListPartitionsResponse { partitions }))
    }

    async fn list_pools(
        &self,
        _: Request<node::ListPoolsRequest>,
    ) -> Answer<node::ListPoolsResponse> {
        Ok(Response::new(node::ListPoolsResponse { pools: self.state.pools.clone() }))
    }

    async fn list_claims(
        &self,
        _: Request<node::ListClaimsRequest>,
    ) -> Answer<node::ListClaimsResponse> {
        Ok(Response::new(node::ListClaimsResponse { leases: self.state.leases.clone() }))
    }

    async fn explain_claim(
        &self,
        request: Request<node::ExplainClaimRequest>,
    ) -> Answer<node::ExplainClaimResponse> {
        let story = self.state.stories.get(&request.into_inner().claim);
        Ok(Response::new(story.cloned().unwrap_or_default()))
    }

    async fn get_topology(
        &self,
        _: Request<node::GetTopologyRequest>,
    ) -> Answer<node::GetTopologyResponse> {
        Ok(Response::new(self.state.topology.clone()))
    }

    async fn prefer_devices(
        &self,
        _: Request<node::PreferDevicesRequest>,
    ) -> Answer<node::PreferDevicesResponse> {
        Err(Status::unimplemented("nobody here chooses"))
    }

    type WatchNodeStream =
        Pin<Box<dyn Stream<Item = Result<node::WatchNodeResponse, Status>> + Send>>;

    async fn watch_node(
        &self,
        _: Request<node::WatchNodeRequest>,
    ) -> Answer<Self::WatchNodeStream> {
        Err(Status::unimplemented("nobody here watches"))
    }

    async fn diagnose(&self, _: Request<node::DiagnoseRequest>) -> Answer<node::DiagnoseResponse> {
        let findings = self.state.findings.clone();
        Ok(Response::new(node::DiagnoseResponse { findings }))
    }

    async fn get_gate(&self, _: Request<node::GetGateRequest>) -> Answer<node::GetGateResponse> {
        Ok(Response::new(crate::guarded::gate()))
    }

    async fn list_holders(
        &self,
        _: Request<node::ListHoldersRequest>,
    ) -> Answer<node::ListHoldersResponse> {
        Ok(Response::new(crate::guarded::holders()))
    }

    async fn verify_claims(
        &self,
        _: Request<node::VerifyClaimsRequest>,
    ) -> Answer<node::VerifyClaimsResponse> {
        Ok(Response::new(crate::guarded::verifications()))
    }

    type WatchDenialsStream = Pin<Box<dyn Stream<Item = Result<node::Denial, Status>> + Send>>;

    async fn watch_denials(
        &self,
        _: Request<node::WatchDenialsRequest>,
    ) -> Answer<Self::WatchDenialsStream> {
        Err(Status::unimplemented("nobody here guards"))
    }

    type WatchSpansStream =
        Pin<Box<dyn Stream<Item = Result<node::WatchSpansResponse, Status>> + Send>>;

    async fn watch_spans(
        &self,
        _: Request<node::WatchSpansRequest>,
    ) -> Answer<Self::WatchSpansStream> {
        Err(Status::unimplemented("nobody here traces"))
    }

    async fn bind_claim(
        &self,
        _: Request<node::BindClaimRequest>,
    ) -> Answer<node::BindClaimResponse> {
        Err(Status::unimplemented("nobody here guards"))
    }

    async fn get_metrics(
        &self,
        _: Request<node::GetMetricsRequest>,
    ) -> Answer<node::GetMetricsResponse> {
        Err(Status::unimplemented("nobody here measures"))
    }

    async fn get_usage(&self, _: Request<node::GetUsageRequest>) -> Answer<node::GetUsageResponse> {
        Ok(Response::new(self.state.usage.clone()))
    }

    async fn get_turns(&self, _: Request<node::GetTurnsRequest>) -> Answer<node::GetTurnsResponse> {
        Ok(Response::new(self.state.turns.clone()))
    }

    async fn prepare_claim(
        &self,
        request: Request<node::PrepareClaimRequest>,
    ) -> Answer<node::PrepareClaimResponse> {
        let request = request.into_inner();
        let claim = request.claim.clone();
        self.change(&claim, format!("{request:?}")).await?;
        let held = vec![whole(&claim, "r0", "9d"), whole(&claim, "r0", "df")];
        let lease = (claim != HOLLOW).then(|| lease(&claim, held, 0));
        let environment = [("ACCELPOOL_TEST".to_owned(), claim)].into();
        Ok(Response::new(node::PrepareClaimResponse { lease, environment }))
    }

    async fn release_claim(
        &self,
        request: Request<node::ReleaseClaimRequest>,
    ) -> Answer<node::ReleaseClaimResponse> {
        let request = request.into_inner();
        self.change(&request.claim, format!("{request:?}")).await?;
        let released = self.state.leases.iter().any(|lease| lease.claim == request.claim);
        Ok(Response::new(node::ReleaseClaimResponse { released }))
    }

    async fn taint_device(
        &self,
        request: Request<node::TaintDeviceRequest>,
    ) -> Answer<node::TaintDeviceResponse> {
        let request = request.into_inner();
        self.change("", format!("{request:?}")).await?;
        let mut device = self.device(&request.device)?;
        device.taints.push(node::Taint {
            key: "operator".into(),
            effect: request.effect,
            reason: request.reason,
            since_unix_ms: u64::MAX,
        });
        Ok(Response::new(node::TaintDeviceResponse { device: Some(device) }))
    }

    async fn untaint_device(
        &self,
        request: Request<node::UntaintDeviceRequest>,
    ) -> Answer<node::UntaintDeviceResponse> {
        let request = request.into_inner();
        self.change("", format!("{request:?}")).await?;
        let mut device = self.device(&request.device)?;
        device.taints.clear();
        Ok(Response::new(node::UntaintDeviceResponse { device: Some(device) }))
    }

    async fn quiesce(
        &self,
        request: Request<node::QuiesceRequest>,
    ) -> Answer<node::QuiesceResponse> {
        self.change("", format!("{:?}", request.into_inner())).await?;
        Ok(Response::new(node::QuiesceResponse {}))
    }

    async fn resume(&self, request: Request<node::ResumeRequest>) -> Answer<node::ResumeResponse> {
        self.change("", format!("{:?}", request.into_inner())).await?;
        Ok(Response::new(node::ResumeResponse { vendors: vec!["sim".into()] }))
    }

    async fn reload_config(
        &self,
        request: Request<node::ReloadConfigRequest>,
    ) -> Answer<node::ReloadConfigResponse> {
        self.change("", format!("{:?}", request.into_inner())).await?;
        let changes = vec!["pool `gpus`: gate is enforce, was audit".to_owned()];
        Ok(Response::new(node::ReloadConfigResponse { changes, restart_needed: true }))
    }
}
