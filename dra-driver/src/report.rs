//! What `/status` says of the container runtime. A runtime without plugins keeps no pod from
//! running, and so is in no probe.

use serde_json::{Value, json};

use crate::nri::{ABSENCE_MEANS, ABSENCE_REMEDY, NriStatus, NriView};

/// How the plugin stands, and what it has done.
pub(crate) fn container_runtime(nri: &NriView) -> Value {
    let status = nri.status.borrow().clone();
    let (state, runtime, why) = match status {
        NriStatus::Off => ("off", String::new(), "nri.enabled is false".to_owned()),
        NriStatus::Absent { why } => ("absent", String::new(), why),
        NriStatus::Connected { runtime } => ("connected", runtime, String::new()),
    };
    json!({ "state": state, "runtime": runtime, "why": why })
}

/// What somebody should look at, as `accelpool doctor` says it of the daemon.
pub(crate) fn findings(nri: &NriView) -> Value {
    match &*nri.status.borrow() {
        NriStatus::Off | NriStatus::Connected { .. } => json!([]),
        NriStatus::Absent { why } => json!([{
            "severity": "warning",
            "check": "container-runtime",
            "message": format!("{ABSENCE_MEANS}: {why}"),
            "remedy": ABSENCE_REMEDY,
        }]),
    }
}
