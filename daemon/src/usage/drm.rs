//! What the kernel tells of processes, for devices whose vendor's library tells nothing of them:
//! DRM's `fdinfo` of every open render node, and KFD's folder of processes.
//!
//! ```text
//! /proc/PID/fdinfo/FD               drm-pdev, drm-client-id, drm-engine-*, drm-resident-*, ...
//! /sys/class/kfd/kfd/topology       which number stands for which device
//! /sys/class/kfd/kfd/proc/PID       vram_NUMBER, sdma_NUMBER
//! ```
//!
//! The kernel writes all of it, so a tenant cannot have its use told as another's. Every file and
//! every list has a limit. A file that is not what it should be counts for nothing: it tells of
//! one client, and the others go on.

pub mod fdinfo;
pub mod kfd;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use accelpool_model::{Engine, MemoryBytes, PciAddress, Sample};

use self::fdinfo::{Client, Count};
use super::meter::Source;

/// Longer than any `fdinfo`, and than any file of KFD.
const FILE_LEN_MAX: u64 = 16 * 1024;
/// As many as a kernel gives numbers to without being told to give more.
const PROCESSES_MAX: usize = 32 * 1024;
/// Open files that are looked at, of all processes together: about a tenth of a second.
const FILES_MAX: usize = 64 * 1024;

/// What one process uses of a device, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it uses. The kernel knows of no partitions.
    pub sample: Sample,
    /// Who says so.
    pub source: Source,
}

/// The clients of the kernel's drivers, as they were when they were read last.
#[derive(Debug)]
pub struct Clients {
    proc: PathBuf,
    kfd: PathBuf,
    before: Option<Before>,
}

/// Counts by what they are of.
#[derive(Debug)]
struct Before {
    at: Instant,
    clients: HashMap<(PciAddress, u64), BTreeMap<Engine, Count>>,
    copied: HashMap<(PciAddress, u32), Duration>,
}

impl Clients {
    /// Those of the host whose procfs and sysfs are at `proc` and `sys`.
    #[must_use]
    pub fn new(proc: &Path, sys: &Path) -> Self {
        Self { proc: proc.to_owned(), kfd: sys.join("class/kfd/kfd"), before: None }
    }

    /// Reads them. Times are since they were read before: of none, when they were not. A client
    /// that has come since then is told with all that it used.
    pub fn read(&mut self, at: Instant) -> BTreeMap<PciAddress, Vec<Told>> {
        let mut told: BTreeMap<(PciAddress, u32), Told> = BTreeMap::new();
        let mut now = Before { at, clients: HashMap::new(), copied: HashMap::new() };
        for (pid, client) in self.clients() {
            let key = (client.device, client.id);
            if now.clients.contains_key(&key) {
                continue; // the same client by another open file
            }
            let one = told.entry((client.device, pid)).or_insert_with(|| nothing(pid));
            one.sample.memory = one.sample.memory.saturating_add(MemoryBytes::new(client.memory));
            for (engine, count) in &client.engines {
                let busy = self.before.as_ref().map_or(Duration::ZERO, |before| {
                    let then = before.clients.get(&key).and_then(|then| then.get(engine));
                    count.since(then, at.duration_since(before.at))
                });
                add(&mut one.sample, *engine, busy);
            }
            now.clients.insert(key, client.engines);
        }
        for (pid, used) in kfd::processes(&self.kfd) {
            let one = told.entry((used.device, pid)).or_insert_with(|| nothing(pid));
            one.source = Source::Kfd;
            // The same memory, where a render node of it is open as well.
            one.sample.memory = one.sample.memory.max(MemoryBytes::new(used.memory));
            if let Some(copied) = used.copied {
                let key = (used.device, pid);
                let busy = self.before.as_ref().map_or(Duration::ZERO, |before| {
                    copied.saturating_sub(before.copied.get(&key).copied().unwrap_or_default())
                });
                add(&mut one.sample, Engine::Copy, busy);
                now.copied.insert(key, copied);
            }
        }
        self.before = Some(now);
        let mut by_device: BTreeMap<PciAddress, Vec<Told>> = BTreeMap::new();
        for ((device, _), one) in told {
            by_device.entry(device).or_default().push(one);
        }
        by_device
    }

    /// Every client of every open file, by process, in the order of process ids.
    fn clients(&self) -> Vec<(u32, Client)> {
        let mut clients = Vec::new();
        let mut files = 0_usize;
        for pid in numbers(&self.proc).into_iter().take(PROCESSES_MAX) {
            let folder = self.proc.join(pid.to_string());
            for fd in numbers(&folder.join("fd")) {
                files += 1;
                if files > FILES_MAX {
                    return clients;
                }
                // Sockets, pipes and the like have no path. Nothing is opened or looked up by
                // one: that could wait for a file system that is gone.
                let link = fs::read_link(folder.join("fd").join(fd.to_string()));
                if !link.is_ok_and(|target| target.is_absolute()) {
                    continue;
                }
                let text = read(&folder.join("fdinfo").join(fd.to_string()));
                clients.extend(text.and_then(|text| Some((pid, fdinfo::parse(&text).ok()??))));
            }
        }
        clients
    }
}

fn nothing(pid: u32) -> Told {
    let engines = BTreeMap::new();
    let memory = MemoryBytes::ZERO;
    Told {
        sample: Sample { pid, partition: None, memory, compute_busy: None, engines },
        source: Source::Fdinfo,
    }
}

fn add(sample: &mut Sample, engine: Engine, busy: Duration) {
    let sum = if engine == Engine::Compute {
        sample.compute_busy.get_or_insert_default()
    } else {
        sample.engines.entry(engine).or_default()
    };
    *sum = sum.saturating_add(busy);
}

/// The entries of a folder that are numbers, in order; none if it cannot be read.
fn numbers(folder: &Path) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let number =
        |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    entries.take(FILES_MAX).filter_map(number).collect()
}

/// The beginning of a file, if it is text.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_LEN_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}
