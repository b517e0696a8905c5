//! What the gate costs: an open with and without it, a change of a grant, memory; and how long
//! what somebody else changed stays so.
//!
//! Runs in the kernel of this machine, as root, below a cgroup of its own. Opens are real
//! ones of `/dev/zero`, which is guarded there, and of `/dev/null`, which is not. With
//! and without take turns within one run, in cgroups of the same depth.

#![forbid(unsafe_code)]

mod drift;

use std::{
    fs::{self, File},
    hint::black_box,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    time::{Duration, Instant},
};

use accelpool_benches::Report;
use accelpool_gate::{
    Access, CgroupId, DeviceNumber, DeviceType, Gate, GateConfig, Guard, Guards, Mode,
};
use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Opens in one sample: long enough for the clock, short enough to take turns often.
const OPENS: u32 = 200;
const SAMPLES: usize = 400;

/// A container of the kubelet, and one beside it that no gate holds.
const HELD: &str = "kubepods/burstable/pod/container";
const FREE: &str = "freepods/burstable/pod/container";

const GUARDED: &str = "/dev/zero";
const UNRELATED: &str = "/dev/null";

fn main() -> ExitCode {
    let mut report = Report::begin();
    match measure(&mut report) {
        Ok(()) => report.end(),
        Err(error) => {
            eprintln!("the gate was not measured: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(report: &mut Report) -> Result<()> {
    let place = Place::new()?;
    let gate = Gate::open(&place.config())?;
    let zero = DeviceNumber::new(DeviceType::Character, 1, 5)?;
    gate.guard(&guards(zero)?)?;
    let pod = gate.cgroup(place.path(HELD).parent().context("it has a parent")?)?;
    gate.grant(pod, zero, Access::READ_WRITE)?;
    measure_opens(report, &place, &gate, (pod, zero))?;
    measure_grants(report, &gate, zero)?;
    measure_memory(report, &gate, zero)?;
    drop(gate);
    drift::measure(report, &place)
}

/// What a node with 16 devices guards, and the device that is opened here.
fn guards(zero: DeviceNumber) -> Result<Guards> {
    // /dev/nvidia0 and so on, its control nodes, render nodes and capabilities.
    let nodes = [(195, 0..16), (195, 254..256), (226, 128..144), (507, 0..2), (508, 1..256)];
    let mut guards = vec![Guard { devices: zero.into(), mode: Mode::Enforce }];
    for (major, minor) in
        nodes.into_iter().flat_map(|(major, minors)| minors.map(move |it| (major, it)))
    {
        // Every other one in another pool, so that neighbours do not join.
        let mode = if minor % 2 == 0 { Mode::Enforce } else { Mode::Audit };
        let device = DeviceNumber::new(DeviceType::Character, major, minor)?;
        guards.push(Guard { devices: device.into(), mode });
    }
    Ok(Guards::new(guards)?)
}

fn measure_opens(
    report: &mut Report,
    place: &Place,
    gate: &Gate,
    (pod, zero): (CgroupId, DeviceNumber),
) -> Result<()> {
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut failure = None;
    report.time(SAMPLES, || {
        let mut sample = || -> Result<()> {
            place.enter(FREE)?;
            times[0].push(open_often(UNRELATED, true)?);
            times[1].push(open_often(GUARDED, true)?);
            place.enter(HELD)?;
            times[2].push(open_often(UNRELATED, true)?);
            times[3].push(open_often(GUARDED, true)?);
            gate.revoke(pod, zero)?;
            times[4].push(open_often(GUARDED, false)?);
            Ok(gate.grant(pod, zero, Access::READ_WRITE)?)
        };
        failure = sample().err().or_else(|| failure.take());
    });
    failure.map_or(Ok(()), Err)?;
    let [null_free, zero_free, null_held, zero_held, denied] = times.map(median);
    let extra = |held: f64, free: f64| (held - free).max(0.0);
    report.line("open and close, no gate", zero_free, 20_000.0, "ns");
    report.line("more for an unrelated device", extra(null_held, null_free), 500.0, "ns");
    report.line("  times the open without", null_held / null_free, 1.25, "x");
    report.line("more for a granted device", extra(zero_held, zero_free), 1500.0, "ns");
    report.line("  times the open without", zero_held / zero_free, 1.5, "x");
    report.line("a denied open, times one without a gate", denied / zero_free, 2.0, "x");
    Ok(())
}

fn measure_grants(report: &mut Report, gate: &Gate, device: DeviceNumber) -> Result<()> {
    let mut failure = None;
    let mut number = 0;
    let grant = report.time(10_000, || {
        number += 1;
        let done = gate.grant(CgroupId(u64::MAX - number % 1000), device, Access::READ);
        failure = done.err().or_else(|| failure.take());
    });
    let revoke = report.time(10_000, || {
        number += 1;
        let done = gate.revoke(CgroupId(u64::MAX - number % 1000), device);
        failure = done.err().or_else(|| failure.take());
    });
    let switch = report.time(1000, || {
        number += 1;
        let done = gate.set_mode([Mode::Audit, Mode::Enforce][usize::from(number % 2 == 0)]);
        failure = done.err().or_else(|| failure.take());
    });
    failure.map_or(Ok(()), Err)?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    report.line("a grant, p99", micros(grant.p99), 100.0, "us");
    report.line("a grant taken back, p99", micros(revoke.p99), 100.0, "us");
    report.line("a switch of mode of 291 devices, median", micros(switch.median), 5000.0, "us");
    Ok(())
}

fn measure_memory(report: &mut Report, gate: &Gate, device: DeviceNumber) -> Result<()> {
    let empty = map_bytes()?;
    for number in 0..1000 {
        gate.grant(CgroupId(u64::MAX - 1_000_000 - number), device, Access::READ)?;
    }
    let kibibytes = |bytes: u32| f64::from(bytes) / 1024.0;
    report.line("memory of the maps, no grants", kibibytes(empty), 2048.0, "KiB");
    report.line("memory of 1,000 grants", kibibytes(map_bytes()? - empty), 128.0, "KiB");
    Ok(())
}

/// What the kernel says that the maps of this process take.
fn map_bytes() -> Result<u32> {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The folder's own descriptor is gone by the time that it is read.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        if let (Some(_), Some(memory)) = (field("map_type:"), field("memlock:")) {
            bytes += memory.trim().parse::<u32>()?;
        }
    }
    Ok(bytes)
}

/// Opens and closes a device, many times; nanoseconds for one.
fn open_often(path: &str, expected: bool) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..OPENS {
        let opened = black_box(File::open(path)).is_ok();
        anyhow::ensure!(opened == expected, "{path} opened: {opened}");
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(OPENS))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Cgroups and a BPF file system of this program's own, removed at the end.
struct Place {
    cgroup: PathBuf,
    home: PathBuf,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let unified = mounts.find(|fields| fields[2] == "cgroup2").context("no cgroup v2")?;
        let hierarchy = PathBuf::from(unified[1]);
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let home = hierarchy.join(own.context("this process is in no cgroup v2")?);
        let cgroup = hierarchy.join(format!("accelpool-gate-bench-{}", process::id()));
        for path in [HELD, FREE] {
            fs::create_dir_all(cgroup.join(path)).context("failed to make cgroups")?;
        }
        let folder = tempfile::tempdir()?;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("failed to mount a BPF file system")?;
        Ok(Self { cgroup, home, folder })
    }

    fn config(&self) -> GateConfig {
        GateConfig { root: self.path("kubepods"), pins: self.folder.path().join("gate") }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.cgroup.join(path)
    }

    fn enter(&self, path: &str) -> Result<()> {
        enter(&self.path(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = enter(&self.home).and_then(|()| remove(&self.cgroup));
        let unmounted = umount2(self.folder.path(), MntFlags::MNT_DETACH);
        if let Err(error) = left.and(unmounted.map_err(Into::into)) {
            eprintln!("failed to clear {}: {error:#}", self.cgroup.display());
        }
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    Ok(fs::write(cgroup.join("cgroup.procs"), "0")?)
}

fn remove(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(cgroup)?)
}
