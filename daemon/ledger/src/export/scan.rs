//! Brings records out of a ledger that is refused.
//!
//! If the database can be read, record by record. If not, by looking through the whole file:
//! each record has its own checksum and the sequence of its commit, so it can be known for
//! what it is wherever it lies. Records that were removed or replaced may still lie there:
//! of each key the newest is taken, and a lease that was released may come back. That errs
//! to the safe side: a device is held that could be free, not the other way about.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use super::Unreadable;
use crate::{
    container::{self, DatabasePart},
    error::{VerifyError, excerpt},
    quiet,
    record::{HEAD_LEN, Key, Kind, RECORD_BYTES_MAX, Record},
    store::{self, Contents},
    verify::{self, MemoryDisk},
};

/// Every record starts so: the version is its first field.
const JSON_START: &[u8] = b"{\"version\":\"";

/// What can be read of the ledger in `bytes`, and what cannot.
pub(super) fn salvage(bytes: Vec<u8>) -> Result<(Contents, Vec<Unreadable>), VerifyError> {
    let refusal = match verify::contents(bytes.clone()) {
        Ok(contents) => return Ok((contents, Vec::new())),
        Err(VerifyError::Foreign(error)) => return Err(error.into()),
        Err(refusal @ (VerifyError::Damaged(_) | VerifyError::Newer(_))) => refusal,
    };
    let witnessed = container::read_first_page(&bytes).unwrap_or(0);
    let by_scan = Found::by_scan(&bytes);
    let by_rows = rows(bytes).map(|rows| Found::by_rows(&rows));
    let newest = witnessed.max(by_scan.sequence);
    let mut found = by_rows.filter(|found| found.sequence >= newest).unwrap_or(by_scan);
    if found.unreadable.is_empty() {
        // There is a reason why this ledger was refused, so somebody has to look at it.
        let reason = format!("the ledger was refused ({refusal}){}", found.caution());
        found.unreadable.push(Unreadable { record: "unknown".into(), reason });
    }
    Ok(found.finish())
}

/// Every row of the database, if it can be read as a database at all.
fn rows(bytes: Vec<u8>) -> Option<Vec<(String, Vec<u8>)>> {
    let read = move || {
        let disk = std::sync::Arc::new(MemoryDisk::new(bytes));
        let database = store::open(DatabasePart(disk)).ok()?;
        store::rows(&database).ok()?.ok()
    };
    quiet::catch(read).ok().flatten()
}

/// The newest record of each key so far.
#[derive(Default)]
struct Found {
    /// True if they were found by looking through the file.
    searched: bool,
    sequence: u64,
    records: BTreeMap<Key, (u64, Record)>,
    unreadable: Vec<Unreadable>,
}

impl Found {
    fn by_rows(rows: &[(String, Vec<u8>)]) -> Self {
        let mut found = Self::default();
        for (key, value) in rows {
            match Record::decode(key, value) {
                Ok((sequence, record)) => found.keep(sequence, record),
                Err(error) => found
                    .unreadable
                    .push(Unreadable { record: excerpt(key), reason: error.to_string() }),
            }
        }
        found
    }

    fn by_scan(bytes: &[u8]) -> Self {
        let mut found = Self { searched: true, ..Self::default() };
        let mut at = 0;
        while let Some(start) = find(bytes, JSON_START, at) {
            at = start + 1;
            if let Some((sequence, record)) = record_at(bytes, start) {
                found.keep(sequence, record);
            }
        }
        found
    }

    /// What to know of the records found.
    fn caution(&self) -> &'static str {
        if self.searched {
            ", so its file was searched for records: some may be missing here, \
             and leases that were released may be listed"
        } else {
            ", but its records could be read"
        }
    }

    fn keep(&mut self, sequence: u64, record: Record) {
        self.sequence = self.sequence.max(sequence);
        let newer = |(kept, _): &(u64, Record)| *kept < sequence;
        if self.records.get(&record.key()).is_none_or(newer) {
            self.records.insert(record.key(), (sequence, record));
        }
    }

    fn finish(self) -> (Contents, Vec<Unreadable>) {
        let mut boot = None;
        let mut records = BTreeMap::new();
        for (key, (_, record)) in self.records {
            match record {
                Record::Start(found) => boot = found,
                Record::Lease(_) | Record::Taints(..) | Record::Owed(..) => {
                    records.insert(key, record);
                }
            }
        }
        (Contents { sequence: self.sequence, boot, records }, self.unreadable)
    }
}

/// The record whose JSON begins at `start`, if its checksum holds.
fn record_at(bytes: &[u8], start: usize) -> Option<(u64, Record)> {
    let head = start.checked_sub(HEAD_LEN)?;
    let rest = &bytes[start..bytes.len().min(start + RECORD_BYTES_MAX)];
    let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
    stream.next()?.ok()?;
    let end = start + stream.byte_offset();
    let json = &bytes[start..end];
    let kinds = [Kind::Lease, Kind::Taints, Kind::Owed, Kind::Start];
    let record = kinds.into_iter().find_map(|kind| Record::from_json(kind, "", json).ok())?;
    Record::decode(&record.key().to_string(), &bytes[head..end]).ok()
}

fn find(bytes: &[u8], pattern: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(pattern.len()).position(|window| window == pattern).map(|at| from + at)
}
