//! Each test reads: one spoilt field of a good slice, resulting complaint.

use serde_json::{Value, json};

use super::*;

fn good() -> Value {
    json!({
        "metadata": { "name": "00000-gpu.example.com-n1" },
        "spec": {
            "driver": "gpu.example.com",
            "pool": { "name": "gpu.example.com/n1", "generation": 1, "resourceSliceCount": 1 },
            "nodeName": "n1",
            "devices": [{
                "name": "gpu-0",
                "allowMultipleAllocations": true,
                "attributes": {
                    "model": { "string": "x" },
                    "driverVersion": { "version": "1.2.3" },
                    "resource.kubernetes.io/numaNode": { "int": 0 },
                },
                "capacity": { "memory": { "value": "80Gi", "requestPolicy": {
                    "default": "80Gi", "validRange": { "min": "64Mi", "step": "64Mi" } } } },
                "consumesCounters": [{ "counterSet": "gpu-0", "counters": { "s": { "value": "1" } } }],
                "taints": [{ "key": "example.com/lost", "effect": "NoSchedule" }],
            }],
        },
    })
}

fn errors(slice: &Value, rules: Rules) -> Vec<String> {
    let slice = serde_json::from_value(slice.clone()).expect("the test's JSON is a slice");
    slice_errors(&slice, rules)
}

/// Puts `value` at the JSON pointer `path`.
fn spoilt(path: &str, value: Value) -> Value {
    let mut slice = good();
    let (parent, field) = path.rsplit_once('/').expect("a path");
    let parent = slice.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
    match field.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[field] = value,
    }
    slice
}

#[track_caller]
fn check(path: &str, value: Value, expected: &str) {
    let found = errors(&spoilt(path, value), Rules::Separate);
    assert!(found.iter().any(|error| error.starts_with(expected)), "`{expected}` not in {found:?}");
}

#[test]
fn a_good_slice_is_good() {
    assert_eq!(errors(&good(), Rules::Separate), [""; 0]);
}

#[test]
fn names_are_checked() {
    check("/metadata/name", json!("UPPER"), "metadata.name");
    check("/spec/driver", json!("a_b"), "driver");
    check("/spec/pool/name", json!("a//b"), "pool.name");
    check("/spec/pool/name", json!("a".repeat(254)), "pool.name");
    check("/spec/devices/0/name", json!("gpu.0"), "device name");
    check("/spec/devices/0/attributes/driver-x", json!({ "int": 1 }), "gpu-0: attribute");
}

#[test]
fn the_pool_is_checked() {
    check("/spec/pool/generation", json!(-1), "pool.generation");
    check("/spec/pool/resourceSliceCount", json!(0), "pool.resourceSliceCount");
    check("/spec/allNodes", json!(true), "exactly one node selection");
    check("/spec/nodeName", json!(null), "exactly one node selection");
}

#[test]
fn devices_are_counted() {
    let many = |count: usize, more: Value| {
        let device = |index: usize| {
            let mut device = more.clone();
            device["name"] = json!(format!("d-{index}"));
            device
        };
        (0..count).map(device).collect::<Value>()
    };
    let path = "/spec/devices";
    assert_eq!(errors(&spoilt(path, many(128, json!({}))), Rules::Separate), [""; 0]);
    check(path, many(129, json!({})), "devices: 129");
    let tainted = json!({ "taints": [{ "key": "a", "effect": "None" }] });
    assert_eq!(errors(&spoilt(path, many(64, tainted.clone())), Rules::Separate), [""; 0]);
    check(path, many(65, tainted), "devices: 65");
    let drawing = json!({ "consumesCounters": [
        { "counterSet": "x", "counters": { "s": { "value": "1" } } }] });
    check(path, many(65, drawing), "devices: 65");
    check(path, json!([{ "name": "a" }, { "name": "a" }]), "devices.name twice");
}

#[test]
fn attributes_are_checked() {
    let at = "/spec/devices/0/attributes/model";
    check(at, json!({ "string": "x".repeat(65) }), "gpu-0: model: 65");
    check(at, json!({ "version": "580.159.04" }), "gpu-0: model: 580.159.04");
    check(at, json!({ "string": "x", "int": 1 }), "gpu-0: model: exactly one");
    check(at, json!({}), "gpu-0: model: exactly one");
    check(at, json!({ "ints": [1] }), "gpu-0: model: lists");
    let many: serde_json::Map<String, Value> =
        (0..32).map(|index| (format!("a{index}"), json!({ "int": 1 }))).collect();
    check("/spec/devices/0/attributes", json!(many), "gpu-0: attributes: 33");
}

#[test]
fn capacities_are_checked() {
    let at = "/spec/devices/0/capacity/memory";
    check(at, json!({ "value": "many" }), "gpu-0: memory: many");
    let policy = |policy: Value| json!({ "value": "80Gi", "requestPolicy": policy });
    let range = |default: &str, min: &str, step: &str| {
        policy(json!({ "default": default, "validRange": { "min": min, "step": step } }))
    };
    check(at, range("100M", "64Mi", "64Mi"), "gpu-0: memory: not a multiple");
    check(at, range("81Gi", "64Mi", "64Mi"), "gpu-0: memory: default");
    check(at, range("80Gi", "80Gi", "64Mi"), "gpu-0: memory: min and step");
    check(at, policy(json!({ "validRange": { "min": "1" } })), "gpu-0: memory: no default");
    let values = policy(json!({ "default": "1Gi", "validValues": ["2Gi", "1Gi"] }));
    check(at, values, "gpu-0: memory: validValues");
    let alone = "/spec/devices/0/allowMultipleAllocations";
    check(alone, json!(null), "gpu-0: memory: requestPolicy without");
}

#[test]
fn counters_are_checked() {
    let at = "/spec/devices/0/consumesCounters";
    let draw = |set: &str, counters: Value| json!({ "counterSet": set, "counters": counters });
    let one = json!({ "s": { "value": "1" } });
    let three = json!([draw("a", one.clone()), draw("b", one.clone()), draw("c", one.clone())]);
    check(at, three, "gpu-0: consumesCounters: 3");
    check(at, json!([draw("a", one.clone()), draw("a", one.clone())]), "gpu-0: counter set twice");
    check(at, json!([draw("a", json!({}))]), "gpu-0: consumesCounters: none");
    check(at, json!([draw("a", json!({ "S": { "value": "1" } }))]), "gpu-0: consumesCounters: S");
    let set = json!([{ "name": "gpu-0", "counters": one }]);
    check("/spec/sharedCounters", set.clone(), "devices and sharedCounters");
    let mut alone = spoilt("/spec/sharedCounters", set.clone());
    alone["spec"]["devices"] = json!(null);
    assert_eq!(errors(&alone, Rules::Separate), [""; 0]);
    let nine: Value = (0..9)
        .map(|index| json!({ "name": format!("s-{index}"), "counters": set[0]["counters"] }))
        .collect();
    check("/spec/sharedCounters", nine, "sharedCounters: 9");
}

#[test]
fn kubernetes_1_34_has_rules_of_its_own() {
    let set = json!([{ "name": "gpu-0", "counters": { "s": { "value": "1" } } }]);
    assert_eq!(errors(&spoilt("/spec/sharedCounters", set), Rules::Combined), [""; 0]);
    let other = json!([{ "name": "other", "counters": { "s": { "value": "1" } } }]);
    let found = errors(&spoilt("/spec/sharedCounters", other), Rules::Combined);
    assert_eq!(found, ["gpu-0: counter set: gpu-0"]);
    let taints: Value =
        (0..5).map(|index| json!({ "key": format!("k{index}"), "effect": "None" })).collect();
    let found = errors(&spoilt("/spec/devices/0/taints", taints), Rules::Combined);
    assert!(found.contains(&"gpu-0: taints: 5 are more than 4".to_owned()), "{found:?}");
}

#[test]
fn taints_are_checked() {
    let at = "/spec/devices/0/taints";
    let taint = |key: &str, value: &str, effect: &str| json!([{ "key": key, "value": value, "effect": effect }]);
    check(at, taint("a b", "", "None"), "gpu-0: taint: a b");
    check(at, taint("a", "a b", "None"), "gpu-0: taint: a b");
    check(at, taint("a", "", "Evict"), "gpu-0: taint: Evict");
    let twice = json!([{ "key": "a", "effect": "None" }, { "key": "a", "effect": "None" }]);
    check(at, twice, "gpu-0: taint twice");
}

#[test]
fn a_pool_is_judged_as_a_whole() {
    let spec = |edit: fn(&mut Value)| -> ResourceSliceSpec {
        let mut spec = good()["spec"].clone();
        spec["pool"]["resourceSliceCount"] = json!(2);
        edit(&mut spec);
        serde_json::from_value(spec).expect("a spec")
    };
    let devices = spec(|_| {});
    let counters = spec(|spec| {
        spec["devices"] = json!(null);
        spec["sharedCounters"] =
            json!([{ "name": "gpu-0", "counters": { "s": { "value": "1" } } }]);
    });
    assert_eq!(pool_errors(&[devices.clone(), counters.clone()]), [""; 0]);
    assert!(!pool_errors(std::slice::from_ref(&devices)).is_empty(), "a slice is missing");
    assert!(
        !pool_errors(&[devices.clone(), devices.clone()]).is_empty(),
        "a device is there twice"
    );
    let newer = spec(|spec| {
        spec["devices"] = json!(null);
        spec["pool"]["generation"] = json!(2);
    });
    assert!(!pool_errors(&[devices.clone(), newer]).is_empty(), "generations are mixed");
    let other = spec(|spec| {
        spec["devices"] = json!(null);
        spec["sharedCounters"] =
            json!([{ "name": "gpu-0", "counters": { "t": { "value": "1" } } }]);
    });
    assert_eq!(pool_errors(&[devices, other]), ["gpu-0: counter set: s"]);
}
