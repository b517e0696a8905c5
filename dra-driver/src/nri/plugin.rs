//! What the plugin answers to the runtime, and how long it takes for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use accelpool_nri::{About, Events, Plugin, Status};
use accelpool_proto::{
    kubelet::v1::ListPodResourcesResponse,
    node::{Lease, NumaNode, allocation::Portion, binding::Subject},
    nri::{
        ConfigureRequest, Container as NriContainer, ContainerAdjustment, Event,
        LinuxContainerAdjustment, LinuxCpu, LinuxResources, PodSandbox, SynchronizeRequest,
    },
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    NriStatus,
    counters::NriCounters,
    grants::{self, Held},
    near,
    pods::{Container, Pod, Pods},
    reports::Reports,
    visible,
};
use crate::{
    node::{Node, NodeError, Observed, Snapshot, Trouble},
    pod_resources::PodResources,
};

/// NRI's own default, for runtimes that do not say how long they wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A lease is known a moment after it was made. Whoever writes a grant's variable himself must
/// not hold up the node for longer.
const ODD_PATIENCE: Duration = Duration::from_millis(100);

/// What this plugin hears of. Each event is a moment in which the runtime makes nothing else.
const EVENTS: [Event; 5] = [
    Event::RunPodSandbox,
    Event::RemovePodSandbox,
    Event::CreateContainer,
    Event::StartContainer,
    Event::RemoveContainer,
];

/// What lives longer than a connection.
pub(super) struct Shared {
    pub(super) node: Node,
    pub(super) observed: watch::Receiver<Observed>,
    pub(super) pod_resources: PodResources,
    pub(super) numa_nodes: NumaNodes,
    pub(super) exempt_namespaces: BTreeSet<String>,
    pub(super) reports: Reports,
    pub(super) counters: Arc<NriCounters>,
    pub(super) status: watch::Sender<NriStatus>,
}

impl Shared {
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.observed.borrow().snapshot.clone()
    }
}

/// The host's NUMA nodes, asked of the daemon when they are first needed. They do not change
/// while a machine is up.
pub(super) struct NumaNodes {
    node: Node,
    known: Mutex<Option<Arc<[NumaNode]>>>,
}

impl NumaNodes {
    pub(super) fn new(node: Node) -> Self {
        Self { node, known: Mutex::new(None) }
    }

    pub(super) async fn get(&self) -> Result<Arc<[NumaNode]>, NodeError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nodes) = known().clone() {
            return Ok(nodes);
        }
        let nodes: Arc<[NumaNode]> = self.node.numa_nodes().await?.into();
        *known() = Some(Arc::clone(&nodes));
        Ok(nodes)
    }
}

/// One connection's side of the plugin. Cheap to clone.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pods: Arc<Mutex<Pods>>,
    /// Something is left to be done, or may be.
    pub(super) wake: Arc<Notify>,
    /// The runtime and its version, and how long it waits, once it has said so.
    runtime: Arc<Mutex<(String, Duration)>>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pods: Arc::default(),
            wake: Arc::default(),
            runtime: Arc::new(Mutex::new((String::new(), REQUEST_TIMEOUT))),
        }
    }

    pub(super) fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> MutexGuard<'_, (String, Duration)> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When an answer goes out, whatever is done by then: halfway to when the runtime would cut
    /// the plugin off.
    fn deadline(&self, patience: Option<Duration>) -> Instant {
        let configured = self.runtime().1;
        Instant::now() + patience.map_or(configured, |patience| patience.min(configured)) / 2
    }

    fn insert(&self, id: &str, container: Container) {
        if !self.pods().insert(id, container) {
            self.shared.counters.overflows.add_one();
        }
    }

    fn insert_pod(&self, sandbox: PodSandbox) {
        if !self.pods().insert_pod(sandbox) {
            self.shared.counters.overflows.add_one();
        }
    }

    /// Takes away what asks for devices, and tells of it where there is no grant.
    fn strip(
        &self,
        snapshot: Option<&Snapshot>,
        container: &NriContainer,
        entry: &Container,
        adjust: &mut ContainerAdjustment,
    ) {
        let Shared { counters, exempt_namespaces, reports, .. } = &*self.shared;
        if exempt_namespaces.contains(&entry.pod.namespace) {
            return;
        }
        let Some(snapshot) = snapshot else {
            // Whose business these devices are was never said.
            if visible::asks(&container.env) {
                counters.attempts_undecided.add_one();
            }
            return;
        };
        let vendors = snapshot.state.devices.iter().map(|device| device.vendor.clone()).collect();
        let attempts = visible::attempts(&container.env, &vendors);
        if attempts.is_empty() {
            return;
        }
        adjust.env.extend(attempts.iter().flat_map(visible::Attempt::undo));
        if entry.marks.is_empty() {
            counters.attempts.add_one();
            reports.attempt(&entry.pod, &entry.name, &attempts);
        } else {
            counters.attempts_granted.add_one();
        }
    }

    /// What a container holds, as far as it can be known by `deadline`. False if there is more
    /// to find out.
    async fn held(&self, entry: &mut Container, deadline: Instant) -> (BTreeSet<Held>, bool) {
        let mut observed = self.shared.observed.clone();
        let odd_deadline = deadline.min(Instant::now() + ODD_PATIENCE);
        loop {
            let snapshot = observed.borrow_and_update().snapshot.clone();
            let leases = snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.leases);
            let grants = grants::grants(&entry.marks, &entry.pod.uid, leases);
            let wait_until = match (grants.is_early, grants.is_odd) {
                (true, _) => Some(deadline),
                (false, true) => Some(odd_deadline),
                (false, false) => None,
            };
            if let Some(until) = wait_until
                && matches!(timeout_at(until, observed.changed()).await, Ok(Ok(())))
            {
                continue;
            }
            let mut confirmed = Some(BTreeSet::new());
            if !grants.doubtful.is_empty() {
                let patience = deadline.saturating_duration_since(Instant::now());
                confirmed = match self.shared.pod_resources.list(patience).await {
                    Ok(pods) => self.confirm(entry, &grants.doubtful, leases, &pods),
                    Err(_) => None,
                };
            }
            let complete = !grants.is_early && confirmed.is_some();
            let held = grants.held.into_iter().chain(confirmed.unwrap_or_default()).collect();
            return (held, complete);
        }
    }

    /// What the kubelet says of what only it knows; none if it says nothing yet. What it said
    /// once holds: a container keeps what it was made with.
    pub(super) fn confirm(
        &self,
        entry: &mut Container,
        doubtful: &BTreeSet<Held>,
        leases: &[Lease],
        pods: &ListPodResourcesResponse,
    ) -> Option<BTreeSet<Held>> {
        if !doubtful.is_subset(&entry.asked) {
            let pod = (entry.pod.namespace.as_str(), entry.pod.name.as_str());
            entry.confirmed = grants::confirmed(doubtful, leases, pods, pod)?;
            entry.asked.clone_from(doubtful);
            if entry.confirmed.len() < doubtful.len() {
                self.shared.counters.forgeries.add_one();
                self.shared.reports.forgery(&entry.pod, &entry.name);
            }
        }
        Some(entry.confirmed.clone())
    }

    /// The CPUs for a container with these devices, if it is to be put somewhere.
    pub(super) async fn cpuset(
        &self,
        entry: &Container,
        held: &BTreeSet<Held>,
        snapshot: &Snapshot,
    ) -> Result<Option<LinuxCpu>, NodeError> {
        if !entry.is_free {
            return Ok(None);
        }
        let wants = |held: &Held| {
            let mut devices = snapshot.state.devices.iter();
            let device = devices.find(|device| device.name.as_str() == held.device)?;
            let aligned = device.offer.as_ref().is_some_and(|offer| offer.align_cpus);
            aligned.then_some(device.numa_node)?
        };
        let at: BTreeSet<u32> = held.iter().filter_map(wants).collect();
        if at.is_empty() {
            return Ok(None);
        }
        Ok(near::cpuset(&at, &self.shared.numa_nodes.get().await?))
    }

    /// Puts a new container's resources into `adjust`. False if something is left to be done.
    async fn grant(
        &self,
        entry: &mut Container,
        deadline: Instant,
        adjust: &mut ContainerAdjustment,
    ) -> bool {
        let (held, complete) = self.held(entry, deadline).await;
        let Some(snapshot) = self.shared.snapshot().filter(|_| !held.is_empty()) else {
            return complete;
        };
        let (cpu, bound) = tokio::join!(
            timeout_at(deadline, self.cpuset(entry, &held, &snapshot)),
            timeout_at(deadline, self.bind(&entry.pod, &held, &snapshot)),
        );
        let aligned = matches!(cpu, Ok(Ok(_)));
        let mut resources = LinuxResources::default();
        if let Ok(Ok(Some(cpu))) = cpu {
            self.shared.counters.alignments.add_one();
            entry.is_free = false;
            resources.cpu = Some(cpu);
        }
        let Bound { settled, unified } = bound.unwrap_or_default();
        entry.unified.clone_from(&unified);
        resources.unified = unified.into_iter().collect();
        if resources != LinuxResources::default() {
            adjust.linux = Some(LinuxContainerAdjustment { resources: Some(resources) });
        }
        complete && aligned && settled
    }
}

impl Session {
    /// Binds what a container holds to its pod's cgroup, where the daemon does not have it bound
    /// already: it binds a claim to the pods that it was prepared for, so this is for pods that
    /// share a claim later, for extended resources, and for shares, of which it says which files
    /// of the container's cgroup limit them (`dmem.max`).
    pub(super) async fn bind(
        &self,
        pod: &Pod,
        held: &BTreeSet<Held>,
        snapshot: &Snapshot,
    ) -> Bound {
        let subject = match &pod.cgroup {
            Some(cgroup) => Subject::Cgroup(cgroup.clone()),
            None => Subject::Workload(pod.uid.clone()),
        };
        let counters = &self.shared.counters;
        let claims: BTreeSet<&str> = held.iter().map(|held| held.claim.as_str()).collect();
        let mut bound = Bound { settled: true, ..Bound::default() };
        for claim in claims {
            let lease = snapshot.leases.iter().find(|lease| lease.claim == claim);
            let Some(lease) = lease else { continue };
            let known = bound_as(lease, pod);
            if known.is_some() && !has_share(lease) {
                continue;
            }
            let asked = known.clone().unwrap_or_else(|| subject.clone());
            match self.shared.node.bind(claim, asked).await {
                Ok(unified) => {
                    if known.is_none() {
                        counters.bindings.add_one();
                    }
                    for (file, text) in unified {
                        // A file of several claims has the lines of each.
                        let lines: &mut String = bound.unified.entry(file).or_default();
                        if !lines.is_empty() {
                            lines.push('\n');
                        }
                        lines.push_str(&text);
                    }
                }
                Err(error) => {
                    counters.binding_failures.add_one();
                    bound.settled &= matches!(error.trouble(), Trouble::Final);
                    tracing::debug!(claim, %error, "not bound to the pod's cgroup");
                }
            }
        }
        bound
    }

    /// The last moment before a container's first process: what was not done when it was made is
    /// tried once more.
    async fn start(&self, id: &str, patience: Option<Duration>) {
        let entry = {
            let mut pods = self.pods();
            let Some(kept) = pods.get_mut(id) else { return };
            kept.exists = true;
            kept.clone()
        };
        self.wake.notify_one();
        if entry.is_settled {
            return;
        }
        let (mut entry, deadline) = (entry, self.deadline(patience));
        let (held, complete) = self.held(&mut entry, deadline).await;
        let Some(snapshot) = self.shared.snapshot() else { return };
        let bound = timeout_at(deadline, self.bind(&entry.pod, &held, &snapshot)).await;
        if !complete || !bound.unwrap_or_default().settled {
            self.shared.counters.late.add_one();
        }
    }
}

/// What became of binding.
#[derive(Debug, Default)]
pub(super) struct Bound {
    /// Nothing is left to be tried again.
    settled: bool,
    /// What the runtime is to write into files of the container's cgroup.
    pub(super) unified: BTreeMap<String, String>,
}

impl Bound {
    /// True if nothing is left to be tried again.
    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }
}

/// True if `lease` has a part of a device that software separates.
fn has_share(lease: &Lease) -> bool {
    lease.allocations.iter().any(|held| matches!(held.portion, Some(Portion::Share(_))))
}

/// As what the daemon lets the pod's processes use what `lease` holds, or will once they are.
fn bound_as(lease: &Lease, pod: &Pod) -> Option<Subject> {
    let own = lease.bindings.iter().find(|binding| {
        let own = match &binding.subject {
            Some(Subject::Workload(uid)) => *uid == pod.uid,
            Some(Subject::Cgroup(path)) => pod.cgroup.as_ref() == Some(path),
            Some(Subject::Process(_)) | None => false,
        };
        own && binding.state != "gone"
    });
    own.and_then(|binding| binding.subject.clone())
}

impl Plugin for Session {
    async fn configure(&self, request: ConfigureRequest) -> Result<Events, Status> {
        let ConfigureRequest { runtime_name, runtime_version, request_timeout, .. } = request;
        let patience = u64::try_from(request_timeout).ok().filter(|millis| *millis > 0);
        let patience = patience.map_or(REQUEST_TIMEOUT, Duration::from_millis);
        let cut = |text: String| text.chars().take(64).collect::<String>();
        *self.runtime() = (format!("{} {}", cut(runtime_name), cut(runtime_version)), patience);
        Ok(Events::of(&EVENTS))
    }

    async fn synchronize(
        &self,
        request: SynchronizeRequest,
        _patience: Option<Duration>,
    ) -> Result<(), Status> {
        for pod in request.pods {
            self.insert_pod(pod);
        }
        for container in &request.containers {
            let entry = self.pods().existing(container);
            if let Some(entry) = entry {
                self.insert(&container.id, entry);
            }
        }
        if !request.more {
            let runtime = self.runtime().0.clone();
            self.shared.counters.registrations.add_one();
            tracing::info!(runtime, "registered with the container runtime");
            self.shared.status.send_replace(NriStatus::Connected { runtime });
            self.wake.notify_one();
        }
        Ok(())
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: NriContainer,
        patience: Option<Duration>,
    ) -> Result<ContainerAdjustment, Status> {
        let deadline = self.deadline(patience);
        let mut adjust = ContainerAdjustment::default();
        let mut entry = Container::of(&pod, &container);
        self.shared.counters.containers.add_one();
        self.strip(self.shared.snapshot().as_deref(), &container, &entry, &mut adjust);
        if !entry.marks.is_empty() {
            entry.is_settled = self.grant(&mut entry, deadline, &mut adjust).await;
            let done = entry.is_settled;
            self.insert(&container.id, entry);
            if !done {
                self.shared.counters.late.add_one();
                self.wake.notify_one();
            }
        }
        Ok(adjust)
    }

    async fn event(&self, event: Event, about: About, patience: Option<Duration>) {
        let About { pod, container } = about;
        match (event, container) {
            (Event::RunPodSandbox, _) => {
                self.insert_pod(pod);
            }
            (Event::RemovePodSandbox, _) => self.pods().remove_pod(&pod.id),
            (Event::StartContainer, Some(container)) => {
                self.start(&container.id, patience).await;
            }
            (Event::RemoveContainer, Some(container)) => self.pods().remove(&container.id),
            // Not asked for; a runtime may tell all the same.
            (
                Event::Unknown
                | Event::StopPodSandbox
                | Event::CreateContainer
                | Event::PostCreateContainer
                | Event::StartContainer
                | Event::PostStartContainer
                | Event::UpdateContainer
                | Event::PostUpdateContainer
                | Event::StopContainer
                | Event::RemoveContainer
                | Event::UpdatePodSandbox
                | Event::PostUpdatePodSandbox
                | Event::ValidateContainerAdjustment,
                _,
            ) => {}
        }
    }
}
