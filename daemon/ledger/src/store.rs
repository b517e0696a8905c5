//! The database: one table of records, read whole at the start and written by commits.

use std::{collections::BTreeMap, io};

use accelpool_model::BootId;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
    WriteTransaction,
};

use crate::{
    container::DatabasePart,
    error::{CommitError, Damage, OtherVersion, VerifyError, excerpt},
    quiet,
    record::{Key, Record},
};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

/// Memory for pages: a full node's ledger fits, and the daemon's budget is 40 MiB in all.
const CACHE_BYTES: usize = 1 << 20;

/// Everything that a ledger holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Sequence of the last commit.
    pub(crate) sequence: u64,
    /// The boot of the last start.
    pub(crate) boot: Option<BootId>,
    /// Leases and taints.
    pub(crate) records: BTreeMap<Key, Record>,
}

/// One change of the table.
pub(crate) enum Change {
    /// Writes a value, over the old one if there is one.
    Put(Key, Vec<u8>),
    /// Removes the record, if there is one.
    Remove(Key),
}

impl Change {
    /// The record that changes, and how long it is afterwards.
    pub(crate) fn len(&self) -> (&Key, usize) {
        match self {
            Self::Put(key, value) => (key, value.len()),
            Self::Remove(key) => (key, 0),
        }
    }
}

/// Opens the database on `disk`, behind the first page; makes one if there is none.
///
/// Always verifies every page: what is accepted must not depend on how the last daemon ended.
pub(crate) fn open(disk: DatabasePart) -> Result<Database, redb::Error> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    Ok(builder.create_with_backend(disk)?)
}

/// Reads every record, and refuses whatever this version would not write.
pub(crate) fn read(database: &Database) -> Result<Contents, VerifyError> {
    let engine = |error: redb::Error| Damage::Database(error.into());
    let mut sequence_of_start = None;
    let mut boot = None;
    let mut records = BTreeMap::new();
    for row in rows(database).map_err(engine)?? {
        let (key, value) = row;
        let (sequence, record) = Record::decode(&key, &value)?;
        match record {
            Record::Start(found) => {
                boot = found;
                sequence_of_start = Some(sequence);
            }
            Record::Lease(_) | Record::Taints(..) | Record::Owed(..) => {
                records.insert(record.key(), record);
            }
        }
    }
    let sequence = sequence_of_start.ok_or(Damage::Missing(Key::START))?;
    Ok(Contents { sequence, boot, records })
}

type Rows = Vec<(String, Vec<u8>)>;

/// Every row of the one table that a ledger has.
pub(crate) fn rows(database: &Database) -> Result<Result<Rows, VerifyError>, redb::Error> {
    let transaction = database.begin_read()?;
    let multimap = transaction
        .list_multimap_tables()?
        .next()
        .map(|table| excerpt(redb::MultimapTableHandle::name(&table)));
    let mut tables = transaction.list_tables()?.map(|table| table.name().to_owned());
    let other = multimap.or_else(|| tables.find(|name| name != RECORDS.name()));
    if let Some(other) = other {
        return Ok(Err(OtherVersion::Table(excerpt(&other)).into()));
    }
    let mut found = Vec::new();
    for row in transaction.open_table(RECORDS)?.iter()? {
        let (key, value) = row?;
        found.push((key.value().to_owned(), value.value().to_owned()));
    }
    Ok(Ok(found))
}

/// Applies `changes` in one durable commit: when it returns, they are on the disk.
pub(crate) fn apply(database: &Database, changes: &[Change]) -> Result<(), CommitError> {
    let commit = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        write(&transaction, changes)?;
        Ok(transaction.commit()?)
    };
    match quiet::catch(commit) {
        Ok(result) => result.map_err(|error| CommitError::Storage(into_io(error))),
        Err(panic) => Err(CommitError::Storage(io::Error::other(panic))),
    }
}

/// The operating system's answer where there is one, for that is what an operator looks for.
pub(crate) fn into_io(error: redb::Error) -> io::Error {
    if let redb::Error::Io(error) = error { error } else { io::Error::other(error) }
}

fn write(transaction: &WriteTransaction, changes: &[Change]) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(RECORDS)?;
    for change in changes {
        match change {
            Change::Put(key, value) => {
                table.insert(key.to_string().as_str(), value.as_slice())?;
            }
            Change::Remove(key) => {
                table.remove(key.to_string().as_str())?;
            }
        }
    }
    Ok(())
}
