//! The file on the disk: found, opened without hanging, locked, read, made.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use redb::StorageBackend;

use crate::{
    container::{self, FILE_BYTES_MAX, FIRST_PAGE_LEN},
    error::{Damage, ForeignFile, OpenLedgerError},
};

/// What an opened file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be read only, beside other readers.
    Read,
    /// To be written, alone.
    Write,
}

/// Opens and locks the file at `path`; `None` if there is none.
pub(crate) fn open(path: &Path, purpose: Purpose) -> Result<Option<File>, OpenLedgerError> {
    let failed = |action| move |source| inaccessible(path, action, source);
    // Looked at before it is opened: to open a device can have effects.
    match fs::metadata(path) {
        Ok(found) => check_kind(path, found.file_type())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("find")(error)),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(purpose == Purpose::Write);
    // A FIFO that took the file's place meanwhile does not hold us up.
    options.custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path).map_err(failed("open"))?;
    check_kind(path, file.metadata().map_err(failed("open"))?.file_type())?;
    let locked = match purpose {
        Purpose::Read => file.try_lock_shared(),
        Purpose::Write => file.try_lock(),
    };
    match locked {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(OpenLedgerError::InUse { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// The whole file, if it can be a ledger's.
pub(crate) fn read(path: &Path, file: &File) -> Result<Vec<u8>, OpenLedgerError> {
    let failed = |source| inaccessible(path, "read", source);
    let len = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    let take = if len > FILE_BYTES_MAX { FIRST_PAGE_LEN as u64 } else { FILE_BYTES_MAX };
    file.take(take).read_to_end(&mut bytes).map_err(failed)?;
    if len > FILE_BYTES_MAX {
        let refused = |why| OpenLedgerError::refused(path, why);
        container::read_first_page(&bytes).map_err(refused)?;
        return Err(refused(Damage::TooLong { len, max: FILE_BYTES_MAX }.into()));
    }
    Ok(bytes)
}

/// Makes a new file with these bytes, durably and in one step; `false` if there is one already.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<bool, OpenLedgerError> {
    let failed = |action| move |source| inaccessible(path, action, source);
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    };
    make_folder(folder).map_err(failed("make the folder of"))?;
    // Mode 0600, removed on drop unless it is given its name.
    let mut file =
        tempfile::Builder::new().prefix(".ledger-").tempfile_in(folder).map_err(failed("make"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    file.as_file().sync_all().map_err(failed("write"))?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed("name")(error.error)),
    }
    sync_folder(folder).map_err(failed("make"))?;
    Ok(true)
}

/// Makes `folder` and the folders above it, for root alone where they are missing.
fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|folder| *folder != Path::new("") && !folder.exists())
        .collect();
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if let Some(above) = folder.parent() {
            sync_folder(if above == Path::new("") { Path::new(".") } else { above })?;
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn check_kind(path: &Path, kind: fs::FileType) -> Result<(), OpenLedgerError> {
    let name = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    };
    Err(OpenLedgerError::Foreign { path: path.into(), source: ForeignFile::Kind(name) })
}

pub(crate) fn inaccessible(
    path: impl Into<PathBuf>,
    action: &'static str,
    source: io::Error,
) -> OpenLedgerError {
    OpenLedgerError::Inaccessible { path: path.into(), action, source }
}

/// The opened file as a disk.
#[derive(Debug)]
pub(crate) struct FileDisk(pub(crate) File);

impl StorageBackend for FileDisk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_all_at(data, offset)
    }
}
