//! Calls about one device.

use std::ffi::{c_uint, c_ulong};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{
    NVML_GPU_FABRIC_STATE_COMPLETED, field_id, nvmlAccountingStats_t, nvmlDevice_t,
    nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t,
    nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK,
    nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_READ, nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH, nvmlPciInfo_t, nvmlProcessInfo_t,
    nvmlProcessUtilizationInfo_v1_t, nvmlProcessUtilizationSample_t,
    nvmlProcessesUtilizationInfo_v1_t, nvmlReturn_t,
};

use super::{
    CallError, Field, Nvml, Plain, check, found, get, get_at, list, read_text, struct_version,
    text, zeroed,
};

/// Far above what a driver keeps: `nvidia-smi` shows a few dozen processes on a busy device.
const PROCESSES_MAX: u32 = 1 << 16;

/// Room for processes at the first try.
const PROCESSES_ROOM: u32 = 64;

// SAFETY: these are structures of numbers and arrays of numbers alone.
unsafe impl Plain for nvmlPciInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlGpuFabricInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlGpuFabricInfoV_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlProcessInfo_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlProcessUtilizationSample_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlProcessUtilizationInfo_v1_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlAccountingStats_t {}

/// A device, as long as the library stays loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gpu<'nvml> {
    pub(super) nvml: &'nvml Nvml,
    /// Never null, and given out by `nvml`.
    pub(super) handle: nvmlDevice_t,
}

/// What a device says of the fabric it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fabric {
    pub(crate) cluster: [u8; 16],
    pub(crate) clique: u32,
    /// True if it has joined the fabric.
    pub(crate) joined: bool,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_...`; zero where the driver does not tell.
    pub(crate) health: u32,
}

/// What became of faulty rows of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemappedRows {
    /// Some are replaced at the next reset.
    pub(crate) pending: bool,
    /// Some cannot be, so that the device has to go.
    pub(crate) failed: bool,
}

/// What one device may do with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerUse {
    /// Read its memory, by whichever way.
    Read,
    /// Reach it over NVLink.
    NvLink,
}

/// What is at the other end of an NVLink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The device at this PCI address, as NVML writes it.
    Gpu(String),
    /// An NVSwitch: every device on it can be reached. With its address, as NVML writes it, where
    /// the driver tells one: of a switch outside of the node it does not.
    Switch(Option<String>),
    /// Something else, such as a processor.
    Other,
}

/// A process on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Absent where the driver does not know.
    pub(crate) memory_bytes: Option<u64>,
    /// GPU instance and compute instance, where the device is cut.
    pub(crate) place: Option<(u32, u32)>,
}

/// How busy a process kept the device in the time up to `timestamp_us`, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Utilization {
    pub(crate) pid: u32,
    /// Microseconds since the Unix epoch.
    pub(crate) timestamp_us: u64,
    pub(crate) multiprocessors: u32,
    /// The way to the memory.
    pub(crate) memory: u32,
    pub(crate) encoder: u32,
    pub(crate) decoder: u32,
    /// These two are absent where the driver does not measure them by process.
    pub(crate) jpeg: Option<u32>,
    pub(crate) optical_flow: Option<u32>,
}

/// What accounting mode kept of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accounting {
    /// Microseconds since the Unix epoch.
    pub(crate) start_us: u64,
    /// How long it lived; nothing while it runs.
    pub(crate) lived_ms: u64,
    pub(crate) percent: u32,
    pub(crate) running: bool,
}

impl<'nvml> Gpu<'nvml> {
    pub(super) fn new(
        call: &'static str,
        nvml: &'nvml Nvml,
        handle: nvmlDevice_t,
    ) -> Result<Self, CallError> {
        if handle.is_null() {
            return Err(CallError::Nonsense { call, detail: "a null handle".to_owned() });
        }
        Ok(Self { nvml, handle })
    }

    pub(crate) fn uuid(self) -> Result<String, CallError> {
        const CALL: &str = "nvmlDeviceGetUUID";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetUUID)?;
        // SAFETY: the handle is live, and the buffer has `len` bytes and outlives the call.
        text(CALL, |buffer, len| unsafe { function(self.handle, buffer, len) })
    }

    pub(crate) fn name(self) -> Result<String, CallError> {
        const CALL: &str = "nvmlDeviceGetName";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetName)?;
        // SAFETY: the handle is live, and the buffer has `len` bytes and outlives the call.
        text(CALL, |buffer, len| unsafe { function(self.handle, buffer, len) })
    }

    /// The PCI address as NVML writes it: eight digits of domain, upper case.
    pub(crate) fn pci(self) -> Result<String, CallError> {
        let raw = self.nvml.raw();
        let (call, symbol) = if raw.nvmlDeviceGetPciInfo_v3.is_ok() {
            ("nvmlDeviceGetPciInfo_v3", &raw.nvmlDeviceGetPciInfo_v3)
        } else {
            ("nvmlDeviceGetPciInfo_v2", &raw.nvmlDeviceGetPciInfo_v2)
        };
        // SAFETY: the handle is live; both versions write one `nvmlPciInfo_t`.
        let pci = unsafe { get(call, symbol, self.handle, zeroed::<nvmlPciInfo_t>()) }?;
        // Version 2 fills the legacy field alone.
        let field = if pci.busId[0] == 0 { &pci.busIdLegacy[..] } else { &pci.busId[..] };
        read_text(call, field)
    }

    /// The number in the name of its device node.
    pub(crate) fn minor(self) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetMinorNumber;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get("nvmlDeviceGetMinorNumber", symbol, self.handle, 0) }
    }

    /// `NVML_DEVICE_ARCH_...`.
    pub(crate) fn architecture(self) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetArchitecture;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get("nvmlDeviceGetArchitecture", symbol, self.handle, 0) }
    }

    /// The first of the NUMA nodes whose memory is nearest.
    pub(crate) fn nearest_numa_node(self) -> Result<Option<u32>, CallError> {
        /// `NVML_AFFINITY_SCOPE_NODE`, and nodes as the largest kernel counts them.
        const SCOPE_NODE: u32 = 0;
        const NODES_MAX: usize = 1024;
        const CALL: &str = "nvmlDeviceGetMemoryAffinity";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetMemoryAffinity)?;
        let mut words = [0; NODES_MAX / c_ulong::BITS as usize];
        let len = c_uint::try_from(words.len()).expect("the array is short");
        // SAFETY: the handle is live; there is room for as many words as are said.
        check(CALL, unsafe { function(self.handle, len, words.as_mut_ptr(), SCOPE_NODE) })?;
        let node = |(word, set): (u32, &c_ulong)| word * c_ulong::BITS + set.trailing_zeros();
        Ok((0..).zip(&words).find(|(_, set)| **set != 0).map(node))
    }

    /// All of its memory, in bytes.
    pub(crate) fn memory_total(self) -> Result<u64, CallError> {
        self.memory().map(|memory| memory.total)
    }

    pub(crate) fn fabric(self) -> Result<Fabric, CallError> {
        let raw = self.nvml.raw();
        let (call, symbol) = ("nvmlDeviceGetGpuFabricInfoV", &raw.nvmlDeviceGetGpuFabricInfoV);
        let versions = [
            struct_version::<nvmlGpuFabricInfoV_t>(3),
            struct_version::<nvmlGpuFabricInfo_v2_t>(2),
        ];
        for version in versions {
            let asked = nvmlGpuFabricInfoV_t { version, ..zeroed() };
            // SAFETY: the handle is live; version 2 is the beginning of version 3, so both fit.
            match unsafe { get(call, symbol, self.handle, asked) } {
                Err(error) if error.is_unsupported() => {}
                answer => {
                    let it = answer?;
                    let known = fabric(it.clusterUuid, it.cliqueId, it.state.into(), it.status);
                    return Ok(Fabric { health: it.healthMask, ..known });
                }
            }
        }
        let (call, symbol) = ("nvmlDeviceGetGpuFabricInfo", &raw.nvmlDeviceGetGpuFabricInfo);
        // SAFETY: the handle is live; the call writes one structure.
        let it = unsafe { get(call, symbol, self.handle, zeroed::<nvmlGpuFabricInfo_t>()) }?;
        Ok(fabric(it.clusterUuid, it.cliqueId, it.state.into(), it.status))
    }

    /// Whether NVLink number `link` is up.
    pub(crate) fn link_is_up(self, link: u32) -> Result<bool, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetNvLinkState;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get_at("nvmlDeviceGetNvLinkState", symbol, self.handle, link, 0) }
            .map(|state| state == 1)
    }

    /// The version of NVLink number `link`, as `NVML_NVLINK_VERSION_...` counts.
    pub(crate) fn link_version(self, link: u32) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetNvLinkVersion;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get_at("nvmlDeviceGetNvLinkVersion", symbol, self.handle, link, 0) }
    }

    pub(crate) fn link_end(self, link: u32) -> Result<LinkEnd, CallError> {
        let raw = self.nvml.raw();
        let call = "nvmlDeviceGetNvLinkRemoteDeviceType";
        let symbol = &raw.nvmlDeviceGetNvLinkRemoteDeviceType;
        // SAFETY: the handle is live; the call writes one number.
        let kind = unsafe { get_at(call, symbol, self.handle, link, 0) };
        #[expect(non_upper_case_globals, reason = "the binding's names of C constants")]
        match kind {
            Ok(nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU) => {}
            Ok(nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH) => {
                return Ok(LinkEnd::Switch(self.link_address(link).ok()));
            }
            Ok(_) => return Ok(LinkEnd::Other),
            // Without the type the address tells devices; what has none of theirs is no peer.
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error),
        }
        self.link_address(link).map(LinkEnd::Gpu)
    }

    /// The address at the other end of NVLink number `link`.
    fn link_address(self, link: u32) -> Result<String, CallError> {
        let call = "nvmlDeviceGetNvLinkRemotePciInfo_v2";
        let symbol = &self.nvml.raw().nvmlDeviceGetNvLinkRemotePciInfo_v2;
        // SAFETY: the handle is live; the call writes one structure.
        let pci = unsafe { get_at(call, symbol, self.handle, link, zeroed::<nvmlPciInfo_t>()) }?;
        let field = if pci.busId[0] == 0 { &pci.busIdLegacy[..] } else { &pci.busId[..] };
        read_text(call, field)
    }

    /// Major and minor of CUDA's compute capability.
    pub(crate) fn compute_capability(self) -> Result<(u32, u32), CallError> {
        const CALL: &str = "nvmlDeviceGetCudaComputeCapability";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetCudaComputeCapability)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the handle is live; both numbers outlive the call.
        check(CALL, unsafe { function(self.handle, &raw mut major, &raw mut minor) })?;
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) if major < 100 && minor < 100 => Ok((major, minor)),
            _ => Err(CallError::Nonsense { call: CALL, detail: format!("{major}.{minor}") }),
        }
    }

    /// Whether the two reach each other over NVLink.
    pub(crate) fn reaches(self, other: Gpu<'_>) -> Result<bool, CallError> {
        let status = self.peer_status(other, PeerUse::NvLink)?;
        Ok(status == nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK)
    }

    /// `nvmlGpuP2PStatus_t`: whether one can use the other so, or why not.
    pub(crate) fn peer_status(self, other: Gpu<'_>, of: PeerUse) -> Result<u32, CallError> {
        const CALL: &str = "nvmlDeviceGetP2PStatus";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetP2PStatus)?;
        let index = match of {
            PeerUse::Read => nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_READ,
            PeerUse::NvLink => nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK,
        };
        let mut status = 0;
        // SAFETY: both handles are live; `status` outlives the call.
        check(CALL, unsafe { function(self.handle, other.handle, index, &raw mut status) })?;
        Ok(status)
    }

    /// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
    pub(crate) fn recovery_action(self) -> Result<u64, CallError> {
        self.field(field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0)
    }

    /// `NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED`: whether MIG mode changes without a reset.
    pub(crate) fn mig_is_resetless(self) -> Result<bool, CallError> {
        self.field(field_id::NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED, 0).map(|it| it == 1)
    }

    /// The rate of its links in MB per second, which all links that are up have in common.
    pub(crate) fn link_megabytes_per_second(self) -> Result<u64, CallError> {
        self.field(field_id::NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, 0)
    }

    pub(crate) fn remapped_rows(self) -> Result<RemappedRows, CallError> {
        const CALL: &str = "nvmlDeviceGetRemappedRows";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetRemappedRows)?;
        let (mut correctable, mut uncorrectable, mut pending, mut failed) = (0, 0, 0, 0);
        let at = (&raw mut correctable, &raw mut uncorrectable, &raw mut pending, &raw mut failed);
        // SAFETY: the handle is live; the four numbers outlive the call.
        check(CALL, unsafe { function(self.handle, at.0, at.1, at.2, at.3) })?;
        Ok(RemappedRows { pending: pending != 0, failed: failed != 0 })
    }

    fn field(self, field: u32, scope: u32) -> Result<u64, CallError> {
        let mut values = self.fields(&[Field { id: field, scope }])?;
        values.pop().unwrap_or_else(|| unreachable!("one field has one value"))
    }

    /// Processes that compute, draw, or are clients of MPS; one may be in several lists.
    pub(crate) fn processes(self) -> Result<Vec<Process>, CallError> {
        let raw = self.nvml.raw();
        let mut processes = self.process_list(
            "nvmlDeviceGetComputeRunningProcesses_v3",
            &[
                raw.nvmlDeviceGetComputeRunningProcesses_v3.as_ref().ok().copied(),
                raw.nvmlDeviceGetComputeRunningProcesses_v2.as_ref().ok().copied(),
            ],
        )?;
        // These two fail where the mode is off; those who compute are known all the same.
        let others = [
            (
                "nvmlDeviceGetGraphicsRunningProcesses_v3",
                &raw.nvmlDeviceGetGraphicsRunningProcesses_v3,
            ),
            (
                "nvmlDeviceGetMPSComputeRunningProcesses_v3",
                &raw.nvmlDeviceGetMPSComputeRunningProcesses_v3,
            ),
        ];
        for (call, symbol) in others {
            match self.process_list(call, &[symbol.as_ref().ok().copied()]) {
                Ok(more) => processes.extend(more),
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(processes)
    }

    /// Reads one list of processes through the first of `versions` that there is.
    fn process_list(
        self,
        call: &'static str,
        versions: &[Option<ProcessList>],
    ) -> Result<Vec<Process>, CallError> {
        let missing = CallError::Refused { call, error: NvmlError::FunctionNotFound };
        let function = versions.iter().flatten().next().ok_or(missing)?;
        let read = |entries: &mut [nvmlProcessInfo_t], count: &mut c_uint| {
            // SAFETY: the handle is live; `count` says how many entries have room.
            unsafe { function(self.handle, &raw mut *count, entries.as_mut_ptr()) }
        };
        let entries = list(call, PROCESSES_ROOM, PROCESSES_MAX, zeroed(), read)?;
        Ok(entries.into_iter().map(process).collect())
    }

    /// What processes used since `since_us`, of all in one call; nothing if there is nothing new.
    pub(crate) fn utilization(self, since_us: u64) -> Result<Vec<Utilization>, CallError> {
        let answer = match self.utilization_infos(since_us) {
            Err(error) if error.is_unsupported() => self.utilization_samples(since_us),
            answer => answer,
        };
        match answer {
            Err(CallError::Refused { error: NvmlError::NotFound, .. }) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// As drivers tell from 550 on.
    fn utilization_infos(self, since_us: u64) -> Result<Vec<Utilization>, CallError> {
        const CALL: &str = "nvmlDeviceGetProcessesUtilizationInfo";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetProcessesUtilizationInfo)?;
        let read = |entries: &mut [nvmlProcessUtilizationInfo_v1_t], count: &mut c_uint| {
            let mut asked = nvmlProcessesUtilizationInfo_v1_t {
                version: struct_version::<nvmlProcessesUtilizationInfo_v1_t>(1),
                processSamplesCount: *count,
                lastSeenTimeStamp: since_us,
                procUtilArray: entries.as_mut_ptr(),
            };
            // SAFETY: the handle is live; the structure outlives the call, and says how many
            // entries have room.
            let code = unsafe { function(self.handle, &raw mut asked) };
            *count = asked.processSamplesCount;
            code
        };
        let entries = list(CALL, PROCESSES_ROOM, PROCESSES_MAX, zeroed(), read)?;
        let percent = |it: c_uint| it.min(100);
        let told = entries.into_iter().map(|entry| Utilization {
            pid: entry.pid,
            timestamp_us: entry.timeStamp,
            multiprocessors: percent(entry.smUtil),
            memory: percent(entry.memUtil),
            encoder: percent(entry.encUtil),
            decoder: percent(entry.decUtil),
            jpeg: Some(percent(entry.jpgUtil)),
            optical_flow: Some(percent(entry.ofaUtil)),
        });
        Ok(told.collect())
    }

    /// As older drivers tell.
    fn utilization_samples(self, since_us: u64) -> Result<Vec<Utilization>, CallError> {
        const CALL: &str = "nvmlDeviceGetProcessUtilization";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetProcessUtilization)?;
        let read = |entries: &mut [nvmlProcessUtilizationSample_t], count: &mut c_uint| {
            // SAFETY: the handle is live; `count` says how many entries have room.
            unsafe { function(self.handle, entries.as_mut_ptr(), &raw mut *count, since_us) }
        };
        let entries = list(CALL, PROCESSES_ROOM, PROCESSES_MAX, zeroed(), read)?;
        let percent = |it: c_uint| it.min(100);
        let told = entries.into_iter().map(|entry| Utilization {
            pid: entry.pid,
            timestamp_us: entry.timeStamp,
            multiprocessors: percent(entry.smUtil),
            memory: percent(entry.memUtil),
            encoder: percent(entry.encUtil),
            decoder: percent(entry.decUtil),
            jpeg: None,
            optical_flow: None,
        });
        Ok(told.collect())
    }

    pub(crate) fn accounting_is_on(self) -> Result<bool, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetAccountingMode;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get("nvmlDeviceGetAccountingMode", symbol, self.handle, 0) }.map(|mode| mode == 1)
    }

    pub(crate) fn accounting_pids(self) -> Result<Vec<u32>, CallError> {
        const CALL: &str = "nvmlDeviceGetAccountingPids";
        let function = found(CALL, &self.nvml.raw().nvmlDeviceGetAccountingPids)?;
        list(CALL, PROCESSES_ROOM, PROCESSES_MAX, 0, |pids: &mut [c_uint], count| {
            // SAFETY: the handle is live; `count` says how many entries have room.
            unsafe { function(self.handle, &raw mut *count, pids.as_mut_ptr()) }
        })
    }

    pub(crate) fn accounting(self, pid: u32) -> Result<Accounting, CallError> {
        let (call, symbol) =
            ("nvmlDeviceGetAccountingStats", &self.nvml.raw().nvmlDeviceGetAccountingStats);
        let empty = zeroed::<nvmlAccountingStats_t>();
        // SAFETY: the handle is live; the call writes one structure.
        let stats = unsafe { get_at(call, symbol, self.handle, pid, empty) }?;
        Ok(Accounting {
            start_us: stats.startTime,
            lived_ms: stats.time,
            percent: stats.gpuUtilization.min(100),
            running: stats.isRunning != 0,
        })
    }
}

type ProcessList =
    unsafe extern "C" fn(nvmlDevice_t, *mut c_uint, *mut nvmlProcessInfo_t) -> nvmlReturn_t;

fn fabric(cluster: [u8; 16], clique: u32, state: u32, status: nvmlReturn_t) -> Fabric {
    let joined = state == NVML_GPU_FABRIC_STATE_COMPLETED && status == 0;
    Fabric { cluster, clique, joined, health: 0 }
}

fn process(entry: nvmlProcessInfo_t) -> Process {
    /// `NVML_VALUE_NOT_AVAILABLE`, and an instance where there is none.
    const NONE: u32 = u32::MAX;
    let place = (entry.gpuInstanceId, entry.computeInstanceId);
    Process {
        pid: entry.pid,
        memory_bytes: (entry.usedGpuMemory != u64::MAX).then_some(entry.usedGpuMemory),
        place: (place.0 != NONE && place.1 != NONE).then_some(place),
    }
}
