//! The machine that the file describes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::abi::Code;

/// A machine, and what is wrong with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) driver_version: String,
    /// As `cuda.h` counts: 13000 is 13.0.
    #[serde(default)]
    pub(crate) cuda_version: Option<i32>,
    /// Codes that calls answer with, by their symbols.
    #[serde(default)]
    pub(crate) errors: BTreeMap<String, Code>,
    /// Calls that never return.
    #[serde(default)]
    pub(crate) hang: BTreeSet<String>,
    /// Calls that succeed and answer nonsense: counts beyond reason, texts without end.
    #[serde(default)]
    pub(crate) nonsense: BTreeSet<String>,
    /// Files that it has open from when it is initialized until it is shut down: device nodes.
    #[serde(default)]
    pub(crate) opens: Vec<String>,
    /// Where the driver tells of its capabilities, if it is to.
    #[serde(default)]
    pub(crate) procfs: Option<String>,
    /// MIG profiles by the name that devices refer to.
    #[serde(default)]
    pub(crate) profiles: BTreeMap<String, Vec<Profile>>,
    /// Figures by the name that devices refer to.
    #[serde(default)]
    pub(crate) figures: BTreeMap<String, Figures>,
    pub(crate) devices: Vec<Gpu>,
    /// What happens, in order; each event set tells all of it from the beginning.
    #[serde(default)]
    pub(crate) events: Vec<Event>,
    /// What happens to the driver, in order: `nvmlSystemEventType...`.
    #[serde(default)]
    pub(crate) system_events: Vec<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// As in sysfs: `0000:1b:00.0`.
    pub(crate) pci: String,
    pub(crate) minor: u32,
    pub(crate) memory_mib: u64,
    pub(crate) architecture: u32,
    /// Major and minor.
    #[serde(default)]
    pub(crate) compute_capability: Option<(i32, i32)>,
    /// `nvmlGpuP2PStatus_t` for reading the memory of others, and theirs for this one's.
    #[serde(default)]
    pub(crate) peer_status: u32,
    /// Settings that the driver takes and does not change.
    #[serde(default)]
    pub(crate) stubborn: bool,
    /// Whether it is in MIG mode; absent where it has none.
    #[serde(default)]
    pub(crate) mig: Option<bool>,
    /// A change of MIG mode waits for a reset, which never comes.
    #[serde(default)]
    pub(crate) mig_needs_reset: bool,
    #[serde(default)]
    pub(crate) profiles: Option<String>,
    #[serde(default)]
    pub(crate) errors: BTreeMap<String, Code>,
    /// Every call about it answers that it is lost.
    #[serde(default)]
    pub(crate) lost: bool,
    #[serde(default)]
    pub(crate) fabric: Option<Fabric>,
    #[serde(default)]
    pub(crate) links: Vec<Links>,
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
    #[serde(default)]
    pub(crate) utilization: Vec<Utilization>,
    /// Absent where accounting mode is off.
    #[serde(default)]
    pub(crate) accounting: Option<Vec<Accounting>>,
    #[serde(default)]
    pub(crate) figures: Option<String>,
    /// Field 230; absent where the driver has no such field.
    #[serde(default)]
    pub(crate) recovery_action: Option<u32>,
    /// What became of faulty rows of its memory.
    #[serde(default)]
    pub(crate) row_remap: Option<RowRemap>,
    /// `NVML_COMPUTEMODE_...`.
    #[serde(default)]
    pub(crate) compute_mode: u32,
    /// Absent where the driver has no such mode.
    #[serde(default)]
    pub(crate) persistence: Option<bool>,
    /// The nearest NUMA node; absent where the platform does not know.
    #[serde(default)]
    pub(crate) numa_node: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowRemap {
    Pending,
    Failed,
}

/// What a device measures of itself; absent is not supported.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Figures {
    pub(crate) memory_used_mib: u64,
    pub(crate) memory_reserved_mib: u64,
    /// Percent, of multiprocessors and of the way to memory.
    pub(crate) utilization: Option<(u32, u32)>,
    /// Percent.
    pub(crate) encoder: Option<u32>,
    pub(crate) decoder: Option<u32>,
    pub(crate) jpeg: Option<u32>,
    pub(crate) optical_flow: Option<u32>,
    /// MHz, by `nvmlClockType_t`.
    pub(crate) clocks: Vec<u32>,
    /// Degrees.
    pub(crate) temperature: Option<u32>,
    /// Milliwatts.
    pub(crate) power: Option<u32>,
    pub(crate) power_limit: Option<u32>,
    /// Bits.
    pub(crate) clock_reasons: Option<u64>,
    /// Fields by number, or `NUMBER@SCOPE`, with -1 for all links.
    pub(crate) fields: BTreeMap<String, u64>,
}

/// Links that are alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Links {
    pub(crate) count: u32,
    /// `switch`, with its PCI address behind it if it is one of the machine; or the address of
    /// the other device.
    pub(crate) end: String,
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) down: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fabric {
    /// 32 hexadecimal digits.
    pub(crate) cluster: String,
    pub(crate) clique: u32,
    pub(crate) state: u8,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_...`.
    #[serde(default)]
    pub(crate) health: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Absent where the driver does not know.
    #[serde(default)]
    pub(crate) memory_mib: Option<u64>,
    /// The list that it is in.
    #[serde(default)]
    pub(crate) kind: ProcessKind,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) compute_instance: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProcessKind {
    #[default]
    Compute,
    Graphics,
    Mps,
}

/// A sample is told to whoever asks for what came after an earlier time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Utilization {
    pub(crate) pid: u32,
    /// Of the multiprocessors.
    pub(crate) percent: u32,
    #[serde(default)]
    pub(crate) memory: u32,
    #[serde(default)]
    pub(crate) encoder: u32,
    #[serde(default)]
    pub(crate) decoder: u32,
    /// These two only the newer call tells.
    #[serde(default)]
    pub(crate) jpeg: u32,
    #[serde(default)]
    pub(crate) optical_flow: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accounting {
    pub(crate) pid: u32,
    pub(crate) percent: u32,
    pub(crate) start_us: u64,
    pub(crate) lived_ms: u64,
    pub(crate) running: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// `NVML_GPU_INSTANCE_PROFILE_...`.
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) slices: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) memory_mib: u64,
    pub(crate) instances_max: u32,
    /// Memory slices.
    pub(crate) size: u32,
    pub(crate) starts: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    /// The device's place in the list.
    pub(crate) device: usize,
    /// `nvmlEventType...`.
    pub(crate) kind: u64,
    #[serde(default)]
    pub(crate) value: u64,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) compute_instance: Option<u32>,
    /// The part of the device tells, not the device.
    #[serde(default)]
    pub(crate) by_part: bool,
}

impl Machine {
    pub(crate) fn figures_of(&self, gpu: &Gpu) -> Option<&Figures> {
        self.figures.get(gpu.figures.as_ref()?)
    }

    pub(crate) fn profiles_of(&self, gpu: &Gpu) -> &[Profile] {
        let list = gpu.profiles.as_ref().and_then(|name| self.profiles.get(name));
        list.map_or(&[], Vec::as_slice)
    }
}

impl Gpu {
    /// Its links, each on its own.
    pub(crate) fn link(&self, index: u32) -> Option<&Links> {
        let each = self.links.iter().flat_map(|links| (0..links.count).map(move |_| links));
        each.into_iter().nth(index as usize)
    }
}
