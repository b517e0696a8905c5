//! Reading a pod's labels: who is billed for it. Nothing else of the pod is asked for.

use std::collections::BTreeMap;

use kube::core::{Request, params::GetParams};
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

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Cluster {
    /// The labels of a pod, which must still be the one that is meant.
    pub async fn pod_labels(
        &self,
        namespace: &str,
        pod: &PodReference,
    ) -> Result<BTreeMap<String, String>, ReadPodError> {
        let PodReference { name, uid } = pod;
        let place = || (namespace.to_owned(), name.clone());
        if !is_dns_subdomain(namespace, 63) || !is_dns_subdomain(name, 253) {
            let shown = format!("{namespace}/{name}").escape_debug().take(80).collect();
            return Err(ReadPodError::Name(shown));
        }
        // Not the whole of it: its metadata alone.
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
            .get_metadata(name, &GetParams::default())
            .map_err(|_| ReadPodError::Name(name.clone()))?;
        let text = within_deadline(self.client.request_text(request)).await;
        let text = text.map_err(|source| {
            let (namespace, name) = place();
            ReadPodError::Call { namespace, name, source }
        })?;
        let found: Pod = serde_json::from_str(&text).map_err(|source| {
            let (namespace, name) = place();
            ReadPodError::Malformed { namespace, name, source }
        })?;
        if found.metadata.uid == *uid {
            return Ok(found.metadata.labels);
        }
        let (namespace, name) = place();
        Err(ReadPodError::Replaced { namespace, name })
    }
}
