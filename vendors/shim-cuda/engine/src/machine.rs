//! What the simulated machine is made of; a JSON file may say it.

use serde::{Deserialize, Serialize};

/// The devices of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// In the order of their ordinals.
    pub devices: Vec<DeviceProfile>,
}

/// One device, and how it behaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// As CUDA and NVML write it: `GPU-` and a UUID.
    pub uuid: String,
    /// The model's name.
    #[serde(default = "default_name")]
    pub name: String,
    /// As in sysfs: `0000:1b:00.0`.
    #[serde(default = "default_pci")]
    pub pci: String,
    /// Device memory.
    #[serde(default = "default_memory")]
    pub memory_bytes: u64,
    /// What each context takes of it.
    #[serde(default = "default_context")]
    pub context_bytes: u64,
    /// How long a context may run while others wait.
    #[serde(default = "default_slice")]
    pub slice_ns: u64,
    /// What a change from one context to another costs.
    #[serde(default)]
    pub switch_ns: u64,
}

/// Devices beyond this many are refused: no node has more.
pub const DEVICES_MAX: usize = 16;

fn default_name() -> String {
    "Stand-in GPU".to_owned()
}

fn default_pci() -> String {
    "0000:3b:00.0".to_owned()
}

fn default_memory() -> u64 {
    80 << 30
}

fn default_context() -> u64 {
    // What a context of an H100 takes, roughly.
    512 << 20
}

fn default_slice() -> u64 {
    // The open kernel module's default.
    1_024_000
}

impl Default for Machine {
    /// One device, as an H100 in outline.
    fn default() -> Self {
        Self { devices: vec![DeviceProfile::new("GPU-5f1a4e3c-0000-4000-8000-000000000000")] }
    }
}

impl DeviceProfile {
    /// A device with everything but its name by default.
    #[must_use]
    pub fn new(uuid: &str) -> Self {
        Self {
            uuid: uuid.to_owned(),
            name: default_name(),
            pci: default_pci(),
            memory_bytes: default_memory(),
            context_bytes: default_context(),
            slice_ns: default_slice(),
            switch_ns: 0,
        }
    }

    /// The sixteen bytes of its UUID; a digit that is missing counts as zero.
    #[must_use]
    pub fn uuid_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let digits = self.uuid.trim_start_matches("GPU-").chars().filter_map(|c| c.to_digit(16));
        for (index, digit) in digits.take(32).enumerate() {
            bytes[index / 2] |= u8::try_from(digit).unwrap_or(0) << (4 * (1 - index % 2));
        }
        bytes
    }
}
