//! Records: what stands in the database under one key.
//!
//! ```text
//! key    = `start` | `lease/<claim>` | `taints/<device UUID>` | `owed/<device UUID>`
//! value  = CRC-32 of all that follows and of the key | sequence (u64) | JSON with a `version`
//! ```
//! The sequence is that of the commit that wrote the record. A version or a field that this
//! version does not know refuses the whole ledger: to leave it out would be to lose it.

mod v1;

use std::fmt;

use accelpool_model::{BootId, ClaimId, DeviceUuid, Lease, OwedPartition, Taint};
use serde::{Deserialize, Serialize};

use crate::error::{CommitError, Damage, EngineError, OtherVersion, VerifyError, excerpt};

/// Longest value of a record: two hundred times the longest lease that is usual, and a page
/// of the database can hold it.
pub(crate) const RECORD_BYTES_MAX: usize = 1 << 20;

const CRC_LEN: usize = size_of::<u32>();
pub(crate) const HEAD_LEN: usize = CRC_LEN + size_of::<u64>();

/// What a record is about: its key in the database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The last start of the daemon; every commit writes it, so it bears the last sequence.
    Start,
    /// The lease of one claim.
    Lease(ClaimId),
    /// The taints of one device.
    Taints(DeviceUuid),
    /// What is owed on one device.
    Owed(DeviceUuid),
}

/// What kinds of record there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// [`Record::Start`].
    Start,
    /// [`Record::Lease`].
    Lease,
    /// [`Record::Taints`].
    Taints,
    /// [`Record::Owed`].
    Owed,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// The boot in which the daemon last started, if it ever did.
    Start(Option<BootId>),
    /// A lease.
    Lease(Lease),
    /// The taints of a device, at least one.
    Taints(DeviceUuid, Vec<Taint>),
    /// The partitions of a device whose destruction is owed, at least one.
    Owed(DeviceUuid, Vec<OwedPartition>),
}

/// A record as JSON, with its version: the form on disk and in exports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "version")]
pub(crate) enum Written<T> {
    /// The first version.
    #[serde(rename = "1")]
    V1(T),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str(Self::START),
            Self::Lease(claim) => write!(f, "{}{claim}", Self::LEASE),
            Self::Taints(device) => write!(f, "{}{device}", Self::TAINTS),
            Self::Owed(device) => write!(f, "{}{device}", Self::OWED),
        }
    }
}

impl Key {
    /// The key of the record that every ledger has.
    pub(crate) const START: &'static str = "start";
    const LEASE: &'static str = "lease/";
    const TAINTS: &'static str = "taints/";
    const OWED: &'static str = "owed/";

    /// The kind of record that stands under `key`.
    fn kind(key: &str) -> Result<Kind, OtherVersion> {
        match key {
            Self::START => Ok(Kind::Start),
            key if key.starts_with(Self::LEASE) => Ok(Kind::Lease),
            key if key.starts_with(Self::TAINTS) => Ok(Kind::Taints),
            key if key.starts_with(Self::OWED) => Ok(Kind::Owed),
            key => Err(OtherVersion::Kind(excerpt(key))),
        }
    }
}

impl Record {
    /// Where the record stands.
    pub(crate) fn key(&self) -> Key {
        match self {
            Self::Start(_) => Key::Start,
            Self::Lease(lease) => Key::Lease(lease.claim.id.clone()),
            Self::Taints(device, _) => Key::Taints(device.clone()),
            Self::Owed(device, _) => Key::Owed(device.clone()),
        }
    }

    /// The value as the commit `sequence` writes it.
    pub(crate) fn encode(&self, sequence: u64) -> Result<Vec<u8>, CommitError> {
        let key = self.key().to_string();
        let mut value = vec![0; CRC_LEN];
        value.extend_from_slice(&sequence.to_le_bytes());
        value.extend_from_slice(self.to_json().as_bytes());
        let crc = checksum(&key, &value[CRC_LEN..]);
        value[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
        if value.len() > RECORD_BYTES_MAX {
            return Err(CommitError::RecordTooLong {
                key,
                bytes: value.len(),
                max: RECORD_BYTES_MAX,
            });
        }
        Ok(value)
    }

    /// The record under `key`, and the sequence of the commit that wrote it.
    pub(crate) fn decode(key: &str, value: &[u8]) -> Result<(u64, Self), VerifyError> {
        let damaged = |reason| Damage::Record { key: excerpt(key), reason };
        let Some((head, json)) = value.split_at_checked(HEAD_LEN) else {
            return Err(damaged("is cut short").into());
        };
        let (crc, sequence) = head.split_at(CRC_LEN);
        if crc != checksum(key, &value[CRC_LEN..]).to_le_bytes() {
            return Err(damaged("does not match its checksum").into());
        }
        let sequence = u64::from_le_bytes(sequence.try_into().expect("eight bytes remain"));
        let record = Self::from_json(Key::kind(key)?, key, json)?;
        if record.key().to_string() != key {
            return Err(damaged("stands under the key of another").into());
        }
        Ok((sequence, record))
    }

    /// The record as JSON that begins with its version.
    pub(crate) fn to_json(&self) -> String {
        let json = match self {
            Self::Start(boot) => serde_json::to_string(&Written::V1(v1::Start::from(boot))),
            Self::Lease(lease) => serde_json::to_string(&Written::V1(v1::Lease::from(lease))),
            Self::Taints(device, taints) => {
                serde_json::to_string(&Written::V1(v1::Taints::new(device, taints)))
            }
            Self::Owed(device, owed) => {
                serde_json::to_string(&Written::V1(v1::Owed::new(device, owed)))
            }
        };
        json.expect("these types have text keys and no fallible part")
    }

    /// The record of this kind that `json` holds; errors call it `name`.
    pub(crate) fn from_json(kind: Kind, name: &str, json: &[u8]) -> Result<Self, OtherVersion> {
        check_version(name, json)?;
        let record = match kind {
            Kind::Start => read(json).and_then(v1::Start::into_model).map(Self::Start),
            Kind::Lease => read(json).and_then(v1::Lease::into_model).map(Self::Lease),
            Kind::Taints => read(json)
                .and_then(v1::Taints::into_model)
                .map(|(device, taints)| Self::Taints(device, taints)),
            Kind::Owed => read(json)
                .and_then(v1::Owed::into_model)
                .map(|(device, owed)| Self::Owed(device, owed)),
        };
        record.map_err(|source| OtherVersion::Content {
            key: excerpt(name),
            reason: excerpt(&source.to_string()),
        })
    }
}

/// Refuses any version but 1 by name, before the content is looked at.
fn check_version(key: &str, json: &[u8]) -> Result<(), OtherVersion> {
    #[derive(Deserialize)]
    struct Versioned {
        version: String,
    }
    match serde_json::from_slice(json) {
        Ok(Versioned { version }) if version == "1" => Ok(()),
        Ok(Versioned { version }) => {
            Err(OtherVersion::Version { key: excerpt(key), version: excerpt(&version) })
        }
        Err(error) => {
            Err(OtherVersion::Content { key: excerpt(key), reason: excerpt(&error.to_string()) })
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, EngineError> {
    let Written::V1(record) = serde_json::from_slice(json)?;
    Ok(record)
}

fn checksum(key: &str, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest);
    hasher.update(key.as_bytes());
    hasher.finalize()
}
