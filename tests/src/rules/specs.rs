//! Whether the CDI folder says exactly what the leases promise.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use accelpool_proto::node::Lease;
use nix::sys::stat::{major, minor};
use serde_json::Value;

use crate::Home;

/// The files of the CDI folder.
pub(super) fn read(home: &Home) -> BTreeMap<String, String> {
    let entries = fs::read_dir(home.cdi()).expect("the CDI folder exists");
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("the CDI folder can be listed");
        let text = fs::read_to_string(entry.path()).expect("a CDI spec can be read");
        (entry.file_name().to_string_lossy().into_owned(), text)
    };
    entries.map(file).collect()
}

/// Specs without a lease, leases without a spec, and specs that say something else.
pub(super) fn faults(specs: &BTreeMap<String, String>, leases: &[Lease]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut left = specs.clone();
    for lease in leases.iter().filter(|lease| lease.state == "prepared") {
        let name = format!("accelpool.dev-claim_{}.json", lease.claim);
        match left.remove(&name) {
            None => faults.push(format!("claim {} has no CDI spec", lease.claim)),
            Some(text) => faults.extend(spec_faults(&name, &text, lease)),
        }
    }
    faults.extend(left.into_keys().map(|name| format!("CDI spec {name} belongs to no lease")));
    faults
}

fn spec_faults(name: &str, text: &str, lease: &Lease) -> Vec<String> {
    let Ok(spec) = serde_json::from_str::<Value>(text) else {
        return vec![format!("{name} is not JSON")];
    };
    let mut faults = Vec::new();
    let none = Vec::new();
    let devices = spec["devices"].as_array().unwrap_or(&none);
    let kind = spec["kind"].as_str().unwrap_or_default();
    let ids: Vec<_> = devices
        .iter()
        .map(|device| format!("{kind}={}", device["name"].as_str().unwrap_or_default()))
        .collect();
    let granted: Vec<_> = lease.allocations.iter().map(|one| one.cdi_id.clone()).collect();
    if ids != granted {
        faults.push(format!("{name} has {ids:?}, its lease was granted {granted:?}"));
    }
    for device in devices {
        let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap_or(&none);
        if nodes.is_empty() {
            faults.push(format!("{name} grants a device without a node"));
        }
        faults.extend(nodes.iter().filter_map(|node| node_fault(name, node)));
        let mounts = device["containerEdits"]["mounts"].as_array().unwrap_or(&none);
        let missing = mounts.iter().filter_map(|mount| mount["hostPath"].as_str());
        let missing = missing.filter(|path| !fs::exists(path).unwrap_or_default());
        faults.extend(missing.map(|path| format!("{name} mounts `{path}`, which is not there")));
    }
    faults
}

fn node_fault(name: &str, node: &Value) -> Option<String> {
    let path = node["hostPath"].as_str().or(node["path"].as_str()).unwrap_or_default();
    let Ok(found) = fs::metadata(path) else {
        return Some(format!("{name} names `{path}`, which is not there"));
    };
    let right = found.file_type().is_char_device()
        && node["type"] == "c"
        && node["major"] == major(found.rdev())
        && node["minor"] == minor(found.rdev());
    (!right).then(|| format!("{name} says {node} of a node with number {:#x}", found.rdev()))
}
