//! The dashboards against their code and against the series that exist.

use std::{collections::BTreeSet, env, fs};

use accelpool_deploy::{
    dashboards::{all, filled},
    documents, path,
};
use accelpool_dra_driver::metrics::series::{ALL, Kind};

const FOLDER: &str = "kustomize/monitoring/dashboards";

/// Names that a query may ask for.
fn known() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for series in ALL {
        let name = series.full_name();
        if series.kind == Kind::Histogram {
            known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
        }
        known.insert(name);
    }
    // What the driver counts of itself, and the records of the rules.
    let reference = fs::read_to_string(path("../docs/metrics.md")).expect("there is a reference");
    for row in reference.lines().filter_map(|line| line.strip_prefix("| `")) {
        let name = row.split('`').next().expect("a row names a series").to_owned();
        if row.contains("| histogram |") {
            known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
        }
        known.insert(name);
    }
    let rules = fs::read_to_string(path("prometheus/rules.yaml")).expect("there are rules");
    let records = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    known.extend(records.map(str::to_owned));
    known
}

/// The names in a query that are this product's.
fn names(query: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    query
        .split(|c| !is_part(c))
        .filter(|word| word.starts_with("accelpool_") || word.starts_with("accelpool:"))
        .collect()
}

#[test]
fn panels_ask_for_nothing_that_does_not_exist() {
    let known = known();
    for dashboard in all() {
        for panel in &dashboard.panels {
            for (query, _) in &panel.queries {
                let asked = names(query);
                assert!(!asked.is_empty(), "{}: {query}", panel.title);
                for name in asked {
                    assert!(known.contains(name), "{}: no series {name}", panel.title);
                }
                assert!(!filled(query, "5m").contains('$'), "{query}");
                // What is chosen on the dashboard is chosen in each of its queries.
                for variable in dashboard.variables {
                    let chosen = format!("{0}=~\"${0}\"", variable.label);
                    assert!(query.contains(&chosen), "{}: {query}", panel.title);
                }
            }
        }
        assert!(dashboard.variables.iter().all(|variable| known.contains(variable.of)));
        let titles: BTreeSet<_> = dashboard.panels.iter().map(|panel| panel.title).collect();
        assert_eq!(titles.len(), dashboard.panels.len(), "{}", dashboard.name);
    }
}

#[test]
fn rules_and_docs_ask_for_nothing_that_does_not_exist() {
    let known = known();
    for file in ["prometheus/rules.yaml", "prometheus/tests.yaml", "../docs/usage.md"] {
        let text = fs::read_to_string(path(file)).expect("it is there");
        for name in names(&text).into_iter().filter(|name| !name.ends_with('_')) {
            assert!(known.contains(name), "{file}: no series {name}");
        }
    }
}

/// `ACCELPOOL_UPDATE=1` writes the files anew.
#[test]
fn the_files_are_fresh() {
    let folder = path(FOLDER);
    let mut expected = BTreeSet::new();
    for dashboard in all() {
        let name = format!("{}.json", dashboard.name);
        let text = format!("{:#}\n", dashboard.json());
        if env::var_os("ACCELPOOL_UPDATE").is_some() {
            fs::create_dir_all(&folder).expect("the folder can be made");
            fs::write(folder.join(&name), &text).expect("the file can be written");
        }
        let found = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        let remedy = "run `ACCELPOOL_UPDATE=1 cargo test -p accelpool-deploy --test dashboards`";
        assert!(found == text, "{FOLDER}/{name} is stale: {remedy}");
        expected.insert(name);
    }
    let found: BTreeSet<String> = accelpool_deploy::files(FOLDER, ".json").into_iter().collect();
    assert_eq!(found, expected, "one file for each dashboard");
    let kustomization = documents("kustomize/monitoring/kustomization.yaml").remove(0);
    let listed = kustomization["configMapGenerator"][0]["files"].as_array().expect("a list");
    let listed = listed.iter().filter_map(|file| file.as_str()?.strip_prefix("dashboards/"));
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), expected, "what is applied");
}

#[test]
fn panels_lie_beside_each_other() {
    for dashboard in all() {
        let json = dashboard.json();
        let mut taken = BTreeSet::new();
        for panel in json["panels"].as_array().expect("panels") {
            let part = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
            assert!(part("x") + part("w") <= 24, "{panel}");
            for x in part("x")..part("x") + part("w") {
                for y in part("y")..part("y") + part("h") {
                    assert!(taken.insert((x, y)), "{}: {panel}", dashboard.name);
                }
            }
        }
    }
}
