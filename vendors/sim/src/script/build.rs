//! From a script as written to a valid one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accelpool_model::{
    Device, DeviceUuid, ErrorKind, Fault, FaultClass, MemoryBytes, RecoveryAction, ThrottleReason,
};

use super::{
    CallErrorKind, CallStep, Effect, Health, Method, Moment, Process, Script, ScriptedFault,
    ScriptedPartition, raw,
};
use crate::{
    cut::Place,
    profile::Profile,
    refusal::{Refusal, count, number, parse, refuse, words},
};

/// Entries of one kind; a test that needs more writes the script again.
const ENTRIES_MAX: usize = 1024;
/// Longer is a hang.
const DELAY_MS_MAX: u32 = 3_600_000;
/// Linux hands out no process id above (`PID_MAX_LIMIT`).
const PID_MAX: u32 = 4_194_304;

pub(super) fn script(raw: &raw::Script, profile: &Profile) -> Result<Script, Refusal> {
    for (key, len) in [
        ("fault", raw.fault.len()),
        ("partition", raw.partition.len()),
        ("call", raw.call.len()),
        ("absent", raw.absent.len()),
        ("health", raw.health.len()),
        ("process", raw.process.len()),
    ] {
        count(key, len, 0..=ENTRIES_MAX)?;
    }
    let mut ids = Ids::default();
    let mut script = Script::default();
    for (i, raw) in raw.fault.iter().enumerate() {
        script.faults.push(fault(&format!("fault[{i}]"), raw, profile, &mut ids)?);
    }
    for (i, raw) in raw.partition.iter().enumerate() {
        script.partitions.push(partition(&format!("partition[{i}]"), raw, profile, &mut ids)?);
    }
    for (i, raw) in raw.call.iter().enumerate() {
        script.calls.push(call(&format!("call[{i}]"), raw, profile, &mut ids)?);
    }
    for (i, text) in raw.absent.iter().enumerate() {
        script.absent.insert(device(&format!("absent[{i}]"), text, profile)?.uuid.clone());
    }
    for (i, raw) in raw.health.iter().enumerate() {
        let path = format!("health[{i}]");
        let (device, health) = health(&path, raw, profile)?;
        if script.health.insert(device, health).is_some() {
            return Err(refuse(format!("{path}.device"), &raw.device, "use each device once"));
        }
    }
    script.processes = processes(&raw.process, profile)?;
    Ok(script)
}

/// Ids of the script so far: each stands for one thing that happens once.
#[derive(Default)]
struct Ids(BTreeSet<String>);

impl Ids {
    fn claim(&mut self, path: &str, id: &str) -> Result<String, Refusal> {
        let id = words(format!("{path}.id"), id, 64)?;
        if self.0.insert(id.clone()) {
            return Ok(id);
        }
        Err(refuse(format!("{path}.id"), id, "use each id once in a script"))
    }
}

fn device<'a>(path: &str, text: &str, profile: &'a Profile) -> Result<&'a Device, Refusal> {
    profile.device_called(text).ok_or_else(|| {
        let rule = format!("use the name or the UUID of a device of profile {}", profile.name());
        refuse(path, text, rule)
    })
}

fn place(path: &str, profile: &str, start: i64, device: &Device) -> Result<Place, Refusal> {
    let name = parse(format!("{path}.profile"), profile)?;
    let known = device.profile(&name).ok_or_else(|| {
        let rule = format!("use a partition profile that {} has", device.name);
        refuse(format!("{path}.profile"), profile, rule)
    })?;
    let starts = known.starts();
    let valid = u32::try_from(start).ok().filter(|start| starts.contains(start));
    let start = valid
        .ok_or_else(|| refuse(format!("{path}.start"), start, format!("use one of {starts:?}")))?;
    Ok(Place { profile: name, start })
}

/// Picks the value that `text` names.
fn choice<T: Copy>(
    path: String,
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, Refusal> {
    let found = all.iter().copied().find(|value| name(*value) == text);
    found.ok_or_else(|| {
        let names: Vec<&str> = all.iter().copied().map(name).collect();
        refuse(path, text, format!("use one of {}", names.join(", ")))
    })
}

fn fault(
    path: &str,
    raw: &raw::Fault,
    profile: &Profile,
    ids: &mut Ids,
) -> Result<ScriptedFault, Refusal> {
    let class = format!("{path}.class");
    let fault = Fault {
        device: device(&format!("{path}.device"), &raw.device, profile)?.uuid.clone(),
        class: choice(class, &raw.class, &FaultClass::ALL, FaultClass::as_str)?,
        code: words(format!("{path}.code"), &raw.code, 64)?,
        message: words(format!("{path}.message"), &raw.message, 256)?,
    };
    Ok(ScriptedFault { id: ids.claim(path, &raw.id)?, fault })
}

fn partition(
    path: &str,
    raw: &raw::Partition,
    profile: &Profile,
    ids: &mut Ids,
) -> Result<ScriptedPartition, Refusal> {
    let device = device(&format!("{path}.device"), &raw.device, profile)?;
    Ok(ScriptedPartition {
        id: ids.claim(path, &raw.id)?,
        device: device.uuid.clone(),
        place: place(path, &raw.profile, raw.start, device)?,
        complete: raw.complete.unwrap_or(true),
    })
}

fn call(
    path: &str,
    raw: &raw::Call,
    profile: &Profile,
    ids: &mut Ids,
) -> Result<CallStep, Refusal> {
    let method = choice(format!("{path}.method"), &raw.method, &Method::ALL, Method::as_str)?;
    let of_device = match method {
        Method::Discover | Method::Links | Method::NextEvent => false,
        Method::Partitions
        | Method::SwitchMode
        | Method::CreatePartition
        | Method::DestroyPartition
        | Method::Sample
        | Method::Counters
        | Method::RecoveryAction
        | Method::Probe
        | Method::Quiesce => true,
    };
    let device = match &raw.device {
        Some(text) if !of_device => {
            let rule = format!("leave it out: {} is not for one device", method.as_str());
            return Err(refuse(format!("{path}.device"), text, rule));
        }
        Some(text) => Some(device(&format!("{path}.device"), text, profile)?.uuid.clone()),
        None => None,
    };
    let half_way = matches!(method, Method::CreatePartition | Method::DestroyPartition);
    let at = match raw.at.as_deref() {
        None | Some("before") => Moment::Before,
        Some("half-way") if half_way => Moment::HalfWay,
        Some("after") => Moment::After,
        Some(text) => {
            let rule = "use before, after, or for create_partition and destroy_partition half-way";
            return Err(refuse(format!("{path}.at"), text, rule));
        }
    };
    Ok(CallStep {
        id: ids.claim(path, &raw.id)?,
        method,
        device,
        nth: number(format!("{path}.nth"), raw.nth.unwrap_or(1), 1..=1_000_000)?.into(),
        times: number(format!("{path}.times"), raw.times.unwrap_or(1), 1..=1_000_000)?.into(),
        at,
        effect: effect(path, raw)?,
    })
}

fn effect(path: &str, raw: &raw::Call) -> Result<Effect, Refusal> {
    match (raw.delay_ms, raw.hang, &raw.error, &raw.message) {
        (Some(ms), None, None, None) => {
            let ms = number(format!("{path}.delay_ms"), ms, 1..=DELAY_MS_MAX)?;
            Ok(Effect::Delay(Duration::from_millis(ms.into())))
        }
        (None, Some(true), None, None) => Ok(Effect::Hang),
        (None, None, Some(kind), message) => {
            let kind =
                choice(format!("{path}.error"), kind, &CallErrorKind::ALL, CallErrorKind::as_str)?;
            let message = message.as_deref().unwrap_or("scripted");
            let message = words(format!("{path}.message"), message, 256)?;
            Ok(Effect::Error { kind, message })
        }
        _ => {
            let rule = "give it one effect: `delay_ms`, `hang = true`, or `error` with `message`";
            Err(refuse(path, &raw.id, rule))
        }
    }
}

fn health(
    path: &str,
    raw: &raw::Health,
    profile: &Profile,
) -> Result<(DeviceUuid, Health), Refusal> {
    let device = device(&format!("{path}.device"), &raw.device, profile)?;
    let action = raw.recovery_action.as_deref().unwrap_or("none");
    let action_path = format!("{path}.recovery_action");
    let probe_error = raw.probe_error.as_deref();
    let health = Health {
        recovery_action: choice(action_path, action, &RecoveryAction::ALL, RecoveryAction::as_str)?,
        probe_error: probe_error
            .map(|text| words(format!("{path}.probe_error"), text, 256))
            .transpose()?,
        throttled: raw
            .throttled
            .iter()
            .map(|text| {
                let path = format!("{path}.throttled");
                choice(path, text, ThrottleReason::ALL, ThrottleReason::as_str)
            })
            .collect::<Result<_, _>>()?,
        errors: raw
            .errors
            .iter()
            .map(|(text, count)| {
                let path = format!("{path}.errors");
                let kind = choice(path.clone(), text, ErrorKind::ALL, ErrorKind::as_str)?;
                Ok((kind, number(path, *count, 0..=u32::MAX)?.into()))
            })
            .collect::<Result<_, Refusal>>()?,
    };
    Ok((device.uuid.clone(), health))
}

/// Reads the processes, which together use no more of a device than there is.
fn processes(raw: &[raw::Process], profile: &Profile) -> Result<Vec<Process>, Refusal> {
    let mut used: BTreeMap<DeviceUuid, (MemoryBytes, u32)> = BTreeMap::new();
    let mut processes: Vec<Process> = Vec::new();
    for (i, raw) in raw.iter().enumerate() {
        let path = format!("process[{i}]");
        let device = device(&format!("{path}.device"), &raw.device, profile)?;
        let pid = number(format!("{path}.pid"), raw.pid, 1..=PID_MAX)?;
        let memory: MemoryBytes = parse(format!("{path}.memory"), &raw.memory)?;
        let permille = raw
            .compute_permille
            .map(|value| number(format!("{path}.compute_permille"), value, 0..=1000))
            .transpose()?;
        let encoder_permille = raw
            .encoder_permille
            .map(|value| number(format!("{path}.encoder_permille"), value, 0..=1000))
            .transpose()?;
        let partition = raw.partition.as_ref();
        let partition = partition
            .map(|at| place(&format!("{path}.partition"), &at.profile, at.start, device))
            .transpose()?;
        let (memory_used, permille_used) = used.entry(device.uuid.clone()).or_default();
        *memory_used = memory_used.saturating_add(memory);
        *permille_used += permille.unwrap_or(0);
        if *memory_used > device.memory {
            let rule = format!("with the others use at most {}, all that there is", device.memory);
            return Err(refuse(format!("{path}.memory"), &raw.memory, rule));
        }
        if *permille_used > 1000 {
            let value = permille.unwrap_or(0);
            let rule = "with the others use at most 1000, all that there is";
            return Err(refuse(format!("{path}.compute_permille"), value, rule));
        }
        let uuid = device.uuid.clone();
        let process = Process {
            pid,
            device: uuid,
            partition,
            memory,
            compute_permille: permille,
            encoder_permille,
        };
        if processes.iter().any(|other| {
            other.pid == pid
                && other.device == process.device
                && other.partition == process.partition
        }) {
            return Err(refuse(format!("{path}.pid"), pid, "use each process once per device"));
        }
        processes.push(process);
    }
    Ok(processes)
}
