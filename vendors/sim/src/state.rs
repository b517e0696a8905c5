//! The state of the simulated hardware: what has happened to it since power-on.
//!
//! It outlives every worker, so it is a file (`state.json`), changed only under a lock and
//! replaced whole. A file that cannot be read is an error and never an empty state: partitions
//! that containers use would be forgotten. Removing the file is what switching the simulated
//! machine off and on again would be.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use accelpool_model::{DeviceUuid, ProfileName};
use serde::{Deserialize, Serialize};

use crate::{
    cut::{Place, check_fits},
    profile::Profile,
};

const VERSION: u32 = 1;

/// Longest state file that is read, in bytes: twice what all ids and partitions can take.
const STATE_LEN_MAX: u64 = 8 << 20;

/// The most faults and partitions, and the most call steps, that a script can have had between
/// two power-ons: what keeps the file below its limit.
pub(crate) const IDS_MAX: usize = 10_000;

/// What has happened since power-on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    profile: String,
    /// Major number of all device nodes.
    pub(crate) major: u32,
    /// Partitions created so far: no two ever have the same UUID.
    pub(crate) serial: u64,
    pub(crate) partitions: Vec<PartitionRecord>,
    /// Devices off the bus.
    pub(crate) absent: BTreeSet<String>,
    /// Times that devices or partitions came or went without being asked to.
    pub(crate) changes: u64,
    /// Of these, how many were told.
    pub(crate) changes_told: u64,
    /// Ids of script entries that have happened and must not happen again.
    pub(crate) done: BTreeSet<String>,
    /// By id of a call step: how many calls it has seen.
    pub(crate) calls: BTreeMap<String, u64>,
    /// By device: when it was last sampled, in nanoseconds since boot.
    pub(crate) sampled_ns: BTreeMap<String, u64>,
    /// By device: the mode that it was switched to.
    #[serde(default)]
    pub(crate) modes: BTreeMap<String, bool>,
    /// By device: what it has drawn.
    #[serde(default)]
    pub(crate) drawn: BTreeMap<String, Drawn>,
}

/// What a device has drawn until it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drawn {
    /// When, in nanoseconds since boot.
    pub(crate) at_ns: u64,
    pub(crate) microjoules: u64,
}

/// The part of the file that all versions have.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// A partition that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartitionRecord {
    pub(crate) uuid: String,
    pub(crate) device: String,
    pub(crate) profile: String,
    pub(crate) start: u32,
    pub(crate) complete: bool,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not a state of this profile that this version can read.
    #[error(
        "state of the simulated hardware `{path}` is damaged: {reason}; \
         delete the file to power-cycle the simulated machine (its partitions are then gone)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder belongs to another simulated machine.
    #[error(
        "`{path}` holds the state of profile {found}, not of {wanted}: \
         use another folder, or delete the file to power-cycle the simulated machine"
    )]
    OtherProfile {
        /// The file.
        path: PathBuf,
        /// Its profile.
        found: String,
        /// The profile asked for.
        wanted: String,
    },
}

/// The state, held exclusively: against other threads and other processes.
#[derive(Debug)]
pub(crate) struct Locked {
    /// Its lock ends when it is closed, also by a kill.
    _lock: File,
    path: PathBuf,
    pub(crate) state: State,
    /// True if there was no file: the machine has just been switched on.
    pub(crate) powered_on: bool,
}

impl Locked {
    /// Waits for the lock and reads the state; without a file it is the one at power-on.
    pub(crate) fn open(folder: &Path, profile: &Profile) -> Result<Self, StateError> {
        let lock_path = folder.join("state.lock");
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::File { action, path, source }
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        let path = folder.join("state.json");
        let (state, powered_on) = match File::open(&path) {
            Ok(file) => {
                let mut text = String::new();
                let read = file.take(STATE_LEN_MAX + 1).read_to_string(&mut text);
                match read {
                    Ok(_) => (State::parse(&text, profile, &path)?, false),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        let reason = "it is not text".to_owned();
                        return Err(StateError::Damaged { path, reason });
                    }
                    Err(source) => return Err(failed("read", &path)(source)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (State::new(profile), true),
            Err(source) => return Err(failed("open", &path)(source)),
        };
        Ok(Self { _lock: lock, path, state, powered_on })
    }

    /// Replaces the file. A kill leaves the old one or the new one, never a part.
    pub(crate) fn save(&self) -> Result<(), StateError> {
        let new = self.path.with_extension("json.new");
        let text = serde_json::to_vec(&self.state).expect("a state has only strings as map keys");
        // No sync: power that fails takes the simulated hardware down too.
        fs::write(&new, text).map_err(|source| StateError::File {
            action: "write",
            path: new.clone(),
            source,
        })?;
        fs::rename(&new, &self.path).map_err(|source| StateError::File {
            action: "replace",
            path: self.path.clone(),
            source,
        })
    }
}

impl State {
    pub(crate) fn new(profile: &Profile) -> Self {
        Self {
            version: VERSION,
            profile: profile.name().to_owned(),
            major: profile.major,
            serial: 0,
            partitions: Vec::new(),
            absent: BTreeSet::new(),
            changes: 0,
            changes_told: 0,
            done: BTreeSet::new(),
            calls: BTreeMap::new(),
            sampled_ns: BTreeMap::new(),
            modes: BTreeMap::new(),
            drawn: BTreeMap::new(),
        }
    }

    /// Reads a state file's text; `path` is for messages.
    pub(crate) fn parse(text: &str, profile: &Profile, path: &Path) -> Result<Self, StateError> {
        let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
        if text.len() as u64 > STATE_LEN_MAX {
            return Err(damaged(format!("it is longer than {STATE_LEN_MAX} bytes")));
        }
        let malformed = |error: serde_json::Error| damaged(error.to_string());
        let Version { version } = serde_json::from_str(text).map_err(malformed)?;
        if version != VERSION {
            return Err(damaged(format!("it has version {version}, this program reads {VERSION}")));
        }
        let state: Self = serde_json::from_str(text).map_err(malformed)?;
        if state.profile != profile.name() {
            return Err(StateError::OtherProfile {
                path: path.to_owned(),
                found: state.profile,
                wanted: profile.name().to_owned(),
            });
        }
        if !(240..=254).contains(&state.major) {
            return Err(damaged(format!("major {} is not one of 240 to 254", state.major)));
        }
        for (i, partition) in state.partitions.iter().enumerate() {
            if !partition.fits(profile, &state.partitions[..i]) {
                let PartitionRecord { device, profile, start, .. } = partition;
                let place = format!("{profile} at {start} on {device}");
                return Err(damaged(format!("there is no room for {place}")));
            }
        }
        Ok(state)
    }

    /// The partitions of a device.
    pub(crate) fn partitions_of(
        &self,
        device: &DeviceUuid,
    ) -> impl Iterator<Item = &PartitionRecord> {
        self.partitions.iter().filter(move |record| record.device == device.as_str())
    }

    /// The places that are taken on a device.
    pub(crate) fn places(&self, device: &DeviceUuid) -> Vec<Place> {
        self.partitions_of(device).filter_map(PartitionRecord::place).collect()
    }

    /// The partition at a place.
    pub(crate) fn partition_mut(
        &mut self,
        device: &DeviceUuid,
        place: &Place,
    ) -> Option<&mut PartitionRecord> {
        self.partitions.iter_mut().find(|record| record.is_at(device, place))
    }
}

impl PartitionRecord {
    pub(crate) fn is_at(&self, device: &DeviceUuid, place: &Place) -> bool {
        self.device == device.as_str()
            && self.profile == place.profile.as_str()
            && self.start == place.start
    }

    /// Where it lies; `None` for a name that no profile can have.
    pub(crate) fn place(&self) -> Option<Place> {
        let profile: ProfileName = self.profile.parse().ok()?;
        Some(Place { profile, start: self.start })
    }

    /// True if it fits on its device beside `others`.
    fn fits(&self, profile: &Profile, others: &[Self]) -> bool {
        let device = profile.devices().find(|device| device.uuid.as_str() == self.device);
        let Some((device, place)) = device.zip(self.place()) else { return false };
        let beside = others.iter().filter(|other| other.device == self.device);
        let beside: Vec<Place> = beside.filter_map(Self::place).collect();
        let new = others.iter().all(|other| other.uuid != self.uuid);
        new && self.uuid.parse::<DeviceUuid>().is_ok()
            && check_fits(device, &beside, &place).is_ok()
    }
}
