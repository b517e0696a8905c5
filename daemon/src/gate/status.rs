//! What the daemon tells of the gate.

use std::{collections::BTreeMap, sync::Arc};

use accelpool_gate::{Counts, Gate};
use accelpool_model::{Binding, CgroupId, ClaimId, GateMode, Lease};

use super::{
    Hierarchy, Keeper, Verification,
    cgroups::is_named_for,
    denials::Denial,
    keeper::{Duty, State, Wish},
};
use crate::error::Chain;

/// The gate as of one moment, as far as leases are told with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateView {
    /// It stands.
    pub up: bool,
    root: String,
    cgroups: BTreeMap<ClaimId, BTreeMap<CgroupId, String>>,
    verifications: BTreeMap<ClaimId, Verification>,
    pub(super) duties: BTreeMap<ClaimId, Arc<Duty>>,
}

/// How it is with one binding: a word of the node API, and the cgroup's path if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingState {
    /// armed, waiting, gone, outside or ungated
    pub word: &'static str,
    /// The path of the cgroup.
    pub path: String,
}

impl GateView {
    /// What was found when the containers of `claim` were last looked at.
    #[must_use]
    pub fn verification(&self, claim: &ClaimId) -> Option<&Verification> {
        self.verifications.get(claim)
    }

    /// How it is with a binding of `lease`.
    #[must_use]
    pub fn binding(&self, lease: &Lease, binding: &Binding) -> BindingState {
        let armed = self.cgroups.get(&lease.claim.id);
        let mut armed = armed.into_iter().flatten();
        let (found, otherwise, path) = match binding {
            Binding::Workload(workload) => {
                let names = |path: &str| {
                    path.rsplit('/')
                        .next()
                        .is_some_and(|name| is_named_for(name, workload.as_str()))
                };
                (armed.find(|(_, path)| names(path)), "waiting", "")
            }
            Binding::Cgroup { path, id } => {
                let below = path.strip_prefix(self.root.as_str());
                let is_below = below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                let otherwise = match (is_below, id) {
                    (false, _) => "outside",
                    (true, None) => "waiting",
                    (true, Some(_)) => "gone",
                };
                let is_it =
                    |(found, at): &(&CgroupId, &String)| id.map_or(*at == path, |id| id == **found);
                (armed.find(is_it), otherwise, path.as_str())
            }
        };
        match (self.up, found) {
            (false, _) => BindingState { word: "ungated", path: path.to_owned() },
            (true, Some((_, path))) => BindingState { word: "armed", path: path.clone() },
            (true, None) => BindingState { word: otherwise, path: path.to_owned() },
        }
    }
}

/// Everything that is known of the gate.
#[derive(Debug, Clone)]
pub struct GateStatus {
    /// up, waiting, off or impossible
    pub state: &'static str,
    /// Why it is not up.
    pub reason: String,
    /// The cgroup that is held.
    pub root: String,
    /// Ranges of device numbers, how they are guarded, and who has them.
    pub guarded: Vec<(String, GateMode, Vec<String>)>,
    /// The paths of exempt cgroups.
    pub exempt: Vec<String>,
    /// Pairs of cgroup and device that are to be admitted.
    pub grants: usize,
    /// By device name and number.
    pub counts: Vec<(String, String, Counts)>,
    /// How often something was put right.
    pub repairs: u64,
    /// What could not be put right.
    pub defects: Vec<String>,
    /// The latest denials, oldest first.
    pub recent: Vec<Denial>,
    /// Processes that had a device open without a right when last looked for.
    pub stale_holders: usize,
    /// How many were killed for that.
    pub stale_holders_killed: u64,
    /// Claims whose containers differ from the ledger.
    pub drifted_claims: usize,
}

impl State {
    /// The gate as it is, as far as leases are told with it.
    pub(super) fn view(&self) -> GateView {
        let duties = self.claims.iter().map(|(id, it)| (id.clone(), Arc::clone(&it.duty)));
        let duties = duties.collect();
        if self.gate.is_none() {
            return GateView { duties, ..GateView::default() };
        }
        let hierarchy = Hierarchy::of(&self.root);
        let paths = self.claims.iter().map(|(claim, armed)| {
            let paths = armed.cgroups.iter().map(|(id, it)| (*id, hierarchy.path_of(it)));
            (claim.clone(), paths.collect())
        });
        GateView {
            up: true,
            root: hierarchy.path_of(&self.root),
            cgroups: paths.collect(),
            verifications: self.verifications.clone(),
            duties,
        }
    }
}

impl Keeper {
    /// Everything that is known of the gate.
    #[must_use]
    pub fn status(&self) -> GateStatus {
        let state = self.lock();
        let mut defects = state.defects.clone();
        let counts = state.gate.as_ref().map_or_else(|| Ok(Vec::new()), Gate::counts);
        let counts = counts.unwrap_or_else(|error| {
            defects.push(Chain(&error).to_string());
            Vec::new()
        });
        let counts = counts.into_iter().filter(|(_, it)| it.audited + it.denied > 0).map(
            |(number, counts)| {
                let node = number.and_then(|number| state.guarded.nodes.get(&number));
                let device = node.filter(|node| node.devices.len() == 1);
                let device =
                    device.and_then(|node| node.devices.first().cloned()).unwrap_or_default();
                let number = number.map_or_else(|| "other".to_owned(), |number| number.to_string());
                (device, number, counts)
            },
        );
        let guarded = state.guarded.guards.iter().map(|guard| {
            let range = guard.devices;
            let inside = state.guarded.nodes.iter().filter(|(number, _)| range.contains(**number));
            let users: std::collections::BTreeSet<String> =
                inside.flat_map(|(_, node)| node.users.iter().cloned()).collect();
            (range.to_string(), guard.mode, users.into_iter().collect())
        });
        let wanted = state.wish == Wish::Up;
        let word = match (wanted, state.gate.is_some(), state.waiting) {
            (false, _, _) => "off",
            (true, true, _) => "up",
            (true, false, true) => "waiting",
            (true, false, false) => "impossible",
        };
        GateStatus {
            state: word,
            reason: state.trouble.clone(),
            root: if state.gate.is_some() {
                state.root.display().to_string()
            } else {
                String::new()
            },
            guarded: if wanted { guarded.collect() } else { Vec::new() },
            exempt: state.exempt.values().cloned().collect(),
            grants: state
                .claims
                .values()
                .map(|armed| armed.cgroups.len() * armed.duty.nodes.len())
                .sum(),
            counts: counts.collect(),
            repairs: state.repairs,
            defects,
            recent: state.recent.iter().cloned().collect(),
            stale_holders: state.watch.stale,
            stale_holders_killed: state.watch.killed,
            drifted_claims: state.verifications.values().filter(|it| it.state == "drifted").count(),
        }
    }
}
