//! Proves a ledger sound on a copy in memory, before anything may write to the file.
//!
//! redb repairs what it opens, so opening the file itself would change it even where the
//! answer is a refusal. Here it repairs the copy.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use redb::StorageBackend;

use crate::{
    container::{self, DatabasePart, FIRST_PAGE_LEN},
    error::{Damage, VerifyError},
    ledger::Replayed,
    quiet,
    store::{self, Contents},
};

/// Reads the bytes of a ledger file, as opening it would.
///
/// Takes any bytes: it neither panics nor hangs.
pub fn verify_bytes(bytes: &[u8]) -> Result<Replayed, VerifyError> {
    contents(bytes.to_vec()).map(Replayed::from)
}

/// Everything that the ledger in `bytes` holds.
pub(crate) fn contents(bytes: Vec<u8>) -> Result<Contents, VerifyError> {
    let witnessed = container::read_first_page(&bytes)?;
    if bytes.len() == FIRST_PAGE_LEN {
        // redb would make a new database here.
        return Err(Damage::Cut { len: bytes.len() }.into());
    }
    let read = || {
        let disk = Arc::new(MemoryDisk::new(bytes));
        let database =
            store::open(DatabasePart(disk)).map_err(|error| Damage::Database(error.into()))?;
        store::read(&database)
    };
    let contents = quiet::catch(read).map_err(Damage::Panicked)??;
    if contents.sequence < witnessed {
        return Err(Damage::RolledBack { witnessed, found: contents.sequence }.into());
    }
    Ok(contents)
}

/// A disk in memory.
#[derive(Debug)]
pub(crate) struct MemoryDisk(Mutex<Vec<u8>>);

impl MemoryDisk {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    /// A copy of everything on it.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let end = start.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(start..end)
}

impl StorageBackend for MemoryDisk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let bytes = self.bytes();
        let found = bytes.get(range(offset, out.len())?).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        if len > container::FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.bytes().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut bytes = self.bytes();
        let place = bytes.get_mut(range(offset, data.len())?);
        place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}
