//! What is done to a log is found, and what a crash leaves is gone on from.

use std::{fs, path::Path, sync::Arc};

use super::*;

fn entry(message: &str) -> Entry {
    Entry {
        kind: "prepared".into(),
        claim: "c".into(),
        message: message.into(),
        ..Entry::default()
    }
}

fn write(dir: &Path, limits: Limits, messages: &[&str]) {
    let mut log = Log::open(dir, limits).unwrap();
    for message in messages {
        log.append(vec![entry(message)]);
    }
    log.sync().unwrap();
}

fn findings(dir: &Path) -> Vec<String> {
    verify(dir, None, |_, _| ()).unwrap().findings
}

fn messages(dir: &Path) -> Vec<String> {
    let mut messages = Vec::new();
    verify(dir, None, |record, _| messages.push(record.entry.message.clone())).unwrap();
    messages
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    dir.join("audit-00000000000000000001.log")
}

#[test]
fn every_byte_that_is_changed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Limits::default(), &["one", "two", "three"]);
    assert_eq!(findings(dir.path()), [""; 0]);
    for name in ["audit-00000000000000000001.log", "head"] {
        let file = dir.path().join(name);
        let sound = fs::read(&file).unwrap();
        for at in 0..sound.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut bytes = sound.clone();
                bytes[at] ^= flip;
                fs::write(&file, bytes).unwrap();
                assert_ne!(findings(dir.path()), [""; 0], "byte {at} of {name} xor {flip}");
            }
        }
        for len in 1..sound.len() {
            fs::write(&file, &sound[..len]).unwrap();
            assert_ne!(findings(dir.path()), [""; 0], "{name} cut to {len}");
        }
        fs::write(&file, sound).unwrap();
    }
}

#[test]
fn records_that_are_deleted_moved_or_replaced_are_named() {
    fn check(change: impl Fn(&mut Vec<String>), expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), Limits::default(), &["one", "two", "three", "four"]);
        let text = fs::read_to_string(only_file(dir.path())).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        fs::write(only_file(dir.path()), lines.join("\n") + "\n").unwrap();
        let found = findings(dir.path());
        assert!(found.iter().any(|found| found.contains(expected)), "{expected}: {found:?}");
    }
    check(|lines| drop(lines.remove(1)), "records 2 to 2 are missing");
    check(|lines| drop(lines.remove(0)), "records 1 to 1 are missing at the start");
    check(|lines| drop(lines.pop()), "records 4 to 4 are missing at the end");
    check(|lines| lines.swap(1, 2), "record 2 stands after record 3");
    check(|lines| lines.insert(2, lines[1].clone()), "record 2 stands after record 2");
    check(
        |lines| {
            let (mut record, _) = Record::of_line(lines[1].as_bytes()).unwrap();
            record.entry.message = "nothing".into();
            lines[1] = record.to_line().unwrap().0;
        },
        "record 3 does not follow record 2",
    );
}

#[test]
fn a_log_goes_on_wherever_a_crash_cut_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Limits::default(), &["one", "two"]);
    let before = fs::read(only_file(dir.path())).unwrap().len();
    let head = fs::read(dir.path().join("head")).unwrap();
    write(dir.path(), Limits::default(), &["three"]);
    let sound = fs::read(only_file(dir.path())).unwrap();
    for len in before..=sound.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(only_file(dir.path()), &sound[..len]).unwrap();
        fs::write(dir.path().join("head"), &head).unwrap();
        write(dir.path(), Limits::default(), &["four"]);
        assert_eq!(findings(dir.path()), [""; 0], "cut to {len}");
        let torn = format!("{} bytes of an unfinished record were cut off", len - before);
        let expected = match len {
            len if len == before => vec!["one", "two", "four"],
            len if len == sound.len() => vec!["one", "two", "three", "four"],
            _ => vec!["one", "two", torn.as_str(), "four"],
        };
        assert_eq!(messages(dir.path()), expected, "cut to {len}");
    }
}

#[test]
fn damage_is_left_as_it_is_and_said() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Limits::default(), &["one", "two", "three"]);
    let text = fs::read_to_string(only_file(dir.path())).unwrap().replace("two", "owt");
    fs::write(only_file(dir.path()), &text).unwrap();
    write(dir.path(), Limits::default(), &["four"]);
    assert_eq!(fs::read_to_string(only_file(dir.path())).unwrap(), text);
    assert_eq!(findings(dir.path()).len(), 1, "{:?}", findings(dir.path()));
    assert!(messages(dir.path())[2].contains("not whole"));
    // An end that was cut is said too, and stays found.
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Limits::default(), &["one", "two"]);
    let text = fs::read_to_string(only_file(dir.path())).unwrap();
    fs::write(only_file(dir.path()), text.lines().next().unwrap().to_owned() + "\n").unwrap();
    write(dir.path(), Limits::default(), &["three"]);
    assert_eq!(messages(dir.path()), ["one", "records 2 to 2 are missing at the end", "three"]);
    assert!(findings(dir.path())[0].contains("records 2 to 2 are missing"));
}

#[test]
fn a_full_log_drops_its_oldest_file_and_keeps_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { file_bytes: 600, files: 3 };
    for n in 0..40 {
        // Reopened now and then, as by restarts.
        write(dir.path(), limits, &[&n.to_string(), "more"]);
    }
    let files = check::files(dir.path()).unwrap();
    assert!(files.len() <= 3, "{files:?}");
    assert_eq!(findings(dir.path()), [""; 0]);
    // Another one than the log itself took away is missed.
    fs::remove_file(&files[0].1).unwrap();
    assert!(findings(dir.path())[0].contains("missing at the start"));
}

#[test]
fn a_full_disk_loses_records_and_says_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), Limits::default()).unwrap();
    log.append(vec![entry("one")]);
    let full = fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    let sound = std::mem::replace(&mut log.file, Arc::new(full));
    log.append(vec![entry("two"), entry("three")]);
    log.append(vec![entry("four")]);
    log.file = sound;
    log.append(vec![entry("five")]);
    log.sync().unwrap();
    assert_eq!(findings(dir.path()), [""; 0]);
    let expected = ["one", "3 records could not be written before this one", "five"];
    assert_eq!(messages(dir.path()), expected);
}

#[test]
fn a_hash_that_was_kept_elsewhere_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Limits::default(), &["one", "two"]);
    let (n, hash) = verify(dir.path(), None, |_, _| ()).unwrap().last.unwrap();
    assert_eq!(n, 2);
    assert_eq!(verify(dir.path(), Some(&hash), |_, _| ()).unwrap().findings, [""; 0]);
    assert_eq!(verify(&only_file(dir.path()), Some("0"), |_, _| ()).unwrap().findings.len(), 1);
}
