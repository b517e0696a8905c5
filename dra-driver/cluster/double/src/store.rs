//! The objects, their versions, and what happened to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::request::Resource;

/// Resource, namespace and name.
pub(crate) type Key = (String, String, String);

/// What happened to an object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    /// ADDED, MODIFIED or DELETED.
    pub(crate) kind: &'static str,
    pub(crate) resource: String,
    pub(crate) object: Value,
}

#[derive(Debug)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    revision: u64,
    /// Versions below this one are forgotten.
    oldest: u64,
    uids: u64,
}

impl Default for Store {
    fn default() -> Self {
        // No version is 0: that stands for "any" in the API.
        Self { objects: BTreeMap::new(), history: Vec::new(), revision: 1, oldest: 0, uids: 0 }
    }
}

impl Store {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn list(&self, resource: &str) -> impl Iterator<Item = &Value> {
        let of = move |(key, _): &(&Key, &Value)| key.0 == resource;
        self.objects.iter().filter(of).map(|(_, object)| object)
    }

    /// Stores `object` as new or in place of the one there, with a new version.
    pub(crate) fn put(&mut self, resource: Resource, mut object: Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&object["metadata"]["namespace"]);
        let name = text(&object["metadata"]["name"]);
        let key = (resource.plural.to_owned(), namespace, name);
        self.revision += 1;
        let before = self.objects.get(&key);
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.revision.to_string());
        if metadata["uid"].is_null() {
            self.uids += 1;
            metadata["uid"] = match before {
                Some(before) => before["metadata"]["uid"].clone(),
                None => json!(format!("00000000-0000-4000-8000-{:012x}", self.uids)),
            };
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.record(kind, resource.plural, &object);
        self.objects.insert(key, object.clone());
        object
    }

    pub(crate) fn remove(&mut self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = self.objects.remove(&key)?;
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.record("DELETED", resource, &object);
        Some(object)
    }

    fn record(&mut self, kind: &'static str, resource: &str, object: &Value) {
        self.history.push(Change {
            revision: self.revision,
            kind,
            resource: resource.to_owned(),
            object: object.clone(),
        });
    }

    pub(crate) fn compact(&mut self) {
        self.oldest = self.revision;
        self.history.clear();
        // Whoever has reached this revision exactly is told to list again, too.
        self.revision += 1;
    }

    /// What happened to `resource` after `revision`; `None` if that is forgotten.
    pub(crate) fn since(&self, resource: &str, revision: u64) -> Option<Vec<Change>> {
        if revision <= self.oldest {
            return None;
        }
        let later = |change: &&Change| change.revision > revision && change.resource == resource;
        Some(self.history.iter().filter(later).cloned().collect())
    }
}

/// True if `object` has the values that the selector wants.
pub(crate) fn is_selected(object: &Value, selector: &[(String, String)]) -> bool {
    selector.iter().all(|(path, wanted)| {
        let value = path.split('.').fold(object, |value, field| &value[field]);
        value.as_str().unwrap_or_default() == wanted
    })
}
