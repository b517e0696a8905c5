//! The durable record of leases and taints: one file, one writer, all or nothing.
//!
//! Memory follows this file, never leads it. A file that cannot be read in full stops the
//! daemon: it is never an empty ledger, never an older one, and never touched by a refusal.
//! This crate decides nothing about leases, and is the only one that knows redb.
//!
//! ```text
//! file       = first page (magic, schema, witness) + redb database      see `container`
//! database   = one table: key -> checksum, sequence, versioned JSON     see `record`
//! open       = lock, read into memory, prove it sound there, only then open the file itself
//! ```

#![forbid(unsafe_code)]

mod container;
mod error;
mod export;
mod file;
mod ledger;
mod quiet;
mod record;
mod store;
#[cfg(test)]
mod tests;
mod verify;

pub use crate::error::{
    CommitError, Damage, ExportError, ForeignFile, ImportError, OpenLedgerError, OtherVersion,
    VerifyError,
};
pub use crate::export::{Summary, export, import, salvage};
pub use crate::ledger::{Ledger, Replayed, Write};
pub use crate::verify::verify_bytes;
