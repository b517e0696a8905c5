//! What no event tells of: conditions that a device is in, found by looking at it.
//!
//! Drivers and devices differ in what they tell of their own accord. Here the same is asked of
//! all: what recovery the driver wants, rows of memory that wait for a reset or cannot be
//! replaced, memory errors that became more, links that are down or had to be trained anew, what
//! the fabric says of its own health. Each is told once for as long as it lasts.
//!
//! What lasts is read from the device, not remembered, wherever it can be, so that a worker
//! that was started anew finds it again and no taint goes while its cause remains.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{DeviceUuid, Fault, FaultClass, RecoveryAction};
use nvml_wrapper_sys::bindings::field_id as id;

use crate::{
    events::recovery_action,
    inventory::Known,
    sys::{Field, Gpu, LinkEnd},
};

/// `NVML_NVLINK_MAX_LINKS` of boards; see `counters.rs`.
const LINKS_MAX: u32 = 18;

/// How many looks in a row, of 3 s each, must find a device with fewer links than its like before
/// that is a fault: while the fabric manager trains them they come up one by one.
const BEHIND_LOOKS: u32 = 20;

/// What is known of one device's condition.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Conditions that last, by their codes, with their words.
    lasting: BTreeMap<&'static str, String>,
    /// Links that were seen up.
    links: BTreeSet<u32>,
    /// How many looks have found it with fewer links than its like, and what it lacks.
    behind: Option<(u32, String)>,
    /// Counters that must not grow, as they were last.
    counts: BTreeMap<u32, u64>,
    /// An event has told of a fault whose traces are found here too.
    blamed: bool,
}

/// A condition that a device can be in; without words it is not.
struct Condition {
    class: FaultClass,
    code: &'static str,
    words: Option<String>,
    /// A trace of what an event tells of as well, and then is no second fault.
    is_trace: bool,
}

/// The links of a device, as they are now.
#[derive(Debug, Default)]
struct Links {
    up: BTreeSet<u32>,
    down: BTreeSet<u32>,
    switched: bool,
}

impl Links {
    fn count(&self) -> usize {
        self.up.len() + self.down.len()
    }
}

/// Counters of which each step is a fault, with its code and words.
const ECC: u32 = id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL;
const RECOVERIES: u32 = id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL;
const COUNTS: [(u32, FaultClass, &str, &str); 2] = [
    (
        ECC,
        FaultClass::MemoryUncorrectable,
        "ecc-uncorrected",
        "uncorrectable ECC errors were counted",
    ),
    (RECOVERIES, FaultClass::Link, "nvlink-recovery", "an NVLink failed and was trained anew"),
];

/// Looks at all devices, and tells what is new.
pub(crate) fn examine(
    health: &mut BTreeMap<DeviceUuid, Health>,
    known: &[Known<'_>],
) -> Vec<Fault> {
    let links: Vec<Option<Links>> = known.iter().map(|device| links(device.gpu)).collect();
    // Alike are devices behind switches with as many links, up or down.
    let mut most: BTreeMap<usize, usize> = BTreeMap::new();
    for links in links.iter().flatten().filter(|links| links.switched) {
        let known = most.entry(links.count()).or_default();
        *known = links.up.len().max(*known);
    }
    let mut faults = Vec::new();
    for (device, links) in known.iter().zip(links) {
        let health = health.entry(device.uuid.clone()).or_default();
        let count = links.as_ref().map_or(0, Links::count);
        let most = most.get(&count).copied().unwrap_or(0);
        faults.extend(health.examine(device, links.as_ref(), most));
    }
    faults
}

/// The links of a device; none of one in MIG mode: it has no use for them, and drivers turn
/// them off (NVIDIA's guide to the Fabric Manager, "Interoperability With MIG").
fn links(gpu: Gpu<'_>) -> Option<Links> {
    if gpu.mig_is_on().unwrap_or(false) {
        return None;
    }
    let mut links = Links::default();
    for link in 0..LINKS_MAX {
        match gpu.link_is_up(link) {
            Ok(true) => drop(links.up.insert(link)),
            Ok(false) => drop(links.down.insert(link)),
            Err(error) if error.is_invalid_argument() || error.is_unsupported() => break,
            Err(_) => {}
        }
    }
    let first = links.up.first().and_then(|link| gpu.link_end(*link).ok());
    links.switched = matches!(first, Some(LinkEnd::Switch(_)));
    Some(links)
}

impl Health {
    /// An event has told of a fault of the device: its traces are no second one.
    pub(crate) fn blame(&mut self, class: FaultClass) {
        self.blamed |= match class {
            FaultClass::Application | FaultClass::Throttled | FaultClass::Unobserved => false,
            FaultClass::MemoryUncorrectable
            | FaultClass::Link
            | FaultClass::ResetRequired
            | FaultClass::FellOffBus => true,
        };
    }

    /// Why the device is not sound, if it is not.
    pub(crate) fn ailment(&self) -> Option<&str> {
        let behind = self.behind.as_ref().map(|(_, words)| words);
        self.lasting.values().chain(behind).next().map(String::as_str)
    }

    /// Looks at one device, and tells what is new. `most` is how many links its like have up.
    fn examine(&mut self, device: &Known<'_>, links: Option<&Links>, most: usize) -> Vec<Fault> {
        let gpu = device.gpu;
        let mut faults = Vec::new();
        let mut tell = |class, code: &str, message: String| {
            let (device, code) = (device.uuid.clone(), code.to_owned());
            faults.push(Fault { device, class, code, message });
        };
        let action = recovery_action(gpu, &device.uuid).ok();
        let ecc = value(gpu, ECC);
        let mut conditions = of_memory(gpu);
        conditions.push(unverified_ecc(ecc, action));
        conditions.push(of_fabric(gpu));
        conditions.push(self.links_down(links, most));
        for Condition { class, code, words, is_trace } in conditions {
            let Some(words) = words else {
                self.lasting.remove(code);
                continue;
            };
            let news = self.lasting.insert(code, words.clone()).as_ref() != Some(&words);
            if news && !(is_trace && self.blamed) {
                tell(class, code, words);
            }
        }
        if links.is_none() {
            // Links are trained anew after it, which is no fault either.
            self.counts.remove(&RECOVERIES);
        }
        for (field, class, code, words) in COUNTS {
            let now = if field == ECC { ecc } else { value(gpu, field) };
            let Some(now) = now.filter(|_| field == ECC || links.is_some()) else { continue };
            let before = self.counts.insert(field, now);
            let grew = before.is_some_and(|before| now > before);
            if grew && !self.blamed && !self.lasting.contains_key(code) {
                tell(class, code, words.to_owned());
            }
        }
        let code = "recovery-action";
        match action {
            Some(action) if action != RecoveryAction::None => {
                let words = format!("the driver asks for recovery: {action}");
                if !self.blamed && self.lasting.insert(code, words.clone()).as_ref() != Some(&words)
                {
                    tell(FaultClass::ResetRequired, code, words);
                }
            }
            Some(_) | None => {
                self.lasting.remove(code);
                self.blamed = false;
            }
        }
        faults
    }

    /// Links that were up and are not, or that others of its like have up. One that never was
    /// on a board without switches leads nowhere there.
    fn links_down(&mut self, links: Option<&Links>, most: usize) -> Condition {
        let condition = |words| Condition {
            class: FaultClass::Link,
            code: "nvlink-down",
            words,
            is_trace: false,
        };
        let Some(links) = links else {
            self.links.clear();
            self.behind = None;
            return condition(None);
        };
        self.links.extend(&links.up);
        let down: Vec<String> =
            links.down.intersection(&self.links).map(ToString::to_string).collect();
        if !down.is_empty() {
            self.behind = None;
            return condition(Some(format!("NVLink {} is down", down.join(", "))));
        }
        let up = links.up.len();
        if links.down.is_empty() || up >= most {
            self.behind = None;
            return condition(None);
        }
        let looks = self.behind.as_ref().map_or(0, |(looks, _)| *looks).saturating_add(1);
        let words = format!("{up} NVLinks are up, of others like it {most}");
        self.behind = Some((looks, words.clone()));
        condition((looks > BEHIND_LOOKS).then_some(words))
    }
}

/// Memory that waits for a reset, or cannot be repaired.
fn of_memory(gpu: Gpu<'_>) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let mut add = |class, code, holds: bool, words: &str| {
        let words = holds.then(|| words.to_owned());
        conditions.push(Condition { class, code, words, is_trace: false });
    };
    if let Ok(rows) = gpu.remapped_rows() {
        let class = FaultClass::MemoryUncorrectable;
        add(class, "row-remap-failed", rows.failed, "faulty memory could not be remapped");
        let words = "faulty memory rows are replaced at the next reset";
        add(FaultClass::Throttled, "row-remap-pending", rows.pending, words);
    }
    if let Some(pending) = value(gpu, id::NVML_FI_DEV_RETIRED_PENDING) {
        let words = "faulty memory pages are retired at the next reset";
        add(FaultClass::Throttled, "page-retirement-pending", pending != 0, words);
    }
    conditions
}

/// Uncorrectable errors since the driver was loaded, where the driver does not say what recovery
/// they take (before field 230): then only the reset, which clears the count, ends them.
fn unverified_ecc(ecc: Option<u64>, action: Option<RecoveryAction>) -> Condition {
    let holds = action.is_none() && ecc.is_some_and(|count| count > 0);
    let words = "uncorrectable ECC errors since the driver was loaded";
    Condition {
        class: FaultClass::MemoryUncorrectable,
        code: "ecc-uncorrected",
        words: holds.then(|| words.to_owned()),
        is_trace: true,
    }
}

/// What the fabric says of its health: `NVML_GPU_FABRIC_HEALTH_MASK_...` of `nvml.h`.
///
/// That a device is in no partition of the fabric is how somebody set it up, and no fault.
fn of_fabric(gpu: Gpu<'_>) -> Condition {
    const TRUE: u32 = 1;
    const TOO_FEW_LINKS: u32 = 5;
    const PARTS: [(u32, u32, u32, &str); 5] = [
        (0, 0x3, TRUE, "less bandwidth than there should be"),
        (2, 0x3, TRUE, "routes are being recovered"),
        (4, 0x3, TRUE, "a route is not healthy"),
        (6, 0x3, TRUE, "recovery after an access timed out"),
        (8, 0xf, TOO_FEW_LINKS, "too few NVLinks"),
    ];
    let health = gpu.fabric().ok().filter(|fabric| fabric.joined).map_or(0, |it| it.health);
    let part = |(shift, width, value, words): &(u32, u32, u32, &'static str)| {
        (health >> shift & width == *value).then_some(*words)
    };
    let words: Vec<&str> = PARTS.iter().filter_map(part).collect();
    Condition {
        class: FaultClass::Link,
        code: "fabric-unhealthy",
        words: (!words.is_empty()).then(|| format!("the NVLink fabric: {}", words.join(", "))),
        is_trace: false,
    }
}

fn value(gpu: Gpu<'_>, id: u32) -> Option<u64> {
    gpu.fields(&[Field { id, scope: 0 }]).ok()?.pop()?.ok()
}
