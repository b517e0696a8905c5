//! One open ledger.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use accelpool_model::{BootId, ClaimId, DeviceUuid, Lease, OwedPartition, Taint};
use redb::Database;

use crate::{
    container::{self, DatabasePart, Disk},
    error::{CommitError, OpenLedgerError},
    file::{self, FileDisk, Purpose},
    record::{Key, Record},
    store::{self, Change, Contents},
    verify::{self, MemoryDisk},
};

/// Longest sum of all records. A file grows to a small multiple of it and so stays below
/// the longest that is read back.
pub(crate) const LEDGER_BYTES_MAX: usize = 32 << 20;

/// One open ledger. Nobody else can open the file while it lives.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    database: Database,
    disk: Disk,
    boot: BootId,
}

/// What a commit must know of the commits before it.
#[derive(Debug)]
struct State {
    sequence: u64,
    /// Length of each record, so that a full ledger is known before it is written.
    lengths: BTreeMap<Key, usize>,
    /// Their sum.
    bytes: usize,
    /// True once a commit failed half-way: what the disk holds is no longer known.
    broken: bool,
}

/// What the ledger held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replayed {
    /// The leases, by claim.
    pub leases: Vec<Lease>,
    /// The taints, by device.
    pub taints: Vec<(DeviceUuid, Vec<Taint>)>,
    /// Partitions whose destruction is owed, by device.
    pub owed: Vec<(DeviceUuid, Vec<OwedPartition>)>,
    /// The boot in which the ledger was opened before, if it ever was.
    pub previous_boot: Option<BootId>,
}

/// One write of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Records a lease, in place of the claim's last.
    PutLease(Lease),
    /// Forgets the lease of a claim, if there is one.
    RemoveLease(ClaimId),
    /// Records all taints of a device; none forgets it.
    PutTaints(DeviceUuid, Vec<Taint>),
    /// Records all that is owed on a device; none forgets it.
    PutOwed(DeviceUuid, Vec<OwedPartition>),
}

impl Ledger {
    /// Version of the file's form; each kind of record has a version of its own.
    pub const SCHEMA: u32 = container::SCHEMA;

    /// Opens the ledger at `path`, or makes it if there is no file, and records this start.
    ///
    /// # Errors
    ///
    /// Refuses whatever is not a sound ledger of this version, and leaves it untouched.
    pub fn open(path: &Path, boot: &BootId) -> Result<(Self, Replayed), OpenLedgerError> {
        let file = match file::open(path, Purpose::Write)? {
            Some(file) => file,
            None => make(path)?,
        };
        let contents = verify::contents(file::read(path, &file)?)
            .map_err(|why| OpenLedgerError::refused(path, why))?;
        let ledger = Self::start(Arc::new(FileDisk(file)), boot, &contents)
            .map_err(|error| file::inaccessible(path, "write", error.into_io()))?;
        Ok((ledger, contents.into()))
    }

    /// Opens the disk that `contents` was read from, and records this start.
    pub(crate) fn start(
        disk: Disk,
        boot: &BootId,
        contents: &Contents,
    ) -> Result<Self, CommitError> {
        let database = store::open(DatabasePart(Arc::clone(&disk)))
            .map_err(|error| CommitError::Storage(store::into_io(error)))?;
        let mut lengths = BTreeMap::new();
        for (key, record) in &contents.records {
            lengths.insert(key.clone(), record.encode(contents.sequence)?.len());
        }
        let bytes = lengths.values().sum();
        let sequence = contents.sequence;
        let state = Mutex::new(State { sequence, bytes, lengths, broken: false });
        let ledger = Self { state, database, disk, boot: boot.clone() };
        ledger.commit(&[])?;
        Ok(ledger)
    }

    /// Records all of `writes` or none; when it returns, they are on the disk. Blocks.
    ///
    /// # Errors
    ///
    /// After [`CommitError::Storage`] every later commit fails too: the ledger has to be
    /// opened again, and only that tells whether the writes are recorded.
    pub fn commit(&self, writes: &[Write]) -> Result<(), CommitError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.broken {
            let earlier = std::io::Error::other("an earlier commit failed");
            return Err(CommitError::Storage(earlier));
        }
        let sequence = state.sequence + 1;
        let mut changes = Vec::with_capacity(writes.len() + 1);
        for write in writes {
            changes.push(change(write, sequence)?);
        }
        let bytes = state.bytes_after(&changes);
        if bytes > LEDGER_BYTES_MAX {
            return Err(CommitError::Full { bytes, max: LEDGER_BYTES_MAX });
        }
        let start = Record::Start(Some(self.boot.clone()));
        changes.push(Change::Put(Key::Start, start.encode(sequence)?));
        let written = store::apply(&self.database, &changes).and_then(|()| {
            container::write_witness(&self.disk, sequence).map_err(CommitError::Storage)
        });
        match written {
            Ok(()) => state.advance(changes),
            Err(_) => state.broken = true,
        }
        written
    }
}

impl State {
    /// Length of all records once `changes` are made.
    fn bytes_after(&self, changes: &[Change]) -> usize {
        let mut bytes = self.bytes;
        let mut replaced = BTreeMap::new();
        for change in changes {
            let (key, len) = change.len();
            let before = replaced.insert(key, len).or_else(|| self.lengths.get(key).copied());
            bytes = bytes - before.unwrap_or(0) + len;
        }
        bytes
    }

    fn advance(&mut self, changes: Vec<Change>) {
        self.sequence += 1;
        self.bytes = self.bytes_after(&changes);
        for change in changes {
            match change {
                Change::Put(key, value) => self.lengths.insert(key, value.len()),
                Change::Remove(key) => self.lengths.remove(&key),
            };
        }
    }
}

fn change(write: &Write, sequence: u64) -> Result<Change, CommitError> {
    let record = match write {
        Write::PutLease(lease) => Record::Lease(lease.clone()),
        Write::PutTaints(device, taints) if !taints.is_empty() => {
            Record::Taints(device.clone(), taints.clone())
        }
        Write::PutOwed(device, owed) if !owed.is_empty() => {
            Record::Owed(device.clone(), owed.clone())
        }
        Write::PutOwed(device, _) => return Ok(Change::Remove(Key::Owed(device.clone()))),
        Write::RemoveLease(claim) => return Ok(Change::Remove(Key::Lease(claim.clone()))),
        Write::PutTaints(device, _) => return Ok(Change::Remove(Key::Taints(device.clone()))),
    };
    Ok(Change::Put(record.key(), record.encode(sequence)?))
}

/// Makes an empty ledger at `path`, and opens it.
fn make(path: &Path) -> Result<std::fs::File, OpenLedgerError> {
    let empty = Contents { sequence: 0, boot: None, records: BTreeMap::new() };
    let bytes = image(&empty).map_err(|error| file::inaccessible(path, "make", error.into_io()))?;
    // Another daemon may have made it meanwhile: then that one is opened, or found in use.
    file::write_new(path, &bytes)?;
    file::open(path, Purpose::Write)?
        .ok_or_else(|| file::inaccessible(path, "open", std::io::ErrorKind::NotFound.into()))
}

/// The bytes of a ledger file that holds `contents`, closed in good order.
pub(crate) fn image(contents: &Contents) -> Result<Vec<u8>, CommitError> {
    let memory = Arc::new(MemoryDisk::new(container::first_page().to_vec()));
    let disk: Disk = memory.clone();
    let database = store::open(DatabasePart(Arc::clone(&disk)))
        .map_err(|error| CommitError::Storage(store::into_io(error)))?;
    let sequence = contents.sequence;
    let mut changes = Vec::with_capacity(contents.records.len() + 1);
    let start = Record::Start(contents.boot.clone());
    for record in contents.records.values().chain([&start]) {
        changes.push(Change::Put(record.key(), record.encode(sequence)?));
    }
    store::apply(&database, &changes)?;
    drop(database);
    container::write_witness(&disk, sequence).map_err(CommitError::Storage)?;
    Ok(memory.to_vec())
}

impl From<Contents> for Replayed {
    fn from(contents: Contents) -> Self {
        let mut replayed = Self { previous_boot: contents.boot, ..Self::default() };
        for record in contents.records.into_values() {
            match record {
                Record::Start(_) => {}
                Record::Lease(lease) => replayed.leases.push(lease),
                Record::Taints(device, taints) => replayed.taints.push((device, taints)),
                Record::Owed(device, owed) => replayed.owed.push((device, owed)),
            }
        }
        replayed
    }
}
