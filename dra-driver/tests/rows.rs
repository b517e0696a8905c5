//! The table of what a driver can do wrong names a test for each row, and each of them exists.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const TABLE: &str = include_str!("README.md");

/// Where its tests are.
const FOLDERS: [&str; 5] = ["core", "daemon", "deploy", "dra-driver", "tests"];

/// The rows of section 10, the entries of the kubelet's own list, and what else comes in.
fn expected_rows() -> Vec<String> {
    let numbers = (1..=45).map(|number: u32| number.to_string());
    numbers.chain(('a'..='v').map(String::from)).collect()
}

/// Each row's name and the tests that it names.
fn rows() -> Vec<(&'static str, Vec<&'static str>)> {
    let cells = |line: &'static str| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let (row, _, tests) = (cells.next()?, cells.next()?, cells.next()?);
        let tests = tests.split(", ").filter_map(|test| test.strip_prefix('`')?.strip_suffix('`'));
        Some((row, tests.collect()))
    };
    let rows = TABLE.lines().filter_map(cells);
    rows.filter(|(row, _)| *row != "#" && *row != "---").collect()
}

/// The names of all functions with a line above them that makes them tests.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = FOLDERS.map(|folder| root.join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(tests_of(&fs::read_to_string(path).unwrap()));
            }
        }
    }
    names
}

fn tests_of(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in text.lines().map(str::trim_start) {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(name) = function(line).filter(|_| marked) {
            names.push(name.to_owned());
            marked = false;
        } else if !line.starts_with("#[") {
            marked = false;
        }
    }
    names
}

/// The function that a line begins, if it begins one.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    Some(line.strip_prefix("fn ")?.split_once('(')?.0)
}

#[test]
fn every_row_has_tests_and_they_exist() {
    let rows = rows();
    let found: Vec<&str> = rows.iter().map(|(row, _)| *row).collect();
    assert_eq!(found, expected_rows());
    let tests = tests();
    for (row, named) in rows {
        assert!(!named.is_empty(), "row {row} names no test");
        for name in named {
            assert!(tests.contains(name), "row {row}: there is no test `{name}`");
        }
    }
}

#[test]
fn only_tests_are_taken_for_tests() {
    let text = "fn a() {}\n#[test]\nfn b() {}\n  #[tokio::test(x = 1)]\n  #[ignore]\n  async fn c() {}\n\
                #[test]\n// why\nfn d() {}\n";
    assert_eq!(tests_of(text), ["b", "c"]);
}
