//! The child of `check`: everything that needs the library.
//!
//! Each finding is told at once, and what comes next before it comes, so that one that hangs
//! is known by name.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use accelpool_cuda_engine::suite::Tenant;
use accelpool_model::{Device, DeviceUuid, FaultClass, MemoryBytes};
use accelpool_vendor_api::{Vendor as _, VendorEvent, conformance};
use accelpool_vendor_nvidia::Nvidia;
use clap::Args;
use nix::sys::{prctl, signal::Signal};
use serde_json::Value;

use crate::{
    busy,
    check::Said,
    place::Place,
    report::{Row, Verdict},
    tenant,
};

/// How long an event may take from the fault to NVML.
const EVENT_WAIT: Duration = Duration::from_secs(20);

/// What the tenant of the usage check holds.
const HELD_BYTES: u64 = 256 << 20;

/// What is set by an operator, and so must be the same afterwards.
const SETTINGS: [&str; 5] = ["mig", "mig_needs_reset", "compute_mode", "persistence", "accounting"];

type Checked = Result<String, Stop>;

enum Stop {
    Failed(String),
    Skipped(String),
}

fn failed<T>(why: impl Display) -> Result<T, Stop> {
    Err(Stop::Failed(why.to_string()))
}

fn skipped<T>(why: impl Display) -> Result<T, Stop> {
    Err(Stop::Skipped(why.to_string()))
}

fn say(said: &Said) {
    let line = serde_json::to_string(said).expect("what is said has no odd keys");
    // A parent that is gone takes this process along.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn row(check: &str, verdict: Verdict, detail: impl Into<String>) {
    say(&Said::Row(Row { check: check.to_owned(), verdict, detail: detail.into() }));
}

fn checked(check: &str, body: impl FnOnce() -> Checked) {
    say(&Said::Begin(check.to_owned()));
    match body() {
        Ok(detail) => row(check, Verdict::Passed, detail),
        Err(Stop::Failed(why)) => row(check, Verdict::Failed, why),
        Err(Stop::Skipped(why)) => row(check, Verdict::Skipped, why),
    }
}

/// What to look at.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// Only at whether the machine may be touched, and how it is set up.
    #[arg(long)]
    brief: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let place = &options.place;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let vendor = place.vendor();
    say(&Said::Begin("the_library_answers".to_owned()));
    let before = match vendor.snapshot() {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => {
            let root = place.driver_root.display();
            say(&Said::Absent(format!("there is no NVIDIA driver below `{root}`")));
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            say(&Said::Absent(error.to_string()));
            return Ok(ExitCode::SUCCESS);
        }
    };
    say(&Said::Snapshot(before.clone()));
    say(&Said::Begin("nobody_uses_the_machine".to_owned()));
    let mut reasons = busy::reasons(&before);
    reasons.extend(busy::holders(&place.machine_root.join("proc")));
    if before["devices"].as_array().is_none_or(Vec::is_empty) {
        say(&Said::Absent("the library answers, and there is no GPU".to_owned()));
        return Ok(ExitCode::SUCCESS);
    }
    if !reasons.is_empty() {
        say(&Said::Refused(reasons));
        return Ok(ExitCode::SUCCESS);
    }
    if !options.brief {
        look(place, &vendor, &before);
    }
    say(&Said::End);
    Ok(ExitCode::SUCCESS)
}

fn look(place: &Place, vendor: &Nvidia, before: &Value) {
    row("the_library_answers", Verdict::Passed, format!("driver {}", before["driver_version"]));
    row(
        "nobody_uses_the_machine",
        Verdict::Passed,
        "no process, no MIG mode, settings as they come",
    );
    say(&Said::Begin("conformance".to_owned()));
    let options = conformance::Options { cut: false, nodes: true };
    for outcome in conformance::check(vendor, options).outcomes {
        let (verdict, detail) = match outcome.verdict {
            conformance::Verdict::Passed => (Verdict::Passed, String::new()),
            conformance::Verdict::Skipped(why) => (Verdict::Skipped, why),
            conformance::Verdict::Failed(why) => (Verdict::Failed, why),
        };
        row(outcome.check, verdict, detail);
    }
    say(&Said::Begin("devices_are_listed".to_owned()));
    let devices = match vendor.discover() {
        Ok(devices) => devices,
        Err(error) => return row("devices_are_listed", Verdict::Failed, error.to_string()),
    };
    for device in &devices {
        row("device", Verdict::Noted, described(device));
    }
    let proc = place.machine_root.join("proc");
    checked("the_kernel_lists_the_same_devices", || same_as_procfs(&proc, &devices));
    checked("nvidia_smi_lists_the_same_devices", || same_as_smi(place, &devices));
    checked("the_kernel_has_the_same_driver", || same_driver(&proc, &devices));
    checked("memory_adds_up", || memory_adds_up(vendor, &devices));
    checked("an_idle_device_has_no_processes", || idle(vendor, &devices));
    checked("a_process_of_ours_is_seen", || seen(place, vendor, &devices));
    checked("an_event_of_ours_is_told", || told(place, vendor, &devices));
    checked("no_setting_changed", || unchanged(vendor, before));
    checked("quiesce_closes_every_file", || closed(vendor));
}

fn described(device: &Device) -> String {
    let gibibytes = device.memory.bytes() >> 30;
    let numa = device.numa_node.map_or("-".to_owned(), |node| node.to_string());
    let root = device.pcie_root.as_deref().unwrap_or("-");
    let mig = match device.mode() {
        Some(mode) if mode.on => "MIG mode on",
        Some(_) => "MIG mode off",
        None => "no MIG",
    };
    let (name, model, kind) = (&device.name, &device.model, &device.architecture);
    format!("{name}: {model}, {kind}, {gibibytes} GiB, NUMA {numa}, root {root}, {mig}")
}

fn same(what: &str, theirs: &BTreeSet<String>, devices: &[Device]) -> Checked {
    let ours: BTreeSet<String> = devices.iter().map(|it| it.uuid.as_str().to_owned()).collect();
    if *theirs == ours {
        return Ok(format!("{} devices", ours.len()));
    }
    failed(format!("{what}: {theirs:?}, the adapter: {ours:?}"))
}

/// The driver's own description, read here on its own.
fn same_as_procfs(proc: &Path, devices: &[Device]) -> Checked {
    let folder = proc.join("driver/nvidia/gpus");
    let Ok(entries) = fs::read_dir(&folder) else {
        return skipped(format!("no `{}`", folder.display()));
    };
    let texts =
        entries.flatten().filter_map(|it| fs::read_to_string(it.path().join("information")).ok());
    let uuid = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"))?;
        Some(line.trim().to_owned())
    };
    same("procfs", &texts.filter_map(uuid).collect(), devices)
}

fn same_as_smi(place: &Place, devices: &[Device]) -> Checked {
    if place.driver_root != Path::new("/") {
        return skipped("the driver is not installed at `/`");
    }
    let listed = match Command::new("nvidia-smi").arg("-L").output() {
        Ok(listed) if listed.status.success() => listed.stdout,
        Ok(listed) => return failed(format!("nvidia-smi -L: {}", listed.status)),
        Err(error) => return skipped(format!("nvidia-smi cannot be run: {error}")),
    };
    let text = String::from_utf8_lossy(&listed);
    // `GPU 0: NAME (UUID: GPU-...)`
    let uuids = text.lines().filter_map(|line| line.split("(UUID: ").nth(1)?.strip_suffix(')'));
    same("nvidia-smi", &uuids.map(str::to_owned).collect(), devices)
}

fn same_driver(proc: &Path, devices: &[Device]) -> Checked {
    let path = proc.join("driver/nvidia/version");
    let Ok(text) = fs::read_to_string(&path) else {
        return skipped(format!("no `{}`", path.display()));
    };
    let first = text.lines().next().unwrap_or_default();
    for device in devices {
        if !first.split_whitespace().any(|word| word == device.driver_version) {
            return failed(format!("{} is not in `{first}`", device.driver_version));
        }
    }
    Ok(String::new())
}

fn memory_adds_up(vendor: &Nvidia, devices: &[Device]) -> Checked {
    for device in devices {
        let counters = vendor.counters(&device.uuid).map_err(|it| Stop::Failed(it.to_string()))?;
        let Some(memory) = counters.memory else { return failed("the device tells no memory") };
        let reserved = memory.reserved.map_or(0, MemoryBytes::bytes);
        let sum = memory.used.bytes() + memory.free.bytes() + reserved;
        // Without `reserved` the library counts it as used.
        if sum.abs_diff(memory.total.bytes()) > 64 << 20 || memory.total != device.memory {
            return failed(format!("{memory:?} of {}", device.memory));
        }
    }
    Ok(String::new())
}

fn idle(vendor: &Nvidia, devices: &[Device]) -> Checked {
    for device in devices {
        let samples = vendor.sample(&device.uuid).map_err(|it| Stop::Failed(it.to_string()))?;
        if !samples.is_empty() {
            return failed(format!("{}: {samples:?}", device.name));
        }
    }
    Ok(String::new())
}

/// A tenant on CUDA's first device, and which that is.
fn first_device(place: &Place) -> Result<(Tenant, String), Stop> {
    let start = || {
        let mut tenant = tenant::start(&place.libcuda())?;
        tenant.try_ask("start 0")?;
        let uuid = tenant.try_ask("uuid")?;
        anyhow::Ok((tenant, uuid))
    };
    start().or_else(|error| skipped(format!("no tenant of CUDA can run here: {error:#}")))
}

fn of_tenant<'a>(uuid: &str, devices: &'a [Device]) -> Result<&'a DeviceUuid, Stop> {
    let device = devices.iter().find(|device| device.uuid.as_str().eq_ignore_ascii_case(uuid));
    let unknown = || Stop::Skipped(format!("CUDA's device {uuid} is none that NVML lists"));
    Ok(&device.ok_or_else(unknown)?.uuid)
}

fn seen(place: &Place, vendor: &Nvidia, devices: &[Device]) -> Checked {
    let (mut tenant, uuid) = first_device(place)?;
    let device = of_tenant(&uuid, devices)?;
    let asked = |answer: anyhow::Result<String>| {
        answer.map_err(|error| Stop::Failed(format!("the tenant: {error:#}")))
    };
    asked(tenant.try_ask(&format!("alloc {HELD_BYTES}")))?;
    // The first sample says since when the second measures.
    let sample = || vendor.sample(device).map_err(|error| Stop::Failed(error.to_string()));
    sample()?;
    asked(tenant.try_ask("burn 200 2000"))?;
    let samples = sample()?;
    let Some(mine) = samples.iter().find(|sample| sample.pid == tenant.child.id()) else {
        let pids: Vec<u32> = samples.iter().map(|sample| sample.pid).collect();
        let words = "NVML lists other processes only (is this a container of its own pid \
                     namespace?)";
        return if pids.is_empty() { failed("NVML lists no process") } else { skipped(words) };
    };
    let busy = mine.compute_busy.map_or("not measured".to_owned(), |busy| format!("{busy:?}"));
    if mine.memory.bytes() < HELD_BYTES {
        return failed(format!("it holds {HELD_BYTES} bytes and is said to hold {}", mine.memory));
    }
    Ok(format!("{} of memory, busy {busy} of 2 s", mine.memory))
}

/// A kernel that traps ends its own process alone, and NVML tells of it.
fn told(place: &Place, vendor: &Nvidia, devices: &[Device]) -> Checked {
    let (mut tenant, uuid) = first_device(place)?;
    let device = of_tenant(&uuid, devices)?;
    // Registered before the fault; what happened before is not ours.
    while let Ok(Some(_)) = vendor.next_event(Duration::ZERO) {}
    // It ends with an error of CUDA: that is what it is for.
    let _ = tenant.try_ask("trap");
    let until = Instant::now() + EVENT_WAIT;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match vendor.next_event(left.min(Duration::from_secs(1))) {
            Ok(Some(VendorEvent::Fault(fault))) if fault.device == *device => {
                if fault.class != FaultClass::Application {
                    return failed(format!("a trap is taken for {fault:?}"));
                }
                return Ok(format!("{}: {}", fault.code, fault.message));
            }
            Ok(_) => {}
            Err(error) => return failed(error),
        }
    }
    failed(format!("a kernel trapped, and no event came in {EVENT_WAIT:?}"))
}

fn unchanged(vendor: &Nvidia, before: &Value) -> Checked {
    let until = Instant::now() + EVENT_WAIT;
    let after = loop {
        let after = match vendor.snapshot() {
            Ok(Some(after)) => after,
            Ok(None) => return failed("the driver is gone"),
            Err(error) => return failed(error),
        };
        // The driver takes a moment to forget our own tenant.
        if busy::reasons(&after).is_empty() || Instant::now() > until {
            break after;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let reasons = busy::reasons(&after);
    if settings(before) != settings(&after) || !reasons.is_empty() {
        return failed(format!("{:?} became {:?} {reasons:?}", settings(before), settings(&after)));
    }
    Ok(String::new())
}

/// What an operator has set, of each device.
pub(crate) fn settings(machine: &Value) -> Vec<Value> {
    let devices = machine["devices"].as_array().map_or(&[][..], Vec::as_slice);
    devices.iter().flat_map(|it| SETTINGS.map(|setting| it[setting].clone())).collect()
}

fn closed(vendor: &Nvidia) -> Checked {
    if let Err(error) = vendor.quiesce(None) {
        return failed(error);
    }
    let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open = files.filter_map(|file| fs::read_link(file.path()).ok());
    let open: Vec<String> = open
        .filter(|path| path.starts_with("/dev") && path.to_string_lossy().contains("nvidia"))
        .map(|path| path.display().to_string())
        .collect();
    if open.is_empty() { Ok(String::new()) } else { failed(format!("open: {}", open.join(", "))) }
}
