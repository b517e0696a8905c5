//! A stand-in for accelpoold: it keeps leases in memory, and can be slow, absent or refuse.

mod service;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::service::Service;
use super::portion::portion;
use accelpool_kubelet_double::Apart;
use accelpool_proto::node::{self as wire, allocation::Portion, node_server, request::Wanted};
use tokio::{
    net::UnixListener,
    sync::{broadcast, watch},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Status, metadata::MetadataValue, transport::Server};

/// The daemon's state; survives its stops, as the ledger does.
pub(crate) struct Daemon {
    socket: PathBuf,
    shared: Arc<Shared>,
    server: Option<Apart>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    published: watch::Sender<Arc<wire::WatchNodeResponse>>,
    /// Denials, for those who watch.
    denials: broadcast::Sender<wire::Denial>,
    /// Calls that prepare, bind or ask for the topology wait while this is false.
    open: watch::Sender<bool>,
    /// Tells the spans of the daemon.
    spans: broadcast::Sender<wire::WatchSpansResponse>,
}

#[derive(Default)]
struct State {
    node: wire::WatchNodeResponse,
    leases: BTreeMap<String, wire::Lease>,
    numa_nodes: Vec<wire::NumaNode>,
    refusals: VecDeque<Status>,
    calls: Vec<String>,
    asked: BTreeMap<String, wire::PrepareClaimRequest>,
    waiting: usize,
    waiting_max: usize,
    unified: HashMap<String, String>,
    traceparents: BTreeMap<String, String>,
}

/// More than a test denies at once.
const DENIALS: usize = 64;

impl Daemon {
    /// A daemon on a node with these devices, each in the pool named `gpus`.
    pub(crate) fn start(socket: &Path, devices: Vec<wire::Device>, exposure: &str) -> Self {
        let names = devices.iter().map(|device| device.name.clone()).collect();
        let pool = wire::Pool {
            name: "gpus".into(),
            exposure: exposure.into(),
            sharing: "any".into(),
            devices: names,
            ..wire::Pool::default()
        };
        let node = wire::WatchNodeResponse {
            complete: true,
            revision: 1,
            devices,
            pools: vec![pool],
            ..wire::WatchNodeResponse::default()
        };
        let numa_nodes = vec![numa_node(0, 0..4), numa_node(1, 4..8)];
        let state = Mutex::new(State { node: node.clone(), numa_nodes, ..State::default() });
        let shared = Arc::new(Shared {
            state,
            published: watch::Sender::new(Arc::new(node)),
            denials: broadcast::Sender::new(DENIALS),
            open: watch::Sender::new(true),
            spans: broadcast::Sender::new(16),
        });
        let mut daemon = Self { socket: socket.to_owned(), shared, server: None };
        daemon.resume();
        daemon
    }

    /// Serves again.
    pub(crate) fn resume(&mut self) {
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            Ok(()) | Err(_) => {}
        }
        let server = Apart::new().unwrap();
        let listener = server.enter(|| UnixListener::bind(&self.socket)).unwrap();
        let service = Service(Arc::clone(&self.shared));
        let serving = Server::builder()
            .add_service(node_server::NodeServer::new(service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        server.spawn(async move { serving.await.unwrap() });
        self.server = Some(server);
    }

    /// Ends everything at once, as when the process is killed. Leases stay.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Lets calls wait that prepare, bind or ask for the topology.
    pub(crate) fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lets them go on.
    pub(crate) fn let_go(&self) {
        self.shared.open.send_replace(true);
    }

    /// Refuses the next `times` calls that prepare.
    pub(crate) fn refuse(&self, code: Code, page: &'static str, times: usize) {
        let mut status = Status::new(code, "refused by the test");
        let page = MetadataValue::from_static(page);
        status.metadata_mut().insert(wire::ERROR_CODE_KEY, page);
        self.shared.state().refusals.extend(vec![status; times]);
    }

    /// Changes the node.
    pub(crate) fn change(&self, change: impl FnOnce(&mut wire::WatchNodeResponse)) {
        change(&mut self.shared.state().node);
        self.shared.publish();
    }

    /// Has a kernel that limits the memory of shares by this file of a cgroup.
    pub(crate) fn set_unified(&self, file: &str, text: &str) {
        self.shared.state().unified = [(file.to_owned(), text.to_owned())].into();
    }

    /// How many follow what the gate denies.
    pub(crate) fn watchers_of_denials(&self) -> usize {
        self.shared.denials.receiver_count()
    }

    /// The gate denies an open.
    pub(crate) fn deny(&self, denial: wire::Denial) {
        self.shared.denials.send(denial).unwrap();
    }

    /// Changes the NUMA nodes of the host.
    pub(crate) fn set_numa_nodes(&self, numa_nodes: Vec<wire::NumaNode>) {
        self.shared.state().numa_nodes = numa_nodes;
    }

    /// Makes a lease that did not come through the driver under test.
    pub(crate) fn lease(&self, claim: &str, device: &str) {
        let request = wire::Request {
            name: "r".into(),
            wanted: Some(Wanted::Device(device.into())),
            ..wire::Request::default()
        };
        let request = wire::PrepareClaimRequest {
            claim: claim.into(),
            requests: vec![request],
            ..wire::PrepareClaimRequest::default()
        };
        self.shared.state().prepare(&request).unwrap();
        self.shared.publish();
    }

    /// Lets a lease begin at another time.
    pub(crate) fn set_since(&self, claim: &str, since_unix_ms: u64) {
        if let Some(lease) = self.shared.state().leases.get_mut(claim) {
            lease.since_unix_ms = since_unix_ms;
        }
        self.shared.publish();
    }

    pub(crate) fn release(&self, claim: &str) {
        self.shared.state().leases.remove(claim);
        self.shared.publish();
    }

    /// The span that a claim was prepared in, as its caller said.
    pub(crate) fn traceparent(&self, claim: &str) -> Option<String> {
        self.shared.state().traceparents.get(claim).cloned()
    }

    /// Tells a span to whoever reads the daemon's.
    pub(crate) async fn tell_span(&self, span: wire::Span) {
        let told = wire::WatchSpansResponse { span: Some(span), dropped: 0 };
        super::eventually("somebody reads spans", || self.shared.spans.receiver_count() > 0).await;
        self.shared.spans.send(told).unwrap();
    }

    /// The claims that hold something.
    pub(crate) fn claims(&self) -> Vec<String> {
        self.shared.state().leases.keys().cloned().collect()
    }

    pub(crate) fn lease_of(&self, claim: &str) -> Option<wire::Lease> {
        self.shared.state().leases.get(claim).cloned()
    }

    /// The calls so far, such as `prepare uid`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.state().calls.clone()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|made| made.starts_with(call)).count()
    }

    /// What the daemon was last asked for a claim.
    pub(crate) fn asked(&self, claim: &str) -> wire::PrepareClaimRequest {
        self.shared.state().asked.get(claim).cloned().unwrap_or_default()
    }

    /// How many calls have waited at once.
    pub(crate) fn waiting_max(&self) -> usize {
        self.shared.state().waiting_max
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.state().waiting
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let mut state = self.state();
        state.node.revision += 1;
        state.node.leases = state.leases.values().cloned().collect();
        self.published.send_replace(Arc::new(state.node.clone()));
    }
}

impl State {
    fn prepare(&mut self, request: &wire::PrepareClaimRequest) -> Result<wire::Lease, Status> {
        if let Some(lease) = self.leases.get(&request.claim) {
            return Ok(lease.clone());
        }
        let mut allocations = Vec::new();
        for asked in &request.requests {
            let Some(Wanted::Device(name)) = &asked.wanted else {
                return Err(Status::invalid_argument("only devices by name"));
            };
            let partition = self.node.partitions.iter().find(|partition| partition.name == *name);
            let device = partition.map_or(name, |partition| &partition.device);
            if !self.node.devices.iter().any(|known| known.name == *device) {
                if !self.node.complete {
                    let why = "vendor sim has not answered since the daemon started";
                    return Err(coded(Code::Unavailable, "AP0120", why.to_owned()));
                }
                return Err(coded(
                    Code::NotFound,
                    "AP0101",
                    format!("device {name} is not on this node"),
                ));
            }
            let portion = portion(asked, partition);
            self.check_free(device, &portion)?;
            let suffix = asked.share_id.as_ref().map(|id| format!("-{id}")).unwrap_or_default();
            allocations.push(wire::Allocation {
                request: asked.name.clone(),
                device: device.clone(),
                share_id: asked.share_id.clone(),
                portion: Some(portion),
                enforcement: Some(wire::Enforcements {
                    memory: "hardware".into(),
                    compute: "library".into(),
                    ..wire::Enforcements::default()
                }),
                cdi_id: format!(
                    "accelpool.dev/claim={}-{}-{name}{suffix}",
                    request.claim, asked.name
                ),
                ..wire::Allocation::default()
            });
        }
        let lease = wire::Lease {
            claim: request.claim.clone(),
            state: "prepared".into(),
            since_unix_ms: 1_700_000_000_000,
            allocations,
            labels: request.labels.clone(),
            bindings: request.bindings.clone(),
            ..wire::Lease::default()
        };
        self.leases.insert(request.claim.clone(), lease.clone());
        Ok(lease)
    }

    /// Whole excludes all, shares lie beside shares, a partition beside other partitions.
    fn check_free(&self, device: &str, wanted: &Portion) -> Result<(), Status> {
        for lease in self.leases.values() {
            for held in lease.allocations.iter().filter(|held| held.device == device) {
                let beside = match (wanted, held.portion.as_ref()) {
                    (Portion::Admin(_), _)
                    | (_, Some(Portion::Admin(_)))
                    | (Portion::Share(_), Some(Portion::Share(_))) => true,
                    (Portion::Partition(one), Some(Portion::Partition(two))) => {
                        one.name != two.name
                    }
                    _ => false,
                };
                if !beside {
                    let text = format!("device {device} is held by claim {}", lease.claim);
                    return Err(coded(Code::FailedPrecondition, "AP0103", text));
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn numa_node(id: u32, cpus: std::ops::Range<u32>) -> wire::NumaNode {
    let cpus = cpus.collect();
    wire::NumaNode { id, cpus, memory_bytes: 1 << 30, ..wire::NumaNode::default() }
}

fn coded(code: Code, page: &'static str, text: String) -> Status {
    let mut status = Status::new(code, text);
    status.metadata_mut().insert(wire::ERROR_CODE_KEY, MetadataValue::from_static(page));
    status
}
