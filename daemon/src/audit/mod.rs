//! The audit log: who was granted what, when, asked by whom, and why a claim was refused.
//!
//! A folder of files of lines. A line is the SHA-256 of a record and the record, which is JSON and
//! carries the hash of the one before: whoever edits, cuts, moves or removes a record breaks the
//! chain there. `head` says how far the log had come on disk, so that a cut end is found too.
//!
//! The owner writes the records of a round after the round's commit and before its answers, and
//! a thread brings them to the disk: see docs/audit.md for what a crash can lose.

mod check;
mod log;
mod show;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use accelpool_proto::trace::Here;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::{
    check::{Report, verify},
    log::{Limits, Log},
    show::{Filter, parse_span, show},
};

/// The page of a log that cannot be written.
pub const PAGE: &str = "AP0016";
/// The page of a log that is not as it was written.
pub const CHANGED: &str = "AP0017";
/// What the first record of a log carries as the hash of the one before.
const ORIGIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The longest message of a record: an error's chain is a few hundred bytes.
const MESSAGE_CHARS_MAX: usize = 2048;

/// Who asked, by the kernel's word; nothing of it where the daemon acted by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The caller's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The caller's group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The caller's process, where this pid namespace has a number for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The span that it was asked in, which is no part of a record.
    #[serde(skip)]
    pub here: Here,
}

/// What a record says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What kind of thing: `prepared`, `refused`, `released`, `tainted`, ...
    pub kind: String,
    /// The claim, where it is about one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub claim: String,
    /// The devices and partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// What, in one sentence.
    pub message: String,
    /// The code of the error, if it was one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Who asked.
    pub by: Asker,
    /// The trace that it was done in, if it was traced.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace: String,
    /// The claim's labels: its pod, its namespace, its name there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, counted from 1.
    pub n: u64,
    /// The hash of the record before.
    pub previous: String,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
}

impl Record {
    /// The record's line without its end, and its hash.
    fn to_line(&self) -> serde_json::Result<(String, String)> {
        let text = serde_json::to_string(self)?;
        let hash = hash(text.as_bytes());
        Ok((format!("{hash} {text}"), hash))
    }

    /// The record of a line and its hash, if the line is what was written.
    fn of_line(line: &[u8]) -> Option<(Self, String)> {
        let (given, text) = (line.get(..64)?, line.get(65..)?);
        let hash = hash(text);
        if line.get(64) != Some(&b' ') || given != hash.as_bytes() {
            return None;
        }
        Some((serde_json::from_slice(text).ok()?, hash))
    }
}

fn hash(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |of: u8| DIGITS[usize::from(of & 15)];
    Sha256::digest(bytes).iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}
