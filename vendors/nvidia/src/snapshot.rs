//! A machine's answers as data, in the very form that the stand-in for NVML reads.
//!
//! What a real device once said is so replayed in tests. Calls that failed keep their code;
//! values are written down as they came and are not judged here.

use nvml_wrapper::error::NvmlError;
use serde_json::{Map, Value, json};

use crate::{
    inventory::parse_pci,
    sys::{CallError, Clock, Field, Gpu, LinkEnd, Nvml, ProfileKind, Utilizer},
};

/// Fields of `nvml.h` go up to about 280 today.
const FIELDS_MAX: u32 = 320;

/// As many fields as `nvidia-smi` asks for at once.
const FIELDS_AT_ONCE: usize = 64;

/// `NVML_NVLINK_MAX_LINKS`, and profiles as `mig` reckons with them.
const LINKS_MAX: u32 = 36;
const PROFILES_MAX: u32 = 32;

/// Fields that are asked for each link, or for all with the scope of none: traffic and errors.
/// 230 among them is the recovery action.
const OF_LINKS: [std::ops::RangeInclusive<u32>; 3] = [138..=147, 200..=229, 231..=255];

/// All that the library says of its machine.
pub(crate) fn machine(nvml: &Nvml) -> Result<Value, CallError> {
    let (mut profiles, mut figures) = (Map::new(), Map::new());
    let mut devices = Vec::new();
    for index in 0..nvml.device_count()? {
        // One that has no handle says nothing that could be replayed.
        let Ok(gpu) = nvml.device_by_index(index) else { continue };
        let mut device = Described::default();
        device.identity(gpu);
        device.state(gpu);
        device.fabric(gpu);
        device.processes(gpu);
        let of_device = profiles_of(gpu);
        if !of_device.is_empty() {
            device.put("profiles", shared(&mut profiles, "profiles", of_device.into()));
        }
        let of_device = device.figures(gpu);
        device.put("figures", shared(&mut figures, "figures", of_device));
        devices.push(device.finish());
    }
    Ok(json!({
        "driver_version": nvml.driver_version()?,
        "profiles": profiles,
        "figures": figures,
        "devices": devices,
    }))
}

/// The name under which `value` stands in `known`, where it is put if nothing like it is there.
fn shared(known: &mut Map<String, Value>, kind: &str, value: Value) -> Value {
    if let Some((name, _)) = known.iter().find(|(_, other)| **other == value) {
        return name.clone().into();
    }
    let name = format!("{kind}-{}", known.len());
    known.insert(name.clone(), value);
    name.into()
}

/// What was found out about a device.
#[derive(Default)]
struct Described {
    says: Map<String, Value>,
    errors: Map<String, Value>,
}

impl Described {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.says.insert(key.to_owned(), value.into());
    }

    /// An answer; a refusal is noted under its symbol.
    fn asked<T>(&mut self, answer: Result<T, CallError>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(CallError::Refused { call, error }) => {
                self.errors.insert(call.to_owned(), code(&error).into());
                None
            }
            Err(CallError::Nonsense { call, .. }) => {
                self.errors.insert(call.to_owned(), UNKNOWN.into());
                None
            }
        }
    }

    fn identity(&mut self, gpu: Gpu<'_>) {
        let text = |answer: Option<String>| answer.unwrap_or_default();
        let uuid = text(self.asked(gpu.uuid()));
        self.put("uuid", uuid);
        let name = text(self.asked(gpu.name()));
        self.put("name", name);
        let pci = text(self.asked(gpu.pci()));
        self.put("pci", parse_pci(&pci).map_or(pci, |pci| pci.to_string()));
        let minor = self.asked(gpu.minor()).unwrap_or_default();
        self.put("minor", minor);
        let architecture = self.asked(gpu.architecture()).unwrap_or_default();
        self.put("architecture", architecture);
        let memory = self.asked(gpu.memory_total()).unwrap_or_default();
        self.put("memory_mib", memory >> 20);
    }

    fn state(&mut self, gpu: Gpu<'_>) {
        if let Some((now, pending)) = self.asked(gpu.mig_mode()) {
            self.put("mig", now);
            if now != pending {
                self.put("mig_needs_reset", true);
            }
        }
        if let Some(mode) = self.asked(gpu.compute_mode()) {
            self.put("compute_mode", mode);
        }
        if let Some(on) = self.asked(gpu.persistence_is_on()) {
            self.put("persistence", on);
        }
        if self.asked(gpu.accounting_is_on()).unwrap_or(false) {
            self.put("accounting", json!([]));
        }
        if let Ok(action) = gpu.recovery_action() {
            self.put("recovery_action", action);
        }
        let rows = self.asked(gpu.remapped_rows());
        if rows.is_some_and(|rows| rows.failed) {
            self.put("row_remap", "failed");
        } else if rows.is_some_and(|rows| rows.pending) {
            self.put("row_remap", "pending");
        }
    }

    fn fabric(&mut self, gpu: Gpu<'_>) {
        /// `NVML_GPU_FABRIC_STATE_IN_PROGRESS` and `..._COMPLETED`.
        const STATES: [u8; 2] = [2, 3];
        if let Ok(fabric) = gpu.fabric() {
            let cluster = format!("{:032x}", u128::from_be_bytes(fabric.cluster));
            let state = STATES[usize::from(fabric.joined)];
            let (clique, health) = (fabric.clique, fabric.health);
            let fabric =
                json!({ "cluster": cluster, "clique": clique, "state": state, "health": health });
            self.put("fabric", fabric);
        }
        let mut links: Vec<Value> = Vec::new();
        for link in 0..LINKS_MAX {
            let Ok(up) = gpu.link_is_up(link) else { break };
            let end = match gpu.link_end(link) {
                Ok(LinkEnd::Gpu(pci)) => parse_pci(&pci).map_or(pci, |pci| pci.to_string()),
                Ok(LinkEnd::Switch(None)) => "switch".to_owned(),
                Ok(LinkEnd::Switch(Some(pci))) => {
                    let pci = parse_pci(&pci).map_or(pci, |pci| pci.to_string());
                    format!("switch {pci}")
                }
                // The stand-in has no word for it, and no device is at such an address.
                Ok(LinkEnd::Other) | Err(_) => "other".to_owned(),
            };
            let version = gpu.link_version(link).unwrap_or_default();
            let one = json!({ "count": 1, "end": end, "version": version, "down": !up });
            match links.last_mut() {
                Some(last) if alike(last, &one) => {
                    last["count"] = (last["count"].as_u64().unwrap_or_default() + 1).into();
                }
                _ => links.push(one),
            }
        }
        self.put("links", links);
    }

    fn processes(&mut self, gpu: Gpu<'_>) {
        let processes = self.asked(gpu.processes()).unwrap_or_default();
        let processes = processes.into_iter().map(|process| {
            json!({
                "pid": process.pid,
                "memory_mib": process.memory_bytes.map(|bytes| bytes >> 20),
                "gpu_instance": process.place.map(|place| place.0),
                "compute_instance": process.place.map(|place| place.1),
            })
        });
        self.put("processes", processes.collect::<Vec<_>>());
    }

    fn figures(&mut self, gpu: Gpu<'_>) -> Value {
        let memory = self.asked(gpu.memory());
        let used = memory.as_ref().map_or(0, |memory| memory.used >> 20);
        let reserved = memory.and_then(|memory| memory.reserved).map_or(0, |bytes| bytes >> 20);
        let clocks = [Clock::Graphics, Clock::Multiprocessors, Clock::Memory, Clock::Video];
        let clocks = clocks.into_iter().map_while(|clock| gpu.clock_mhz(clock).ok());
        json!({
            "memory_used_mib": used,
            "memory_reserved_mib": reserved,
            "utilization": gpu.utilization_rates().ok(),
            "encoder": gpu.engine_utilization(Utilizer::Encoder).ok(),
            "decoder": gpu.engine_utilization(Utilizer::Decoder).ok(),
            "jpeg": gpu.engine_utilization(Utilizer::Jpeg).ok(),
            "optical_flow": gpu.engine_utilization(Utilizer::OpticalFlow).ok(),
            "clocks": clocks.collect::<Vec<_>>(),
            "temperature": gpu.temperature().ok(),
            "power": gpu.power_milliwatts().ok(),
            "power_limit": gpu.power_limit_milliwatts().ok(),
            "clock_reasons": gpu.clock_reasons().ok(),
            "fields": fields(gpu),
        })
    }

    fn finish(mut self) -> Value {
        if !self.errors.is_empty() {
            self.says.insert("errors".to_owned(), self.errors.into());
        }
        self.says.into()
    }
}

/// True if two lists of links differ in their number alone.
fn alike(a: &Value, b: &Value) -> bool {
    ["end", "version", "down"].iter().all(|key| a[key] == b[key])
}

fn profiles_of(gpu: Gpu<'_>) -> Vec<Value> {
    let kinds = (0..PROFILES_MAX).filter_map(|kind| gpu.profile(ProfileKind(kind)).ok());
    let each = kinds.filter_map(|profile| {
        let places = gpu.places(profile.id).ok()?;
        // The stand-in puts the word before it, as the driver does.
        let name = profile.name.unwrap_or_default();
        Some(json!({
            "kind": profile.kind.0,
            "id": profile.id,
            "name": name.strip_prefix("MIG ").unwrap_or(&name),
            "slices": profile.slices,
            "multiprocessors": profile.multiprocessors,
            "memory_mib": profile.memory_mib,
            "instances_max": profile.instances_max,
            "size": places.first()?.size,
            "starts": places.iter().map(|place| place.start).collect::<Vec<_>>(),
        }))
    });
    each.collect()
}

/// Every field that the device has, by the stand-in's keys: `NUMBER`, or `NUMBER@SCOPE`.
fn fields(gpu: Gpu<'_>) -> Value {
    let whole = (1..=FIELDS_MAX).map(|id| Field { id, scope: 0 });
    let of_links = OF_LINKS
        .into_iter()
        .flatten()
        .flat_map(|id| (1..LINKS_MAX).chain([u32::MAX]).map(move |scope| Field { id, scope }));
    let all: Vec<Field> = whole.chain(of_links).collect();
    let mut known = Map::new();
    for some in all.chunks(FIELDS_AT_ONCE) {
        let Ok(values) = gpu.fields(some) else { continue };
        for (Field { id, scope }, value) in some.iter().zip(values) {
            let Ok(value) = value else { continue };
            let key = match scope {
                0 => id.to_string(),
                scope => format!("{id}@{}", scope.cast_signed()),
            };
            known.insert(key, value.into());
        }
    }
    known.into()
}

/// `NVML_ERROR_UNKNOWN`, for whatever has no number of its own here.
const UNKNOWN: u32 = 999;

fn code(error: &NvmlError) -> u32 {
    const CODES: [(&NvmlError, u32); 13] = [
        (&NvmlError::Uninitialized, 1),
        (&NvmlError::InvalidArg, 2),
        (&NvmlError::NotSupported, 3),
        (&NvmlError::NoPermission, 4),
        (&NvmlError::NotFound, 6),
        (&NvmlError::Timeout, 10),
        (&NvmlError::FunctionNotFound, 13),
        (&NvmlError::GpuLost, 15),
        (&NvmlError::ResetRequired, 16),
        (&NvmlError::OperatingSystem, 17),
        (&NvmlError::LibRmVersionMismatch, 18),
        (&NvmlError::InUse, 19),
        (&NvmlError::NoData, 21),
    ];
    if let NvmlError::UnexpectedVariant(code) = error {
        return *code;
    }
    let same = |known: &&(&NvmlError, u32)| {
        std::mem::discriminant(known.0) == std::mem::discriminant(error)
    };
    CODES.iter().find(same).map_or(UNKNOWN, |known| known.1)
}
