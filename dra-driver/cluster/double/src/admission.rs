//! What the API server does to a slice before it stores it: drop, complete, judge.

use k8s_openapi::api::resource::v1::ResourceSlice;
use serde_json::{Value, json};

use crate::{
    quantity::canonical,
    validate::{Rules, slice_errors},
};

/// Which fields are kept; the others are dropped without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for a feature gate")]
pub struct Gates {
    /// `DRAPartitionableDevices`
    pub counters: bool,
    /// `DRAConsumableCapacity`
    pub consumable: bool,
    /// `DRADeviceTaints`
    pub taints: bool,
    /// A field that no gate of the driver's explains: the attribute `model`.
    pub model: bool,
}

impl Gates {
    /// As in Kubernetes 1.36.
    pub const ALL: Self = Self { counters: true, consumable: true, taints: true, model: true };
    /// As in Kubernetes 1.34 and 1.35.
    pub const NONE: Self = Self { counters: false, consumable: false, taints: false, model: true };
}

/// The slice as it would be stored, or what is wrong with it.
pub(crate) fn admit_slice(
    mut slice: Value,
    before: Option<&Value>,
    gates: Gates,
    minor: u32,
) -> Result<Value, Vec<String>> {
    drop_fields(&mut slice, gates);
    complete(&mut slice);
    if let Some(before) = before {
        let fixed =
            ["driver", "nodeName"].map(|field| (&slice["spec"][field], &before["spec"][field]));
        let pools = (&slice["spec"]["pool"]["name"], &before["spec"]["pool"]["name"]);
        if fixed.into_iter().chain([pools]).any(|(now, was)| now != was) {
            return Err(vec!["spec: driver, nodeName and pool.name are immutable".to_owned()]);
        }
    }
    let rules = if minor <= 34 { Rules::Combined } else { Rules::Separate };
    let typed: ResourceSlice =
        serde_json::from_value(slice.clone()).map_err(|error| vec![error.to_string()])?;
    let errors = slice_errors(&typed, rules);
    if errors.is_empty() { Ok(slice) } else { Err(errors) }
}

fn drop_fields(slice: &mut Value, gates: Gates) {
    let spec = &mut slice["spec"];
    if !gates.counters {
        remove(spec, "sharedCounters");
    }
    for device in spec["devices"].as_array_mut().into_iter().flatten() {
        if !gates.counters {
            remove(device, "consumesCounters");
        }
        if !gates.taints {
            remove(device, "taints");
        }
        if !gates.model {
            remove(&mut device["attributes"], "model");
        }
        if !gates.consumable {
            remove(device, "allowMultipleAllocations");
            for capacity in device["capacity"].as_object_mut().into_iter().flatten() {
                remove(capacity.1, "requestPolicy");
            }
        }
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}

/// Fills in times and prints quantities as the API server would.
fn complete(slice: &mut Value) {
    let spec = &mut slice["spec"];
    for device in spec["devices"].as_array_mut().into_iter().flatten() {
        for taint in device["taints"].as_array_mut().into_iter().flatten() {
            if taint["timeAdded"].is_null() {
                taint["timeAdded"] = json!("2026-01-01T00:00:00Z");
            }
        }
        for (_, capacity) in device["capacity"].as_object_mut().into_iter().flatten() {
            print(&mut capacity["value"]);
            let policy = &mut capacity["requestPolicy"];
            if policy.is_null() {
                remove(capacity, "requestPolicy");
                continue;
            }
            print(&mut policy["default"]);
            for field in ["min", "max", "step"] {
                if !policy["validRange"][field].is_null() {
                    print(&mut policy["validRange"][field]);
                }
            }
        }
        for draw in device["consumesCounters"].as_array_mut().into_iter().flatten() {
            print_counters(draw);
        }
        let empty = device.as_object_mut().into_iter();
        for fields in empty {
            fields.retain(|_, value| !value.is_null());
        }
    }
    for set in spec["sharedCounters"].as_array_mut().into_iter().flatten() {
        print_counters(set);
    }
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

fn print_counters(set: &mut Value) {
    for (_, counter) in set["counters"].as_object_mut().into_iter().flatten() {
        print(&mut counter["value"]);
    }
}

fn print(quantity: &mut Value) {
    if let Some(text) = quantity.as_str().and_then(canonical) {
        *quantity = json!(text);
    }
}
