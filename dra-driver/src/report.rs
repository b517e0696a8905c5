//! `/status`: how the driver is, for people and scripts.
//!
//! Also what keeps no pod from running, and so is in no probe: a runtime without plugins.

use serde::Serialize;

use crate::{
    http::{Readiness, Report},
    nri::{ABSENCE_MEANS, ABSENCE_REMEDY, NriStatus, NriView},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    ready: bool,
    waits_for: Vec<String>,
    container_runtime: ContainerRuntime,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct ContainerRuntime {
    /// off, absent or connected
    state: &'static str,
    runtime: String,
    why: String,
}

/// As those of `accelpool doctor`.
#[derive(Serialize)]
struct Finding {
    severity: &'static str,
    check: &'static str,
    message: String,
    remedy: &'static str,
}

/// The report of a driver that is ready when `ready` says so.
#[must_use]
pub fn report(ready: Readiness, nri: NriView) -> Report {
    std::sync::Arc::new(move || {
        let waits_for = ready();
        let status = nri.status.borrow().clone();
        let document = Document {
            ready: waits_for.is_empty(),
            waits_for,
            findings: finding(&status).into_iter().collect(),
            container_runtime: container_runtime(status),
        };
        // Strings and lists alone: it cannot fail.
        serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
    })
}

fn container_runtime(status: NriStatus) -> ContainerRuntime {
    let (state, runtime, why) = match status {
        NriStatus::Off => ("off", String::new(), "nri.enabled is false".to_owned()),
        NriStatus::Absent { why } => ("absent", String::new(), why),
        NriStatus::Connected { runtime } => ("connected", runtime, String::new()),
    };
    ContainerRuntime { state, runtime, why }
}

fn finding(status: &NriStatus) -> Option<Finding> {
    match status {
        NriStatus::Off | NriStatus::Connected { .. } => None,
        NriStatus::Absent { why } => Some(Finding {
            severity: "warning",
            check: "container-runtime",
            message: format!("{ABSENCE_MEANS}: {why}"),
            remedy: ABSENCE_REMEDY,
        }),
    }
}
