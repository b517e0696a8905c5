//! Who holds what of a device, and whose a process is: by its registration with the arbiter, its
//! pod or its cgroup, in that order.

use std::collections::BTreeMap;

use accelpool_arbiter::Report;
use accelpool_model::{
    Allocation, Binding, ClaimId, Device, DeviceUuid, Inventory, Lease, Portion,
};
use accelpool_planner::{Holding, Owner, Part};

use super::{AGENT_LABEL, Agent, POD_UID_LABEL, cgroup::is_within, meter::Held, process::Place};

/// What leases hold of a device.
pub(super) fn held(
    leases: &BTreeMap<ClaimId, Lease>,
    device: &Device,
    inventory: &Inventory,
) -> Vec<Held> {
    let mut held = Vec::new();
    for lease in leases.values() {
        let known = pods(lease).next().is_some() || !lease.bindings.is_empty();
        for (index, allocation) in lease.allocations.iter().enumerate() {
            let Some(part) = part(allocation, device, inventory) else { continue };
            // Who takes turns has registered its processes.
            let bound = known || allocation.takes_turns();
            held.push(Held {
                holding: Holding { claim: lease.claim.id.clone(), part, bound },
                index,
                agent: Agent::of(&lease.claim),
            });
        }
    }
    held
}

fn part(allocation: &Allocation, device: &Device, inventory: &Inventory) -> Option<Part> {
    if allocation.uuid != device.uuid {
        return None;
    }
    match &allocation.portion {
        Portion::Whole => Some(Part::Whole),
        Portion::Share { .. } => Some(Part::Share),
        Portion::Partition { profile, start, .. } => {
            let partition = inventory.partition_at(&device.uuid, profile, *start);
            Some(Part::Partition(partition.map(|partition| partition.uuid.clone())))
        }
        // Who only looks uses nothing.
        Portion::Admin { .. } => None,
    }
}

/// The pods whose processes are a lease's, by UID.
fn pods(lease: &Lease) -> impl Iterator<Item = &str> {
    let bound = lease.bindings.iter().filter_map(|binding| match binding {
        Binding::Workload(workload) => Some(workload.as_str()),
        Binding::Cgroup { .. } => None,
    });
    lease.claim.labels.get(POD_UID_LABEL).map(String::as_str).into_iter().chain(bound)
}

/// Whose processes are whose.
pub(super) struct Tenants<'a> {
    leases: &'a BTreeMap<ClaimId, Lease>,
    by_pid: BTreeMap<u32, &'a ClaimId>,
    by_pod: BTreeMap<&'a str, Vec<ClaimId>>,
    by_cgroup: Vec<(&'a str, &'a ClaimId)>,
}

impl<'a> Tenants<'a> {
    /// Those of `leases`, with the processes that took turns on `device`.
    pub(super) fn of(
        leases: &'a BTreeMap<ClaimId, Lease>,
        report: &'a Report,
        device: &DeviceUuid,
    ) -> Self {
        let mut tenants = Self {
            leases,
            by_pid: BTreeMap::new(),
            by_pod: BTreeMap::new(),
            by_cgroup: Vec::new(),
        };
        for claim in report.claims.iter().filter(|claim| claim.device == *device) {
            let pids = claim.processes.iter().filter_map(|pid| u32::try_from(*pid).ok());
            tenants.by_pid.extend(pids.map(|pid| (pid, &claim.claim)));
        }
        for lease in leases.values() {
            for pod in pods(lease) {
                let claims = tenants.by_pod.entry(pod).or_default();
                if claims.last() != Some(&lease.claim.id) {
                    claims.push(lease.claim.id.clone());
                }
            }
            let cgroups = lease.bindings.iter().filter_map(|binding| match binding {
                Binding::Cgroup { path, .. } => Some((path.as_str(), &lease.claim.id)),
                Binding::Workload(_) => None,
            });
            tenants.by_cgroup.extend(cgroups);
        }
        tenants
    }

    /// Whether a process takes turns on the device: then the arbiter says how long it had it.
    pub(super) fn takes_turns(&self, pid: u32) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// A claim of that pod.
    pub(super) fn first_of(&self, pod: &str) -> Option<ClaimId> {
        self.by_pod.get(pod)?.first().cloned()
    }

    /// Whose process `pid` at `place` is.
    pub(super) fn owner(&self, pid: u32, place: Option<&Place>) -> Owner {
        if let Some(claim) = self.by_pid.get(&pid) {
            return Owner::Claims(vec![(*claim).clone()]);
        }
        let Some(place) = place else { return Owner::Ended };
        let of_pod = place.pod.as_deref().and_then(|pod| self.by_pod.get(pod));
        if let Some(claims) = of_pod {
            return Owner::Claims(claims.clone());
        }
        let within = |path: &str| place.cgroups.iter().any(|own| is_within(own, path));
        let claims: Vec<ClaimId> = self
            .by_cgroup
            .iter()
            .filter(|(path, _)| within(path))
            .map(|(_, claim)| (*claim).clone())
            .collect();
        match (claims.is_empty(), &place.pod) {
            (false, _) => Owner::Claims(claims),
            (true, Some(_)) => Owner::Stranger,
            (true, None) => Owner::Unknown,
        }
    }

    /// The agent of a process at `place`, where its claim is used by several pods and does not
    /// say who is billed: the pod, which has no name here but its UID.
    pub(super) fn agent(&self, owner: &Owner, place: Option<&Place>) -> Option<Agent> {
        let Owner::Claims(claims) = owner else { return None };
        let claim = &self.leases.get(claims.first()?)?.claim;
        let pod = place?.pod.as_deref()?;
        let is_first = claim.labels.get(POD_UID_LABEL).is_none_or(|first| first == pod);
        if is_first || claim.labels.contains_key(AGENT_LABEL) {
            return None;
        }
        Some(Agent { name: pod.to_owned(), namespace: Agent::of(claim).namespace })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use accelpool_arbiter::ClaimTurns;
    use accelpool_model::{BootId, CgroupId, Claim, LeaseState, MemoryBytes, ShareClass};

    use super::*;

    fn lease(name: &str, label: &str, bindings: Vec<Binding>) -> Lease {
        let labels = [(POD_UID_LABEL.to_owned(), label.to_owned())];
        let labels = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Lease {
            claim: Claim { id: name.parse().unwrap(), requests: Vec::new(), labels },
            allocations: Vec::new(),
            state: LeaseState::Prepared,
            since_ms: 1,
            boot: "boot-1".parse::<BootId>().unwrap(),
            bindings,
        }
    }

    fn place(pod: &str, cgroup: &str) -> Place {
        let pod = Some(pod.to_owned()).filter(|pod| !pod.is_empty());
        Place { cgroups: vec![cgroup.to_owned()], pod }
    }

    /// What the arbiter says of a claim on GPU-1.
    pub(in crate::usage) fn turns_of(claim: &str, pids: &[i32]) -> ClaimTurns {
        ClaimTurns {
            claim: claim.parse().unwrap(),
            device: "GPU-1".parse().unwrap(),
            class: ShareClass::Normal,
            state: "idle",
            granted_permille: 500,
            measured_permille: None,
            used_ns: 0,
            throttled_ns: 0,
            turns: 0,
            stuck: 0,
            memory_used: MemoryBytes::ZERO,
            memory_peak: MemoryBytes::ZERO,
            memory_quota: MemoryBytes::ZERO,
            memory_denied: 0,
            processes: pids.to_vec(),
            unclassified: 0,
        }
    }

    #[track_caller]
    fn check(pid: u32, place: Option<&Place>, expected: &str) {
        let cgroup = Binding::Cgroup { path: "/run/c".into(), id: Some(CgroupId(1)) };
        let second = Binding::Workload("pod-2".parse().unwrap());
        let leases: BTreeMap<ClaimId, Lease> = [
            lease("shared", "pod-1", vec![second]),
            lease("other", "pod-1", Vec::new()),
            lease("bare", "", vec![cgroup]),
            lease("turns", "", Vec::new()),
        ]
        .into_iter()
        .map(|lease| (lease.claim.id.clone(), lease))
        .collect();
        let report = Report { claims: vec![turns_of("turns", &[7])], ..Report::default() };
        let tenants = Tenants::of(&leases, &report, &"GPU-1".parse().unwrap());
        let owner = tenants.owner(pid, place);
        let words = match &owner {
            Owner::Claims(claims) => {
                let names: Vec<&str> = claims.iter().map(ClaimId::as_str).collect();
                names.join(" ")
            }
            Owner::Stranger => "stranger".to_owned(),
            Owner::Unknown => "unknown".to_owned(),
            Owner::Ended => "ended".to_owned(),
        };
        let agent = tenants.agent(&owner, place).map(|agent| agent.name);
        let words = agent.map_or(words.clone(), |agent| format!("{words} as {agent}"));
        assert_eq!(words, expected);
    }

    #[test]
    fn registration_comes_before_pod_before_cgroup() {
        check(7, Some(&place("pod-1", "/x")), "turns");
        check(8, Some(&place("pod-1", "/run/c")), "other shared");
        check(8, Some(&place("", "/run/c/deeper")), "bare");
        check(8, Some(&place("pod-9", "/x")), "stranger");
        check(8, Some(&place("", "/x")), "unknown");
        check(8, None, "ended");
    }

    #[test]
    fn a_further_pod_of_a_claim_is_an_agent_of_its_own() {
        check(8, Some(&place("pod-2", "/x")), "shared as pod-2");
    }
}
