//! Reading a pod's metadata: whose it is, and who is billed for it. Nothing else of a pod is
//! asked for.

use std::collections::BTreeMap;

use kube::core::{
    Request,
    params::{GetParams, ListParams},
};
use serde::Deserialize;

use crate::{
    claim::PodReference,
    cluster::{CallError, Cluster, is_dns_subdomain, within_deadline},
};

/// Why a pod's labels are not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ReadPodError {
    #[error("pod name `{0}` is not valid")]
    Name(String),
    #[error("failed to read pod {namespace}/{name}")]
    Call { namespace: String, name: String, source: CallError },
    #[error("pod {namespace}/{name} cannot be understood")]
    Malformed { namespace: String, name: String, source: serde_json::Error },
    #[error("pod {namespace}/{name} is another one of that name")]
    Replaced { namespace: String, name: String },
}

/// Why the pods of the node are not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ListPodsError {
    #[error("failed to list the pods of this node")]
    Call(#[source] CallError),
    #[error("the list of this node's pods cannot be understood")]
    Malformed(#[source] serde_json::Error),
}

/// A pod by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What the API server calls it.
    pub uid: String,
    /// What the kubelet calls it, and names its cgroup by: the same, but for a static pod,
    /// whose object at the API server is a picture of it.
    pub kubelet_uid: String,
}

/// Several times what a kubelet runs on one node.
const PODS_MAX: u32 = 4096;

/// Where the picture of a static pod says what the kubelet calls it.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl From<Metadata> for PodIdentity {
    fn from(metadata: Metadata) -> Self {
        let Metadata { namespace, name, uid, mut annotations, .. } = metadata;
        let kubelet_uid = annotations.remove(MIRROR_ANNOTATION).unwrap_or_else(|| uid.clone());
        Self { namespace, name, uid, kubelet_uid }
    }
}

impl Cluster {
    /// The labels of a pod, which must still be the one that is meant.
    pub async fn pod_labels(
        &self,
        namespace: &str,
        pod: &PodReference,
    ) -> Result<BTreeMap<String, String>, ReadPodError> {
        let found = self.pod_metadata(namespace, &pod.name).await?;
        if found.uid == pod.uid {
            return Ok(found.labels);
        }
        Err(ReadPodError::Replaced { namespace: namespace.to_owned(), name: pod.name.clone() })
    }

    /// The pod that has this name now.
    pub async fn pod_identity(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<PodIdentity, ReadPodError> {
        self.pod_metadata(namespace, name).await.map(PodIdentity::from)
    }

    /// The pods that are bound to this driver's node.
    pub async fn pods_on_node(&self) -> Result<Vec<PodIdentity>, ListPodsError> {
        let wanted =
            ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(PODS_MAX);
        let request = Request::new("/api/v1/pods")
            .list_metadata(&wanted)
            .map_err(|error| ListPodsError::Call(kube::Error::BuildRequest(error).into()))?;
        let text = within_deadline(self.client.request_text(request)).await;
        let found: PodList = serde_json::from_str(&text.map_err(ListPodsError::Call)?)
            .map_err(ListPodsError::Malformed)?;
        Ok(found.items.into_iter().map(|pod| pod.metadata.into()).collect())
    }

    async fn pod_metadata(&self, namespace: &str, name: &str) -> Result<Metadata, ReadPodError> {
        let place = || (namespace.to_owned(), name.to_owned());
        if !is_dns_subdomain(namespace, 63) || !is_dns_subdomain(name, 253) {
            let shown = format!("{namespace}/{name}").escape_debug().take(80).collect();
            return Err(ReadPodError::Name(shown));
        }
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
            .get_metadata(name, &GetParams::default())
            .map_err(|_| ReadPodError::Name(name.to_owned()))?;
        let text = within_deadline(self.client.request_text(request)).await;
        let text = text.map_err(|source| {
            let (namespace, name) = place();
            ReadPodError::Call { namespace, name, source }
        })?;
        let found: Pod = serde_json::from_str(&text).map_err(|source| {
            let (namespace, name) = place();
            ReadPodError::Malformed { namespace, name, source }
        })?;
        Ok(found.metadata)
    }
}
