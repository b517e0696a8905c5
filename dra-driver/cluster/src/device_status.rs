//! What the driver says of a claim's devices in the claim's own status.
//!
//! Server-side apply on `status.devices`: the driver owns its entries and no others, and
//! needs not read the claim first. The claim's UID is a precondition.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::core::{
    Request,
    params::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::cluster::{CallError, Cluster, is_dns_subdomain, within_deadline};

/// The name under which the driver's fields are kept by the API server.
pub(crate) const FIELD_OWNER: &str = "accelpool-dra";

/// The API's limits on one device's status.
const CONDITIONS_MAX: usize = 8;
const DATA_LEN_MAX: usize = 10 * 1024;
const MESSAGE_LEN_MAX: usize = 32 * 1024;

/// The claim that is spoken of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ClaimReference {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// The status of one allocated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The pool, as in the allocation.
    pub pool: String,
    /// The device, as in the allocation.
    pub device: String,
    /// The share, as in the allocation.
    pub share_id: Option<String>,
    /// At most 8; more are cut off.
    pub conditions: Vec<Condition>,
    /// Further words, such as the granted enforcement class.
    pub data: BTreeMap<String, String>,
}

/// One condition of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Such as `Ready`.
    pub kind: &'static str,
    /// Whether it holds; `None` where that is not known.
    pub holds: Option<bool>,
    /// In one word, such as `Prepared`.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

/// Why a status is not written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum DeviceStatusError {
    #[error("`{0}` names no claim")]
    Name(String),
    #[error("claim {namespace}/{name} is gone or was replaced")]
    Gone { namespace: String, name: String },
    #[error("failed to write the status of claim {namespace}/{name}")]
    Call { namespace: String, name: String, source: CallError },
}

impl Cluster {
    /// Sets what this driver says of the claim's devices, in place of what it said before.
    pub async fn set_device_status(
        &self,
        claim: &ClaimReference,
        devices: &[DeviceStatus],
    ) -> Result<(), DeviceStatusError> {
        let ClaimReference { namespace, name, uid } = claim.clone();
        if !is_dns_subdomain(&namespace, 63) || !is_dns_subdomain(&name, 253) {
            let shown = format!("{namespace}/{name}").escape_debug().take(80).collect();
            return Err(DeviceStatusError::Name(shown));
        }
        let devices: Vec<Value> =
            devices.iter().map(|device| device_status(device, &self.driver)).collect();
        let body = json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": { "namespace": namespace, "name": name, "uid": uid },
            "status": { "devices": devices },
        });
        let path = format!("/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims");
        let request = Request::new(path).patch_subresource(
            "status",
            &name,
            // Forced: nobody else may speak for this driver's devices.
            &PatchParams::apply(FIELD_OWNER).force(),
            &Patch::Apply(body),
        );
        let request = request.map_err(|_| DeviceStatusError::Name(name.clone()))?;
        match within_deadline(self.client.request_text(request)).await {
            Ok(_) => Ok(()),
            // 409: the UID is a precondition, and a forced apply has no other conflict.
            Err(CallError::Refused { code: 404 | 409, .. }) => {
                Err(DeviceStatusError::Gone { namespace, name })
            }
            Err(source) => Err(DeviceStatusError::Call { namespace, name, source }),
        }
    }
}

fn device_status(status: &DeviceStatus, driver: &str) -> Value {
    let DeviceStatus { pool, device, share_id, conditions, data } = status;
    let conditions: Vec<Value> = conditions.iter().take(CONDITIONS_MAX).map(condition).collect();
    let mut value =
        json!({ "driver": driver, "pool": pool, "device": device, "conditions": conditions });
    if let Some(share_id) = share_id {
        value["shareID"] = json!(share_id);
    }
    // Without the words rather than without the conditions: the API refuses all or nothing.
    let data = json!(data);
    if data.as_object().is_some_and(|data| !data.is_empty())
        && data.to_string().len() <= DATA_LEN_MAX
    {
        value["data"] = data;
    }
    value
}

fn condition(condition: &Condition) -> Value {
    let Condition { kind, holds, reason, message, since_unix_ms } = condition;
    let status = match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": cut(message, MESSAGE_LEN_MAX),
        "lastTransitionTime": seconds(*since_unix_ms),
    })
}

/// The time in the API's form, which has whole seconds.
fn seconds(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// `text` cut to at most `len_max` bytes, with dots where something is missing.
pub(crate) fn cut(text: &str, len_max: usize) -> String {
    if text.len() <= len_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(len_max - 3);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_in_the_apis_form() {
        let status = DeviceStatus {
            pool: "accelpool.dev/n".into(),
            device: "gpu-0".into(),
            share_id: Some("a-b".into()),
            conditions: vec![Condition {
                kind: "Ready",
                holds: Some(true),
                reason: "Prepared",
                message: "prepared".into(),
                since_unix_ms: 1_700_000_000_999,
            }],
            data: [("memoryEnforcement".to_owned(), "kernel".to_owned())].into(),
        };
        let expected = json!({
            "driver": "accelpool.dev", "pool": "accelpool.dev/n", "device": "gpu-0",
            "shareID": "a-b", "data": { "memoryEnforcement": "kernel" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Prepared", "message": "prepared",
                "lastTransitionTime": "2023-11-14T22:13:20Z",
            }],
        });
        assert_eq!(device_status(&status, "accelpool.dev"), expected);
    }

    #[test]
    fn what_exceeds_the_limits_is_cut() {
        let condition = Condition {
            kind: "Ready",
            holds: None,
            reason: "Unknown",
            message: "\u{e9}".repeat(20_000),
            since_unix_ms: u64::MAX,
        };
        let status = DeviceStatus {
            pool: "p".into(),
            device: "d".into(),
            share_id: None,
            conditions: vec![condition; 9],
            data: [("key".to_owned(), "x".repeat(DATA_LEN_MAX))].into(),
        };
        let value = device_status(&status, "accelpool.dev");
        assert_eq!(value["conditions"].as_array().unwrap().len(), CONDITIONS_MAX);
        let message = value["conditions"][0]["message"].as_str().unwrap();
        assert!(message.len() <= MESSAGE_LEN_MAX && message.ends_with("..."), "{}", message.len());
        assert_eq!(value.get("data"), None);
        assert_eq!(value.get("shareID"), None);
    }
}
