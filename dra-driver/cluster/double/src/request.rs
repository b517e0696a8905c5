//! What a caller asks: method and path taken apart into verb, resource and name.

use hyper::{Method, Uri};
use serde_json::Value;

/// A verb as RBAC names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb as rules write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Call {
    pub verb: Verb,
    pub group: String,
    /// With its subresource, as in `resourceclaims/status`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub dry_run: bool,
}

/// A resource that the double knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
}

const RESOURCES: [Resource; 6] = [
    Resource { group: "", version: "v1", plural: "nodes", kind: "Node" },
    Resource { group: "", version: "v1", plural: "pods", kind: "Pod" },
    Resource { group: "events.k8s.io", version: "v1", plural: "events", kind: "Event" },
    Resource {
        group: "resource.k8s.io",
        version: "v1",
        plural: "resourceslices",
        kind: "ResourceSlice",
    },
    Resource {
        group: "resource.k8s.io",
        version: "v1",
        plural: "resourceclaims",
        kind: "ResourceClaim",
    },
    Resource {
        group: "resource.k8s.io",
        version: "v1",
        plural: "deviceclasses",
        kind: "DeviceClass",
    },
];

impl Resource {
    pub(crate) fn of_kind(object: &Value) -> Option<Self> {
        RESOURCES.into_iter().find(|resource| object["kind"] == resource.kind)
    }

    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }
}

/// A request, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: Resource,
    pub(crate) call: Call,
    pub(crate) field_selector: Vec<(String, String)>,
    pub(crate) resource_version: String,
    pub(crate) field_manager: String,
}

/// Takes a request apart; `None` if there is no such path.
pub(crate) fn target(method: &Method, uri: &Uri) -> Option<Target> {
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return None,
    };
    let known =
        |one: &Resource| one.group == group && one.version == version && one.plural == plural;
    let resource = RESOURCES.into_iter().find(known)?;
    let query = query(uri.query().unwrap_or_default());
    let value = |key: &str| {
        let found = query.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let watching = matches!(value("watch").as_str(), "1" | "true");
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", true) if watching => Verb::Watch,
        ("GET", true) => Verb::List,
        ("GET", false) => Verb::Get,
        ("POST", true) => Verb::Create,
        ("PUT", false) => Verb::Update,
        ("PATCH", false) => Verb::Patch,
        ("DELETE", true) => Verb::DeleteCollection,
        ("DELETE", false) => Verb::Delete,
        _ => return None,
    };
    let slash = if subresource.is_empty() { "" } else { "/" };
    let selector = value("fieldSelector");
    let terms = selector.split(',').filter(|term| !term.is_empty());
    Some(Target {
        resource,
        call: Call {
            verb,
            group: group.to_owned(),
            resource: format!("{plural}{slash}{subresource}"),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            dry_run: value("dryRun") == "All",
        },
        field_selector: terms
            .filter_map(|term| term.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim_start_matches('=').to_owned()))
            .collect(),
        resource_version: value("resourceVersion"),
        field_manager: value("fieldManager"),
    })
}

fn query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        (bytes, rest) = match (first, byte) {
            (b'%', Some(byte)) => ([bytes, vec![byte]].concat(), &after[2..]),
            (b'+', _) => ([bytes, vec![b' ']].concat(), after),
            _ => ([bytes, vec![*first]].concat(), after),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
