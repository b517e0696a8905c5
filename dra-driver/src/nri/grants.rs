//! Which grants a container has: what the runtime shows of it, held against the daemon's
//! leases. Pure.
//!
//! A runtime since NRI 0.10 says which CDI devices the kubelet asked for: nobody else can
//! write that, so it is believed. Before, all there is to see is the variable that each grant
//! puts into the environment, and a tenant can write such a variable too. So it counts only
//! for a lease of the same pod, or if the kubelet confirms it.

use std::collections::BTreeSet;

use accelpool_cluster::{DRIVER_NAME, SURFACE_LABEL};
use accelpool_proto::{
    kubelet::v1::{ContainerResources, ListPodResourcesResponse},
    node::{Allocation, Lease},
    nri::Container,
};

use crate::labels;

/// The kind of our CDI devices, and what follows it.
const CDI_PREFIX: &str = "accelpool.dev/claim=";

/// What the names of a grant's variable begin with; the rest is the CDI device's name.
const GRANT_PREFIX: &str = "ACCELPOOL_GRANT_";

/// A claim has at most 32 requests, a container a few claims.
const MARKS_MAX: usize = 128;

/// What a container shows of its grants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks {
    cdi_ids: BTreeSet<String>,
    /// Variables of grants; looked at only where the runtime shows no CDI devices.
    variables: BTreeSet<String>,
}

impl Marks {
    pub(super) fn of(container: &Container) -> Self {
        let ids = container.cdi_devices.iter().map(|device| &device.name);
        let cdi_ids: BTreeSet<String> =
            ids.filter(|id| id.starts_with(CDI_PREFIX)).take(MARKS_MAX).cloned().collect();
        if !cdi_ids.is_empty() {
            return Self { cdi_ids, variables: BTreeSet::new() };
        }
        let names = container.env.iter().filter_map(|entry| entry.split_once('='));
        let names = names.map(|(name, _)| name).filter(|name| name.starts_with(GRANT_PREFIX));
        let variables = names.take(MARKS_MAX).map(str::to_owned).collect();
        Self { cdi_ids, variables }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cdi_ids.is_empty() && self.variables.is_empty()
    }
}

/// A part of a lease that a container has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    pub(super) claim: String,
    pub(super) device: String,
}

/// What the marks of a container come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Grants {
    /// What it has.
    pub(super) held: BTreeSet<Held>,
    /// What it says it has; only the kubelet can tell.
    pub(super) doubtful: BTreeSet<Held>,
    /// True if the kubelet gave it something that no lease is known for: it was prepared a
    /// moment ago.
    pub(super) is_early: bool,
    /// True if it has a variable of no lease: perhaps the same, perhaps its own invention.
    pub(super) is_odd: bool,
}

/// Holds the marks of a container in the pod `pod_uid` against the leases.
pub(super) fn grants(marks: &Marks, pod_uid: &str, leases: &[Lease]) -> Grants {
    let mut grants = Grants::default();
    let (mut found, mut found_variables) = (0, 0);
    for lease in leases {
        for allocation in &lease.allocations {
            let held = || Held { claim: lease.claim.clone(), device: allocation.device.clone() };
            if marks.cdi_ids.contains(&allocation.cdi_id) {
                found += 1;
                grants.held.insert(held());
            } else if marks.variables.contains(&variable_of(allocation)) {
                found_variables += 1;
                let own = lease.labels.get(labels::POD_UID).is_some_and(|uid| uid == pod_uid);
                let set = if own { &mut grants.held } else { &mut grants.doubtful };
                set.insert(held());
            }
        }
    }
    grants.is_early = found < marks.cdi_ids.len();
    grants.is_odd = found_variables < marks.variables.len();
    grants
}

/// The variable that the daemon puts into the environment for an allocation.
fn variable_of(allocation: &Allocation) -> String {
    let name = allocation.cdi_id.strip_prefix(CDI_PREFIX).unwrap_or(&allocation.cdi_id);
    format!("{GRANT_PREFIX}{}", name.to_ascii_uppercase().replace(['-', '.'], "_"))
}

/// Which of `doubtful` the kubelet says the pod really has; none if it does not know the pod yet.
/// Any container of the pod will do: init containers are not in its list, and it is the pod
/// that a grant is bound to.
pub(super) fn confirmed(
    doubtful: &BTreeSet<Held>,
    leases: &[Lease],
    pods: &ListPodResourcesResponse,
    (namespace, pod): (&str, &str),
) -> Option<BTreeSet<Held>> {
    let pods = pods.pod_resources.iter();
    let mut pods = pods.filter(|known| known.namespace == namespace && known.name == pod);
    let containers = &pods.next()?.containers;
    let has = |held: &&Held| {
        let lease = leases.iter().find(|lease| lease.claim == held.claim);
        lease.is_some_and(|lease| containers.iter().any(|known| has_lease(known, lease)))
    };
    Some(doubtful.iter().filter(has).cloned().collect())
}

fn has_lease(container: &ContainerResources, lease: &Lease) -> bool {
    let label = |key: &str| lease.labels.get(key).map(String::as_str).unwrap_or_default();
    if label(SURFACE_LABEL) == labels::SURFACE_DEVICE_PLUGIN {
        let (resource, id) = (label(labels::RESOURCE), label(labels::DEVICE_ID));
        let mut devices = container.devices.iter();
        return devices.any(|held| {
            held.resource_name == resource && held.device_ids.iter().any(|held| held == id)
        });
    }
    let (namespace, name) = (label(labels::NAMESPACE), label(labels::NAME));
    container.dynamic_resources.iter().any(|claim| {
        let ours = claim.claim_resources.iter().any(|part| part.driver_name == DRIVER_NAME);
        ours && claim.claim_namespace == namespace && claim.claim_name == name
    })
}

#[cfg(test)]
mod tests;
