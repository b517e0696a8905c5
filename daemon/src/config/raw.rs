//! The configuration as written: names and defaults, nothing checked beyond its shape.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    #[serde(default = "default_run_dir")]
    pub(super) run_dir: PathBuf,
    #[serde(default = "default_cdi_dir")]
    pub(super) cdi_dir: PathBuf,
    #[serde(default = "default_group")]
    pub(super) group: String,
    #[serde(default = "default_drain_timeout_s")]
    pub(super) drain_timeout_s: u64,
    #[serde(default = "default_observe_interval_ms")]
    pub(super) observe_interval_ms: u64,
    #[serde(default)]
    pub(super) log: RawLog,
    #[serde(default)]
    pub(super) topology: RawTopology,
    #[serde(default)]
    pub(super) gate: RawGate,
    #[serde(default)]
    pub(super) turns: RawTurns,
    #[serde(default)]
    pub(super) usage: RawUsage,
    #[serde(default)]
    pub(super) vendor: Vec<RawVendor>,
    #[serde(default)]
    pub(super) pool: Vec<RawPool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) format: String,
    pub(super) level: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: "text".to_owned(), level: "info".to_owned() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTopology {
    pub(super) hwloc_xml: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawGate {
    pub(super) root: Option<PathBuf>,
    pub(super) pins: Option<PathBuf>,
    pub(super) exempt: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTurns {
    pub(super) context_reserve: String,
    pub(super) library: String,
}

impl Default for RawTurns {
    fn default() -> Self {
        Self { context_reserve: "512Mi".to_owned(), library: "preload".to_owned() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUsage {
    pub(super) sample_interval_ms: u64,
    pub(super) proc_dir: PathBuf,
    pub(super) sys_dir: PathBuf,
}

impl Default for RawUsage {
    fn default() -> Self {
        Self { sample_interval_ms: 2_000, proc_dir: "/proc".into(), sys_dir: "/sys".into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVendor {
    pub(super) name: String,
    pub(super) profile: Option<String>,
    pub(super) dir: Option<PathBuf>,
    pub(super) driver_root: Option<PathBuf>,
    pub(super) machine_root: Option<PathBuf>,
    pub(super) host_root: Option<PathBuf>,
    pub(super) turns: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: String,
    #[serde(default)]
    pub(super) devices: Vec<String>,
    pub(super) kind: Option<String>,
    pub(super) vendor: Option<String>,
    pub(super) model: Option<String>,
    pub(super) expose: Option<String>,
    pub(super) sharing: Option<String>,
    #[serde(default)]
    pub(super) switch_mode: bool,
    #[serde(default)]
    pub(super) mps: bool,
    pub(super) compute_mode: Option<String>,
    pub(super) persistence: Option<bool>,
    pub(super) accounting: Option<bool>,
    /// Refused with the reason: who looks for it beside the settings above should find it.
    pub(super) time_slice: Option<toml::Value>,
    pub(super) gate: Option<String>,
    pub(super) on_stale_holder: Option<String>,
    pub(super) compute: Option<String>,
    pub(super) host_memory: Option<String>,
    pub(super) on_violation: Option<String>,
    #[serde(default)]
    pub(super) align_cpus: bool,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/accelpool".into()
}

fn default_run_dir() -> PathBuf {
    "/run/accelpool".into()
}

fn default_cdi_dir() -> PathBuf {
    "/var/run/cdi".into()
}

fn default_group() -> String {
    "accelpool".to_owned()
}

/// A drain waits for a partition that is being made: see `worker::Deadlines::change`.
fn default_drain_timeout_s() -> u64 {
    25
}

fn default_observe_interval_ms() -> u64 {
    5_000
}
