//! What the containers of a claim can really do, compared with what it was granted.
//!
//! The kernel is asked, in two ways. What the gate says to a number follows from the rules in
//! its maps (`Rules::decide` is proven equal to the program). What all device programs together
//! say to a granted one, the container runtime's too, a short-lived child finds out: it joins
//! the container's cgroup and asks `access(2)`, which asks them as an open would and opens
//! nothing. It is not asked for what was not granted: that would count as a denial. What a
//! tenant can make wait for ever (its file systems, its memory) is read by the child alone,
//! which is killed when it takes too long.
//!
//! A tenant can change its own environment, and so pass for a container that does not use the
//! claim: this finds accidents and drift. What holds against tenants is the gate.

mod mounts;
mod probe;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use accelpool_gate::{Access, Decision, DeviceNumber};
use accelpool_model::{CgroupId, ClaimId, Injection, Lease};

use super::{Hierarchy, Keeper, cgroups::all_below, guarded::number_of, keeper::State};
use crate::{cdi, node::now_ms};

pub use self::probe::{Answer as NodeAnswer, serve as serve_probe};
use self::probe::{Foreign, GivenMount, Question, Report};

/// Cgroups that are looked at for one claim: 256 pods with a few containers each.
const CGROUPS_MAX: usize = 1024;

/// What was found about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// verified, drifted, unused or unknown
    pub state: &'static str,
    /// What differs, one sentence each.
    pub deviations: Vec<String>,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// What was found about a claim, and about each of its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimVerification {
    /// The claim.
    pub claim: ClaimId,
    /// The outcome.
    pub found: Verification,
    /// By path.
    pub cgroups: Vec<CgroupVerification>,
}

/// What the processes of one cgroup can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupVerification {
    /// Its path.
    pub cgroup: String,
    /// How many processes are in it.
    pub processes: usize,
    /// They were given the claim.
    pub uses: bool,
    /// By number: the node's path, whether it is granted there, and what the kernel says.
    pub nodes: BTreeMap<String, (String, bool, NodeAnswer)>,
}

/// What a container that was given a part of a claim must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    variable: String,
    value: String,
    mounts: Vec<GivenMount>,
    /// Paths in the container, and the numbers that they must lead to.
    nodes: Vec<(String, DeviceNumber)>,
}

fn mounts(given: &[accelpool_model::Mount], is_writable: bool) -> impl Iterator<Item = GivenMount> {
    given.iter().map(move |mount| GivenMount {
        host_path: mount.host_path.clone().into(),
        container_path: mount.container_path.clone().into(),
        is_writable,
    })
}

/// What the containers of `lease` are given.
pub(super) fn given(lease: &Lease, injections: &BTreeMap<String, Injection>) -> Vec<Given> {
    let of = |allocation: &accelpool_model::Allocation| {
        let injection = injections.get(allocation.target())?;
        let (variable, value) = cdi::grant_variable(&lease.claim.id, allocation);
        let number = |node: &accelpool_model::DeviceNode| {
            Some((node.container_path.clone(), number_of(Path::new(&node.host_path)).ok()?))
        };
        Some(Given {
            variable,
            value,
            mounts: mounts(&injection.mounts, false)
                .chain(mounts(&injection.folders, true))
                .collect(),
            nodes: injection.nodes.iter().filter_map(number).collect(),
        })
    };
    lease.allocations.iter().filter_map(of).collect()
}

impl Keeper {
    /// Compares the containers of `claim`, or of all armed claims, with what was granted, and
    /// remembers the outcome. Takes some milliseconds for each container that runs.
    pub async fn verify(&self, claim: Option<ClaimId>) -> Vec<ClaimVerification> {
        let keeper = self.clone();
        let cases = tokio::task::spawn_blocking(move || keeper.lock().cases(claim.as_ref()));
        let cases = cases.await.unwrap_or_default();
        let mut found = Vec::new();
        for case in cases {
            let verification = verify_case(case).await;
            let mut state = self.lock();
            if state.claims.contains_key(&verification.claim) {
                let (claim, found) = (verification.claim.clone(), verification.found.clone());
                state.verifications.insert(claim, found);
                self.publish(&state);
            }
            drop(state);
            found.push(verification);
        }
        found
    }

    /// Claims in whose cgroups other device programs run than when this was asked last: a
    /// container was started, or somebody (as systemd at `daemon-reload`) replaced its program.
    pub(super) fn changed_programs(&self) -> Vec<ClaimId> {
        let mut state = self.lock();
        let State { gate: Some(gate), claims, programs, .. } = &mut *state else {
            return Vec::new();
        };
        let mut changed = Vec::new();
        programs.retain(|claim, _| claims.contains_key(claim));
        for (claim, armed) in claims.iter() {
            let folders = armed.cgroups.values().flat_map(|folder| all_below(folder));
            let found: BTreeMap<CgroupId, Vec<u32>> = folders
                .take(CGROUPS_MAX)
                .filter_map(|(folder, id)| Some((id, gate.program_ids_of(&folder).ok()?)))
                .collect();
            if programs.get(claim) != Some(&found) {
                programs.insert(claim.clone(), found);
                changed.push(claim.clone());
            }
        }
        changed
    }
}

/// One claim to verify, taken out of the keeper's state.
struct Case {
    claim: ClaimId,
    given: Vec<Given>,
    /// Why nothing can be asked, if so.
    obstacle: Option<String>,
    /// Limits of the kernel that are not as granted.
    quotas: Vec<String>,
    cgroups: Vec<Place>,
}

struct Place {
    folder: PathBuf,
    path: String,
    processes: Vec<u32>,
    /// Every guarded number: its node, whether this claim grants it, what the gate decides.
    decisions: BTreeMap<DeviceNumber, (PathBuf, bool, Decision)>,
    foreign: BTreeMap<String, Foreign>,
}

impl State {
    fn cases(&self, claim: Option<&ClaimId>) -> Vec<Case> {
        let meant = |(id, _): &(&ClaimId, &super::keeper::Armed)| claim.is_none_or(|it| it == *id);
        self.claims.iter().filter(meant).map(|(claim, armed)| self.case(claim, armed)).collect()
    }

    fn case(&self, claim: &ClaimId, armed: &super::keeper::Armed) -> Case {
        let mut case = Case {
            claim: claim.clone(),
            given: armed.given.clone(),
            obstacle: None,
            quotas: Vec::new(),
            cgroups: Vec::new(),
        };
        let Some(gate) = &self.gate else {
            case.obstacle = Some(format!("there is no gate: {}", self.trouble));
            return case;
        };
        let rules = match gate.rules() {
            Ok(rules) => rules,
            Err(error) => {
                case.obstacle = Some(crate::error::Chain(&error).to_string());
                return case;
            }
        };
        let hierarchy = Hierarchy::of(&self.root);
        case.quotas = self.quotas(armed);
        let folders = armed.cgroups.values().flat_map(|folder| all_below(folder));
        for (folder, _) in folders.take(CGROUPS_MAX) {
            let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            let processes: Vec<u32> = processes
                .lines()
                .filter_map(|line| line.parse().ok())
                .filter(|id| *id > 0)
                .collect();
            let Ok(lineage) = gate.lineage(&folder) else { continue };
            if processes.is_empty() {
                continue;
            }
            let decide = |(number, node): (&DeviceNumber, &super::guarded::Node)| {
                let decision = rules.decide(&lineage, *number, Access::READ_WRITE);
                (*number, (node.path.clone(), armed.duty.nodes.contains_key(number), decision))
            };
            let decisions = self.guarded.nodes.iter().map(decide).collect();
            let path = hierarchy.path_of(&folder);
            let foreign = self.foreign(&folder);
            case.cgroups.push(Place { folder, path, processes, decisions, foreign });
        }
        case
    }

    /// The limits of device memory in a claim's cgroups that are not as granted, a sentence each.
    pub(super) fn quotas(&self, armed: &super::keeper::Armed) -> Vec<String> {
        let hierarchy = Hierarchy::of(&self.root);
        let unlimited = self.unlimited().into_iter();
        let own = unlimited.filter_map(|it| Some((armed.cgroups.get(&it.0)?, it.1, it.2)));
        let sentence = |(folder, region, found): (&PathBuf, String, String)| {
            let path = hierarchy.path_of(folder);
            format!(
                "`{path}`: memory of {region} is limited to {found}, which is not what its claims \
                 have"
            )
        };
        own.map(sentence).collect()
    }

    /// What the claims have that are bound neither to a cgroup nor to one above it. Files that
    /// a claim there has as well, such as the driver's, are nobody's own.
    fn foreign(&self, folder: &Path) -> BTreeMap<String, Foreign> {
        let bound: BTreeSet<&ClaimId> = self.claims_at(folder).collect();
        let shared: BTreeSet<_> =
            bound.iter().filter_map(|claim| self.claims.get(claim)).flat_map(paths).collect();
        let others = self.claims.iter().filter(|(claim, _)| !bound.contains(claim));
        let of = |(claim, armed): (&ClaimId, &super::keeper::Armed)| {
            let variables = armed.given.iter().map(|given| given.variable.clone()).collect();
            let host_paths = paths(armed).difference(&shared).copied().cloned().collect();
            (claim.to_string(), Foreign { variables, host_paths })
        };
        others.map(of).collect()
    }
}

/// The host's files that containers of a claim are given.
fn paths(armed: &super::keeper::Armed) -> BTreeSet<&PathBuf> {
    let mounts = armed.given.iter().flat_map(|given| &given.mounts);
    mounts.map(|mount| &mount.host_path).collect()
}

async fn verify_case(case: Case) -> ClaimVerification {
    let Case { claim, given, obstacle, quotas, cgroups } = case;
    let mut deviations: Vec<String> = obstacle.iter().cloned().chain(quotas).collect();
    let mut unknown = obstacle.is_some();
    let mut used = false;
    let mut verified = Vec::new();
    for mut place in cgroups {
        let question = place.question(&given);
        let report = probe::ask(&question).await;
        let report = report.unwrap_or_else(|reason| {
            unknown = true;
            deviations.push(format!("`{}` cannot be asked: {reason}", place.path));
            Report::default()
        });
        used |= report.uses;
        let of_use = report.deviations.iter().filter(|_| report.uses);
        let told = of_use.chain(&report.foreign);
        deviations.extend(told.map(|it| format!("`{}`: {it}", place.path)));
        verified.push(place.judge(&report, &mut deviations));
    }
    let state = match (unknown, deviations.is_empty(), used) {
        (true, ..) => "unknown",
        (false, false, _) => "drifted",
        (false, true, true) => "verified",
        (false, true, false) => "unused",
    };
    let found = Verification { state, deviations, unix_ms: now_ms() };
    ClaimVerification { claim, found, cgroups: verified }
}

impl Place {
    fn question(&mut self, given: &[Given]) -> Question {
        let granted = self.decisions.iter().filter(|(_, (_, granted, _))| *granted);
        Question {
            cgroup: self.folder.clone(),
            process: self.processes.iter().min().copied().unwrap_or(0),
            granted: granted.map(|(_, (path, ..))| path.clone()).collect(),
            variables: given.iter().map(|it| (it.variable.clone(), it.value.clone())).collect(),
            mounts: given.iter().map(|it| (it.variable.clone(), it.mounts.clone())).collect(),
            nodes: given
                .iter()
                .map(|it| {
                    let nodes =
                        it.nodes.iter().map(|(path, number)| (path.clone(), number.to_string()));
                    (it.variable.clone(), nodes.collect())
                })
                .collect(),
            foreign: std::mem::take(&mut self.foreign),
        }
    }

    fn judge(self, report: &Report, deviations: &mut Vec<String>) -> CgroupVerification {
        let mut nodes = BTreeMap::new();
        for (number, (path, granted, decision)) in &self.decisions {
            let shown = path.display().to_string();
            let answer = match decision {
                Decision::Denied => NodeAnswer::Refused,
                Decision::Audited => NodeAnswer::Audited,
                Decision::Untouched | Decision::Admitted if *granted => {
                    report.granted.get(path).copied().unwrap_or(NodeAnswer::Unknown)
                }
                Decision::Untouched | Decision::Admitted => NodeAnswer::Open,
            };
            if *granted && matches!(decision, Decision::Denied | Decision::Audited) {
                deviations
                    .push(format!("`{}`: the gate has no grant of {number} ({shown})", self.path));
            } else if *granted && report.uses && answer == NodeAnswer::Refused {
                deviations.push(format!(
                    "`{}`: {number} ({shown}) is refused by a device program beside the gate: \
                     the container must be started anew",
                    self.path
                ));
            }
            nodes.insert(number.to_string(), (shown, *granted, answer));
        }
        CgroupVerification {
            cgroup: self.path,
            processes: self.processes.len(),
            uses: report.uses,
            nodes,
        }
    }
}
