//! Lets the pod of an extended resource use what it was given, before its container's first
//! process: `Allocate` does not say for which pod it asks.
//!
//! Where the container runtime takes plugins, ours does so there. Elsewhere the kubelet's last
//! call before it makes a container is the moment: by then it lists the pod with the device, and
//! the pod's cgroup exists, which is named by a UID that only the API server says.

use std::{collections::BTreeSet, fmt, time::Duration};

use accelpool_cluster::{Cluster, ReadPodError};
use accelpool_proto::{kubelet::v1::ListPodResourcesResponse, node::binding::Subject};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Status;

use super::offer::claim_of;
use crate::{
    node::{Node, NodeError, Trouble},
    nri::NriStatus,
    pod_resources::PodResources,
};

/// How long trouble is waited out. The kubelet waits 30 s, and makes the container again later.
const BUDGET: Duration = Duration::from_secs(10);

/// The wait between tries.
const RETRY: Duration = Duration::from_millis(200);

/// A kubelet that lists 110 pods takes milliseconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds claims of extended resources to their pods. Cheap to clone.
#[derive(Clone)]
pub(super) struct Binder {
    pub(super) cluster: Cluster,
    pub(super) node: Node,
    pub(super) pod_resources: PodResources,
    pub(super) nri: watch::Receiver<NriStatus>,
}

impl fmt::Debug for Binder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binder").finish_non_exhaustive()
    }
}

/// Why a pod is not bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    #[error("the kubelet does not say which pod has device `{id}`")]
    Kubelet {
        id: String,
        #[source]
        source: Box<Status>,
    },
    #[error(
        "the kubelet lists no pod that has device `{0}`: it lists no init containers, so give the \
         device to a container of the pod too, or let the container runtime take plugins (NRI)"
    )]
    Nobody(String),
    #[error("the kubelet lists more than one pod that has device `{0}`")]
    Several(String),
    #[error("the pod's UID is not known")]
    Pod(#[from] ReadPodError),
    #[error("claim `{claim}` is not bound to its pod")]
    Node { claim: String, source: NodeError },
}

impl BindError {
    /// True if it may be better in a moment.
    fn is_transient(&self) -> bool {
        match self {
            // A pod that ends and one that begins may both be listed for a moment.
            Self::Kubelet { .. } | Self::Nobody(_) | Self::Several(_) => true,
            Self::Pod(ReadPodError::Call { source, .. }) => source.is_transient(),
            Self::Pod(_) => false,
            Self::Node { source, .. } => match source.trouble() {
                Trouble::Away | Trouble::Busy => true,
                Trouble::Final => false,
            },
        }
    }
}

impl Binder {
    /// Binds the claims of these ids of a resource to the pod that has them.
    ///
    /// # Errors
    ///
    /// Which pod that is cannot be found out, or the daemon does not take it.
    pub(super) async fn bind(&self, resource: &str, ids: &[String]) -> Result<(), BindError> {
        let deadline = Instant::now() + BUDGET;
        loop {
            if matches!(&*self.nri.borrow(), NriStatus::Connected { .. }) {
                return Ok(());
            }
            match self.try_bind(resource, ids).await {
                Err(error) if error.is_transient() && Instant::now() + RETRY < deadline => {
                    sleep(RETRY).await;
                }
                done => return done,
            }
        }
    }

    async fn try_bind(&self, resource: &str, ids: &[String]) -> Result<(), BindError> {
        let Some(first) = ids.first() else { return Ok(()) };
        let pods = self.pod_resources.list(LIST_TIMEOUT).await;
        let pods = pods.map_err(|source| {
            let source = Box::new(source);
            BindError::Kubelet { id: shown(first), source }
        })?;
        let (namespace, name) = holder(&pods, resource, ids)?;
        let pod = self.cluster.pod_identity(namespace, name).await?;
        for id in ids {
            let claim = claim_of(id);
            let bound = self.node.bind(&claim, Subject::Workload(pod.kubelet_uid.clone())).await;
            bound.map_err(|source| BindError::Node { claim, source })?;
        }
        Ok(())
    }
}

/// The one pod that has all of these ids, by namespace and name.
fn holder<'pods>(
    pods: &'pods ListPodResourcesResponse,
    resource: &str,
    ids: &[String],
) -> Result<(&'pods str, &'pods str), BindError> {
    let mut all: Option<(&str, &str)> = None;
    for id in ids {
        let holders = pods.pod_resources.iter().filter(|pod| {
            let devices = pod.containers.iter().flat_map(|container| &container.devices);
            devices
                .filter(|devices| devices.resource_name == resource)
                .any(|devices| devices.device_ids.contains(id))
        });
        let holders: BTreeSet<(&str, &str)> =
            holders.map(|pod| (pod.namespace.as_str(), pod.name.as_str())).collect();
        let mut holders = holders.into_iter();
        match (holders.next(), holders.next()) {
            (Some(pod), None) if all.is_none_or(|all| all == pod) => all = Some(pod),
            (None, _) => return Err(BindError::Nobody(shown(id))),
            (Some(_), _) => return Err(BindError::Several(shown(id))),
        }
    }
    all.ok_or_else(|| BindError::Nobody(String::new()))
}

fn shown(id: &str) -> String {
    id.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use accelpool_proto::kubelet::v1::{ContainerDevices, ContainerResources, PodResources};

    use super::*;

    #[track_caller]
    fn check(pods: &[(&str, &str, &[&str])], asked: &[&str], expected: Result<&str, &str>) {
        let pod = |(name, resource, ids): &(&str, &str, &[&str])| PodResources {
            name: (*name).to_owned(),
            namespace: "ns".to_owned(),
            containers: vec![ContainerResources {
                devices: vec![ContainerDevices {
                    resource_name: (*resource).to_owned(),
                    device_ids: ids.iter().map(|&id| id.to_owned()).collect(),
                    topology: None,
                }],
                ..ContainerResources::default()
            }],
        };
        let pods = ListPodResourcesResponse { pod_resources: pods.iter().map(pod).collect() };
        let asked: Vec<String> = asked.iter().map(|&id| id.to_owned()).collect();
        match (holder(&pods, "r", &asked), expected) {
            (Ok(found), Ok(name)) => assert_eq!(found, ("ns", name)),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_pod_is_the_one_that_has_all_of_them() {
        let pods: [(&str, &str, &[&str]); 3] =
            [("p", "r", &["a", "b"]), ("q", "r", &["c"]), ("o", "other", &["a"])];
        check(&pods, &["a"], Ok("p"));
        check(&pods, &["b", "a"], Ok("p"));
        check(&pods, &["c"], Ok("q"));
        check(&pods, &["d"], Err("no pod that has device `d`"));
        check(&pods, &["a", "c"], Err("more than one pod"));
        check(&pods, &[], Err("no pod"));
        check(&[("p", "r", &["a"]), ("q", "r", &["a"])], &["a"], Err("more than one pod"));
    }
}
