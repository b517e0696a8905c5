//! What no event tells of: conditions that a device is in, found by looking at it.
//!
//! Drivers and devices differ in what they tell of their own accord. Here the same is asked of
//! all: what recovery the driver wants, rows of memory that wait for a reset or cannot be
//! replaced, memory errors that became more, links that went down or had to be trained anew.
//! Each is told once for as long as it lasts.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{DeviceUuid, Fault, FaultClass, RecoveryAction};
use nvml_wrapper_sys::bindings::field_id as id;

use crate::{
    events::recovery_action,
    sys::{Field, Gpu},
};

/// `NVML_NVLINK_MAX_LINKS` of boards; see `counters.rs`.
const LINKS_MAX: u32 = 18;

/// What is known of one device's condition.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Conditions that last, by their codes, with their words.
    lasting: BTreeMap<&'static str, String>,
    /// Links that were seen up.
    links: BTreeSet<u32>,
    /// Counters that must not grow, as they were last.
    counts: BTreeMap<u32, u64>,
    /// An event has told of a fault whose traces are found here too.
    blamed: bool,
}

/// Counters of which each step is a fault, with its code and words.
const COUNTS: [(u32, FaultClass, &str, &str); 2] = [
    (
        id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
        FaultClass::MemoryUncorrectable,
        "ecc-uncorrected",
        "uncorrectable ECC errors were counted",
    ),
    (
        id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        FaultClass::Link,
        "nvlink-recovery",
        "an NVLink failed and was trained anew",
    ),
];

impl Health {
    /// An event has told of a fault of the device: its traces are no second one.
    pub(crate) fn blame(&mut self, class: FaultClass) {
        self.blamed |= match class {
            FaultClass::Application | FaultClass::Throttled => false,
            FaultClass::MemoryUncorrectable
            | FaultClass::Link
            | FaultClass::ResetRequired
            | FaultClass::FellOffBus => true,
        };
    }

    /// Why the device is not sound, if it is not.
    pub(crate) fn ailment(&self) -> Option<&str> {
        self.lasting.values().next().map(String::as_str)
    }

    /// Looks at the device, and tells what is new.
    pub(crate) fn examine(&mut self, gpu: Gpu<'_>, device: &DeviceUuid) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut tell = |class, code: &str, message: String| {
            let (device, code) = (device.clone(), code.to_owned());
            faults.push(Fault { device, class, code, message });
        };
        for (class, code, words) in self.conditions(gpu) {
            match words {
                None => drop(self.lasting.remove(code)),
                Some(words) => {
                    if self.lasting.insert(code, words.clone()).as_ref() != Some(&words) {
                        tell(class, code, words);
                    }
                }
            }
        }
        for (field, class, code, words) in COUNTS {
            let Some(now) = value(gpu, field) else { continue };
            let before = self.counts.insert(field, now);
            if before.is_some_and(|before| now > before) && !self.blamed {
                tell(class, code, words.to_owned());
            }
        }
        let action = recovery_action(gpu, device).unwrap_or(RecoveryAction::None);
        let code = "recovery-action";
        if action == RecoveryAction::None {
            self.lasting.remove(code);
            self.blamed = false;
        } else if !self.blamed {
            let words = format!("the driver asks for recovery: {action}");
            if self.lasting.insert(code, words.clone()).as_ref() != Some(&words) {
                tell(FaultClass::ResetRequired, code, words);
            }
        }
        faults
    }

    /// The conditions that can be asked about; without words it is not in them.
    fn conditions(&mut self, gpu: Gpu<'_>) -> Vec<(FaultClass, &'static str, Option<String>)> {
        let mut conditions = Vec::new();
        if let Ok(rows) = gpu.remapped_rows() {
            let failed = rows.failed.then(|| "faulty memory could not be remapped".to_owned());
            conditions.push((FaultClass::MemoryUncorrectable, "row-remap-failed", failed));
            let words = "faulty memory rows are replaced at the next reset";
            let pending = rows.pending.then(|| words.to_owned());
            conditions.push((FaultClass::Throttled, "row-remap-pending", pending));
        }
        if let Some(pending) = value(gpu, id::NVML_FI_DEV_RETIRED_PENDING) {
            let words = "faulty memory pages are retired at the next reset";
            let words = (pending != 0).then(|| words.to_owned());
            conditions.push((FaultClass::Throttled, "page-retirement-pending", words));
        }
        let down = self.links_down(gpu);
        let words = (!down.is_empty()).then(|| format!("NVLink {} is down", down.join(", ")));
        conditions.push((FaultClass::Link, "nvlink-down", words));
        conditions
    }

    /// Links that were up and are not. One that never was leads nowhere on this board.
    fn links_down(&mut self, gpu: Gpu<'_>) -> Vec<String> {
        let mut down = Vec::new();
        for link in 0..LINKS_MAX {
            match gpu.link_is_up(link) {
                Ok(true) => drop(self.links.insert(link)),
                Ok(false) if self.links.contains(&link) => down.push(link.to_string()),
                Err(error) if error.is_invalid_argument() || error.is_unsupported() => break,
                Ok(false) | Err(_) => {}
            }
        }
        down
    }
}

fn value(gpu: Gpu<'_>, id: u32) -> Option<u64> {
    gpu.fields(&[Field { id, scope: 0 }]).ok()?.pop()?.ok()
}
