//! The manifests of this folder as data, for the tests that compare them with the code, and the
//! dashboards, which are made by code.

#![forbid(unsafe_code)]

pub mod dashboards;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A file's path below this folder.
#[must_use]
pub fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// The documents of one file.
///
/// # Panics
///
/// If the file is not there or is not YAML.
#[must_use]
pub fn documents(below: &str) -> Vec<Value> {
    let text = fs::read_to_string(path(below)).unwrap_or_else(|error| panic!("{below}: {error}"));
    let parse = |document: &str| {
        serde_norway::from_str(document).unwrap_or_else(|error| panic!("{below}: {error}"))
    };
    text.split("\n---\n").map(parse).collect()
}

/// The names of a folder's files with that ending, sorted.
///
/// # Panics
///
/// If the folder is not there.
#[must_use]
pub fn files(folder: &str, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.ok().and_then(|entry| entry.file_name().into_string().ok())
    };
    let mut names: Vec<String> =
        entries.filter_map(name).filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

/// All documents of the base, but its list of files.
#[must_use]
pub fn base() -> Vec<Value> {
    let files = files("kustomize/base", ".yaml");
    let manifests = files.iter().filter(|name| *name != "kustomization.yaml");
    manifests.flat_map(|name| documents(&format!("kustomize/base/{name}"))).collect()
}

/// The one object of that kind and name in the base.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn object(kind: &str, name: &str) -> Value {
    let found =
        base().into_iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} `{name}`"))
}
