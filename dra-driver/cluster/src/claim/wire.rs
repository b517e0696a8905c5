//! The few fields of a `ResourceClaim` that the driver reads, as the API writes them.
//!
//! Not the generated type: that one decodes opaque parameters into a map, and a repeated
//! key would be lost before it can be refused. Fields unknown here are passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

#[derive(Deserialize)]
pub(super) struct Claim {
    pub(super) metadata: Metadata,
    pub(super) status: Option<Status>,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) allocation: Option<Allocation>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) reserved_for: Vec<Consumer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Consumer {
    #[serde(default)]
    pub(super) api_group: String,
    pub(super) resource: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Deserialize)]
pub(super) struct Allocation {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) devices: Devices,
}

#[derive(Deserialize, Default)]
pub(super) struct Devices {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) results: Vec<AllocationResult>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) config: Vec<Config>,
}

/// Amounts by name of the capacity, as text.
pub(super) type Capacity = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AllocationResult {
    pub(super) request: String,
    pub(super) driver: String,
    pub(super) pool: String,
    pub(super) device: String,
    #[serde(rename = "shareID")]
    pub(super) share_id: Option<String>,
    pub(super) admin_access: Option<bool>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) consumed_capacity: Capacity,
}

#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) source: ConfigSource,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) requests: Vec<String>,
    pub(super) opaque: Option<Opaque>,
}

#[derive(Deserialize)]
pub(super) enum ConfigSource {
    FromClass,
    FromClaim,
}

#[derive(Deserialize)]
pub(super) struct Opaque {
    pub(super) driver: String,
    pub(super) parameters: Box<RawValue>,
}

/// Go writes an empty list or map as `null` in some versions.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
