//! The expressions of the manifests, evaluated: the admission policy on writes by friend and
//! foe, the classes and the examples on the devices of whole nodes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use accelpool_cluster::{DRIVER_NAME, Device, Features, NodeState, ShareConfig, pages};
use accelpool_deploy::{documents, files, object, path};
use accelpool_proto::node as wire;
use cel::{Context, Env, Value as CelValue, extractors::This};
use serde_json::{Value, json};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// JSON as an expression sees it.
fn value(json: &Value) -> CelValue {
    cel::to_value(json).expect("JSON becomes a value")
}

fn evaluate(expression: &str, variables: &[(&str, CelValue)]) -> CelValue {
    let env = Arc::new(Env::stdlib());
    let program = env.compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut context = Context::with_env(env);
    context.add_function("quantity", quantity).expect("no other `quantity`");
    context.add_function("compareTo", compare).expect("no other `compareTo`");
    for (name, value) in variables {
        context.add_variable_from_value(*name, value.clone());
    }
    program.execute(&context).unwrap_or_else(|error| panic!("{expression}: {error}"))
}

/// Quantities are plain numbers here: bytes and thousandths.
#[expect(clippy::needless_pass_by_value, reason = "the interpreter hands it over")]
fn quantity(text: Arc<String>) -> u64 {
    bytes(&text)
}

fn compare(This(one): This<u64>, other: u64) -> i64 {
    one.cmp(&other) as i64
}

fn bytes(text: &str) -> u64 {
    let units = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10), ("k", 1000), ("", 1)];
    let (suffix, unit) = units.into_iter().find(|(suffix, _)| text.ends_with(suffix)).expect("''");
    text.strip_suffix(suffix).and_then(|number| number.parse::<u64>().ok()).expect("a number")
        * unit
}

fn holds(expression: &str, variables: &[(&str, CelValue)]) -> bool {
    let found = evaluate(expression, variables);
    let CelValue::Bool(found) = found else { panic!("{expression}: {found:?}") };
    found
}

// ---- the admission policy

/// Whether the policy is asked about a write, and if so whether it lets it pass.
fn judged(request: &Value, object_after: &Value, object_before: &Value) -> Option<bool> {
    let policy = object("ValidatingAdmissionPolicy", "accelpool-dra-own-node");
    let spec = &policy["spec"];
    let mut known = vec![
        ("request", value(request)),
        ("object", value(object_after)),
        ("oldObject", value(object_before)),
    ];
    let asked = list(&spec["matchConditions"]).iter();
    if !asked.map(|one| text(&one["expression"])).all(|condition| holds(condition, &known)) {
        return None;
    }
    let mut variables: HashMap<String, CelValue> = HashMap::new();
    for one in list(&spec["variables"]) {
        let mut known = known.clone();
        known.push(("variables", variables.clone().into()));
        let found = evaluate(text(&one["expression"]), &known);
        variables.insert(text(&one["name"]).to_owned(), found);
    }
    known.push(("variables", variables.into()));
    Some(list(&spec["validations"]).iter().all(|one| holds(text(&one["expression"]), &known)))
}

fn write(operation: &str, username: &str, node: Option<&str>) -> Value {
    let mut request =
        json!({ "operation": operation, "userInfo": { "username": username, "groups": [] } });
    if let Some(node) = node {
        request["userInfo"]["extra"] = json!({ "authentication.kubernetes.io/node-name": [node] });
    }
    request
}

fn slice(node: Option<&str>, driver: &str) -> Value {
    let mut slice = json!({ "spec": { "driver": driver } });
    if let Some(node) = node {
        slice["spec"]["nodeName"] = json!(node);
    }
    slice
}

/// The account that the pod runs as, as the API server knows it.
fn account() -> String {
    let set = object("DaemonSet", "accelpool");
    let namespace = text(&set["metadata"]["namespace"]);
    let name = text(&set["spec"]["template"]["spec"]["serviceAccountName"]);
    format!("system:serviceaccount:{namespace}:{name}")
}

#[test]
fn the_driver_writes_its_own_nodes_slices_and_no_others() {
    let own = slice(Some("n1"), DRIVER_NAME);
    let cases = [
        (own.clone(), Some("n1"), true),
        (slice(Some("n2"), DRIVER_NAME), Some("n1"), false),
        (slice(None, DRIVER_NAME), Some("n1"), false),
        (slice(Some("n1"), "gpu.example.com"), Some("n1"), false),
        (own, None, false),
        (slice(None, DRIVER_NAME), None, false),
        (slice(Some(""), DRIVER_NAME), Some(""), false),
    ];
    for (slice, node, allowed) in &cases {
        for operation in ["CREATE", "UPDATE"] {
            let request = write(operation, &account(), *node);
            assert_eq!(judged(&request, slice, &Value::Null), Some(*allowed), "{slice} {node:?}");
        }
        let request = write("DELETE", &account(), *node);
        assert_eq!(judged(&request, &Value::Null, slice), Some(*allowed), "{slice} {node:?}");
    }
}

#[test]
fn others_are_not_asked() {
    let foreign = slice(Some("n2"), "gpu.example.com");
    for username in [
        "system:node:n1",
        "system:serviceaccount:kube-system:generic-garbage-collector",
        "kubernetes-admin",
        "system:serviceaccount:other:nvidia-dra",
        "accelpool-dra",
    ] {
        let request = write("DELETE", username, None);
        assert_eq!(judged(&request, &Value::Null, &foreign), None, "{username}");
    }
}

#[test]
fn another_namespace_does_not_switch_the_policy_off() {
    let request = write("CREATE", "system:serviceaccount:gpu-stack:accelpool-dra", Some("n1"));
    assert_eq!(judged(&request, &slice(Some("n2"), DRIVER_NAME), &Value::Null), Some(false));
}

#[test]
fn the_policy_is_bound_and_fails_closed() {
    let policy = object("ValidatingAdmissionPolicy", "accelpool-dra-own-node");
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    assert_eq!(rule["operations"], json!(["CREATE", "UPDATE", "DELETE"]));
    assert_eq!(rule["apiVersions"], json!(["v1", "v1beta2", "v1beta1"]));
    let binding = object("ValidatingAdmissionPolicyBinding", "accelpool-dra-own-node");
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
}

// ---- classes and examples

fn profile(name: &str, gib: u64, starts: &[u32], size: u32) -> wire::Profile {
    wire::Profile {
        name: name.to_owned(),
        memory_bytes: gib << 30,
        compute_permille: 1000 * size / 8,
        size,
        starts: starts.to_vec(),
        counted: false,
        instances_max: 7,
    }
}

/// Two GPUs on one fabric that can be cut and shared, an NPU and an FPGA.
fn node(features: Features) -> Vec<Device> {
    let device = |name: &str, kind: &str, cut: bool| wire::Device {
        name: name.to_owned(),
        uuid: format!("uuid-{name}"),
        vendor: "sim".to_owned(),
        kind: kind.to_owned(),
        pci_address: "0000:3b:00.0".to_owned(),
        memory_bytes: 80 << 30,
        numa_node: Some(0),
        fabric_clique: Some("clique-1".to_owned()),
        pool: "all".to_owned(),
        present: true,
        partitioning: cut.then(|| wire::Partitioning {
            scheme: "mig".to_owned(),
            slices: 8,
            uniform: false,
            profiles: vec![
                profile("1g.10gb", 10, &[0, 1, 2], 1),
                profile("3g.40gb", 40, &[0, 4], 4),
            ],
        }),
        ..wire::Device::default()
    };
    let pool = wire::Pool {
        name: "all".to_owned(),
        exposure: "dra".to_owned(),
        sharing: "any".to_owned(),
        devices: Vec::new(),
        ..wire::Pool::default()
    };
    let state = wire::WatchNodeResponse {
        revision: 1,
        devices: vec![
            device("gpu-0", "gpu", true),
            device("gpu-1", "gpu", true),
            device("npu-0", "npu", false),
            device("fpga-0", "fpga", false),
        ],
        pools: vec![pool],
        ..wire::WatchNodeResponse::default()
    };
    let pages = pages(&NodeState::from_wire(&state), features);
    assert_eq!(pages.omitted, [""; 0]);
    pages.pages.into_iter().flat_map(|page| page.devices).collect()
}

/// A device as selectors see it.
fn seen(device: &Device) -> Value {
    let mut attributes = json!({ DRIVER_NAME: {} });
    for (name, value) in device.attributes.iter().flatten() {
        let (domain, name) = name.split_once('/').unwrap_or((DRIVER_NAME, name));
        let number = value.int.map(|number| json!(number));
        let text = value.string.as_ref().or(value.version.as_ref()).map(|text| json!(text));
        attributes[domain][name] = text.or(number).expect("one value");
    }
    let mut capacity = json!({ DRIVER_NAME: {} });
    for (name, value) in device.capacity.iter().flatten() {
        capacity[DRIVER_NAME][name] = json!(bytes(&value.value.0));
    }
    json!({ "driver": DRIVER_NAME, "attributes": attributes, "capacity": capacity })
}

fn class_selectors(class: &str) -> Vec<String> {
    let class = object("DeviceClass", class);
    list(&class["spec"]["selectors"]).iter().map(selector).collect()
}

fn selector(selector: &Value) -> String {
    text(&selector["cel"]["expression"]).to_owned()
}

fn selected(selectors: &[String], devices: &[Device]) -> Vec<String> {
    let fits = |device: &&Device| {
        let seen = [("device", value(&seen(device)))];
        selectors.iter().all(|selector| holds(selector, &seen))
    };
    devices.iter().filter(fits).map(|device| device.name.clone()).collect()
}

#[test]
fn classes_select_what_they_are_named_after() {
    let devices = node(Features::ALL);
    let of = |class: &str| selected(&class_selectors(class), &devices);
    assert_eq!(of("gpu.accelpool.dev"), ["gpu-0", "gpu-1"]);
    assert_eq!(of("npu.accelpool.dev"), ["npu-0"]);
    assert_eq!(of("fpga.accelpool.dev"), ["fpga-0"]);
    assert_eq!(of("share.accelpool.dev"), [""; 0]);
    let entries = ["fpga-0-admin", "gpu-0-admin", "gpu-1-admin", "npu-0-admin"];
    let mut admin = of("admin.accelpool.dev");
    admin.sort();
    assert_eq!(admin, entries);
    let partitions = of("partition.accelpool.dev");
    assert_eq!(partitions.len(), 10, "{partitions:?}");
    let fixed = node(Features { consumable: false, ..Features::ALL });
    assert_eq!(selected(&class_selectors("gpu.accelpool.dev"), &fixed), ["gpu-0", "gpu-1"]);
    let shares = selected(&class_selectors("share.accelpool.dev"), &fixed);
    assert_eq!(shares.len(), 16, "{shares:?}");
}

#[test]
fn classes_are_extended_resources_by_the_device_plugins_names() {
    for kind in ["gpu", "npu", "fpga"] {
        let class = object("DeviceClass", &format!("{kind}.{DRIVER_NAME}"));
        assert_eq!(class["spec"]["extendedResourceName"], format!("{DRIVER_NAME}/{kind}"));
    }
}

/// All requests of a claim, alternatives included, with the names that name them.
fn requests(claim: &Value) -> Vec<(String, Value)> {
    let mut requests = Vec::new();
    for request in list(&claim["devices"]["requests"]) {
        let name = text(&request["name"]);
        if !request["exactly"].is_null() {
            requests.push((name.to_owned(), request["exactly"].clone()));
        }
        for one in list(&request["firstAvailable"]) {
            requests.push((format!("{name}/{}", text(&one["name"])), one.clone()));
        }
    }
    requests
}

fn templates(file: &str) -> Vec<Value> {
    let documents = documents(&format!("examples/{file}"));
    documents.into_iter().filter(|one| one["kind"] == "ResourceClaimTemplate").collect()
}

#[test]
fn every_request_of_the_examples_can_be_met() {
    let devices = node(Features::ALL);
    for file in files("examples", ".yaml") {
        for template in templates(&file) {
            let claim = &template["spec"]["spec"];
            for (name, request) in requests(claim) {
                let mut selectors = class_selectors(text(&request["deviceClassName"]));
                selectors.extend(list(&request["selectors"]).iter().map(selector));
                let found = selected(&selectors, &devices);
                let count = request["count"].as_u64().unwrap_or(1);
                assert!(found.len() as u64 >= count, "{file}: {name} finds {found:?}");
                let shared: Vec<&Device> =
                    devices.iter().filter(|device| found.contains(&device.name)).collect();
                check_capacity(&request["capacity"]["requests"], shared[0], &file);
            }
        }
    }
}

#[track_caller]
fn check_capacity(requests: &Value, device: &Device, file: &str) {
    for (name, amount) in requests.as_object().into_iter().flatten() {
        let capacity = &device.capacity.as_ref().expect("capacities")[name];
        let policy = capacity.request_policy.as_ref().expect("the device can be shared");
        let step = policy.valid_range.as_ref().and_then(|range| range.step.clone());
        let step = bytes(&step.expect("a step").0);
        let amount = bytes(text(amount));
        let most = bytes(&capacity.value.0);
        assert!(amount.is_multiple_of(step) && amount <= most, "{file}: {name} {amount} of {most}");
    }
}

#[test]
fn the_examples_configurations_are_decoded() {
    let mut decoded = 0;
    for file in files("examples", ".yaml") {
        for template in templates(&file) {
            let claim = &template["spec"]["spec"];
            let names: BTreeSet<String> =
                requests(claim).into_iter().map(|(name, _)| name).collect();
            for config in list(&claim["devices"]["config"]) {
                assert_eq!(config["opaque"]["driver"], DRIVER_NAME, "{file}");
                let parameters = config["opaque"]["parameters"].to_string();
                let config_of = ShareConfig::decode(&parameters);
                assert!(config_of.is_ok(), "{file}: {config_of:?}");
                for request in list(&config["requests"]) {
                    assert!(names.contains(text(request)), "{file}: {request}");
                }
                decoded += 1;
            }
            for constraint in list(&claim["devices"]["constraints"]) {
                let (domain, name) =
                    text(&constraint["matchAttribute"]).split_once('/').expect("a full name");
                let device = seen(&node(Features::ALL)[0]);
                assert!(!device["attributes"][domain][name].is_null(), "{file}: {constraint}");
            }
        }
    }
    assert_eq!(decoded, 3, "every configuration was looked at");
}

#[test]
fn pods_of_the_examples_use_the_claims_beside_them() {
    let listed = std::fs::read_to_string(path("examples/README.md")).expect("the list");
    let mut asked = BTreeSet::new();
    for file in files("examples", ".yaml") {
        assert!(listed.contains(&format!("`{file}`")), "README.md does not list {file}");
        let templates: BTreeSet<String> = templates(&file)
            .iter()
            .map(|template| text(&template["metadata"]["name"]).to_owned())
            .collect();
        let documents = documents(&format!("examples/{file}"));
        let pod = documents.iter().find(|one| one["kind"] == "Pod").expect("a pod");
        let claims = list(&pod["spec"]["resourceClaims"]);
        let used: BTreeSet<String> = claims
            .iter()
            .map(|claim| text(&claim["resourceClaimTemplateName"]).to_owned())
            .collect();
        assert_eq!(used, templates, "{file}");
        for container in list(&pod["spec"]["containers"]) {
            for claim in list(&container["resources"]["claims"]) {
                assert!(claims.iter().any(|one| one["name"] == claim["name"]), "{file}: {claim}");
            }
            let limits = container["resources"]["limits"].as_object();
            asked.extend(limits.into_iter().flatten().map(|(name, _)| name.clone()));
        }
    }
    assert_eq!(asked, BTreeSet::from([format!("{DRIVER_NAME}/gpu")]));
}
