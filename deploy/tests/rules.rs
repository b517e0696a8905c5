//! Rules and alerts: Prometheus takes them, each alert has its page and its two cases, and what
//! the operator is given is the same.

use std::{collections::BTreeSet, env, fs, process::Command};

use accelpool_deploy::{documents, files, path};
use serde_json::{Value, json};

fn rules() -> Value {
    documents("prometheus/rules.yaml").remove(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

fn alerts() -> Vec<Value> {
    let rules = rules();
    let all = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]));
    all.filter(|rule| !rule["alert"].is_null()).cloned().collect()
}

fn names() -> BTreeSet<String> {
    let alerts = alerts();
    let names: BTreeSet<String> = alerts
        .iter()
        .map(|alert| alert["alert"].as_str().expect("an alert has a name").to_owned())
        .collect();
    assert_eq!(names.len(), alerts.len(), "each name once");
    names
}

/// Runs promtool in the rules' folder.
fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(path("prometheus")).output();
    let output = output.expect("promtool is installed: tools/setup.sh does that");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn prometheus_takes_the_rules() {
    promtool(&["check", "rules", "rules.yaml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_only_then() {
    promtool(&["test", "rules", "tests.yaml"]);
    let tests = documents("prometheus/tests.yaml").remove(0);
    let cases = list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"]));
    let (mut fires, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for case in cases {
        let name = case["alertname"].as_str().expect("a case has a name").to_owned();
        let expected = if list(&case["exp_alerts"]).is_empty() { &mut quiet } else { &mut fires };
        expected.insert(name);
    }
    assert_eq!(fires, names(), "cases in which an alert fires");
    assert_eq!(quiet, names(), "cases in which it does not");
}

#[test]
fn each_alert_has_its_page_and_each_page_its_alert() {
    let pages: BTreeSet<String> = files("../docs/runbooks", ".md")
        .into_iter()
        .filter(|name| name != "README.md")
        .map(|name| name.trim_end_matches(".md").to_owned())
        .collect();
    assert_eq!(pages, names());
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("an alert has a name");
        let page = format!("docs/runbooks/{name}.md");
        assert_eq!(alert["annotations"]["runbook_url"], page);
        let text = fs::read_to_string(path("..").join(&page)).expect("a page can be read");
        assert!(text.starts_with(&format!("# {name}\n")), "{page}");
        assert!(text.contains("## What to do\n\n1. "), "{page}");
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
    }
}

/// `ACCELPOOL_UPDATE=1` writes the file anew.
#[test]
fn the_operator_is_given_the_same_rules() {
    let file = path("kustomize/monitoring/rules.json");
    let rule = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": { "name": "accelpool", "labels": { "app.kubernetes.io/name": "accelpool" } },
        "spec": rules(),
    });
    let text = format!("{rule:#}\n");
    if env::var_os("ACCELPOOL_UPDATE").is_some() {
        fs::write(&file, &text).expect("the file can be written");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let remedy = "run `ACCELPOOL_UPDATE=1 cargo test -p accelpool-deploy --test rules`";
    assert!(found == text, "{} is stale: {remedy}", file.display());
}
