//! The file stays small, and a full ledger is refused before it is written.

use super::{boot, lease, place, put_taints, remove};
use crate::{
    CommitError, Ledger, Write,
    container::{FILE_BYTES_MAX, first_page},
    ledger::{LEDGER_BYTES_MAX, image},
    record::RECORD_BYTES_MAX,
    store::Contents,
    verify::{self, MemoryDisk},
};
use std::sync::Arc;

fn empty() -> Contents {
    Contents { sequence: 0, boot: None, records: std::collections::BTreeMap::new() }
}

/// A ledger on a disk in memory: nothing is synced, everything else is the same.
fn ledger() -> (Ledger, Arc<MemoryDisk>) {
    let bytes = image(&empty()).expect("an empty ledger can be made");
    let contents = verify::contents(bytes.clone()).expect("an empty ledger is sound");
    let disk = Arc::new(MemoryDisk::new(bytes));
    let ledger = Ledger::start(Arc::clone(&disk) as _, &boot("boot-1"), &contents);
    (ledger.expect("a sound ledger starts"), disk)
}

/// A write of one record of about `len` bytes.
fn long(claim: &str, len: usize) -> Write {
    let mut lease = lease(claim, 1);
    lease.claim.labels.insert("filler".into(), "x".repeat(len));
    Write::PutLease(lease)
}

#[test]
fn a_new_file_is_small() {
    let bytes = image(&empty()).expect("an empty ledger can be made");
    assert!(bytes.len() <= 128 << 10, "{}", bytes.len());
    assert!(bytes.len() > first_page().len());
}

#[test]
fn claims_that_come_and_go_do_not_make_the_file_grow() {
    let (ledger, disk) = ledger();
    let mut lens = Vec::new();
    // Always fifty leases; each commit adds one and removes another.
    for number in 0..1_600_u32 {
        let claim = |number: u32| format!("claim-{}", number % 100);
        let writes = [Write::PutLease(lease(&claim(number), number)), remove(&claim(number + 50))];
        ledger.commit(&writes).expect("a small commit succeeds");
        if number % 400 == 399 {
            lens.push(disk.to_vec().len());
        }
    }
    assert!(lens[0] <= 1 << 20 && lens.iter().all(|len| *len <= lens[0]), "{lens:?}");
}

#[test]
fn a_record_beyond_the_limit_is_refused_and_nothing_changes() {
    let (_folder, path) = place();
    let (ledger, _) = Ledger::open(&path, &boot("boot-1")).expect("a new ledger opens");
    let small = Write::PutLease(lease("small", 1));
    let error = ledger.commit(&[small.clone(), long("long", RECORD_BYTES_MAX)]);
    assert!(matches!(error, Err(CommitError::RecordTooLong { .. })), "{error:?}");
    ledger.commit(&[put_taints("GPU-1", vec![])]).expect("the ledger can be used further");
    drop(ledger);
    let (_, replayed) = Ledger::open(&path, &boot("boot-2")).expect("a sound ledger opens");
    assert_eq!(replayed.leases, []);
}

#[test]
fn a_full_ledger_refuses_more_and_can_be_read_back() {
    let (ledger, disk) = ledger();
    let len = RECORD_BYTES_MAX - 4096;
    let claims = LEDGER_BYTES_MAX / len;
    // All of it in one commit, twice: the worst that copying on write can do.
    let all: Vec<Write> = (0..claims).map(|at| long(&format!("claim-{at}"), len)).collect();
    for _ in 0..2 {
        ledger.commit(&all).expect("it fits");
    }
    let error = ledger.commit(&[long("one-more", len)]);
    assert!(matches!(error, Err(CommitError::Full { .. })), "{error:?}");
    // The same claim again is no growth, and a claim less makes room.
    ledger.commit(&[long("claim-0", len)]).expect("it replaces its own");
    ledger.commit(&[remove("claim-0"), long("one-more", len)]).expect("there is room");
    drop(ledger);
    let bytes = disk.to_vec();
    assert!((bytes.len() as u64) < FILE_BYTES_MAX / 2, "{} bytes", bytes.len());
    let contents = verify::contents(bytes).expect("a full ledger is read back");
    assert_eq!(contents.records.len(), claims);
}
