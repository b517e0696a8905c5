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
fn ten_thousand_claims_that_come_and_go_leave_a_small_file() {
    let (ledger, disk) = ledger();
    for number in 0..5_000 {
        let claim = format!("claim-{}", number % 100);
        let write =
            if number % 2 == 0 { Write::PutLease(lease(&claim, number)) } else { remove(&claim) };
        let before = format!("claim-{}", (number + 50) % 100);
        ledger.commit(&[write]).expect("a small commit succeeds");
        ledger.commit(&[remove(&before)]).expect("a small commit succeeds");
    }
    let len = disk.to_vec().len();
    assert!(len <= 2 << 20, "{len} bytes");
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
    // Written over and over, each time in one commit: the worst that copying on write can do.
    for _ in 0..3 {
        for claim in 0..claims {
            let write = long(&format!("claim-{claim}"), len);
            ledger.commit(&[write]).expect("it fits");
        }
        let all: Vec<Write> = (0..claims).map(|at| long(&format!("claim-{at}"), len)).collect();
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
