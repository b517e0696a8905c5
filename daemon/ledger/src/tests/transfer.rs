//! Out as text and in again, whole or as far as a damaged file allows.

use std::fs;

use super::{boot, lease, ledger_with, place, put_taints, taint};
use crate::{ImportError, Ledger, Replayed, Summary, Write, export, import, salvage};

fn put(claim: &str, number: u32) -> Write {
    Write::PutLease(lease(claim, number))
}

fn some() -> Vec<Write> {
    vec![put("a", 1), put("b", 2), put_taints("GPU-1", vec![taint("operator", 1)])]
}

fn open(path: &std::path::Path) -> Replayed {
    Ledger::open(path, &boot("boot-9")).expect("a sound ledger opens").1
}

#[test]
fn what_is_exported_is_imported() {
    let (_folder, path) = place();
    ledger_with(&path, &[&some()]);
    let before = fs::read(&path).expect("the file can be read");
    let text = export(&path).expect("a sound ledger is exported");
    assert_eq!(fs::read(&path).expect("the file can be read"), before);
    assert_eq!(salvage(&path).expect("so it is salvaged"), text);

    let again = path.with_extension("again");
    let summary = import(&text, &again).expect("an export is imported");
    assert_eq!(summary, Summary { leases: 2, tainted_devices: 1 });
    assert_eq!(export(&again).expect("a sound ledger is exported"), text);
    assert_eq!(open(&again), open(&path));
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let (_folder, path) = place();
    ledger_with(&path, &[&some()]);
    let text = export(&path).expect("a sound ledger is exported");
    for content in ["", "something else"] {
        let taken = path.with_extension("taken");
        fs::write(&taken, content).expect("the file can be written");
        let error = import(&text, &taken).expect_err("the path is taken");
        assert!(matches!(error, ImportError::Exists(_)), "{error:?}");
        assert_eq!(fs::read_to_string(&taken).expect("the file can be read"), content);
    }
    let names: Vec<_> = fs::read_dir(path.parent().expect("a folder")).expect("readable").collect();
    assert_eq!(names.len(), 2, "nothing is left behind: {names:?}");
}

#[test]
fn what_is_no_complete_export_is_refused() {
    let (_folder, path) = place();
    ledger_with(&path, &[&some()]);
    let text = export(&path).expect("a sound ledger is exported");
    let check = |change: &dyn Fn(&str) -> String, expected: &str| {
        let error = import(&change(&text), &path.with_extension("new")).expect_err(expected);
        let mut chain = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            chain = format!("{chain}: {error}");
            source = error.source();
        }
        assert!(chain.starts_with(expected), "{chain}");
    };
    let replace = |from: &'static str, to: &'static str| {
        move |text: &str| {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from} occurs");
            changed
        }
    };
    check(&|_| String::new(), "the export cannot be read: ");
    check(&|_| "[]".into(), "the export cannot be read: ");
    check(&replace("ledger-export", "other"), "the export cannot be read: its format");
    check(
        &replace("\"version\": \"1\",\n  \"boot\"", "\"version\": \"2\",\n  \"boot\""),
        "the export has version `2`, this version reads 1",
    );
    check(&replace("\"leases\"", "\"more\": 1, \"leases\""), "the export cannot be read: ");
    check(&replace("\"id\": \"a\"", "\"id\": \"b\""), "the export has two records `lease/b`");
    check(
        &replace("\"id\": \"a\"", "\"id\": \"../a\""),
        "a record of the export is not valid: the record `number 1` matches its checksum",
    );
    check(
        &replace("\"since_ms\"", "\"extra\": 1, \"since_ms\""),
        "a record of the export is not valid",
    );
    check(
        &|text| text.replacen("\n}", ",\"unreadable\":[{\"record\":\"x\",\"reason\":\"y\"}]}", 9),
        "the export",
    );
    assert!(!path.with_extension("new").exists());
}

/// Salvages the ledger of `commits` after `damage`: the claims found, and what is unreadable.
fn salvaged(commits: &[&[Write]], damage: impl Fn(&mut Vec<u8>)) -> (Vec<String>, String) {
    let (_folder, path) = place();
    ledger_with(&path, commits);
    let mut bytes = fs::read(&path).expect("the file can be read");
    damage(&mut bytes);
    fs::write(&path, &bytes).expect("the file can be written");
    assert!(export(&path).is_err(), "the strict way is refused");
    let text = salvage(&path).expect("there is something to salvage");
    let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let leases = value["leases"].as_array().expect("a list of leases");
    let claims = leases.iter().map(|lease| lease["claim"]["id"].as_str().expect("an id").into());
    let error = import(&text, &path.with_extension("new")).expect_err("losses are not accepted");
    assert!(matches!(error, ImportError::Unreadable(1)), "{error:?}");
    // A person reads the list, deals with it, empties it: then the rest is imported.
    let mut accepted = value.clone();
    accepted["unreadable"] = serde_json::Value::Array(vec![]);
    import(&accepted.to_string(), &path.with_extension("new")).expect("the rest is imported");
    assert_eq!(open(&path.with_extension("new")).leases.len(), leases.len());
    (claims.collect(), value["unreadable"][0]["reason"].as_str().expect("a reason").into())
}

#[test]
fn a_ledger_without_its_roots_is_searched_for_records() {
    let commits: [&[Write]; 2] = [&[put("a", 1), put("b", 2)], &[put("b", 3), put("c", 1)]];
    let (claims, reason) = salvaged(&commits, |bytes| bytes[4096 + 64..4096 + 320].fill(0xff));
    assert_eq!(claims, ["a", "b", "c"]);
    assert_eq!(
        reason,
        "the ledger was refused (the database cannot be read), so its file was searched for \
         records: some may be missing here, and leases that were released may be listed"
    );
}

#[test]
fn without_its_first_page_too() {
    let (claims, reason) = salvaged(&[&[put("a", 1)]], |bytes| bytes[..16].fill(0));
    assert_eq!(claims, ["a"]);
    let refused = "the first page does not match its checksum";
    assert_eq!(
        reason,
        format!("the ledger was refused ({refused}), but its records could be read")
    );
}

#[test]
fn the_newest_of_each_record_is_taken() {
    let (_folder, path) = place();
    let commits: Vec<Vec<Write>> = (0..9).map(|number| vec![put("a", number)]).collect();
    let commits: Vec<&[Write]> = commits.iter().map(Vec::as_slice).collect();
    ledger_with(&path, &commits);
    let mut bytes = fs::read(&path).expect("the file can be read");
    bytes[4096 + 64..4096 + 320].fill(0);
    fs::write(&path, &bytes).expect("the file can be written");
    let text = salvage(&path).expect("there is something to salvage");
    let text = text.replace("\"unreadable\"", "\"ignored\"");
    let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(value["leases"][0]["since_ms"], lease("a", 8).since_ms);
}

#[test]
fn what_never_was_a_ledger_is_not_salvaged() {
    let (_folder, path) = place();
    fs::write(&path, "something else").expect("the file can be written");
    let error = salvage(&path).expect_err("there is nothing to salvage");
    assert_eq!(error.code(), Some("AP0003"));
    fs::remove_file(&path).expect("the file can be removed");
    assert_eq!(salvage(&path).expect_err("there is no file").code(), None);
}
