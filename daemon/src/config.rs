//! The daemon's configuration: as written, and as valid.
//!
//! The file is TOML. A key that is not known is refused by name, a value that makes no sense
//! with its path and its range, and nothing is guessed.

mod pools;
mod raw;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_model::{MemoryBytes, Pool, VendorName};
use accelpool_vendor_sim::{Profile, from_toml};

use self::raw::{RawConfig, RawGate, RawVendor};
use crate::{
    gate::{Family, GateConfig},
    turns::{Delivery, TurnsConfig},
};

/// Where the configuration lies unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/accelpool/accelpoold.toml";

/// A configuration of a thousand pools is a mistake; this is far above any real one.
const FILE_BYTES_MAX: u64 = 1 << 20;
const POOLS_MAX: usize = 64;
const VENDORS_MAX: usize = 16;
/// Monitoring agents and the like: a few per node.
const EXEMPT_MAX: usize = 64;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the ledger lies; survives a boot.
    pub state_dir: PathBuf,
    /// Where the socket lies; does not survive a boot.
    pub run_dir: PathBuf,
    /// Where CDI specs are written.
    pub cdi_dir: PathBuf,
    /// Who may read, beside root.
    pub group: String,
    /// How long a shutdown waits for what is in hand.
    pub drain_timeout: Duration,
    /// How often vendors are asked what they see, beside their own events.
    pub observe_interval: Duration,
    /// How the log is written.
    pub log: Log,
    /// How usage is measured.
    pub usage: Usage,
    /// A captured hwloc XML file that stands in for this machine.
    pub hwloc_xml: Option<PathBuf>,
    /// The device gate.
    pub gate: GateConfig,
    /// What each process of a share is charged for its context on a device.
    pub context_reserve: MemoryBytes,
    /// How programs on shared devices come to the library.
    pub delivery: Delivery,
    /// The vendors to drive.
    pub vendors: Vec<VendorConfig>,
    /// The pools; one that takes every device if none is written.
    pub pools: Vec<Pool>,
}

/// How usage is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// How often each device is read.
    pub sample_interval: Duration,
    /// Where the procfs is that shows the host's processes.
    pub proc_dir: PathBuf,
    /// Where the host's sysfs is.
    pub sys_dir: PathBuf,
}

/// How the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// As lines of JSON instead of text.
    pub json: bool,
    /// What is logged, as `tracing` filters are written: `info`, `accelpool_daemon=debug`.
    pub filter: String,
}

/// One vendor to drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VendorConfig {
    /// A simulated node.
    Sim {
        /// The name of an embedded profile, or the path of a file.
        profile: String,
        /// The folder that stands for the hardware.
        dir: PathBuf,
        /// Its devices are shared by turns.
        turns: bool,
    },
    /// NVIDIA's devices.
    Nvidia {
        /// Where the driver is installed: `/`, or where a container brings it.
        driver_root: PathBuf,
        /// Where `sys`, `proc` and `dev` are: `/`, or a folder that stands for a machine.
        machine_root: PathBuf,
        /// Where the host's own root is seen from here: `/`, or where a container mounts it.
        host_root: PathBuf,
        /// Its devices are shared by turns.
        turns: bool,
    },
}

impl VendorConfig {
    /// The adapter's name.
    ///
    /// # Panics
    ///
    /// Never: the names of this build's adapters are valid.
    #[must_use]
    pub fn name(&self) -> VendorName {
        match self {
            Self::Sim { .. } => "sim".parse().expect("it is a DNS label"),
            Self::Nvidia { .. } => "nvidia".parse().expect("it is a DNS label"),
        }
    }

    /// True if programs on its shared devices load our library and take turns.
    const fn takes_turns(&self) -> bool {
        match self {
            Self::Sim { turns, .. } | Self::Nvidia { turns, .. } => *turns,
        }
    }

    /// The device numbers that are its drivers' whoever uses them.
    #[must_use]
    pub fn family(&self) -> Family {
        let (drivers, machine_root) = match self {
            Self::Sim { .. } => (None, Path::new("/")),
            Self::Nvidia { machine_root, .. } => {
                (Some(accelpool_vendor_nvidia::DRIVERS), machine_root.as_path())
            }
        };
        let proc_devices = machine_root.join("proc/devices");
        Family { adapter: self.name(), drivers, proc_devices }
    }

    /// The arguments of `accelpoold` that run its worker.
    #[must_use]
    pub fn worker_arguments(&self) -> Vec<OsString> {
        match self {
            Self::Sim { profile, dir, turns: _ } => vec![
                "vendor-worker".into(),
                "sim".into(),
                "--profile".into(),
                profile.into(),
                "--dir".into(),
                dir.into(),
            ],
            Self::Nvidia { driver_root, machine_root, host_root, turns: _ } => vec![
                "vendor-worker".into(),
                "nvidia".into(),
                "--driver-root".into(),
                driver_root.into(),
                "--machine-root".into(),
                machine_root.into(),
                "--host-root".into(),
                host_root.into(),
            ],
        }
    }
}

/// Why a configuration is not valid. The message says what to write instead.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ConfigError {
    #[error("failed to read configuration `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration `{path}` is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("configuration is not valid TOML of the known keys")]
    Syntax { source: Box<toml::de::Error> },
    #[error("`{key}` = {value} is out of range: use {min} to {max}")]
    OutOfRange { key: &'static str, value: u64, min: u64, max: u64 },
    #[error("`{key}` = `{value}` must be an absolute path")]
    RelativePath { key: String, value: PathBuf },
    #[error("`{key}` is not valid: {reason}")]
    Value { key: String, reason: String },
    #[error("`{key}` has {found} entries, at most {max} are allowed")]
    TooMany { key: &'static str, found: usize, max: usize },
    #[error("`{key}` names `{name}` twice")]
    Duplicate { key: &'static str, name: String },
    #[error("`vendor[{index}].name` = `{name}` is not known: this build drives {known}")]
    UnknownVendor { index: usize, name: VendorName, known: &'static str },
    #[error("`vendor[{index}].profile` is not usable")]
    Profile { index: usize, source: Box<dyn std::error::Error + Send + Sync> },
}

impl ConfigError {
    /// The code of the page that tells what to do.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "AP0010"
    }
}

impl Config {
    /// Reads and checks the file at `path`; without one, the defaults.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        match fs::metadata(path) {
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                return Err(ConfigError::TooLarge { path: path.to_owned() });
            }
            // Reading a pipe or a device could wait for ever.
            Ok(found) if !found.is_file() => {
                return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "not a file")));
            }
            Ok(_) => {}
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
            {
                return Self::parse("");
            }
            Err(error) => return Err(read(error)),
        }
        Self::parse(&fs::read_to_string(path).map_err(read)?)
    }

    /// Checks a configuration given as text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            from_toml(text).map_err(|source| ConfigError::Syntax { source: Box::new(source) })?;
        raw.try_into()
    }

    /// Where the driver is that serves MPS, if a pool asks for it.
    #[must_use]
    pub fn mps_root(&self) -> Option<PathBuf> {
        let asked = self.pools.iter().any(|pool| pool.mps);
        let root = self.vendors.iter().find_map(|vendor| match vendor {
            VendorConfig::Nvidia { driver_root, .. } => Some(driver_root.clone()),
            VendorConfig::Sim { .. } => None,
        });
        root.filter(|_| asked)
    }

    /// The node API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("node.sock")
    }

    /// The folder that has one folder for each claim that takes turns.
    #[must_use]
    pub fn turns_dir(&self) -> PathBuf {
        self.run_dir.join("turns")
    }

    /// How devices are shared by turns.
    #[must_use]
    pub fn turns(&self) -> TurnsConfig {
        let sharing = self.vendors.iter().filter(|vendor| vendor.takes_turns());
        TurnsConfig {
            context_reserve: self.context_reserve,
            delivery: self.delivery,
            adapters: sharing.map(VendorConfig::name).collect(),
        }
    }

    /// Where the audit log is.
    #[must_use]
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// The ledger's file.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state_dir.join("ledger.redb")
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        limit("vendor", raw.vendor.len(), VENDORS_MAX)?;
        limit("pool", raw.pool.len(), POOLS_MAX)?;
        let run_dir = absolute("run_dir", raw.run_dir)?;
        let vendors = raw.vendor.into_iter().enumerate();
        let vendors: Vec<_> = vendors
            .map(|(index, vendor)| check_vendor(index, vendor, &run_dir))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            state_dir: absolute("state_dir", raw.state_dir)?,
            cdi_dir: absolute("cdi_dir", raw.cdi_dir)?,
            group: check_group(raw.group)?,
            drain_timeout: Duration::from_secs(range(
                "drain_timeout_s",
                raw.drain_timeout_s,
                1,
                600,
            )?),
            observe_interval: Duration::from_millis(range(
                "observe_interval_ms",
                raw.observe_interval_ms,
                100,
                600_000,
            )?),
            log: check_log(raw.log)?,
            usage: Usage {
                sample_interval: Duration::from_millis(range(
                    "usage.sample_interval_ms",
                    raw.usage.sample_interval_ms,
                    100,
                    600_000,
                )?),
                proc_dir: absolute("usage.proc_dir", raw.usage.proc_dir)?,
                sys_dir: absolute("usage.sys_dir", raw.usage.sys_dir)?,
            },
            hwloc_xml: raw
                .topology
                .hwloc_xml
                .map(|path| absolute("topology.hwloc_xml", path))
                .transpose()?,
            gate: check_gate(raw.gate)?,
            context_reserve: raw
                .turns
                .context_reserve
                .parse()
                .map_err(|error| value("turns.context_reserve".into(), &error))?,
            delivery: check_delivery(&raw.turns.library)?,
            vendors: check_unique(vendors)?,
            pools: pools::check_pools(raw.pool)?,
            run_dir,
        })
    }
}

fn check_vendor(index: usize, raw: RawVendor, run_dir: &Path) -> Result<VendorConfig, ConfigError> {
    let name: VendorName =
        raw.name.parse().map_err(|error| value(format!("vendor[{index}].name"), &error))?;
    let key = |key: &str| format!("vendor[{index}].{key}");
    let only_for = |vendor: &str, keys: &[(&str, bool)]| match keys.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(value(key(name), &format!("it is a key of vendor `{vendor}`"))),
        None => Ok(()),
    };
    match name.as_str() {
        "sim" => {
            let foreign = [
                ("driver_root", raw.driver_root.is_some()),
                ("machine_root", raw.machine_root.is_some()),
                ("host_root", raw.host_root.is_some()),
            ];
            only_for("nvidia", &foreign)?;
            let profile = raw.profile.unwrap_or_else(|| "dgx-h100".to_owned());
            load_profile(&profile).map_err(|source| ConfigError::Profile { index, source })?;
            let dir = raw.dir.unwrap_or_else(|| run_dir.join("sim"));
            let turns = raw.turns.unwrap_or(false); // no program uses a simulated device
            Ok(VendorConfig::Sim { profile, dir: absolute(&key("dir"), dir)?, turns })
        }
        "nvidia" => {
            only_for("sim", &[("profile", raw.profile.is_some()), ("dir", raw.dir.is_some())])?;
            let root = |name: &str, path: Option<PathBuf>| {
                absolute(&key(name), path.unwrap_or_else(|| "/".into()))
            };
            Ok(VendorConfig::Nvidia {
                driver_root: root("driver_root", raw.driver_root)?,
                machine_root: root("machine_root", raw.machine_root)?,
                host_root: root("host_root", raw.host_root)?,
                turns: raw.turns.unwrap_or(true),
            })
        }
        _ => Err(ConfigError::UnknownVendor { index, name, known: "nvidia and sim" }),
    }
}

/// A vendor's library is driven by one worker: two would undo each other's work.
fn check_unique(vendors: Vec<VendorConfig>) -> Result<Vec<VendorConfig>, ConfigError> {
    let mut seen = BTreeSet::new();
    for vendor in &vendors {
        if !seen.insert(vendor.name()) {
            let name = vendor.name().to_string();
            return Err(ConfigError::Duplicate { key: "vendor.name", name });
        }
    }
    Ok(vendors)
}

/// The simulation profile that `text` names: embedded, or a file's path if it has a `/`.
pub fn load_profile(text: &str) -> Result<Profile, Box<dyn std::error::Error + Send + Sync>> {
    if text.contains('/') {
        let size = fs::metadata(text)?.len();
        if size > FILE_BYTES_MAX {
            return Err(format!("`{text}` is larger than {FILE_BYTES_MAX} bytes").into());
        }
        return Ok(Profile::parse(&fs::read_to_string(text)?)?);
    }
    let known = || {
        format!(
            "`{text}` is not embedded: use {}",
            Profile::embedded_names().collect::<Vec<_>>().join(", ")
        )
    };
    Ok(Profile::embedded(text).ok_or_else(known)?)
}

fn check_gate(raw: RawGate) -> Result<GateConfig, ConfigError> {
    limit("gate.exempt", raw.exempt.len(), EXEMPT_MAX)?;
    for path in &raw.exempt {
        absolute("gate.exempt", path.into())?;
    }
    let pins = raw.pins.unwrap_or_else(|| GateConfig::default().pins);
    Ok(GateConfig {
        root: raw.root.map(|root| absolute("gate.root", root)).transpose()?,
        pins: absolute("gate.pins", pins)?,
        exempt: raw.exempt,
    })
}

fn check_delivery(library: &str) -> Result<Delivery, ConfigError> {
    match library {
        "preload" => Ok(Delivery::Preload),
        "drop-in" => Ok(Delivery::DropIn),
        other => {
            let reason = format!("`{}` is not known: use preload or drop-in", shorten(other));
            Err(value("turns.library".into(), &reason))
        }
    }
}

fn check_group(group: String) -> Result<String, ConfigError> {
    // As useradd(8) takes them.
    let sound = (1..=32).contains(&group.len())
        && group.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if sound { Ok(group) } else { Err(value("group".into(), &"use a group's name")) }
}

fn check_log(raw: raw::RawLog) -> Result<Log, ConfigError> {
    let json = match raw.format.as_str() {
        "text" => false,
        "json" => true,
        other => {
            let reason = format!("`{}` is not known: use text or json", shorten(other));
            return Err(value("log.format".into(), &reason));
        }
    };
    let filter = raw.level;
    filter
        .parse::<tracing_subscriber::EnvFilter>()
        .map_err(|error| value("log.level".into(), &error))?;
    Ok(Log { json, filter })
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(ConfigError::RelativePath { key: key.to_owned(), value: path })
}

fn range(key: &'static str, value: u64, min: u64, max: u64) -> Result<u64, ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::OutOfRange { key, value, min, max })
}

fn limit(key: &'static str, found: usize, max: usize) -> Result<(), ConfigError> {
    if found <= max { Ok(()) } else { Err(ConfigError::TooMany { key, found, max }) }
}

fn value(key: String, reason: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Value { key, reason: reason.to_string() }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
