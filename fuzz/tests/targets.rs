//! Every target on its seeds as they are, then on what recipes make of them.

use std::cell::Cell;

use accelpool_fuzz::{recipes, seeds, targets};
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

/// Of a target whose parser reads memory: a second or so in a build without optimisation.
const RECIPES: u32 = 1500;

/// Of a target that writes files or checks every page of a database.
const RECIPES_WITH_FILES: u32 = 300;

/// Tries `target` on the files in `folders`, then on as many recipes, or on as many as the
/// environment asks for. A recipe that fails is shrunk, printed and `kept` in this file.
fn try_on(kept: &'static str, recipe_count: u32, folders: &[&str], target: fn(&[u8]) -> bool) {
    let seeds = seeds(folders);
    for (index, seed) in seeds.iter().enumerate() {
        assert!(target(seed), "seed {index} of {folders:?} is not valid");
    }
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let mut config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = recipe_count;
    }
    let tried = TestRunner::new(config).run(&recipes(), |recipe| {
        let outcome = if target(&recipe.cook(&seeds)) { &taken } else { &refused };
        outcome.set(outcome.get() + 1);
        Ok(())
    });
    if let Err(failure) = tried {
        panic!("{failure}");
    }
    let (taken, refused) = (taken.get(), refused.get());
    println!("{folders:?}: {taken} taken, {refused} refused");
    assert!(taken > 0 && refused > 0, "recipes neither spoil everything nor nothing");
}

#[test]
fn config() {
    try_on("proptest-regressions/config.txt", RECIPES, &["fuzz/corpus/config"], targets::config);
}

#[test]
fn profile() {
    let folders = ["vendors/sim/profiles", "fuzz/corpus/profile"];
    try_on("proptest-regressions/profile.txt", RECIPES, &folders, targets::profile);
}

#[test]
fn script() {
    try_on("proptest-regressions/script.txt", RECIPES, &["fuzz/corpus/script"], targets::script);
}

#[test]
fn topology() {
    let folders = ["daemon/topology/tests/data", "fuzz/corpus/topology"];
    try_on("proptest-regressions/topology.txt", RECIPES, &folders, targets::topology);
}

#[test]
fn ledger() {
    try_on(
        "proptest-regressions/ledger.txt",
        RECIPES_WITH_FILES,
        &["fuzz/corpus/ledger"],
        targets::ledger,
    );
}

#[test]
fn ledger_export() {
    let folders = ["fuzz/corpus/ledger-export"];
    try_on(
        "proptest-regressions/ledger_export.txt",
        RECIPES_WITH_FILES,
        &folders,
        targets::ledger_export,
    );
}

#[test]
fn request() {
    try_on("proptest-regressions/request.txt", RECIPES, &["fuzz/corpus/request"], targets::request);
}

#[test]
fn record() {
    try_on("proptest-regressions/record.txt", RECIPES, &["fuzz/corpus/record"], targets::record);
}

#[test]
fn word() {
    try_on("proptest-regressions/word.txt", RECIPES, &["fuzz/corpus/word"], targets::word);
}

#[test]
fn process() {
    try_on("proptest-regressions/process.txt", RECIPES, &["fuzz/corpus/process"], targets::process);
}

#[test]
fn nri() {
    try_on("proptest-regressions/nri.txt", RECIPES, &["fuzz/corpus/nri"], targets::nri);
}
