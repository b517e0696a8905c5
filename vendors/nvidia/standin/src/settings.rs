//! How the driver is set for each device: as the machine begins, or as it was set since.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Code, UNKNOWN},
    machine::Gpu,
    partition::Instances,
    place,
};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) compute_mode: u32,
    /// Absent where the driver has no such mode.
    pub(crate) persistence: Option<bool>,
    pub(crate) accounting: bool,
}

/// What was set, by UUID.
type Set = BTreeMap<String, Settings>;

pub(crate) fn of(gpu: &Gpu) -> Result<Settings, Code> {
    let begins = Settings {
        compute_mode: gpu.compute_mode,
        persistence: gpu.persistence,
        accounting: gpu.accounting.is_some(),
    };
    Ok(all()?.get(&gpu.uuid).copied().unwrap_or(begins))
}

/// Keeps what was set, under the lock that `_lock` holds.
pub(crate) fn put(_lock: &Instances, gpu: &Gpu, settings: Settings) -> Result<(), Code> {
    let mut set = all()?;
    set.insert(gpu.uuid.clone(), settings);
    let (path, text) = (path()?, serde_json::to_string(&set).map_err(|_| UNKNOWN)?);
    let next = path.with_extension("next-settings");
    fs::write(&next, text).map_err(|_| UNKNOWN)?;
    fs::rename(&next, path).map_err(|_| UNKNOWN)
}

fn all() -> Result<Set, Code> {
    match fs::read_to_string(path()?) {
        Ok(text) => serde_json::from_str(&text).map_err(|_| UNKNOWN),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Set::new()),
        Err(_) => Err(UNKNOWN),
    }
}

fn path() -> Result<PathBuf, Code> {
    let mut name = place::file()?.into_os_string();
    name.push(".settings");
    Ok(name.into())
}
