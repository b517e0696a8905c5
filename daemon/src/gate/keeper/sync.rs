//! The kernel compared with what is to be true, twice a second: put up, repaired, taken down.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use accelpool_gate::{Access, Defect, Gate, GateError};
use accelpool_model::{CgroupId, ClaimId};
use accelpool_planner::NodeView;
use tracing::{info, warn};

use super::{Keeper, State};
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
    /// Takes over what vendors list and pools say, then does as [`Keeper::tick`] does.
    #[must_use]
    pub fn observe(&self, observed: &node::State) -> bool {
        let view = NodeView {
            inventory: &observed.inventory,
            leases: &observed.leases,
            pools: &observed.pools,
        };
        let adapter_of =
            |device: &accelpool_model::Device| observed.adapter_of.get(&device.uuid).cloned();
        let guarded = guarded::guarded(view, &self.0.families, adapter_of);
        {
            let mut state = self.lock();
            state.complete |= observed.settled;
            state.watch_again(&guarded);
            state.guarded = guarded;
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
        if !self.0.wanted {
            return self.take_down(&mut state);
        }
        let had_gate = state.gate.is_some();
        let reason = state.trouble.clone();
        match self.put_up(&mut state) {
            Ok(()) => state.sync(&self.0.config.exempt),
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
        had_gate != state.gate.is_some() || reason != state.trouble
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
        self.watch(gate.denials().map_err(words)?);
        info!(root = %config.root.display(), "the device gate is up");
        state.gate = Some(gate);
        state.root = config.root;
        state.trouble = String::new();
        Ok(())
    }

    /// Every pool has the gate off: what an earlier configuration put up goes.
    fn take_down(&self, state: &mut State) -> bool {
        if state.ticks > 1 || !self.0.config.pins.is_dir() {
            return false;
        }
        let Some(root) = self.0.config.root.clone().or_else(Hierarchy::pod_root) else {
            return false;
        };
        let config = accelpool_gate::GateConfig { root, pins: self.0.config.pins.clone() };
        match Gate::open(&config).and_then(Gate::remove) {
            Ok(()) => info!("the device gate is off in every pool, and was taken down"),
            Err(error) => warn!(error = %Chain(&error), "a device gate could not be taken down"),
        }
        false
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

    fn sync(&mut self, exempt: &[String]) {
        self.resolve();
        if let Err(error) = self.try_sync(exempt) {
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

    fn resolve(&mut self) {
        let Self { claims, root, ticks, .. } = self;
        let mut found = Vec::new();
        for armed in claims.values_mut() {
            let patient = armed.since.elapsed() > IMPATIENT && !ticks.is_multiple_of(10);
            if !patient {
                let before: BTreeSet<CgroupId> = armed.cgroups.keys().copied().collect();
                armed.resolve(root);
                found.extend(armed.cgroups.keys().filter(|id| !before.contains(id)));
            }
        }
        self.limit(&found);
    }

    fn try_sync(&mut self, exempt: &[String]) -> Result<(), GateError> {
        let exempt = self.exemptions(exempt);
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
        if taken + foreign > 0 {
            warn!(taken, foreign, "somebody changed the grants of the device gate");
            repairs += 1;
        }
        self.repairs += repairs;
        self.synced |= self.complete;
        self.granted = wanted;
        self.told = Some(guards);
        self.exempt = exempt.into_iter().collect();
        Ok(())
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
