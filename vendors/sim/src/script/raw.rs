//! A script as it is written.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Script {
    #[serde(default)]
    pub(super) fault: Vec<Fault>,
    #[serde(default)]
    pub(super) partition: Vec<Partition>,
    #[serde(default)]
    pub(super) call: Vec<Call>,
    #[serde(default)]
    pub(super) absent: Vec<String>,
    #[serde(default)]
    pub(super) health: Vec<Health>,
    #[serde(default)]
    pub(super) process: Vec<Process>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    pub(super) id: String,
    pub(super) device: String,
    pub(super) class: String,
    pub(super) code: String,
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Partition {
    pub(super) id: String,
    pub(super) device: String,
    pub(super) profile: String,
    pub(super) start: i64,
    pub(super) complete: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) method: String,
    pub(super) device: Option<String>,
    pub(super) nth: Option<i64>,
    pub(super) times: Option<i64>,
    pub(super) at: Option<String>,
    pub(super) delay_ms: Option<i64>,
    pub(super) hang: Option<bool>,
    pub(super) error: Option<String>,
    pub(super) message: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub(super) device: String,
    pub(super) recovery_action: Option<String>,
    pub(super) probe_error: Option<String>,
    #[serde(default)]
    pub(super) throttled: Vec<String>,
    #[serde(default)]
    pub(super) errors: BTreeMap<String, i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {
    pub(super) pid: i64,
    pub(super) device: String,
    pub(super) partition: Option<Place>,
    pub(super) memory: String,
    pub(super) compute_permille: Option<i64>,
    pub(super) encoder_permille: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    pub(super) profile: String,
    pub(super) start: i64,
}
