//! Why a ledger is refused, and the code under which an operator finds the way out.

use std::{error::Error, io, path::PathBuf};

/// An error of the database engine, kept for its message.
pub(crate) type EngineError = Box<dyn Error + Send + Sync>;

/// Why a ledger could not be opened. In each case the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenLedgerError {
    /// It was a ledger, and part of it is lost.
    #[error("the ledger `{path}` is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Damage,
    },
    /// Another version of accelpool wrote it.
    #[error("the ledger `{path}` was written by another version of accelpool")]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is not known here.
        source: OtherVersion,
    },
    /// It is something else.
    #[error("`{path}` is not a ledger")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        source: ForeignFile,
    },
    /// The operating system refuses to read or write it.
    #[error("failed to {action} the ledger `{path}`")]
    Inaccessible {
        /// The file or its folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the ledger `{path}` is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

impl OpenLedgerError {
    /// The stable code, each with a page in `docs/errors`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "AP0001",
            Self::Newer { .. } => "AP0002",
            Self::Foreign { .. } => "AP0003",
            Self::Inaccessible { .. } => "AP0004",
            Self::InUse { .. } => "AP0005",
        }
    }

    pub(crate) fn refused(path: impl Into<PathBuf>, why: VerifyError) -> Self {
        let path = path.into();
        match why {
            VerifyError::Damaged(source) => Self::Damaged { path, source },
            VerifyError::Newer(source) => Self::Newer { path, source },
            VerifyError::Foreign(source) => Self::Foreign { path, source },
        }
    }
}

/// Why bytes are not a sound ledger.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// They were one, and part of it is lost.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// Another version of accelpool wrote them.
    #[error(transparent)]
    Newer(#[from] OtherVersion),
    /// They are something else.
    #[error(transparent)]
    Foreign(#[from] ForeignFile),
}

/// What is wrong with a damaged ledger.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Not even a first page.
    #[error("the file is empty")]
    Empty,
    /// The file ends inside the first page, or right behind it.
    #[error("the file ends after {len} bytes")]
    Cut {
        /// Its length.
        len: usize,
    },
    /// Longer than any ledger.
    #[error("the file is {len} bytes long, at most {max} are read")]
    TooLong {
        /// Its length.
        len: u64,
        /// The longest that is read.
        max: u64,
    },
    /// Magic, schema and their checksum disagree.
    #[error("the first page does not match its checksum")]
    FirstPage,
    /// Both witnesses are unreadable.
    #[error("the sequence of the last commit cannot be read")]
    Witness,
    /// The database engine cannot read its pages.
    #[error("the database cannot be read")]
    Database(#[source] EngineError),
    /// The database engine gave up on its pages.
    #[error("the database cannot be read: {0}")]
    Panicked(String),
    /// Commits that were durable are gone.
    #[error("commit {witnessed} was durable, but the last that can be read is {found}")]
    RolledBack {
        /// The last commit known to be durable.
        witnessed: u64,
        /// The last that can be read.
        found: u64,
    },
    /// A database without the record that every ledger has.
    #[error("the record `{0}` is missing")]
    Missing(&'static str),
    /// A record that does not match its checksum, or its key.
    #[error("the record `{key}` {reason}")]
    Record {
        /// Its key, shortened and escaped.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What this version does not know.
#[derive(Debug, thiserror::Error)]
pub enum OtherVersion {
    /// The file as a whole.
    #[error("it has schema {found}, this version knows {known}")]
    Schema {
        /// Its schema.
        found: u32,
        /// The schema known here.
        known: u32,
    },
    /// A table that this version never writes.
    #[error("it has the table `{0}`, which this version does not know")]
    Table(String),
    /// A kind of record that this version never writes.
    #[error("it has the record `{0}`, a kind that this version does not know")]
    Kind(String),
    /// A version of a record.
    #[error("the record `{key}` has version `{version}`, this version knows 1")]
    Version {
        /// The record's key.
        key: String,
        /// Its version, shortened and escaped.
        version: String,
    },
    /// A sound record that says something this version cannot hold.
    #[error("the record `{key}` matches its checksum, but this version cannot read it: {reason}")]
    Content {
        /// The record's key.
        key: String,
        /// Why it cannot be read.
        reason: String,
    },
}

/// What a file is instead of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForeignFile {
    /// A file of somebody else.
    #[error("it does not begin with `accelpool-ledger`")]
    Content,
    /// No file at all.
    #[error("it is a {0}, not a regular file")]
    Kind(&'static str),
}

/// Why writes were not recorded.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// One record is too long. Nothing was written; the ledger can be used further.
    #[error("the record `{key}` is {bytes} bytes long, at most {max} are allowed")]
    RecordTooLong {
        /// Its key.
        key: String,
        /// Its length.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// All records together are too long. Nothing was written; the ledger can be used further.
    #[error("the records of the ledger would be {bytes} bytes long, at most {max} are allowed")]
    Full {
        /// Their length with the writes.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// The disk refused. Whether the writes are recorded is not known before the ledger is
    /// opened again, and until then every commit is refused.
    #[error("failed to write the ledger")]
    Storage(#[source] io::Error),
}

impl CommitError {
    /// The stable code, for those that an operator must act on.
    #[must_use]
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::RecordTooLong { .. } | Self::Full { .. } => None,
            Self::Storage(_) => Some("AP0004"),
        }
    }

    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Storage(source) => source,
            Self::RecordTooLong { .. } | Self::Full { .. } => io::Error::other(self),
        }
    }
}

/// Why a ledger could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Open(#[from] OpenLedgerError),
    /// There is none.
    #[error("there is no ledger at `{0}`")]
    Missing(PathBuf),
}

impl ExportError {
    /// The stable code, for those that have a page in `docs/errors`.
    #[must_use]
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Open(error) => Some(error.code()),
            Self::Missing(_) => None,
        }
    }
}

/// Why no ledger could be made of an export. No file was made.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is not an export.
    #[error("the export cannot be read")]
    Malformed(#[source] EngineError),
    /// It is an export of another version.
    #[error("the export has version `{0}`, this version reads 1")]
    Version(String),
    /// It says that records were lost.
    #[error(
        "the export lists {0} unreadable records: when their loss is dealt with, \
         empty the list `unreadable` and import again"
    )]
    Unreadable(usize),
    /// A record of it cannot be read.
    #[error("a record of the export is not valid")]
    Record(#[source] VerifyError),
    /// Two records are about the same claim or device.
    #[error("the export has two records `{0}`")]
    Duplicate(String),
    /// What it holds goes beyond a limit of the ledger.
    #[error("the export does not fit a ledger")]
    TooLarge(#[source] CommitError),
    /// There is a file already: a ledger is never overwritten.
    #[error("`{0}` exists: move it away first")]
    Exists(PathBuf),
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] OpenLedgerError),
}

/// The start of a text from outside, safe to print.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

impl ImportError {
    /// The stable code, for those that have a page in `docs/errors`.
    #[must_use]
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Write(error) => Some(error.code()),
            Self::Malformed(_)
            | Self::Version(_)
            | Self::Unreadable(_)
            | Self::Record(_)
            | Self::Duplicate(_)
            | Self::TooLarge(_)
            | Self::Exists(_) => None,
        }
    }
}
