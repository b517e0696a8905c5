//! A ledger as text that people can read, and a new ledger made of such a text.
//!
//! `export` is strict. `salvage` brings out what it can of a ledger that is refused, and
//! lists what it cannot. `import` refuses a text that lists losses until a person has
//! emptied that list: a lost lease is a device that could be given away twice.

mod scan;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    container::FILE_BYTES_MAX,
    error::{CommitError, ExportError, ImportError, OpenLedgerError, excerpt},
    file::{self, Purpose},
    ledger::{self, LEDGER_BYTES_MAX},
    record::{Kind, Record},
    store::Contents,
    verify,
};

/// The text's form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    leases: Vec<Value>,
    taints: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owed: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<Unreadable>,
}

/// Something that is not in the text, although it was or may have been in the ledger.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unreadable {
    /// The record's key, where it is known.
    pub(crate) record: String,
    /// Why it is not here.
    pub(crate) reason: String,
}

const FORMAT: &str = "accelpool-ledger-export";
const VERSION: &str = "1";

/// What an import made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Number of leases.
    pub leases: usize,
    /// Number of devices with taints.
    pub tainted_devices: usize,
}

/// The ledger at `path` as JSON. The file is only read, and must not be in use.
///
/// # Errors
///
/// Refuses whatever [`Ledger::open`](crate::Ledger::open) refuses.
pub fn export(path: &Path) -> Result<String, ExportError> {
    let contents = verify::contents(read(path)?)
        .map_err(|why| ExportError::Open(OpenLedgerError::refused(path, why)))?;
    Ok(document(&contents, Vec::new()))
}

/// The ledger at `path` as JSON, as far as it can be read, with a list of what cannot.
///
/// # Errors
///
/// Fails for a file that never was a ledger, is in use, or cannot be read at all.
pub fn salvage(path: &Path) -> Result<String, ExportError> {
    let bytes = read(path)?;
    let (contents, unreadable) =
        scan::salvage(bytes).map_err(|why| OpenLedgerError::refused(path, why))?;
    Ok(document(&contents, unreadable))
}

/// Makes a new ledger at `path` of what [`export`] returned.
///
/// # Errors
///
/// Refuses a path that is taken, and a text that is not a complete, valid export.
pub fn import(json: &str, path: &Path) -> Result<Summary, ImportError> {
    let document = parse(json)?;
    if !document.unreadable.is_empty() {
        return Err(ImportError::Unreadable(document.unreadable.len()));
    }
    let contents = contents(document)?;
    let image = ledger::image(&contents).map_err(ImportError::TooLarge)?;
    if !file::write_new(path, &image)? {
        return Err(ImportError::Exists(path.into()));
    }
    let count = |is: fn(&&Record) -> bool| contents.records.values().filter(is).count();
    Ok(Summary {
        leases: count(|record| matches!(record, Record::Lease(_))),
        tainted_devices: count(|record| matches!(record, Record::Taints(..))),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ExportError> {
    let file = file::open(path, Purpose::Read)?;
    let file = file.ok_or_else(|| ExportError::Missing(path.into()))?;
    Ok(file::read(path, &file)?)
}

fn document(contents: &Contents, unreadable: Vec<Unreadable>) -> String {
    let (mut leases, mut taints, mut owed) = (Vec::new(), Vec::new(), Vec::new());
    for record in contents.records.values() {
        let json = serde_json::from_str(&record.to_json()).expect("it was just written as JSON");
        match record {
            Record::Start(_) => {}
            Record::Lease(_) => leases.push(json),
            Record::Taints(..) => taints.push(json),
            Record::Owed(..) => owed.push(json),
        }
    }
    let document = Document {
        format: FORMAT.into(),
        version: VERSION.into(),
        boot: contents.boot.as_ref().map(ToString::to_string),
        leases,
        taints,
        owed,
        unreadable,
    };
    serde_json::to_string_pretty(&document).expect("it has text keys and no fallible part")
}

fn parse(json: &str) -> Result<Document, ImportError> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: String,
    }
    let malformed = |error: serde_json::Error| ImportError::Malformed(error.into());
    if json.len() as u64 > FILE_BYTES_MAX {
        return Err(ImportError::Malformed("it is too long".into()));
    }
    let head: Head = serde_json::from_str(json).map_err(malformed)?;
    if head.format != FORMAT {
        return Err(ImportError::Malformed(format!("its format is not `{FORMAT}`").into()));
    }
    if head.version != VERSION {
        return Err(ImportError::Version(excerpt(&head.version)));
    }
    serde_json::from_str(json).map_err(malformed)
}

fn contents(document: Document) -> Result<Contents, ImportError> {
    let boot = document.boot.map(|boot| boot.parse()).transpose();
    let boot = boot.map_err(|error| ImportError::Malformed(Box::new(error)))?;
    let leases = document.leases.into_iter().map(|json| (Kind::Lease, json));
    let taints = document.taints.into_iter().map(|json| (Kind::Taints, json));
    let owed = document.owed.into_iter().map(|json| (Kind::Owed, json));
    let mut records = BTreeMap::new();
    let mut bytes = 0;
    for (at, (kind, json)) in leases.chain(taints).chain(owed).enumerate() {
        let name = format!("number {}", at + 1);
        let record = Record::from_json(kind, &name, json.to_string().as_bytes())
            .map_err(|error| ImportError::Record(error.into()))?;
        bytes += record.encode(0).map_err(ImportError::TooLarge)?.len();
        match records.entry(record.key()) {
            Entry::Vacant(entry) => entry.insert(record),
            Entry::Occupied(entry) => return Err(ImportError::Duplicate(entry.key().to_string())),
        };
    }
    if bytes > LEDGER_BYTES_MAX {
        let full = CommitError::Full { bytes, max: LEDGER_BYTES_MAX };
        return Err(ImportError::TooLarge(full));
    }
    Ok(Contents { sequence: 0, boot, records })
}
