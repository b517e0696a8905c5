//! Each test reads: a claim as the API server writes it, resulting view or refusal.

use super::*;

const CONFIG: &str = r#""apiVersion": "accelpool.dev/v1alpha1", "kind": "ShareConfig""#;

#[track_caller]
fn check(results: &str, config: &str, expected: &[&str]) {
    let claim = format!(
        r#"{{"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {{"namespace": "lab", "name": "train", "uid": "u-1", "labels": null}},
            "status": {{
              "allocation": {{"devices": {{"results": [{results}], "config": [{config}]}}}},
              "reservedFor": [
                {{"resource": "pods", "name": "train-0", "uid": "p-0"}},
                {{"apiGroup": "x.io", "resource": "pods", "name": "no", "uid": "no"}}]}}}}"#
    );
    assert_eq!(shown(&claim), expected);
}

fn shown(claim: &str) -> Vec<String> {
    let claim = serde_json::from_str(claim).expect("the test's JSON is a claim");
    match view(claim, "accelpool.dev") {
        Ok(view) => view.results.iter().map(line).collect(),
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            vec![format!("refused: {error}{}", source.unwrap_or_default())]
        }
    }
}

fn line(result: &AllocationResult) -> String {
    let Consumed { memory, compute } = result.consumed;
    let mut line = format!("{} ({}) = {}", result.request, result.base_request(), result.device);
    let parts = [
        memory.map(|memory| format!("memory {memory}")),
        compute.map(|compute| format!("compute {compute}")),
        result.share_id.as_ref().map(|id| format!("share {id}")),
        result.admin_access.then(|| "admin".to_owned()),
        result.config.weight.map(|weight| format!("weight {weight}")),
        result.config.class.map(|class| format!("class {class}")),
    ];
    for part in parts.into_iter().flatten() {
        line = format!("{line} {part}");
    }
    line
}

fn result(request: &str, device: &str, more: &str) -> String {
    format!(
        r#"{{"request": "{request}", "driver": "accelpool.dev", "pool": "accelpool.dev/n",
            "device": "{device}" {more}}}"#
    )
}

fn config(source: &str, requests: &str, fields: &str) -> String {
    format!(
        r#"{{"source": "{source}", "requests": {requests},
            "opaque": {{"driver": "accelpool.dev", "parameters": {{{CONFIG} {fields}}}}}}}"#
    )
}

#[test]
fn whole_devices_shares_and_admin_access_are_told_apart() {
    let share = r#", "shareID": "a-b", "consumedCapacity": {"memory": "20Gi", "compute": "250"}"#;
    let whole = r#", "consumedCapacity": {"accelpool.dev/memory": "80Gi", "compute": "1k"}"#;
    let results = [
        result("a", "gpu-0", ""),
        result("b", "gpu-1", share),
        result("c", "gpu-2", whole),
        result("d", "gpu-3", r#", "adminAccess": true, "consumedCapacity": null"#),
    ];
    check(
        &results.join(","),
        "",
        &[
            "a (a) = gpu-0",
            "b (b) = gpu-1 memory 20Gi compute 250 share a-b",
            "c (c) = gpu-2 memory 80Gi compute 1000",
            "d (d) = gpu-3 admin",
        ],
    );
}

#[test]
fn other_drivers_are_left_out() {
    let other = r#"{"request": "nic", "driver": "nic.example.com", "pool": "p", "device": "d",
        "consumedCapacity": {"memory": "bad"}}"#;
    let foreign = r#"{"source": "FromClaim", "requests": [],
        "opaque": {"driver": "nic.example.com", "parameters": {"kind": "Nic", "kind": 7}}}"#;
    check(&format!("{other},{}", result("a", "gpu-0", "")), foreign, &["a (a) = gpu-0"]);
}

#[test]
fn claim_overrides_class_wherever_it_stands() {
    let configs = [
        config("FromClaim", "[]", r#", "weight": 200"#),
        config("FromClass", r#"["a"]"#, r#", "weight": 10, "class": "idle""#),
    ];
    check(&result("a", "gpu-0", ""), &configs.join(","), &["a (a) = gpu-0 weight 200 class idle"]);
}

#[test]
fn repeated_entries_are_tolerated_and_the_last_wins() {
    let light = config("FromClaim", r#"["a", "b"]"#, r#", "weight": 1"#);
    let heavy = config("FromClaim", r#"["a"]"#, r#", "weight": 2"#);
    check(
        &[result("a", "gpu-0", ""), result("b", "gpu-1", "")].join(","),
        &[&light, &light, &heavy].map(String::as_str).join(","),
        &["a (a) = gpu-0 weight 2", "b (b) = gpu-1 weight 1"],
    );
}

#[test]
fn alternatives_are_meant_by_full_and_by_base_name() {
    let configs = [
        config("FromClaim", r#"["a"]"#, r#", "class": "idle""#),
        config("FromClaim", r#"["a/big"]"#, r#", "weight": 7"#),
        config("FromClaim", r#"["a/small"]"#, r#", "weight": 1"#),
    ];
    let expected = ["a/big (a) = gpu-0 weight 7 class idle"];
    check(&result("a/big", "gpu-0", ""), &configs.join(","), &expected);
}

#[test]
fn wrong_values_name_their_place() {
    check(
        &result("a", "gpu-0", ""),
        &config("FromClass", "[]", r#", "weight": 5000"#),
        &["refused: the device class's configuration 0 is not valid: `weight` is 5000: use a \
            whole number from 1 to 1000"],
    );
    check(
        &result("a", "gpu-0", r#", "consumedCapacity": {"compute": "2k"}"#),
        "",
        &["refused: allocation result 0 consumes a capacity that is not valid: `compute` is out \
            of range"],
    );
    check(
        &result("a", "gpu-0", ""),
        &config("FromClaim", "null", r#", "weight": 1, "weight": 1000"#),
        &["refused: the claim's configuration 0 is not valid: `weight` is written twice"],
    );
}

#[test]
fn a_claim_without_allocation_is_refused() {
    let metadata = r#""metadata": {"namespace": "lab", "name": "train", "uid": "u-1"}"#;
    for status in ["null", "{}", r#"{"allocation": null, "reservedFor": null}"#] {
        let claim = format!(r#"{{{metadata}, "status": {status}}}"#);
        assert_eq!(shown(&claim), ["refused: claim lab/train is not allocated"]);
    }
}

#[test]
fn only_pods_are_users() {
    let claim = r#"{"metadata": {"namespace": "lab", "name": "train", "uid": "u-1"},
        "status": {"allocation": {}, "reservedFor": [
            {"resource": "pods", "name": "train-0", "uid": "p-0"},
            {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "g"}
        ]}}"#;
    let view = view(serde_json::from_str(claim).unwrap(), "accelpool.dev").unwrap();
    assert_eq!(view.pods, [PodReference { name: "train-0".into(), uid: "p-0".into() }]);
    assert_eq!(view.results, []);
}
