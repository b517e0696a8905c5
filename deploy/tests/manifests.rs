//! The base against the code: names, paths, ports, rights.

use accelpool_cluster::DRIVER_NAME;
use accelpool_daemon::config::{Config as DaemonConfig, VendorConfig};
use accelpool_deploy::{base, documents, files, object, path};
use accelpool_dra_driver::{config::Config as DriverConfig, driver::SocketPaths, otel};
use serde_json::{Value, json};

const NAMESPACE: &str = "accelpool-system";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn pod() -> Value {
    object("DaemonSet", "accelpool")["spec"]["template"]["spec"].clone()
}

fn container(name: &str) -> Value {
    let pod = pod();
    let found = list(&pod["containers"]).iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("no container `{name}`")).clone()
}

/// Where a container sees which volume, and whether it may write.
fn mounts(container: &Value) -> Vec<(String, Value, bool)> {
    let pod = pod();
    let volume = |name: &Value| {
        list(&pod["volumes"]).iter().find(|one| one["name"] == *name).expect("a volume").clone()
    };
    let mounts = list(&container["volumeMounts"]).iter();
    let mount = |mount: &Value| {
        let writable = mount["readOnly"] != json!(true);
        (text(&mount["mountPath"]).to_owned(), volume(&mount["name"]), writable)
    };
    mounts.map(mount).collect()
}

/// Checks that what the program does at `file` happens on the host, at the same path.
#[track_caller]
fn check_on_host(container_name: &str, file: &std::path::Path, write: bool) {
    let container = container(container_name);
    let mounts = mounts(&container);
    let holds = |(at, volume, writable): &&(String, Value, bool)| {
        file.starts_with(at) && volume["hostPath"]["path"] == **at && (*writable || !write)
    };
    assert!(mounts.iter().any(|mount| holds(&mount)), "{container_name}: {}", file.display());
}

#[test]
fn every_file_of_the_base_is_listed() {
    let [listed] = documents("kustomize/base/kustomization.yaml").try_into().expect("one document");
    let mut resources: Vec<String> =
        list(&listed["resources"]).iter().map(|name| text(name).to_owned()).collect();
    resources.push("kustomization.yaml".to_owned());
    resources.sort();
    assert_eq!(resources, files("kustomize/base", ".yaml"));
    let configs = &listed["configMapGenerator"][0];
    assert_eq!(
        configs["files"],
        json!(files("kustomize/base", ".toml").iter().rev().collect::<Vec<_>>())
    );
    assert_eq!(configs["name"], "accelpool");
    assert_eq!(listed["namespace"], NAMESPACE);
    for one in base() {
        let namespaced = ["ServiceAccount", "NetworkPolicy", "DaemonSet"];
        let expected = namespaced.contains(&text(&one["kind"])).then_some(NAMESPACE);
        assert_eq!(one["metadata"]["namespace"].as_str(), expected, "{one}");
    }
}

#[test]
fn the_daemon_is_privileged_and_knows_no_cluster() {
    let daemon = container("daemon");
    assert_eq!(daemon["securityContext"]["privileged"], true);
    assert_eq!(daemon["securityContext"]["readOnlyRootFilesystem"], true);
    let command = list(&daemon["command"]);
    assert_eq!(command[0], "/usr/bin/accelpoold");
    assert!(command.contains(&json!("--no-network")), "{command:?}");
    assert_eq!((&daemon["ports"], &daemon["env"]), (&Value::Null, &Value::Null));
    let foreign = ["secret", "projected", "configMap"];
    for (at, volume, writable) in mounts(&daemon) {
        let kinds = foreign.iter().filter(|kind| !volume[**kind].is_null());
        assert!(kinds.count() == 0 || at == "/etc/accelpool" && !writable, "{at}: {volume}");
        assert!(!at.contains("secrets") && !at.contains("kubelet"), "{at}");
    }
    let pod = pod();
    assert_eq!(pod["automountServiceAccountToken"], false);
    // It tells tenants by their processes, as the host numbers them.
    assert_eq!(pod["hostPID"], true);
    for shared in ["hostNetwork", "hostIPC", "shareProcessNamespace"] {
        assert_eq!(pod[shared], Value::Null, "{shared}");
    }
}

#[test]
fn the_driver_has_no_privilege() {
    let security = &container("driver")["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    let granted = ["/dev", "/sys", "/var/run/cdi", "/var/lib/accelpool"];
    for (at, _, _) in mounts(&container("driver")) {
        assert!(!granted.iter().any(|path| at.starts_with(path)), "the driver sees {at}");
    }
}

fn driver_config() -> DriverConfig {
    DriverConfig::read(&path("kustomize/base/accelpool-dra.toml")).expect("a valid configuration")
}

fn daemon_config() -> DaemonConfig {
    DaemonConfig::load(&path("kustomize/base/accelpoold.toml")).expect("a valid configuration")
}

#[test]
fn both_programs_find_their_files_on_the_host() {
    let daemon = daemon_config();
    check_on_host("daemon", &daemon.socket(), true);
    check_on_host("daemon", &daemon.ledger(), true);
    check_on_host("daemon", &daemon.cdi_dir, true);
    check_on_host("daemon", &daemon.gate.pins, true);
    check_on_host("daemon", "/sys/fs/cgroup/kubepods.slice".as_ref(), true);
    check_on_host("daemon", "/dev/null".as_ref(), true);
    let driver = driver_config();
    assert_eq!(driver.node_socket, daemon.socket());
    check_on_host("driver", &driver.node_socket, false);
    let SocketPaths { service, registration } = SocketPaths::new(&driver.kubelet_root, "uid");
    check_on_host("driver", &service, true);
    check_on_host("driver", &registration, true);
    let kubelet = &driver.kubelet_root;
    check_on_host("driver", &kubelet.join("device-plugins/kubelet.sock"), true);
    check_on_host("driver", &kubelet.join("pod-resources/kubelet.sock"), false);
    check_on_host("driver", &driver.nri.expect("it is on by default").socket, false);
}

#[test]
fn the_configurations_are_mounted_where_they_are_looked_for() {
    let config = path("kustomize/base");
    for (name, program) in [("daemon", "accelpoold.toml"), ("driver", "accelpool-dra.toml")] {
        assert!(config.join(program).is_file());
        let container = container(name);
        let mounts = mounts(&container);
        let folder = mounts.iter().find(|(at, _, _)| at == "/etc/accelpool").expect("a mount");
        assert_eq!(folder.1["configMap"]["name"], "accelpool");
    }
    assert_eq!(accelpool_daemon::config::DEFAULT_PATH, "/etc/accelpool/accelpoold.toml");
    let driver = container("driver");
    let env = list(&driver["env"]).iter().find(|one| one["name"] == "ACCELPOOL_DRA_CONFIG");
    assert_eq!(env.map(|one| &one["value"]), Some(&json!("/etc/accelpool/accelpool-dra.toml")));
}

#[test]
fn probes_and_policy_name_the_drivers_port() {
    let port = driver_config().listen.expect("the driver serves its health").port();
    let driver = container("driver");
    assert_eq!(
        driver["ports"],
        json!([{ "name": "http", "containerPort": port, "protocol": "TCP" }])
    );
    for (probe, at) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(driver[probe]["httpGet"], json!({ "path": at, "port": "http" }));
    }
    let policy = object("NetworkPolicy", "accelpool");
    let open = json!([{ "ports": [{ "protocol": "TCP", "port": port }] }]);
    assert_eq!(policy["spec"]["ingress"], open);
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let labels = &object("DaemonSet", "accelpool")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], *labels);
}

#[test]
fn the_token_is_bound_to_the_pod_and_seen_by_the_driver_alone() {
    let driver = container("driver");
    let mounts = mounts(&driver);
    let at = "/var/run/secrets/kubernetes.io/serviceaccount";
    let token = mounts.iter().find(|mount| mount.0 == at).expect("the driver has a token");
    let sources = list(&token.1["projected"]["sources"]);
    let bound = sources.iter().find(|source| !source["serviceAccountToken"].is_null());
    assert_eq!(bound.map(|source| &source["serviceAccountToken"]["path"]), Some(&json!("token")));
    let account = text(&pod()["serviceAccountName"]).to_owned();
    assert_eq!(object("ServiceAccount", &account)["automountServiceAccountToken"], false);
    let subject = &object("ClusterRoleBinding", "accelpool-dra")["subjects"];
    let expected = json!([{ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE }]);
    assert_eq!(*subject, expected);
}

#[test]
fn an_update_loses_no_call() {
    let set = object("DaemonSet", "accelpool");
    let update = json!({ "maxSurge": 1, "maxUnavailable": 0 });
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"], update);
    let grace = pod()["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace > daemon_config().drain_timeout.as_secs(), "{grace}");
    let labels = &object("Namespace", NAMESPACE)["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    let class = object("PriorityClass", text(&pod()["priorityClassName"]));
    // The API server's limit for classes that are not the system's own.
    assert!(class["value"].as_i64().is_some_and(|value| value <= 1_000_000_000), "{class}");
}

#[test]
fn the_drivers_name_is_the_same_everywhere() {
    let role = object("ClusterRole", "accelpool-dra");
    let rules = list(&role["rules"]);
    let own = rules.iter().find(|rule| rule["resources"] == json!(["resourceclaims/driver"]));
    assert_eq!(own.map(|rule| &rule["resourceNames"]), Some(&json!([DRIVER_NAME])));
    let plugins = format!("/var/lib/kubelet/plugins/{DRIVER_NAME}");
    assert!(mounts(&container("driver")).iter().any(|(at, _, _)| *at == plugins));
    for class in documents("kustomize/base/classes.yaml") {
        let name = text(&class["metadata"]["name"]);
        assert!(name.ends_with(&format!(".{DRIVER_NAME}")), "{name}");
        let expression = text(&class["spec"]["selectors"][0]["cel"]["expression"]);
        assert!(
            expression.starts_with(&format!("device.driver == \"{DRIVER_NAME}\" &&")),
            "{expression}"
        );
    }
}

#[test]
fn the_pod_monitor_finds_the_drivers_port() {
    let [monitor] =
        documents("kustomize/monitoring/podmonitor.yaml").try_into().expect("one document");
    let pod = &object("DaemonSet", "accelpool")["spec"]["template"];
    let selected = monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels");
    for (key, value) in selected {
        assert_eq!(pod["metadata"]["labels"][key], *value, "{key}");
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let ports = &container("driver")["ports"];
    assert!(list(ports).iter().any(|port| port["name"] == endpoint["port"]), "{ports}");
    assert_eq!(endpoint["path"], "/metrics");
    let [listed] =
        documents("kustomize/monitoring/kustomization.yaml").try_into().expect("one document");
    assert_eq!(listed["namespace"], NAMESPACE);
    assert_eq!(listed["resources"], json!(["../base", "podmonitor.yaml", "rules.json"]));
}

/// What holds for the base holds for it.
#[test]
fn the_simulated_overlay_changes_the_vendor_alone() {
    let [listed] =
        documents("kustomize/simulated/kustomization.yaml").try_into().expect("one document");
    assert_eq!(
        (&listed["namespace"], &listed["resources"]),
        (&json!(NAMESPACE), &json!(["../base"]))
    );
    let merged =
        json!([{ "name": "accelpool", "behavior": "merge", "files": ["accelpoold.toml"] }]);
    assert_eq!(listed["configMapGenerator"], merged);
    let file = path("kustomize/simulated/accelpoold.toml");
    let mut config = DaemonConfig::load(&file).expect("a valid configuration");
    let base = daemon_config();
    let [VendorConfig::Sim { dir, .. }] = config.vendors.as_slice() else {
        panic!("{:?}", config.vendors)
    };
    check_on_host("daemon", dir, true);
    config.vendors.clone_from(&base.vendors);
    assert_eq!(config, base);
}

/// What `kubectl kustomize` would make of it, as far as it matters: the driver takes the variables,
/// and the network lets it reach what they name.
#[test]
fn the_tracing_overlay_is_understood_by_the_driver() {
    let [listed] =
        documents("kustomize/tracing/kustomization.yaml").try_into().expect("one document");
    assert_eq!(listed["resources"], json!(["../base"]));
    let patches = list(&listed["patches"]).iter().map(|patch| text(&patch["path"]).to_owned());
    assert_eq!(patches.collect::<Vec<_>>(), ["driver.yaml", "network.yaml"]);
    let [patch] = documents("kustomize/tracing/driver.yaml").try_into().expect("one document");
    let base = object("DaemonSet", "accelpool");
    for key in ["name", "namespace"] {
        assert_eq!(patch["metadata"][key], base["metadata"][key], "{key}");
    }
    let containers = list(&patch["spec"]["template"]["spec"]["containers"]);
    assert_eq!(containers.len(), 1, "the daemon has no network and takes no variables");
    assert_eq!(containers[0]["name"], "driver");
    let variables = list(&containers[0]["env"]);
    let settings = otel::Settings::from_environment(&|name| {
        let found = variables.iter().find(|variable| variable["name"] == name)?;
        Some(text(&found["value"]).to_owned())
    });
    let settings = settings.expect("the driver takes them").expect("they name a collector");
    let port = settings.traces.expect("traces are exported").endpoint.port_u16();
    let [rules] = documents("kustomize/tracing/network.yaml").try_into().expect("one document");
    let [rule] = list(&rules) else { panic!("{rules}") };
    assert_eq!((&rule["op"], &rule["path"]), (&json!("add"), &json!("/spec/egress/-")));
    assert!(object("NetworkPolicy", "accelpool")["spec"]["egress"].is_array());
    let opened = list(&rule["value"]["ports"]).iter().map(|it| it["port"].as_u64());
    assert!(opened.collect::<Vec<_>>().contains(&port.map(u64::from)), "{rule}");
}
