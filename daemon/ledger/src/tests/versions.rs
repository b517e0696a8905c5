//! Records of another version, and records that are not what their key says.

use std::sync::Arc;

use redb::TableDefinition;

use super::{lease, taint};
use crate::{
    VerifyError,
    container::{self, DatabasePart, Disk},
    ledger::image,
    record::{Key, Record},
    store::{self, Contents},
    verify::MemoryDisk,
    verify_bytes,
};

/// A ledger of one lease, with `value` under `key` of `table` besides.
fn ledger(table: &str, key: &str, value: &[u8]) -> Vec<u8> {
    let record = Record::Lease(lease("a", 1));
    let records = [(record.key(), record)].into();
    let contents = Contents { sequence: 0, boot: None, records };
    let bytes = image(&contents).expect("a small ledger can be made");
    let memory = Arc::new(MemoryDisk::new(bytes));
    let disk: Disk = memory.clone();
    let database = store::open(DatabasePart(disk)).expect("a sound database opens");
    let transaction = database.begin_write().expect("a transaction begins");
    let table = TableDefinition::<&str, &[u8]>::new(table);
    let mut open = transaction.open_table(table).expect("the table opens");
    open.insert(key, value).expect("the value is inserted");
    drop(open);
    transaction.commit().expect("the commit succeeds");
    drop(database);
    memory.to_vec()
}

/// A value as the ledger writes it, of JSON that it would not write.
fn sealed(key: &str, json: &str) -> Vec<u8> {
    let sequence = 0_u64.to_le_bytes();
    let crc = crc32fast::hash(&[&sequence, json.as_bytes(), key.as_bytes()].concat());
    [&crc.to_le_bytes()[..], &sequence, json.as_bytes()].concat()
}

#[track_caller]
fn check(table: &str, key: &str, value: &[u8], expected: &str) {
    let error = verify_bytes(&ledger(table, key, value)).expect_err("it is refused");
    let code = match error {
        VerifyError::Damaged(_) => "damaged",
        VerifyError::Newer(_) => "newer",
        VerifyError::Foreign(_) => "foreign",
    };
    let text = format!("{code}: {error}");
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn other_versions_are_refused() {
    let record = |key: &str, json: &str, expected| {
        check("records", key, &sealed(key, json), expected);
    };
    let unread = "newer: the record `taints/G` matches its checksum, but this version cannot";
    check("plans", "a", b"", "newer: it has the table `plans`");
    record("plan/a", "{\"version\":\"1\"}", "newer: it has the record `plan/a`, a kind");
    let version = "newer: the record `lease/b` has version `2`, this version knows 1";
    record("lease/b", "{\"version\":\"2\",\"anything\":1}", version);
    record("taints/G", "{}", unread);
    record("taints/G", "{\"version\":1,\"device\":\"G\",\"taints\":[]}", unread);
    record("taints/G", "{\"version\":\"1\",\"device\":\"G\",\"taints\":[]}", unread);
    let taint = Record::Taints("G".parse().expect("a valid UUID"), vec![taint("link", 1)]);
    let json = taint.to_json();
    for (from, to) in [
        ("\"device\"", "\"more\":1,\"device\""),
        ("\"effect\"", "\"more\":1,\"effect\""),
        ("NoSchedule", "noschedule"),
        ("\"since_ms\":1", "\"since_ms\":-1"),
        ("\"device\":\"G\"", "\"device\":\"../G\""),
        ("\"device\":\"G\",", ""),
    ] {
        assert!(json.contains(from), "{json}");
        record("taints/G", &json.replace(from, to), unread);
    }
}

#[test]
fn unknown_fields_are_refused_at_every_depth_of_a_lease() {
    let json = Record::Lease(lease("a", 1)).to_json();
    let places: Vec<usize> = json.match_indices('{').map(|(at, _)| at + 1).collect();
    let mut refused = 0;
    for at in places {
        let mut more = json.clone();
        more.insert_str(at, "\"zzz\":\"1\",");
        let read = Record::decode("lease/a", &sealed("lease/a", &more));
        // Labels are free words: one more is one more label.
        let is_label = json[..at].ends_with("\"labels\":{");
        assert_eq!(read.is_ok(), is_label, "{more}");
        refused += usize::from(read.is_err());
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn damaged_records_are_refused() {
    let good = Record::Lease(lease("b", 1)).encode(0).expect("a small record");
    check("records", "lease/b", &good[..11], "damaged: the record `lease/b` is cut short");
    let wrong = "damaged: the record `lease/b` does not match its checksum";
    check("records", "lease/b", &good[..good.len() - 1], wrong);
    check("records", "lease/c", &good, &wrong.replace("lease/b", "lease/c"));
    let json = Record::Lease(lease("b", 1)).to_json();
    let moved = sealed("lease/c", &json);
    let under_other = "damaged: the record `lease/c` stands under the key of another";
    check("records", "lease/c", &moved, under_other);
    for at in 0..good.len() {
        let mut value = good.clone();
        value[at] ^= 0x10;
        assert!(Record::decode("lease/b", &value).is_err(), "byte {at}");
    }
}

#[test]
fn a_database_without_a_start_is_refused() {
    let memory = Arc::new(MemoryDisk::new(container::first_page().to_vec()));
    let disk: Disk = memory.clone();
    let database = store::open(DatabasePart(disk)).expect("a new database is made");
    let nothing = store::Change::Remove(Key::Start);
    store::apply(&database, &[nothing]).expect("the commit succeeds");
    drop(database);
    let error = verify_bytes(&memory.to_vec()).expect_err("it is refused");
    assert_eq!(error.to_string(), "the record `start` is missing");
}
