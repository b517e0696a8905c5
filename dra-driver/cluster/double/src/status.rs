//! `status.devices` of a claim: server-side apply by the driver that owns the entries.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// The limits of the API.
const CONDITIONS_MAX: usize = 8;
const DATA_LEN_MAX: usize = 10 * 1024;

/// The claim with the entries of `applied` in place of those that the same drivers had.
pub(crate) fn apply(claim: &Value, applied: &Value) -> Result<Value, String> {
    let devices = applied["status"]["devices"].as_array().cloned().unwrap_or_default();
    let results = claim["status"]["allocation"]["devices"]["results"].as_array();
    let allocated: BTreeSet<String> = results.into_iter().flatten().map(key).collect();
    for device in &devices {
        if !allocated.contains(&key(device)) {
            return Err(format!("status.devices: {} is not allocated", key(device)));
        }
        check(device)?;
    }
    let mut merged = claim.clone();
    let drivers: BTreeSet<String> = devices.iter().map(|one| one["driver"].to_string()).collect();
    let before = claim["status"]["devices"].as_array().cloned().unwrap_or_default();
    let others = before.into_iter().filter(|one| !drivers.contains(&one["driver"].to_string()));
    merged["status"]["devices"] = others.chain(devices).collect();
    Ok(merged)
}

/// The drivers that `applied` speaks for.
pub(crate) fn drivers(applied: &Value) -> BTreeSet<String> {
    let devices = applied["status"]["devices"].as_array();
    let driver = |one: &Value| one["driver"].as_str().unwrap_or_default().to_owned();
    devices.into_iter().flatten().map(driver).collect()
}

fn key(device: &Value) -> String {
    ["driver", "pool", "device", "shareID"].map(|field| device[field].to_string()).join("/")
}

fn check(device: &Value) -> Result<(), String> {
    let conditions = device["conditions"].as_array().cloned().unwrap_or_default();
    let filled = |condition: &Value| {
        let fields = ["type", "status", "reason", "lastTransitionTime"];
        fields.iter().all(|field| condition[field].as_str().is_some_and(|text| !text.is_empty()))
    };
    if conditions.len() > CONDITIONS_MAX || !conditions.iter().all(filled) {
        return Err(format!("status.devices.conditions: {}", json!(conditions)));
    }
    let data = &device["data"];
    let good = data.is_null() || data.is_object() && data.to_string().len() <= DATA_LEN_MAX;
    if good { Ok(()) } else { Err("status.devices.data".to_owned()) }
}
