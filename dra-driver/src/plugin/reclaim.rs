//! Gives back what extended resources hold once no pod has it: the protocol has no call that
//! does. Which pod has what is asked of the kubelet.
//!
//! A kubelet that was just started may not know its pods yet, and says that there are none.
//! So its word counts only if it knows the pod that this driver runs in, and only if it has
//! said the same for a while.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use accelpool_cluster::SURFACE_LABEL;
use accelpool_proto::{kubelet::v1::ListPodResourcesResponse, node::Lease};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::allocate::Allocator;
use crate::{labels, node::Observed, pod_resources::PodResources};

/// How often the kubelet is asked, and only while a lease waits for it. It answers at most
/// 100 calls a second, for all who ask.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// How long a lease must have been without a pod: longer than the kubelet takes from
/// `Allocate` to listing the pod, or from its start to knowing its pods.
pub const GRACE: Duration = Duration::from_secs(30);

/// A kubelet that lists 110 pods takes milliseconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The pod that this driver runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct OwnPod {
    pub namespace: String,
    pub name: String,
}

/// Gives back leases of extended resources.
#[derive(Debug)]
pub(super) struct Reclaim {
    pub(super) pod_resources: PodResources,
    pub(super) own_pod: Option<OwnPod>,
    pub(super) allocator: Allocator,
    pub(super) observed: watch::Receiver<Observed>,
    pub(super) interval: Duration,
    pub(super) grace: Duration,
}

impl Reclaim {
    /// Runs for ever.
    pub(super) async fn run(self) {
        let mut interval = interval(self.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut absences = Absences::new(self.grace);
        loop {
            interval.tick().await;
            let leased = self.leased();
            if leased.is_empty() {
                continue;
            }
            let asked = Instant::now();
            match self.pod_resources.list(LIST_TIMEOUT).await {
                Ok(pods) => {
                    let due = absences.update(&leased, &pods, self.own_pod.as_ref(), asked);
                    self.give_back(due, asked).await;
                }
                Err(error) => tracing::debug!(%error, "the kubelet does not list its pods"),
            }
        }
    }

    /// The leases of extended resources, by what the kubelet calls them.
    fn leased(&self) -> BTreeMap<Held, String> {
        let snapshot = self.observed.borrow().snapshot.clone();
        let leases = snapshot.iter().flat_map(|snapshot| &snapshot.leases);
        leases.filter_map(|lease| Some((held(lease)?, lease.claim.clone()))).collect()
    }

    async fn give_back(&self, due: Vec<(String, Instant)>, asked: Instant) {
        for (claim, absent_since) in due {
            // Allocated again while the kubelet was being asked, or shortly before: then the
            // list may be older than the pod.
            let grace = asked.checked_sub(self.grace).unwrap_or(absent_since);
            match self.allocator.give_back(&claim, grace.max(absent_since)).await {
                Ok(()) => tracing::info!(claim, "given back: no pod has it any more"),
                Err(error) => tracing::warn!(claim, %error, "not given back yet"),
            }
        }
    }
}

/// An extended resource and the id of one of its devices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Held {
    resource: String,
    id: String,
}

fn held(lease: &Lease) -> Option<Held> {
    let label = |key: &str| lease.labels.get(key).cloned();
    let ours = label(SURFACE_LABEL)? == labels::SURFACE_DEVICE_PLUGIN;
    let (resource, id) = (label(labels::RESOURCE)?, label(labels::DEVICE_ID)?);
    ours.then_some(Held { resource, id })
}

/// Since when leases have been without a pod.
#[derive(Debug)]
struct Absences {
    grace: Duration,
    since: HashMap<String, Instant>,
}

impl Absences {
    fn new(grace: Duration) -> Self {
        Self { grace, since: HashMap::new() }
    }

    /// Takes in what the kubelet said at `asked`; returns the claims that have been without a
    /// pod for long enough, and since when.
    fn update(
        &mut self,
        leased: &BTreeMap<Held, String>,
        pods: &ListPodResourcesResponse,
        own_pod: Option<&OwnPod>,
        asked: Instant,
    ) -> Vec<(String, Instant)> {
        if !knows_its_pods(pods, own_pod) {
            self.since.clear();
            return Vec::new();
        }
        let used = used(pods);
        let absent: BTreeSet<&String> = leased
            .iter()
            .filter(|(held, _)| !used.contains(held))
            .map(|(_, claim)| claim)
            .collect();
        self.since.retain(|claim, _| absent.contains(claim));
        let due = absent.into_iter().filter_map(|claim| {
            let since = *self.since.entry(claim.clone()).or_insert(asked);
            (asked.saturating_duration_since(since) >= self.grace).then(|| (claim.clone(), since))
        });
        due.collect()
    }
}

/// True if the list can be whole.
fn knows_its_pods(pods: &ListPodResourcesResponse, own_pod: Option<&OwnPod>) -> bool {
    match own_pod {
        Some(own) => pods
            .pod_resources
            .iter()
            .any(|pod| pod.namespace == own.namespace && pod.name == own.name),
        None => !pods.pod_resources.is_empty(),
    }
}

fn used(pods: &ListPodResourcesResponse) -> BTreeSet<Held> {
    let containers = pods.pod_resources.iter().flat_map(|pod| &pod.containers);
    let devices = containers.flat_map(|container| &container.devices);
    devices
        .flat_map(|devices| {
            let resource = &devices.resource_name;
            devices
                .device_ids
                .iter()
                .map(move |id| Held { resource: resource.clone(), id: id.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use accelpool_proto::kubelet::v1::{ContainerDevices, ContainerResources, PodResources};

    use super::*;

    /// Pods of namespace `ns`, each with the ids it has of `accelpool.dev/gpu`.
    fn pods(pods: &[(&str, &[&str])]) -> ListPodResourcesResponse {
        let pod = |(name, ids): &(&str, &[&str])| PodResources {
            name: (*name).to_owned(),
            namespace: "ns".to_owned(),
            containers: vec![ContainerResources {
                devices: vec![ContainerDevices {
                    resource_name: "accelpool.dev/gpu".to_owned(),
                    device_ids: ids.iter().map(|&id| id.to_owned()).collect(),
                    topology: None,
                }],
                ..ContainerResources::default()
            }],
        };
        ListPodResourcesResponse { pod_resources: pods.iter().map(pod).collect() }
    }

    /// Runs a history of lists, each so many seconds after the first, with one lease on `a`;
    /// says at which times the lease is due.
    #[track_caller]
    fn check(history: &[(u64, ListPodResourcesResponse)], expected: &[u64]) {
        let held = Held { resource: "accelpool.dev/gpu".to_owned(), id: "a".to_owned() };
        let leased = [(held, "dp-a".to_owned())].into();
        let own = OwnPod { namespace: "ns".to_owned(), name: "driver".to_owned() };
        let start = Instant::now();
        let mut absences = Absences::new(GRACE);
        let due = history.iter().filter(|(at, pods)| {
            let asked = start + Duration::from_secs(*at);
            !absences.update(&leased, pods, Some(&own), asked).is_empty()
        });
        assert_eq!(due.map(|(at, _)| *at).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_lease_without_a_pod_is_due_after_the_grace() {
        let none = || pods(&[("driver", &[])]);
        check(&[(0, none()), (10, none()), (30, none())], &[30]);
    }

    #[test]
    fn a_pod_that_has_it_begins_the_grace_anew() {
        let none = || pods(&[("driver", &[])]);
        let used = pods(&[("driver", &[]), ("p", &["a"])]);
        check(&[(0, none()), (20, used), (30, none()), (50, none()), (60, none())], &[60]);
    }

    #[test]
    fn a_kubelet_that_does_not_know_its_pods_is_not_believed() {
        let unknowing = || pods(&[("static-pod", &[])]);
        let none = || pods(&[("driver", &[])]);
        check(&[(0, unknowing()), (60, unknowing()), (120, pods(&[]))], &[]);
        check(&[(0, none()), (20, unknowing()), (40, none()), (60, none()), (70, none())], &[70]);
    }

    #[test]
    fn without_a_pod_of_its_own_any_pod_will_do() {
        assert!(!knows_its_pods(&pods(&[]), None));
        assert!(knows_its_pods(&pods(&[("x", &[])]), None));
    }
}
