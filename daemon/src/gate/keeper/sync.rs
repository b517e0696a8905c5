//! The kernel compared with what is to be true, twice a second: put up, repaired, taken down.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use accelpool_gate::{Access, Defect, Gate, GateError};
use accelpool_model::{Binding, CgroupId, ClaimId, Inventory, Pool};
use accelpool_planner::NodeView;
use tracing::{info, warn};

use super::{Keeper, State, Wish};
use crate::{
    error::Chain,
    gate::{Hierarchy, Verification, cgroups::id_of, guarded},
    node,
};

/// How often the kernel is compared with what is to be true. Drift is to be repaired within a
/// second.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// A workload that has had no cgroup for so long is looked for once in ten rounds.
const IMPATIENT: Duration = Duration::from_mins(1);

impl Keeper {
    /// Takes over what vendors list and pools say, then does as [`Keeper::tick`] does. A state
    /// older than one that was taken over is left alone.
    #[must_use]
    pub fn observe(&self, observed: &node::State) -> bool {
        let known = self.lock().looked.as_ref().is_some_and(|looked| looked.holds(observed));
        let guarded = (!known).then(|| {
            let view = NodeView {
                inventory: &observed.inventory,
                leases: &observed.leases,
                pools: &observed.pools,
            };
            let adapter_of =
                |device: &accelpool_model::Device| observed.adapter_of.get(&device.uuid).cloned();
            let looked = Looked::now(observed);
            (guarded::guarded(view, &self.0.families, adapter_of), looked)
        });
        {
            let mut state = self.lock();
            if observed.revision < state.revision {
                return false;
            }
            state.revision = observed.revision;
            state.wish = state.wish.again(&observed.pools);
            state.complete |= observed.settled;
            if let Some((guarded, looked)) = guarded {
                state.watch_again(&guarded);
                (state.guarded, state.looked) = (guarded, Some(looked));
            }
        }
        self.tick()
    }

    /// Looks at what is costly to look at: who has devices open, and whether containers
    /// run other device programs than when they were last verified. Verifies those that do;
    /// with the claims whose outcome is another than before.
    pub async fn look(&self) -> Vec<(ClaimId, Verification)> {
        let keeper = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            keeper.watch_holders();
            keeper.changed_programs()
        });
        let mut news = Vec::new();
        for claim in looked.await.unwrap_or_default() {
            let before = self.lock().verifications.get(&claim).cloned();
            for found in self.verify(Some(claim.clone())).await {
                let same = |old: &Verification| {
                    (old.state, &old.deviations) == (found.found.state, &found.found.deviations)
                };
                if !before.as_ref().is_some_and(same) {
                    news.push((claim.clone(), found.found));
                }
            }
        }
        news
    }

    /// Makes the kernel agree with what is to be true. True if the gate came or went.
    #[must_use]
    pub fn tick(&self) -> bool {
        let mut state = self.lock();
        state.ticks = state.ticks.wrapping_add(1);
        let had_gate = state.gate.is_some();
        let reason = state.trouble.clone();
        if state.wish != Wish::Up {
            self.take_down(&mut state);
            self.publish(&state);
            return had_gate || reason != state.trouble;
        }
        match self.put_up(&mut state) {
            // Who is to be let has to be known before anybody is refused.
            Ok(()) => state.sync(!had_gate),
            Err(trouble) => {
                if trouble != state.trouble {
                    if state.waiting {
                        info!(reason = trouble, "the device gate waits");
                    } else {
                        warn!(reason = trouble, "there is no device gate: devices are not guarded");
                    }
                    state.trouble = trouble;
                }
            }
        }
        self.publish(&state);
        had_gate != state.gate.is_some() || reason != state.trouble
    }

    /// Forgets the bindings whose cgroups are gone for good, and returns them, for who keeps
    /// them on record.
    #[must_use]
    pub fn take_gone(&self) -> Vec<(ClaimId, Vec<Binding>)> {
        let mut state = self.lock();
        let State { gate: Some(_), claims, root, .. } = &mut *state else { return Vec::new() };
        let taken = claims.iter_mut().filter_map(|(claim, armed)| {
            let gone = armed.take_gone(root);
            (!gone.is_empty()).then(|| (claim.clone(), gone))
        });
        let taken: Vec<_> = taken.collect();
        if !taken.is_empty() {
            self.publish(&state);
        }
        taken
    }

    /// Lets other cgroups open everything from the next look on.
    pub fn set_exempt(&self, paths: Vec<String>) {
        self.lock().exempted = paths;
    }

    fn put_up(&self, state: &mut State) -> Result<(), String> {
        if state.gate.is_some() {
            return Ok(());
        }
        let root = self.0.config.root.clone().or_else(Hierarchy::pod_root);
        let Some(root) = root.filter(|root| root.is_dir()) else {
            state.waiting = true;
            return Err(self.0.config.root.as_ref().map_or_else(
                || "the kubelet has made no cgroup for pods, and `gate.root` names none".to_owned(),
                |root| format!("there is no cgroup `{}` yet", root.display()),
            ));
        };
        state.waiting = false;
        let config = accelpool_gate::GateConfig { root, pins: self.0.config.pins.clone() };
        let words = |error: GateError| Chain(&error).to_string();
        // A daemon that was held by its own gate would lose its devices.
        if Hierarchy::of(&config.root).own().is_none() {
            return Err("the daemon cannot see its own cgroup, so it cannot exempt itself: \
                        run it in the host's cgroup namespace"
                .to_owned());
        }
        let gate = Gate::open(&config).map_err(words)?;
        state.read = Arc::new(true.into());
        self.watch(gate.denials().map_err(words)?, Arc::clone(&state.read));
        info!(root = %config.root.display(), "the device gate is up");
        state.gate = Some(gate);
        state.root = config.root;
        state.trouble = String::new();
        Ok(())
    }

    /// Every pool has the gate off: the one that stands goes, also one that an earlier daemon
    /// has left.
    fn take_down(&self, state: &mut State) {
        if state.wish == Wish::Done {
            return;
        }
        let gate = if let Some(gate) = state.gate.take() {
            Ok(gate)
        } else {
            let root = self.0.config.root.clone().or_else(Hierarchy::pod_root);
            let pins = self.0.config.pins.clone();
            let Some(root) = root.filter(|_| pins.is_dir()) else { return };
            Gate::open(&accelpool_gate::GateConfig { root, pins })
        };
        state.read.store(false, Ordering::Relaxed);
        // What the kernel was told went with the gate.
        (state.granted, state.told, state.synced) = (BTreeSet::new(), None, false);
        state.exempt.clear();
        state.defects.clear();
        state.programs.clear();
        state.verifications.clear();
        match gate.and_then(Gate::remove) {
            Ok(()) => {
                info!("the device gate is off in every pool, and was taken down");
                (state.wish, state.trouble) = (Wish::Done, String::new());
            }
            // Where no pin can be, no gate is.
            Err(GateError::NotBpffs(_)) => state.wish = Wish::Done,
            Err(error) => {
                let trouble = format!("a gate cannot be taken down: {}", Chain(&error));
                if trouble != state.trouble {
                    warn!(reason = trouble, "no pool wants a device gate");
                    state.trouble = trouble;
                }
            }
        }
    }
}

/// What the guarded numbers were made of. Claims come and go far oftener than that changes.
pub(super) struct Looked {
    inventory: Arc<Inventory>,
    pools: Arc<[Pool]>,
    at: Instant,
}

impl Looked {
    fn now(observed: &node::State) -> Self {
        let (inventory, pools) = (Arc::clone(&observed.inventory), Arc::clone(&observed.pools));
        Self { inventory, pools, at: Instant::now() }
    }

    /// True if looking again would find the same. Majors drift without anybody saying so.
    fn holds(&self, observed: &node::State) -> bool {
        Arc::ptr_eq(&self.inventory, &observed.inventory)
            && Arc::ptr_eq(&self.pools, &observed.pools)
            && self.at.elapsed() < INTERVAL
    }
}

impl State {
    /// Looks for holders soon if a device is to be left that was not before.
    fn watch_again(&mut self, guarded: &guarded::Guarded) {
        let tainted =
            |guarded: &guarded::Guarded| guarded.nodes.values().filter(|node| node.tainted).count();
        if tainted(guarded) > tainted(&self.guarded) {
            self.watch.hurry = true;
        }
    }

    fn sync(&mut self, all: bool) {
        self.resolve(all);
        if let Err(error) = self.try_sync() {
            let words = Chain(&error).to_string();
            if self.defects != [words.clone()] {
                warn!(error = words, "the device gate is not as it should be");
            }
            self.defects = vec![words];
        } else if !self.defects.is_empty() {
            info!("the device gate is as it should be again");
            self.defects.clear();
        }
    }

    /// Looks for the cgroups of claims: of those that have none, or of `all`.
    fn resolve(&mut self, all: bool) {
        let Self { claims, root, ticks, .. } = self;
        let mut found = Vec::new();
        for armed in claims.values_mut() {
            let patient = !all && armed.since.elapsed() > IMPATIENT && !ticks.is_multiple_of(10);
            if !patient {
                let before: BTreeSet<CgroupId> = armed.cgroups.keys().copied().collect();
                armed.resolve(root);
                found.extend(armed.cgroups.keys().filter(|id| !before.contains(id)));
            }
        }
        self.limit(&found);
    }

    fn try_sync(&mut self) -> Result<(), GateError> {
        let exempt = self.exemptions(&self.exempted);
        let wanted: BTreeSet<_> = self.claims.values().flat_map(super::Armed::pairs).collect();
        let Some(gate) = &mut self.gate else { return Ok(()) };
        let mut repairs = 0;
        let defects = gate.verify()?.defects;
        let mut others = false;
        for defect in &defects {
            match defect {
                Defect::Other(_) => others = true,
                Defect::Detached | Defect::OtherProgram | Defect::NotListed | Defect::Unpinned => {
                    warn!(?defect, "somebody changed the device gate");
                    repairs += 1;
                }
            }
        }
        if repairs > 0 {
            gate.repair()?;
        }
        let kernel = gate.rules()?;
        // Who is let first, who is refused last: nobody is refused in between.
        let there: BTreeSet<CgroupId> = kernel.exemptions().collect();
        for cgroup in exempt.iter().map(|(cgroup, _)| cgroup).filter(|it| !there.contains(it)) {
            gate.exempt(*cgroup)?;
        }
        let held: BTreeSet<_> = kernel
            .grants()
            .filter(|grant| grant.access.covers(Access::READ_WRITE))
            .map(|grant| (grant.cgroup, grant.device))
            .collect();
        for (cgroup, number) in wanted.difference(&held) {
            gate.grant(*cgroup, *number, Access::READ_WRITE)?;
        }
        let guards = if self.complete {
            self.guarded.guards.clone()
        } else {
            guarded::merge(&self.guarded.guards, kernel.guards())
        };
        if guards != *kernel.guards() {
            repairs += u64::from(self.synced && self.told.as_ref() == Some(&guards));
            gate.guard(&guards)?;
        }
        for cgroup in there.iter().filter(|it| !exempt.iter().any(|(id, _)| id == *it)) {
            gate.end_exemption(*cgroup)?;
        }
        if self.complete {
            let stale = kernel.grants().map(|grant| (grant.cgroup, grant.device));
            for (cgroup, number) in stale.filter(|pair| !wanted.contains(pair)) {
                gate.revoke(cgroup, number)?;
            }
        }
        if others {
            gate.remove_others()?;
        }
        // What was in the kernel and is meant to be there still, and is not: somebody took it.
        let taken = self.granted.intersection(&wanted).filter(|pair| !held.contains(pair)).count();
        let foreign = held.iter().filter(|it| !wanted.contains(it) && !self.granted.contains(it));
        let foreign = if self.synced { foreign.count() } else { 0 };
        let is_told = |cgroup: &CgroupId| {
            self.exempt.contains_key(cgroup) || exempt.iter().any(|(id, _)| id == cgroup)
        };
        let freed = if self.synced { there.iter().filter(|it| !is_told(it)).count() } else { 0 };
        if taken + foreign + freed > 0 {
            warn!(taken, foreign, freed, "somebody changed the grants of the device gate");
            repairs += 1;
        }
        self.repairs += repairs + self.mend_limits();
        self.synced |= self.complete;
        self.granted = wanted;
        self.told = Some(guards);
        self.exempt = exempt.into_iter().collect();
        Ok(())
    }

    /// Writes limits of device memory anew that somebody changed; 1 if there were any.
    pub(super) fn mend_limits(&self) -> u64 {
        let unlimited = self.unlimited();
        if unlimited.is_empty() {
            return 0;
        }
        warn!(?unlimited, "somebody changed the limits of device memory");
        self.limit(&unlimited.iter().map(|(cgroup, ..)| *cgroup).collect::<Vec<_>>());
        1
    }

    /// The cgroups that may open everything: the daemon's own with its workers, if the gate
    /// holds it, and those of the configuration that exist.
    fn exemptions(&self, configured: &[String]) -> Vec<(CgroupId, String)> {
        let hierarchy = Hierarchy::of(&self.root);
        let own = hierarchy.own().filter(|own| own.starts_with(&self.root) && *own != self.root);
        let own = own.and_then(|own| Some((id_of(&own).ok()?, hierarchy.path_of(&own))));
        let configured = configured.iter().filter_map(|path| {
            let (folder, id): (PathBuf, CgroupId) = hierarchy.cgroup(path).ok()?;
            folder.starts_with(&self.root).then(|| (id, path.clone()))
        });
        own.into_iter().chain(configured).collect()
    }
}
