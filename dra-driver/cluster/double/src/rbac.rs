//! Who may do what: rules as a `ClusterRole` has them.

use serde::Deserialize;

/// One rule of a `ClusterRole`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the API")]
pub struct Rule {
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub verbs: Vec<String>,
    #[serde(default)]
    pub resource_names: Vec<String>,
}

/// True if one of `rules` allows `verb`.
pub(crate) fn allows(rules: &[Rule], group: &str, resource: &str, verb: &str, name: &str) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|one| one == wanted || one == "*");
    rules.iter().any(|rule| {
        let named =
            rule.resource_names.is_empty() || rule.resource_names.iter().any(|one| one == name);
        has(&rule.api_groups, group)
            && has(&rule.resources, resource)
            && has(&rule.verbs, verb)
            && named
    })
}
