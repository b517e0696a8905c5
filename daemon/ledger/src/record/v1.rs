//! Version 1 of the records. Frozen: a change of form is a version 2 beside it.
//!
//! Texts that the model parses stand as texts, and are parsed again on the way in: what
//! the model would not admit is refused. Unknown fields are refused too.

mod from_model;
mod into_model;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Taints {
    device: String,
    taints: Vec<Taint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taint {
    key: String,
    effect: String,
    reason: String,
    since_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owed {
    device: String,
    partitions: Vec<OwedPartition>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwedPartition {
    name: String,
    device: String,
    profile: String,
    start: u32,
    boot: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lease {
    claim: Claim,
    allocations: Vec<Allocation>,
    state: LeaseState,
    since_ms: u64,
    boot: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bindings: Vec<Binding>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Binding {
    Workload(String),
    Cgroup(Cgroup),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cgroup {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LeaseState {
    Preparing,
    Prepared,
    Releasing,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    id: String,
    requests: Vec<Request>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    name: String,
    wanted: Wanted,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
    demand: Enforcements,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_id: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    admin: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Named(String),
    Any(WantedAny),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedAny {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    count: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_permille: Option<u64>,
    weight: u64,
    class: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Enforcements {
    memory: String,
    compute: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allocation {
    request: String,
    device: String,
    uuid: String,
    portion: Portion,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_id: Option<String>,
    enforcement: Enforcements,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Portion {
    Whole,
    Partition(Partition),
    Share(HeldShare),
    Admin(Look),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Partition {
    name: String,
    profile: String,
    start: u32,
    size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<Placement>,
    adopted: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Placement {
    start: u32,
    size: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldShare {
    memory_bytes: u64,
    compute_permille: u64,
    weight: u64,
    class: String,
}
