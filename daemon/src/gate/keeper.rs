//! What is to be true of the gate, and the kernel made to agree with it.
//!
//! Every method blocks: a few system calls each, and for those that look for cgroups a walk
//! through some hundred folders. Callers run them where waiting is allowed.

mod sync;
#[cfg(test)]
mod tests;

pub use self::sync::INTERVAL;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use accelpool_gate::{Access, DeviceNumber, Gate, GateError, Guards, Mode};
use accelpool_model::{Binding, CgroupId, ClaimId, GateMode, Lease, Pool, WorkloadId};
use tokio::sync::{broadcast, watch};

use super::{
    GateConfig, GateView, Hierarchy,
    cgroups::{find_workloads, id_of, is_named_for},
    denials::{self, Denial},
    dmem::{self, Limits, Shares},
    guarded::{Family, Guarded, number_of},
    holders,
    verify::{self, Given, Verification},
};
use crate::cdi::Injections;

/// Denials that a slow watcher may lag behind before it misses some.
const DENIALS_LAG: usize = 256;

/// Why the gate could not be armed or disarmed for a claim.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum GateStepError {
    #[error("failed to look at device node `{path}`")]
    Node { path: PathBuf, source: io::Error },
    #[error("the gate does not take it")]
    Gate { source: GateError },
}

/// The gate's keeper. All clones are one.
#[derive(Clone)]
pub struct Keeper(Arc<Shared>);

struct Shared {
    config: GateConfig,
    families: Vec<Family>,
    state: Mutex<State>,
    /// What leases are told with, for whoever must not wait for the state.
    view: watch::Sender<Arc<GateView>>,
    denials: broadcast::Sender<Denial>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) wish: Wish,
    pub(super) gate: Option<Gate>,
    /// True for as long as the gate's denials are to be read.
    read: Arc<AtomicBool>,
    /// The node's state that was taken over last.
    revision: u64,
    /// Cgroups that may open everything, by their paths.
    exempted: Vec<String>,
    /// Why there is no gate.
    pub(super) trouble: String,
    /// The root is not there yet.
    pub(super) waiting: bool,
    pub(super) root: PathBuf,
    pub(super) claims: BTreeMap<ClaimId, Armed>,
    pub(super) guarded: Guarded,
    looked: Option<sync::Looked>,
    /// Every vendor was heard and every lease armed: what is not known here is not true.
    complete: bool,
    /// The kernel agreed with everything once: a difference is somebody else's doing.
    synced: bool,
    /// What the kernel was told last.
    granted: BTreeSet<(CgroupId, DeviceNumber)>,
    told: Option<Guards>,
    pub(super) exempt: BTreeMap<CgroupId, String>,
    pub(super) repairs: u64,
    pub(super) defects: Vec<String>,
    pub(super) recent: VecDeque<Denial>,
    ticks: u64,
    pub(super) watch: holders::Watch,
    pub(super) verifications: BTreeMap<ClaimId, Verification>,
    /// The device programs of each armed cgroup when they were last looked at.
    pub(super) programs: BTreeMap<ClaimId, BTreeMap<CgroupId, Vec<u32>>>,
    /// When all cgroups were last looked through for the sake of a denial.
    pub(super) searched: Option<Instant>,
}

/// A claim, as the gate needs to know it.
pub(super) struct Armed {
    pub(super) duty: Arc<Duty>,
    /// The cgroups that were found for the bindings.
    pub(super) cgroups: BTreeMap<CgroupId, PathBuf>,
    /// What containers that use the claim are given.
    pub(super) given: Vec<Given>,
    pub(super) limits: Limits,
    /// Workloads that had a cgroup once.
    seen: BTreeSet<WorkloadId>,
    since: Instant,
}

/// What arming a claim follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Duty {
    bindings: Vec<Binding>,
    pub(super) nodes: BTreeMap<DeviceNumber, PathBuf>,
    /// Whether the gate was up: only then are the claim's limits known.
    under_gate: bool,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keeper").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// The device nodes that `injections` name, by their numbers as they are now.
fn nodes_of(injections: &Injections) -> Result<BTreeMap<DeviceNumber, PathBuf>, GateStepError> {
    let nodes = injections.values().flat_map(|injection| &injection.nodes);
    let numbered = nodes.map(|node| {
        let path = PathBuf::from(&node.host_path);
        match number_of(&path) {
            Ok(number) => Ok((number, path)),
            Err(source) => Err(GateStepError::Node { path, source }),
        }
    });
    numbered.collect()
}

/// Whether there is to be a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Wish {
    /// Some pool wants one.
    Up,
    /// No pool wants one.
    #[default]
    Down,
    /// No pool wants one, and none is up.
    Done,
}

impl Wish {
    fn of(pools: &[Pool]) -> Self {
        let wanted = pools.iter().any(|pool| pool.gate != GateMode::Off);
        if wanted { Self::Up } else { Self::Down }
    }

    /// What it becomes when `pools` are looked at again.
    fn again(self, pools: &[Pool]) -> Self {
        match (self, Self::of(pools)) {
            (Self::Done, Self::Down) => Self::Done,
            (_, next) => next,
        }
    }
}

impl Keeper {
    /// A keeper of the gate that `config` describes; [`Keeper::tick`] puts it up if a pool
    /// wants one, and takes it down if none does.
    #[must_use]
    pub fn new(config: GateConfig, families: Vec<Family>, pools: &[Pool]) -> Self {
        let denials = broadcast::Sender::new(DENIALS_LAG);
        let state =
            State { wish: Wish::of(pools), exempted: config.exempt.clone(), ..State::default() };
        let (state, view) = (Mutex::new(state), watch::Sender::default());
        Self(Arc::new(Shared { config, families, state, view, denials }))
    }

    /// A keeper that never has a gate: nothing is held.
    #[must_use]
    pub fn without_gate() -> Self {
        Self::new(GateConfig::default(), Vec::new(), &[])
    }

    /// Lets the cgroups of `lease` open its devices, which `injections` names. Adds what is
    /// new before it takes back what is not meant any more. Holds when it returns, for the
    /// cgroups that exist; those of a workload that has none yet are armed when they appear.
    /// `shares` limit the memory that the kernel lets them have, where it can.
    pub fn arm(
        &self,
        lease: &Lease,
        injections: &Injections,
        shares: &Shares,
    ) -> Result<(), GateStepError> {
        let nodes = nodes_of(injections)?;
        let mut state = self.lock();
        let armed = state.arm(lease, nodes, verify::given(lease, injections), shares);
        self.publish(&state);
        armed
    }

    /// Takes over what containers of an armed `lease` are given, once more is known of it: what
    /// verification looks for.
    pub fn give(&self, lease: &Lease, injections: &Injections) {
        if let Some(armed) = self.lock().claims.get_mut(&lease.claim.id) {
            armed.given = verify::given(lease, injections);
        }
    }

    /// Takes back what `claim` let its cgroups open, but for what other claims let them.
    pub fn disarm(&self, claim: &ClaimId) -> Result<(), GateStepError> {
        let mut state = self.lock();
        let disarmed = state.disarm(claim);
        self.publish(&state);
        drop(state);
        self.hurry();
        disarmed
    }

    /// True if [`Keeper::arm`] would change nothing.
    #[must_use]
    pub fn is_armed(&self, lease: &Lease, injections: &Injections) -> bool {
        let Ok(nodes) = nodes_of(injections) else { return false };
        let view = self.view();
        let duty = Duty { bindings: lease.bindings.clone(), nodes, under_gate: view.up };
        view.duties.get(&lease.claim.id).is_some_and(|armed| **armed == duty)
    }

    /// The claims that are armed, for whoever compares them with the leases.
    #[must_use]
    pub fn armed(&self) -> BTreeSet<ClaimId> {
        self.lock().claims.keys().cloned().collect()
    }

    /// Each denial from now on.
    #[must_use]
    pub fn denials(&self) -> broadcast::Receiver<Denial> {
        self.0.denials.subscribe()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics half-way through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gate as it was left last, as far as leases are told with it. Waits for nobody.
    #[must_use]
    pub fn view(&self) -> Arc<GateView> {
        self.0.view.borrow().clone()
    }

    /// Shows what `state` has become; called by whoever changed it.
    pub(super) fn publish(&self, state: &State) {
        let view = state.view();
        self.0.view.send_if_modified(|shown| {
            let news = **shown != view;
            if news {
                *shown = Arc::new(view);
            }
            news
        });
    }

    /// Reads denials until the gate or the keeper is gone, on a thread of its own.
    fn watch(&self, mut ring: accelpool_gate::Denials, read: Arc<AtomicBool>) {
        let shared = Arc::downgrade(&self.0);
        let reader = move || {
            let mut lines = denials::Lines::default();
            loop {
                let arrived = match ring.wait(denials::WAIT) {
                    Ok(arrived) => arrived,
                    Err(error) => return tracing::error!(%error, "denials cannot be read"),
                };
                let Some(shared) = shared.upgrade() else { return };
                if !read.load(Ordering::Relaxed) {
                    return;
                }
                Self(shared).note(arrived, &mut lines);
            }
        };
        let started = std::thread::Builder::new().name("gate-denials".into()).spawn(reader);
        if let Err(error) = started {
            tracing::error!(%error, "denials are counted and not reported");
        }
    }

    fn note(&self, arrived: Vec<accelpool_gate::Denial>, lines: &mut denials::Lines) {
        for denial in arrived {
            let denial = self.lock().describe(&denial);
            lines.write(&denial);
            let mut state = self.lock();
            if state.recent.len() == denials::RECENT_MAX {
                state.recent.pop_front();
            }
            state.recent.push_back(denial.clone());
            // Nobody needs to watch.
            let _ = self.0.denials.send(denial);
        }
    }
}

impl State {
    fn arm(
        &mut self,
        lease: &Lease,
        nodes: BTreeMap<DeviceNumber, PathBuf>,
        given: Vec<Given>,
        shares: &Shares,
    ) -> Result<(), GateStepError> {
        let before = self.claims.remove(&lease.claim.id);
        let cgroups = before.as_ref().map(|before| before.cgroups.clone()).unwrap_or_default();
        let former = before.as_ref().map(Armed::pairs).unwrap_or_default();
        let since = before.as_ref().map_or_else(Instant::now, |before| before.since);
        let seen = before.map(|before| before.seen).unwrap_or_default();
        let (limits, under_gate) = (Limits::new(), self.gate.is_some());
        let duty = Arc::new(Duty { bindings: lease.bindings.clone(), nodes, under_gate });
        let mut armed = Armed { duty, cgroups, given, limits, seen, since };
        if under_gate {
            armed.limits = dmem::limits(Hierarchy::of(&self.root).mount(), shares);
            armed.resolve(&self.root);
        }
        let wanted = armed.pairs();
        let cgroups: Vec<CgroupId> = armed.cgroups.keys().copied().collect();
        self.claims.insert(lease.claim.id.clone(), armed);
        self.limit(&cgroups);
        let Some(gate) = &self.gate else { return Ok(()) };
        for (cgroup, number) in &wanted {
            match gate.grant(*cgroup, *number, Access::READ_WRITE) {
                Ok(()) => {}
                // Where nothing is refused, a grant that is missing harms nobody.
                Err(error) if self.mode_of(*number) != Mode::Enforce => {
                    tracing::warn!(%error, cgroup = cgroup.0, "a grant was not written");
                }
                Err(source) => return Err(GateStepError::Gate { source }),
            }
        }
        self.revoke_unless_held(former.difference(&wanted))
    }

    fn disarm(&mut self, claim: &ClaimId) -> Result<(), GateStepError> {
        let Some(armed) = self.claims.remove(claim) else { return Ok(()) };
        self.verifications.remove(claim);
        for folder in armed.cgroups.values() {
            dmem::lift(folder, &armed.limits);
        }
        self.limit(&armed.cgroups.keys().copied().collect::<Vec<_>>());
        self.revoke_unless_held(&armed.pairs())
    }

    pub(super) fn mode_of(&self, number: DeviceNumber) -> Mode {
        self.guarded.guards.mode_of(number).unwrap_or(Mode::Off)
    }

    /// Takes back pairs of cgroup and device that no claim has.
    fn revoke_unless_held<'a>(
        &self,
        pairs: impl IntoIterator<Item = &'a (CgroupId, DeviceNumber)>,
    ) -> Result<(), GateStepError> {
        let Some(gate) = &self.gate else { return Ok(()) };
        for (cgroup, number) in pairs {
            if !self.claims.values().any(|armed| armed.holds(*cgroup, *number)) {
                let revoked = gate.revoke(*cgroup, *number);
                revoked.map_err(|source| GateStepError::Gate { source })?;
            }
        }
        Ok(())
    }

    /// Limits the device memory of cgroups to what all their claims have together.
    pub(super) fn limit(&self, cgroups: &[CgroupId]) {
        for (folder, limits) in cgroups.iter().filter_map(|cgroup| self.limits_of(*cgroup)) {
            if let Err(error) = dmem::set(folder, &limits) {
                tracing::warn!(%error, cgroup = %folder.display(), "device memory is not limited");
            }
        }
    }

    /// What a cgroup may use of devices' memory: what all its claims have together.
    fn limits_of(&self, cgroup: CgroupId) -> Option<(&Path, Limits)> {
        let mut all = Limits::new();
        let mut folder = None;
        for armed in self.claims.values() {
            let Some(found) = armed.cgroups.get(&cgroup) else { continue };
            folder = Some(found.as_path());
            for (region, bytes) in &armed.limits {
                *all.entry(region.clone()).or_default() += bytes;
            }
        }
        Some((folder?, all))
    }

    /// The cgroups that may use more of a device's memory than their claims have, with the
    /// region and what the kernel says.
    pub(super) fn unlimited(&self) -> Vec<(CgroupId, String, String)> {
        let limited = self.claims.values().filter(|armed| !armed.limits.is_empty());
        let cgroups: BTreeSet<CgroupId> =
            limited.flat_map(|armed| armed.cgroups.keys().copied()).collect();
        let over = |cgroup: CgroupId| {
            let (folder, limits) = self.limits_of(cgroup)?;
            let over = dmem::exceeded(folder, &limits).into_iter();
            Some(over.map(move |(region, found)| (cgroup, region, found)))
        };
        cgroups.into_iter().filter_map(over).flatten().collect()
    }

    /// The claims that a cgroup is bound to, itself or by an ancestor.
    pub(super) fn claims_at(&self, folder: &Path) -> impl Iterator<Item = &ClaimId> {
        let bound = |armed: &Armed| armed.cgroups.values().any(|own| folder.starts_with(own));
        self.claims.iter().filter(move |(_, armed)| bound(armed)).map(|(claim, _)| claim)
    }
}

impl Armed {
    fn holds(&self, cgroup: CgroupId, number: DeviceNumber) -> bool {
        self.cgroups.contains_key(&cgroup) && self.duty.nodes.contains_key(&number)
    }

    /// What is to be in the kernel for this claim.
    fn pairs(&self) -> BTreeSet<(CgroupId, DeviceNumber)> {
        let nodes = || self.duty.nodes.keys().copied();
        self.cgroups.keys().flat_map(|cgroup| nodes().map(|number| (*cgroup, number))).collect()
    }

    /// The workloads that have no cgroup here.
    fn unresolved(&self) -> Vec<WorkloadId> {
        let names = || self.cgroups.values().filter_map(|folder| folder.file_name()?.to_str());
        let has_none =
            |workload: &&WorkloadId| !names().any(|name| is_named_for(name, workload.as_str()));
        let workloads = self.duty.bindings.iter().filter_map(|binding| match binding {
            Binding::Workload(workload) => Some(workload),
            Binding::Cgroup { .. } => None,
        });
        workloads.filter(has_none).cloned().collect()
    }

    /// Finds the cgroups of the bindings, and forgets those that are gone.
    fn resolve(&mut self, root: &Path) {
        self.cgroups.retain(|id, folder| id_of(folder).is_ok_and(|found| found == *id));
        let hierarchy = Hierarchy::of(root);
        for binding in &self.duty.bindings {
            let Binding::Cgroup { path, id } = binding else { continue };
            match hierarchy.cgroup(path) {
                Ok((folder, found))
                    if id.is_none_or(|id| id == found) && folder.starts_with(root) =>
                {
                    self.cgroups.insert(found, folder);
                }
                Ok(_) | Err(_) => {}
            }
        }
        let missing = self.unresolved();
        if !missing.is_empty() {
            let found = find_workloads(root, &missing);
            self.seen.extend(found.iter().map(|(workload, ..)| (*workload).clone()));
            self.cgroups.extend(found.into_iter().map(|(_, folder, id)| (id, folder)));
        }
    }

    /// Forgets the bindings whose cgroup is gone for good, and returns them.
    fn take_gone(&mut self, root: &Path) -> Vec<Binding> {
        if self.unresolved().iter().any(|workload| self.seen.contains(workload)) {
            // A cgroup that was made anew meanwhile is not gone.
            self.resolve(root);
        }
        let gone = self.gone(root);
        if !gone.is_empty() {
            let mut duty = (*self.duty).clone();
            duty.bindings.retain(|binding| !gone.contains(binding));
            self.duty = Arc::new(duty);
        }
        gone
    }

    /// The bindings whose cgroup is gone for good: the number of one is never given again, and a
    /// workload's, once removed, is made anew by nobody but a kubelet that makes all anew.
    fn gone(&self, root: &Path) -> Vec<Binding> {
        let unresolved = self.unresolved();
        let hierarchy = Hierarchy::of(root);
        let gone = |binding: &&Binding| match binding {
            Binding::Workload(workload) => {
                self.seen.contains(workload) && unresolved.contains(workload)
            }
            Binding::Cgroup { id: None, .. } => false,
            Binding::Cgroup { path, id: Some(id) } => {
                !self.cgroups.contains_key(id)
                    && !hierarchy.cgroup(path).is_ok_and(|(_, found)| found == *id)
            }
        };
        self.duty.bindings.iter().filter(gone).cloned().collect()
    }
}
