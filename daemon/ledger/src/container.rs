//! The file around the database: one page of our own, then redb's bytes.
//!
//! ```text
//!    0  magic `accelpool-ledger`, schema (u32), CRC-32 of both
//!  512  witness of even sequences: sequence (u64), CRC-32
//! 1024  witness of odd sequences
//! 4096  redb database
//! ```
//! Integers are little-endian. Each witness has a disk sector of its own, so that it is
//! written whole or not at all.
//!
//! The witness makes a lost commit visible. redb takes a commit that it cannot read for one
//! that a crash tore, and goes back to the commit before: right after a crash, wrong after
//! damage. So the sequence of each commit is noted here once the commit is durable. That
//! note is not synced: the kernel, or the next commit, carries it to the disk. If it is lost
//! with the power, the commit is still there, and redb alone is right again.

use std::sync::Arc;

use redb::StorageBackend;

use crate::error::{Damage, ForeignFile, OtherVersion, VerifyError};

/// Version of everything in the file that is not a record.
pub(crate) const SCHEMA: u32 = 1;
/// Bytes before the database: redb's page size, so that its pages stay aligned.
pub(crate) const FIRST_PAGE_LEN: usize = 4096;
/// Longest file that is read: a hundred times the ledger of a full node, and bounded memory.
pub(crate) const FILE_BYTES_MAX: u64 = 256 << 20;

const MAGIC: &[u8; 16] = b"accelpool-ledger";
const SCHEMA_AT: usize = MAGIC.len();
const HEADER_CRC_AT: usize = SCHEMA_AT + size_of::<u32>();
const WITNESS_AT: [u64; 2] = [512, 1024];
const WITNESS_LEN: usize = size_of::<u64>() + size_of::<u32>();

/// What a database engine may do with a disk, behind one pointer.
pub(crate) type Disk = Arc<dyn StorageBackend>;

/// The first page of a new ledger.
pub(crate) fn first_page() -> [u8; FIRST_PAGE_LEN] {
    let mut page = [0; FIRST_PAGE_LEN];
    page[..HEADER_CRC_AT].copy_from_slice(&header(SCHEMA));
    let crc = crc32fast::hash(&page[..HEADER_CRC_AT]);
    page[HEADER_CRC_AT..][..size_of::<u32>()].copy_from_slice(&crc.to_le_bytes());
    for at in WITNESS_AT {
        let at = usize::try_from(at).expect("a witness lies in the first page");
        page[at..][..WITNESS_LEN].copy_from_slice(&witness(0));
    }
    page
}

/// Notes that the commit `sequence` is durable.
pub(crate) fn write_witness(disk: &Disk, sequence: u64) -> std::io::Result<()> {
    let [even, odd] = WITNESS_AT;
    let at = if sequence.is_multiple_of(2) { even } else { odd };
    disk.write(at, &witness(sequence))
}

/// Checks the first page, and returns the last commit that it knows to be durable.
pub(crate) fn read_first_page(bytes: &[u8]) -> Result<u64, VerifyError> {
    if bytes.is_empty() {
        return Err(Damage::Empty.into());
    }
    let Some(page) = bytes.get(..FIRST_PAGE_LEN) else {
        let ours = bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]);
        let cut = Damage::Cut { len: bytes.len() };
        return Err(if ours { cut.into() } else { ForeignFile::Content.into() });
    };
    let schema = read_u32(page, SCHEMA_AT);
    // The checksum is taken over the true magic: where it holds, a wrong magic is damage.
    let checked = crc32fast::hash(&header(schema)) == read_u32(page, HEADER_CRC_AT);
    match (page.starts_with(MAGIC), checked) {
        (true, true) => {}
        (true, false) | (false, true) => return Err(Damage::FirstPage.into()),
        (false, false) => return Err(ForeignFile::Content.into()),
    }
    if schema != SCHEMA {
        return Err(OtherVersion::Schema { found: schema, known: SCHEMA }.into());
    }
    WITNESS_AT.iter().filter_map(|at| read_witness(page, *at)).max().ok_or(Damage::Witness.into())
}

fn header(schema: u32) -> [u8; HEADER_CRC_AT] {
    let mut header = [0; HEADER_CRC_AT];
    header[..SCHEMA_AT].copy_from_slice(MAGIC);
    header[SCHEMA_AT..].copy_from_slice(&schema.to_le_bytes());
    header
}

fn witness(sequence: u64) -> [u8; WITNESS_LEN] {
    let mut witness = [0; WITNESS_LEN];
    let (number, crc) = witness.split_at_mut(size_of::<u64>());
    number.copy_from_slice(&sequence.to_le_bytes());
    crc.copy_from_slice(&crc32fast::hash(number).to_le_bytes());
    witness
}

fn read_witness(page: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let found = page.get(at..at + WITNESS_LEN)?;
    let sequence = u64::from_le_bytes(found[..size_of::<u64>()].try_into().ok()?);
    (found == witness(sequence)).then_some(sequence)
}

fn read_u32(page: &[u8], at: usize) -> u32 {
    let mut bytes = [0; size_of::<u32>()];
    bytes.copy_from_slice(&page[at..at + size_of::<u32>()]);
    u32::from_le_bytes(bytes)
}

/// The part of a disk behind the first page. Locks are not passed on: who owns the file
/// holds its lock before redb sees it.
#[derive(Debug)]
pub(crate) struct DatabasePart(pub(crate) Disk);

const SHIFT: u64 = FIRST_PAGE_LEN as u64;

impl StorageBackend for DatabasePart {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.len()?.saturating_sub(SHIFT))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.0.read(offset.saturating_add(SHIFT), out)
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.set_len(len.saturating_add(SHIFT))
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.write(offset.saturating_add(SHIFT), data)
    }
}
