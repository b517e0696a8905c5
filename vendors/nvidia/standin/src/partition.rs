//! GPU instances and compute instances: what outlives a process, in a file under a lock.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    abi::{Code, UNKNOWN},
    machine::Gpu,
    place,
};

/// A GPU instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// The device's UUID.
    pub(crate) gpu: String,
    pub(crate) id: u32,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
    pub(crate) compute: Vec<Compute>,
}

/// A compute instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Compute {
    pub(crate) id: u32,
    /// Its profile's number, which is one less than its slices here.
    pub(crate) profile: u32,
}

/// The instances of all devices, and the lock that keeps others from them.
pub(crate) struct Instances {
    pub(crate) all: Vec<Instance>,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Instances {
    /// Waits for the lock and reads what there is.
    pub(crate) fn open() -> Result<Self, Code> {
        let machine = place::file()?;
        let beside = |end: &str| {
            let mut name = machine.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        let failed = |_| UNKNOWN;
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).write(true);
        let lock = options.open(beside(".lock")).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|_| UNKNOWN)?;
        let path = beside(".mig");
        let all = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|_| UNKNOWN)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return Err(UNKNOWN),
        };
        Ok(Self { all, path, _lock: lock })
    }

    pub(crate) fn save(&self) -> Result<(), Code> {
        let text = serde_json::to_string_pretty(&self.all).map_err(|_| UNKNOWN)?;
        let next = self.path.with_extension("next");
        fs::write(&next, text).map_err(|_| UNKNOWN)?;
        fs::rename(&next, &self.path).map_err(|_| UNKNOWN)
    }

    pub(crate) fn of<'a>(&'a self, gpu: &'a Gpu) -> impl Iterator<Item = &'a Instance> {
        self.all.iter().filter(|instance| instance.gpu == gpu.uuid)
    }

    pub(crate) fn find(&mut self, gpu: &Gpu, id: u32) -> Option<&mut Instance> {
        self.all.iter_mut().find(|instance| instance.gpu == gpu.uuid && instance.id == id)
    }
}

/// MIG mode of a device: now, and after its next reset. None where it has no such mode.
pub(crate) fn mode(gpu: &Gpu) -> Result<Option<(bool, bool)>, Code> {
    let Some(begins) = gpu.mig else { return Ok(None) };
    Ok(Some(modes()?.get(&gpu.uuid).copied().unwrap_or((begins, begins))))
}

/// Modes that were switched, by UUID.
type Modes = BTreeMap<String, (bool, bool)>;

fn modes_path() -> Result<PathBuf, Code> {
    let mut name = place::file()?.into_os_string();
    name.push(".modes");
    Ok(name.into())
}

fn modes() -> Result<Modes, Code> {
    match fs::read_to_string(modes_path()?) {
        Ok(text) => serde_json::from_str(&text).map_err(|_| UNKNOWN),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Modes::new()),
        Err(_) => Err(UNKNOWN),
    }
}

/// Switches the mode of a device, under the lock that `_instances` holds.
pub(crate) fn set_mode(_instances: &Instances, gpu: &Gpu, mode: (bool, bool)) -> Result<(), Code> {
    let mut modes = modes()?;
    modes.insert(gpu.uuid.clone(), mode);
    let (path, text) = (modes_path()?, serde_json::to_string(&modes).map_err(|_| UNKNOWN)?);
    let next = path.with_extension("next-modes");
    fs::write(&next, text).map_err(|_| UNKNOWN)?;
    fs::rename(&next, path).map_err(|_| UNKNOWN)
}

/// Tells of a capability as the driver does: the number of the node that opens it.
///
/// Numbers follow `/proc/driver/nvidia-caps/mig-minors`: nine for each GPU instance, the first
/// its own, from 3 on, for fifteen GPU instances a device.
pub(crate) fn tell(
    procfs: Option<&str>,
    gpu: &Gpu,
    instance: u32,
    compute: Option<u32>,
) -> Result<(), Code> {
    let Some(folder) = folder(procfs, gpu, instance) else { return Ok(()) };
    let minor = 3 + gpu.minor * 135 + instance * 9 + compute.map_or(0, |id| id + 1);
    let folder = compute.map_or(folder.clone(), |id| folder.join(format!("ci{id}")));
    let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
    fs::create_dir_all(&folder).map_err(|_| UNKNOWN)?;
    fs::write(folder.join("access"), text).map_err(|_| UNKNOWN)
}

/// Tells no more of what is gone.
pub(crate) fn untell(procfs: Option<&str>, gpu: &Gpu, instance: u32, compute: Option<u32>) {
    let Some(folder) = folder(procfs, gpu, instance) else { return };
    let folder = compute.map_or(folder.clone(), |id| folder.join(format!("ci{id}")));
    // It may never have been told of.
    let _ = fs::remove_dir_all(folder);
}

fn folder(procfs: Option<&str>, gpu: &Gpu, instance: u32) -> Option<PathBuf> {
    let below = format!("driver/nvidia/capabilities/gpu{}/mig/gi{instance}", gpu.minor);
    procfs.map(|procfs| Path::new(procfs).join(below))
}
