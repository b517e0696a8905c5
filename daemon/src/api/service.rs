//! The methods of the node API, each: check the caller, check the request, ask the node.

mod diagnose;
mod gate;
mod metrics;
mod prefer;
mod readings;
mod reload;
mod timings;
mod turns;
mod vendors;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use accelpool_model::{BootId, Taint};
use accelpool_proto::{
    node::{self as wire, node_server::Node as NodeApi},
    trace::Here,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, WatchStream, errors::BroadcastStreamRecvError},
};
use tonic::{Request, Response, Status};

use self::timings::{CallTimings, outcome};
use super::{Access, access, request, response};
use crate::{
    environment, error,
    gate::{Keeper, dmem},
    holder::{self, Holder},
    node::{Node, NodeError, State},
    reload::Reloader,
    turns as slicing,
    usage::Meter,
};

/// Between two states that one watcher is told. A change after a quiet time is told at once; of
/// a hundred pods that start together, each with two changes, a few are enough.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// What the daemon says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// This boot of the host.
    pub boot: BootId,
    /// When the daemon started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Where CDI specs go.
    pub cdi_dir: std::path::PathBuf,
    /// Where the ledger is.
    pub ledger: std::path::PathBuf,
    /// Where procfs is.
    pub proc_dir: std::path::PathBuf,
}

/// The node API.
#[derive(Clone)]
pub struct Service {
    node: Node,
    access: Arc<Access>,
    about: Arc<About>,
    gate: Keeper,
    turns: slicing::Keeper,
    meter: Arc<Meter>,
    timings: Arc<CallTimings>,
    reloader: Reloader,
}

impl Service {
    /// Serves `node`, and what `meter` has measured of it, to whoever `access` lets pass.
    #[must_use]
    pub fn new(
        node: Node,
        access: Access,
        about: About,
        gate: Keeper,
        turns: slicing::Keeper,
        meter: Arc<Meter>,
        reloader: Reloader,
    ) -> Self {
        let (access, about) = (Arc::new(access), Arc::new(about));
        Self { node, access, about, gate, turns, meter, timings: Arc::default(), reloader }
    }

    async fn state(&self) -> Result<State, Status> {
        self.node.read(None).await.map_err(|error| error::status(&error))
    }

    /// The process that calls, as the one that holds a claim.
    fn holder<T>(&self, request: &Request<T>) -> Result<Holder, Status> {
        let pid = access::caller_pid(request).ok_or_else(|| {
            let message = "the calling process is outside the daemon's pid namespace, so nobody \
                           could tell when it ends: leave out `held`";
            Status::failed_precondition(message)
        })?;
        Holder::of(&self.about.proc_dir, pid, &self.about.boot).map_err(|error| {
            Status::failed_precondition(format!("process {pid} cannot be looked at: {error}"))
        })
    }

    /// A lease that was made or changed just now, as it is told.
    async fn told(&self, lease: &accelpool_model::Lease) -> Result<wire::Lease, Status> {
        Ok(response::lease(&self.state().await?, lease))
    }

    async fn device(&self, name: &str) -> Result<wire::Device, Status> {
        let devices = response::devices(&self.state().await?);
        let found = devices.into_iter().find(|device| device.name == name);
        found.ok_or_else(|| error::status(&NodeError::UnknownDevice(name.to_owned())))
    }
}

#[tonic::async_trait]
impl NodeApi for Service {
    async fn get_node(
        &self,
        request: Request<wire::GetNodeRequest>,
    ) -> Result<Response<wire::GetNodeResponse>, Status> {
        self.access.read(&request)?;
        let state = self.state().await?;
        let mut vendors = Vec::new();
        for (name, worker) in self.node.workers() {
            let (status, paused) = (worker.status().await, worker.paused_until_ms());
            let troubles = state.vendor_troubles.get(name).map(|words| words.join("; "));
            let trouble = troubles.filter(|words| !words.is_empty());
            vendors.push(wire::VendorStatus {
                name: name.to_string(),
                state: match (paused, status.running) {
                    (Some(_), _) => "paused",
                    (None, true) => "running",
                    (None, false) => "restarting",
                }
                .to_owned(),
                restarts: status.restarts,
                last_error: trouble.unwrap_or(status.last_error),
                paused_until_unix_ms: paused.unwrap_or_default(),
                devices: u32::try_from(state.adapter_of.values().filter(|of| *of == name).count())
                    .unwrap_or(u32::MAX),
            });
        }
        Ok(Response::new(wire::GetNodeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.about.boot.to_string(),
            state: match (state.draining, state.complete) {
                (true, _) => "draining",
                (false, true) => "ready",
                (false, false) => "starting",
            }
            .to_owned(),
            started_unix_ms: self.about.started_ms,
            ledger_schema: accelpool_ledger::Ledger::SCHEMA,
            vendors,
            revision: state.revision,
        }))
    }

    async fn list_devices(
        &self,
        request: Request<wire::ListDevicesRequest>,
    ) -> Result<Response<wire::ListDevicesResponse>, Status> {
        self.access.read(&request)?;
        let devices = response::devices(&self.state().await?);
        Ok(Response::new(wire::ListDevicesResponse { devices }))
    }

    async fn list_partitions(
        &self,
        request: Request<wire::ListPartitionsRequest>,
    ) -> Result<Response<wire::ListPartitionsResponse>, Status> {
        self.access.read(&request)?;
        let wire::ListPartitionsRequest { device, possible } = request.into_inner();
        let state = self.state().await?;
        let known = |name: &str| name.parse().ok().and_then(|name| state.inventory.device(&name));
        if !device.is_empty() && known(&device).is_none() {
            let name = device.chars().take(80).collect();
            return Err(error::status(&NodeError::UnknownDevice(name)));
        }
        let partitions = response::partitions(&state, &device, possible);
        Ok(Response::new(wire::ListPartitionsResponse { partitions }))
    }

    async fn list_pools(
        &self,
        request: Request<wire::ListPoolsRequest>,
    ) -> Result<Response<wire::ListPoolsResponse>, Status> {
        self.access.read(&request)?;
        let pools = response::pools(&self.state().await?);
        Ok(Response::new(wire::ListPoolsResponse { pools }))
    }

    async fn list_claims(
        &self,
        request: Request<wire::ListClaimsRequest>,
    ) -> Result<Response<wire::ListClaimsResponse>, Status> {
        self.access.read(&request)?;
        let leases = response::leases(&self.state().await?);
        Ok(Response::new(wire::ListClaimsResponse { leases }))
    }

    async fn explain_claim(
        &self,
        request: Request<wire::ExplainClaimRequest>,
    ) -> Result<Response<wire::ExplainClaimResponse>, Status> {
        self.access.read(&request)?;
        let claim = request::claim_id(&request.into_inner().claim)?;
        let read = self.node.read(Some(claim.clone())).await;
        let state = read.map_err(|error| error::status(&error))?;
        let lease =
            response::leases(&state).into_iter().find(|lease| lease.claim == claim.as_str());
        if lease.is_none() && state.events.is_empty() {
            return Err(error::status(&NodeError::UnknownClaim(claim)));
        }
        let held = |device: &wire::Device| {
            lease.as_ref().is_some_and(|lease| {
                lease.allocations.iter().any(|allocation| allocation.device == device.name)
            })
        };
        let devices = response::devices(&state).into_iter().filter(held).collect();
        let events = state.events.iter().map(response::event).collect();
        Ok(Response::new(wire::ExplainClaimResponse { lease, events, devices }))
    }

    async fn get_topology(
        &self,
        request: Request<wire::GetTopologyRequest>,
    ) -> Result<Response<wire::GetTopologyResponse>, Status> {
        self.access.read(&request)?;
        Ok(Response::new(response::topology(&self.state().await?)))
    }

    async fn prefer_devices(
        &self,
        request: Request<wire::PreferDevicesRequest>,
    ) -> Result<Response<wire::PreferDevicesResponse>, Status> {
        self.access.read(&request)?;
        let state = self.state().await?;
        let devices = prefer::prefer(&state.inventory, request.get_ref())?;
        Ok(Response::new(wire::PreferDevicesResponse { devices }))
    }

    type WatchNodeStream =
        Pin<Box<dyn Stream<Item = Result<wire::WatchNodeResponse, Status>> + Send>>;

    async fn watch_node(
        &self,
        request: Request<wire::WatchNodeRequest>,
    ) -> Result<Response<Self::WatchNodeStream>, Status> {
        self.access.read(&request)?;
        let possible = request.get_ref().possible;
        let service = self.clone();
        // The latest revision only: a slow reader skips what it has no time for.
        let revisions = WatchStream::new(self.node.revisions()).throttle(WATCH_INTERVAL);
        let states = Box::pin(revisions).then(move |_| {
            let service = service.clone();
            async move {
                let state = service.state().await?;
                Ok(wire::WatchNodeResponse {
                    revision: state.revision,
                    complete: state.complete,
                    devices: response::devices(&state),
                    partitions: response::partitions(&state, "", possible),
                    pools: response::pools(&state),
                    leases: response::leases(&state),
                })
            }
        });
        Ok(Response::new(Box::pin(states)))
    }

    async fn diagnose(
        &self,
        request: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        self.access.read(&request)?;
        let findings = self.findings(&self.state().await?).await;
        Ok(Response::new(wire::DiagnoseResponse { findings }))
    }

    async fn get_metrics(
        &self,
        request: Request<wire::GetMetricsRequest>,
    ) -> Result<Response<wire::GetMetricsResponse>, Status> {
        self.access.read(&request)?;
        Ok(Response::new(self.metrics(&self.state().await?).await))
    }

    async fn get_usage(
        &self,
        request: Request<wire::GetUsageRequest>,
    ) -> Result<Response<wire::GetUsageResponse>, Status> {
        self.access.read(&request)?;
        let since = request.get_ref().since_unix_ms;
        Ok(Response::new(self.usage(&self.state().await?, since)))
    }

    async fn prepare_claim(
        &self,
        request: Request<wire::PrepareClaimRequest>,
    ) -> Result<Response<wire::PrepareClaimResponse>, Status> {
        self.access.change(&request)?;
        let held = request.get_ref().held.then(|| self.holder(&request)).transpose()?;
        let held = held.map(|holder| holder.to_string());
        let mut span = self.node.spans().of_call(request.metadata(), "PrepareClaim");
        span.set("accelpool.claim.uid", &request.get_ref().claim);
        let by = access::asker(&request, span.here());
        let request = request.into_inner();
        let id = request::claim_id(&request.claim)?;
        let bindings = self.bindings_of(&id, request::subjects(&request.bindings)?, &by).await?;
        self.check_access(&request.requests).await?;
        let mut claim = request::claim_from_wire(request)?;
        claim.labels.extend(held.clone().map(|holder| (holder::LABEL.to_owned(), holder)));
        let started = Instant::now();
        let prepared = self.node.asked_by(by).prepare_for(claim, bindings).await;
        self.timings.prepares.observe_since(outcome(&prepared), started, span.here());
        span.end(&prepared);
        let lease = prepared.map_err(|error| error::status(&error))?;
        if held.is_some() && lease.claim.labels.get(holder::LABEL) != held.as_ref() {
            let message = format!("claim {} is there and not this process's", lease.claim.id);
            return Err(Status::already_exists(message));
        }
        let environment =
            environment::of_host(&lease, &self.state().await?.inventory, self.turns.places());
        let lease = Some(self.told(&lease).await?);
        let environment = environment.into_iter().collect();
        Ok(Response::new(wire::PrepareClaimResponse { lease, environment }))
    }

    async fn bind_claim(
        &self,
        request: Request<wire::BindClaimRequest>,
    ) -> Result<Response<wire::BindClaimResponse>, Status> {
        self.access.change(&request)?;
        let mut span = self.node.spans().of_call(request.metadata(), "BindClaim");
        span.set("accelpool.claim.uid", &request.get_ref().claim);
        let by = access::asker(&request, span.here());
        let request = request.into_inner();
        let claim = request::claim_id(&request.claim)?;
        let bindings = self.bindings_of(&claim, request::subjects(&request.bindings)?, &by).await?;
        let bound = self.node.asked_by(by).bind(claim, bindings).await;
        span.end(&bound);
        let lease = bound.map_err(|error| error::status(&error))?;
        let state = self.state().await?;
        let bindings = response::lease(&state, &lease).bindings;
        let shares = dmem::shares(&lease, &state.inventory);
        let unified = gate::blocking(move || gate::unified(&shares)).await;
        Ok(Response::new(wire::BindClaimResponse { bindings, unified }))
    }

    async fn get_turns(
        &self,
        request: Request<wire::GetTurnsRequest>,
    ) -> Result<Response<wire::GetTurnsResponse>, Status> {
        self.access.read(&request)?;
        let device = request.into_inner().device;
        let state = self.state().await?;
        self.turns(&state, &device).map(Response::new)
    }

    async fn get_gate(
        &self,
        request: Request<wire::GetGateRequest>,
    ) -> Result<Response<wire::GetGateResponse>, Status> {
        self.access.read(&request)?;
        let gate = self.gate.clone();
        let status = gate::blocking(move || gate.status()).await;
        Ok(Response::new(response::gate(status)))
    }

    async fn list_holders(
        &self,
        request: Request<wire::ListHoldersRequest>,
    ) -> Result<Response<wire::ListHoldersResponse>, Status> {
        self.access.read(&request)?;
        self.holders(&request.into_inner().device).await.map(Response::new)
    }

    async fn verify_claims(
        &self,
        request: Request<wire::VerifyClaimsRequest>,
    ) -> Result<Response<wire::VerifyClaimsResponse>, Status> {
        // It starts a process in the containers, so it is more than reading.
        self.access.change(&request)?;
        self.verify(&request.into_inner().claim).await.map(Response::new)
    }

    type WatchDenialsStream = Pin<Box<dyn Stream<Item = Result<wire::Denial, Status>> + Send>>;

    async fn watch_denials(
        &self,
        request: Request<wire::WatchDenialsRequest>,
    ) -> Result<Response<Self::WatchDenialsStream>, Status> {
        self.access.read(&request)?;
        // What a slow reader missed is counted elsewhere.
        let denials = BroadcastStream::new(self.gate.denials()).filter_map(Result::ok);
        let denials = denials.map(|denial| Ok(response::denial(&denial)));
        Ok(Response::new(Box::pin(denials)))
    }

    type WatchSpansStream =
        Pin<Box<dyn Stream<Item = Result<wire::WatchSpansResponse, Status>> + Send>>;

    async fn watch_spans(
        &self,
        request: Request<wire::WatchSpansRequest>,
    ) -> Result<Response<Self::WatchSpansStream>, Status> {
        self.access.read(&request)?;
        let told = BroadcastStream::new(self.node.spans().subscribe()).map(|told| {
            Ok(match told {
                Ok(span) => wire::WatchSpansResponse { span: Some((*span).clone()), dropped: 0 },
                Err(BroadcastStreamRecvError::Lagged(dropped)) => {
                    wire::WatchSpansResponse { span: None, dropped }
                }
            })
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn release_claim(
        &self,
        request: Request<wire::ReleaseClaimRequest>,
    ) -> Result<Response<wire::ReleaseClaimResponse>, Status> {
        self.access.change(&request)?;
        let mut span = self.node.spans().of_call(request.metadata(), "ReleaseClaim");
        span.set("accelpool.claim.uid", &request.get_ref().claim);
        let by = access::asker(&request, span.here());
        let claim = request::claim_id(&request.into_inner().claim)?;
        let started = Instant::now();
        let released = self.node.asked_by(by).release(claim).await;
        self.timings.releases.observe_since(outcome(&released), started, span.here());
        span.end(&released);
        let released = released.map_err(|error| error::status(&error))?;
        Ok(Response::new(wire::ReleaseClaimResponse { released }))
    }

    async fn taint_device(
        &self,
        request: Request<wire::TaintDeviceRequest>,
    ) -> Result<Response<wire::TaintDeviceResponse>, Status> {
        self.access.change(&request)?;
        let by = access::asker(&request, &Here::default());
        let request = request.into_inner();
        let (effect, reason) = request::taint_from_wire(&request)?;
        let tainted = self.node.asked_by(by).taint(request.device.clone(), effect, reason).await;
        tainted.map_err(|error| error::status(&error))?;
        let device = Some(self.device(&request.device).await?);
        Ok(Response::new(wire::TaintDeviceResponse { device }))
    }

    async fn untaint_device(
        &self,
        request: Request<wire::UntaintDeviceRequest>,
    ) -> Result<Response<wire::UntaintDeviceResponse>, Status> {
        self.access.change(&request)?;
        let by = access::asker(&request, &Here::default());
        let wire::UntaintDeviceRequest { device, key } = request.into_inner();
        let key = if key.is_empty() { Taint::OPERATOR.to_owned() } else { key };
        let key: String = key.chars().take(63).collect();
        let untainted = self.node.asked_by(by).untaint(device.clone(), key).await;
        untainted.map_err(|error| error::status(&error))?;
        // A lost device that only its taint kept is gone with it.
        let device = self.device(&device).await.ok();
        Ok(Response::new(wire::UntaintDeviceResponse { device }))
    }

    async fn quiesce(
        &self,
        request: Request<wire::QuiesceRequest>,
    ) -> Result<Response<wire::QuiesceResponse>, Status> {
        self.access.change(&request)?;
        self.quiesce_vendors(request.into_inner()).await.map(Response::new)
    }

    async fn resume(
        &self,
        request: Request<wire::ResumeRequest>,
    ) -> Result<Response<wire::ResumeResponse>, Status> {
        self.access.change(&request)?;
        self.resume_vendors(&request.into_inner()).map(Response::new)
    }

    async fn reload_config(
        &self,
        request: Request<wire::ReloadConfigRequest>,
    ) -> Result<Response<wire::ReloadConfigResponse>, Status> {
        self.access.change(&request)?;
        self.reload().await.map(Response::new)
    }
}
