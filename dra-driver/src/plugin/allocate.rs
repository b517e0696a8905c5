//! Holds devices for extended resources in the daemon's ledger: one claim for each id.
//!
//! The claim's name follows from the id, so allocating twice gives the same answer: the
//! kubelet does so for an init container and its pod's containers, and when it hands the id
//! to the next pod before the last one's lease was given back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use accelpool_cluster::SURFACE_LABEL;
use accelpool_model::{ShareClass, Weight};
use accelpool_proto::{
    node::{Lease, PrepareClaimRequest, Request, Share, request::Wanted as WantedWire},
    trace::{Here, TraceContext},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::offer::{Offered, Wanted, claim_of};
use crate::{
    calls::{Call, CallTimes, Outcome},
    labels,
    node::{Node, NodeError, Trouble},
    otel::{self, Tracer},
    sequence::Sequences,
};

/// How long trouble is waited out. The kubelet admits no other pod meanwhile, so this is a
/// restart of the daemon, not more.
const BUDGET: Duration = Duration::from_secs(10);

/// The wait between tries.
const RETRY: Duration = Duration::from_millis(200);

/// Allocates ids, and gives them back. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Allocator {
    node: Node,
    calls: CallTimes,
    tracer: Tracer,
    sequences: Sequences,
    /// When each claim was last allocated by this process.
    allocated: Arc<Mutex<HashMap<String, Instant>>>,
}

/// Why ids could not be allocated.
#[derive(Debug, thiserror::Error)]
pub(super) enum AllocateError {
    #[error("device `{id}` of {resource} cannot be had")]
    Node { id: String, resource: String, source: NodeError },
    #[error("device `{id}` of {resource} cannot be had: the daemon has not answered in time")]
    Slow { id: String, resource: String },
    #[error("device `{id}` of {resource} was prepared without a CDI id")]
    NoCdiId { id: String, resource: String },
    #[error("the driver's own task died")]
    Task(#[source] tokio::task::JoinError),
}

impl AllocateError {
    /// Whether the node is to blame.
    fn outcome(&self) -> Outcome {
        match self {
            Self::Node { source, .. } => match source.trouble() {
                Trouble::Away | Trouble::Busy => Outcome::Failed,
                Trouble::Final => Outcome::Refused,
            },
            Self::Slow { .. } | Self::NoCdiId { .. } | Self::Task(_) => Outcome::Failed,
        }
    }
}

impl Allocator {
    /// An allocator that asks `node`.
    #[must_use]
    pub(super) fn new(node: Node, calls: CallTimes, tracer: Tracer) -> Self {
        let allocated = Arc::new(Mutex::new(HashMap::new()));
        Self { node, calls, tracer, sequences: Sequences::default(), allocated }
    }

    /// The daemon that is asked.
    #[must_use]
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Allocates devices of a resource for a call of the span `parent`, and returns their CDI ids in
    /// the same order. What was allocated before a failure is given back with the rest that no pod
    /// has.
    ///
    /// # Errors
    ///
    /// One of them cannot be had.
    pub(super) async fn allocate(
        &self,
        resource: &str,
        devices: Vec<Offered>,
        parent: Option<TraceContext>,
    ) -> Result<Vec<String>, AllocateError> {
        let started = std::time::Instant::now();
        let mut span = self.tracer.begin(parent, "Allocate");
        otel::name_trace(span.here());
        span.set("accelpool.resource", resource);
        let allocated = self.allocate_all(resource, devices, span.here()).await;
        let outcome = match &allocated {
            Ok(_) => Outcome::Done,
            Err(error) => error.outcome(),
        };
        self.calls.observe(Call::Allocate, outcome, started, span.here());
        span.end(&allocated);
        allocated
    }

    async fn allocate_all(
        &self,
        resource: &str,
        devices: Vec<Offered>,
        here: &Here,
    ) -> Result<Vec<String>, AllocateError> {
        let deadline = Instant::now() + BUDGET;
        let mut tasks = JoinSet::new();
        let mut cdi_ids = vec![String::new(); devices.len()];
        for (index, device) in devices.into_iter().enumerate() {
            let (allocator, resource, here) = (self.clone(), resource.to_owned(), here.clone());
            tasks.spawn(async move {
                (index, allocator.allocate_one(resource, device, deadline, here).await)
            });
        }
        while let Some(finished) = tasks.join_next().await {
            let (index, cdi_id) = finished.map_err(AllocateError::Task)?;
            cdi_ids[index] = cdi_id?;
        }
        Ok(cdi_ids)
    }

    async fn allocate_one(
        &self,
        resource: String,
        device: Offered,
        deadline: Instant,
        here: Here,
    ) -> Result<String, AllocateError> {
        let claim = claim_of(&device.id);
        let request = request_for(&claim, &resource, &device);
        let id = device.id;
        loop {
            let Ok(answer) =
                timeout_at(deadline, self.hold(&claim, request.clone(), here.clone())).await
            else {
                return Err(AllocateError::Slow { id, resource });
            };
            match answer? {
                Ok(lease) => {
                    let cdi_id = lease.allocations.into_iter().next().map(|first| first.cdi_id);
                    return cdi_id.ok_or(AllocateError::NoCdiId { id, resource });
                }
                Err(source) => match source.trouble() {
                    Trouble::Away if Instant::now() + RETRY < deadline => sleep(RETRY).await,
                    // Who holds it does not let go while the kubelet waits.
                    Trouble::Away | Trouble::Busy | Trouble::Final => {
                        return Err(AllocateError::Node { id, resource, source });
                    }
                },
            }
        }
    }

    /// Asks the daemon once; runs on by itself if the kubelet hangs up.
    async fn hold(
        &self,
        claim: &str,
        request: PrepareClaimRequest,
        here: Here,
    ) -> Result<Result<Lease, NodeError>, AllocateError> {
        let permit = self.sequences.prepare(claim).permit().await;
        self.note(claim);
        let node = self.node.clone();
        let call = async move {
            let lease = node.prepare(request, &here).await;
            drop(permit);
            lease
        };
        tokio::spawn(call).await.map_err(AllocateError::Task)
    }

    fn note(&self, claim: &str) {
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        allocated.insert(claim.to_owned(), Instant::now());
    }

    /// Gives a claim back, unless it was allocated after `since`.
    ///
    /// # Errors
    ///
    /// The daemon is away, or cannot release it.
    pub(super) async fn give_back(&self, claim: &str, since: Instant) -> Result<(), NodeError> {
        let _permit = self.sequences.unprepare(claim).permit().await;
        let fresh = {
            let allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
            allocated.get(claim).is_some_and(|at| *at > since)
        };
        if fresh {
            return Ok(());
        }
        self.node.release(claim, &Here::default()).await?;
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).remove(claim);
        Ok(())
    }
}

fn request_for(claim: &str, resource: &str, device: &Offered) -> PrepareClaimRequest {
    let (name, share) = match &device.wanted {
        Wanted::Device { name } | Wanted::Partition { name } => (name, None),
        Wanted::Share { device, memory, compute } => {
            let share = Share {
                memory_bytes: Some(memory.bytes()),
                compute_permille: Some(compute.permille().into()),
                weight: Weight::DEFAULT.value().into(),
                class: ShareClass::Normal.as_str().to_owned(),
            };
            (device, Some(share))
        }
    };
    let request = Request {
        name: "device".to_owned(),
        wanted: Some(WantedWire::Device(name.clone())),
        share,
        ..Request::default()
    };
    let labels = [
        (SURFACE_LABEL, labels::SURFACE_DEVICE_PLUGIN),
        (labels::RESOURCE, resource),
        (labels::DEVICE_ID, &device.id),
    ];
    PrepareClaimRequest {
        claim: claim.to_owned(),
        requests: vec![request],
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        held: false,
        // The kubelet does not say for which pod: its cgroup is bound when it is known.
        bindings: Vec::new(),
    }
}
