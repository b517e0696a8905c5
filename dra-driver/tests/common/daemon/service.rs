//! The stand-in's answers.

use std::{pin::Pin, sync::Arc};

use accelpool_proto::node::{self as wire, node_server};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{BroadcastStream, WatchStream},
};
use tonic::{Code, Request, Response, Status};

use super::{Shared, coded};

pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    /// Waits with the others while calls are held.
    async fn wait(&self) {
        {
            let mut state = self.0.state();
            state.waiting += 1;
            state.waiting_max = state.waiting_max.max(state.waiting);
        }
        let waiting = Waiting(Arc::clone(&self.0));
        let mut open = self.0.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
        drop(waiting);
    }
}

struct Waiting(Arc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `async_trait` does not look into macros, so these have the form that it would make.
macro_rules! not_here {
    ($($name:ident, $request:ident, $response:ident;)*) => {
        $(fn $name<'life, 'async_trait>(
            &'life self,
            _request: Request<wire::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<wire::$response>> + Send + 'async_trait>>
        where
            'life: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("not in this stand-in")) })
        })*
    };
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl node_server::Node for Service {
    type WatchNodeStream = BoxStream<wire::WatchNodeResponse>;

    async fn watch_node(
        &self,
        _request: Request<wire::WatchNodeRequest>,
    ) -> Result<Response<Self::WatchNodeStream>, Status> {
        let states = WatchStream::new(self.0.published.subscribe());
        Ok(Response::new(Box::pin(states.map(|state| Ok((*state).clone())))))
    }

    type WatchDenialsStream = BoxStream<wire::Denial>;

    async fn get_metrics(
        &self,
        _request: Request<wire::GetMetricsRequest>,
    ) -> Result<Response<wire::GetMetricsResponse>, Status> {
        let device = |device: &wire::Device| wire::DeviceMetrics {
            device: device.name.clone(),
            vendor: device.vendor.clone(),
            kind: device.kind.clone(),
            memory_bytes: device.memory_bytes,
            present: true,
            ..wire::DeviceMetrics::default()
        };
        let devices = self.0.state().node.devices.iter().map(device).collect();
        let metrics = wire::GetMetricsResponse { devices, ..wire::GetMetricsResponse::default() };
        Ok(Response::new(metrics))
    }

    async fn watch_denials(
        &self,
        _request: Request<wire::WatchDenialsRequest>,
    ) -> Result<Response<Self::WatchDenialsStream>, Status> {
        let denials = BroadcastStream::new(self.0.denials.subscribe());
        Ok(Response::new(Box::pin(denials.filter_map(Result::ok).map(Ok))))
    }

    type WatchSpansStream = BoxStream<wire::WatchSpansResponse>;

    async fn watch_spans(
        &self,
        _request: Request<wire::WatchSpansRequest>,
    ) -> Result<Response<Self::WatchSpansStream>, Status> {
        let told = tokio_stream::wrappers::BroadcastStream::new(self.0.spans.subscribe());
        Ok(Response::new(Box::pin(told.filter_map(Result::ok).map(Ok))))
    }

    async fn prepare_claim(
        &self,
        request: Request<wire::PrepareClaimRequest>,
    ) -> Result<Response<wire::PrepareClaimResponse>, Status> {
        let parent = request.metadata().get("traceparent").cloned();
        let request = request.into_inner();
        {
            let mut state = self.0.state();
            if let Some(parent) = parent {
                let parent = parent.to_str().unwrap().to_owned();
                state.traceparents.insert(request.claim.clone(), parent);
            }
            state.calls.push(format!("prepare {}", request.claim));
            state.asked.insert(request.claim.clone(), request.clone());
        }
        // The daemon's work is not broken off when the caller hangs up.
        let service = Self(Arc::clone(&self.0));
        let work = tokio::spawn(async move {
            service.wait().await;
            let refusal = service.0.state().refusals.pop_front();
            match refusal {
                Some(status) => Err(status),
                None => service.0.state().prepare(&request),
            }
        });
        let lease = Some(work.await.unwrap()?);
        self.0.publish();
        Ok(Response::new(wire::PrepareClaimResponse { lease, ..Default::default() }))
    }

    async fn release_claim(
        &self,
        request: Request<wire::ReleaseClaimRequest>,
    ) -> Result<Response<wire::ReleaseClaimResponse>, Status> {
        let claim = request.into_inner().claim;
        self.0.state().calls.push(format!("release {claim}"));
        let released = self.0.state().leases.remove(&claim).is_some();
        self.0.publish();
        Ok(Response::new(wire::ReleaseClaimResponse { released }))
    }

    async fn prefer_devices(
        &self,
        request: Request<wire::PreferDevicesRequest>,
    ) -> Result<Response<wire::PreferDevicesResponse>, Status> {
        let wire::PreferDevicesRequest { mut available, size, .. } = request.into_inner();
        // The last ones, so that a test can tell this from the order of the names.
        available.sort();
        available.reverse();
        available.truncate(size as usize);
        Ok(Response::new(wire::PreferDevicesResponse { devices: available }))
    }

    async fn bind_claim(
        &self,
        request: Request<wire::BindClaimRequest>,
    ) -> Result<Response<wire::BindClaimResponse>, Status> {
        self.wait().await;
        let wire::BindClaimRequest { claim, bindings } = request.into_inner();
        let (bindings, unified) = {
            let mut state = self.0.state();
            for binding in &bindings {
                let words = match &binding.subject {
                    Some(wire::binding::Subject::Workload(uid)) => format!("workload {uid}"),
                    Some(wire::binding::Subject::Cgroup(path)) => format!("cgroup {path}"),
                    other => format!("{other:?}"),
                };
                state.calls.push(format!("bind {claim} to {words}"));
            }
            let Some(lease) = state.leases.get_mut(&claim) else {
                return Err(coded(Code::NotFound, "AP0117", format!("no claim {claim}")));
            };
            let new = bindings
                .into_iter()
                .filter(|it| !lease.bindings.iter().any(|known| known.subject == it.subject));
            let new: Vec<_> = new.collect();
            lease.bindings.extend(new);
            (lease.bindings.clone(), state.unified.clone())
        };
        self.0.publish();
        Ok(Response::new(wire::BindClaimResponse { bindings, unified }))
    }

    async fn get_topology(
        &self,
        _request: Request<wire::GetTopologyRequest>,
    ) -> Result<Response<wire::GetTopologyResponse>, Status> {
        self.wait().await;
        let numa_nodes = self.0.state().numa_nodes.clone();
        Ok(Response::new(wire::GetTopologyResponse { numa_nodes, ..Default::default() }))
    }

    not_here! {
        list_holders, ListHoldersRequest, ListHoldersResponse;
        verify_claims, VerifyClaimsRequest, VerifyClaimsResponse;
        get_node, GetNodeRequest, GetNodeResponse;
        list_devices, ListDevicesRequest, ListDevicesResponse;
        list_partitions, ListPartitionsRequest, ListPartitionsResponse;
        list_pools, ListPoolsRequest, ListPoolsResponse;
        list_claims, ListClaimsRequest, ListClaimsResponse;
        explain_claim, ExplainClaimRequest, ExplainClaimResponse;
        diagnose, DiagnoseRequest, DiagnoseResponse;
        get_usage, GetUsageRequest, GetUsageResponse;
        get_turns, GetTurnsRequest, GetTurnsResponse;
        get_gate, GetGateRequest, GetGateResponse;
        taint_device, TaintDeviceRequest, TaintDeviceResponse;
        untaint_device, UntaintDeviceRequest, UntaintDeviceResponse;
        quiesce, QuiesceRequest, QuiesceResponse;
        resume, ResumeRequest, ResumeResponse;
        reload_config, ReloadConfigRequest, ReloadConfigResponse;
    }
}
