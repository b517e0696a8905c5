//! Who has a device open, whatever they were granted: to take a grant back closes no file.
//!
//! Found in `/proc`, by the numbers of open files; a name tells nothing, since a tenant can
//! make nodes. A tenant's file is looked at without asking its file system, which may be the
//! tenant's own and never answer. A mapping whose file was closed is not seen.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use accelpool_gate::{DeviceNumber, DeviceType, Mode};
use accelpool_model::{ClaimId, TaintEffect};
use rustix::{
    fs::{AtFlags, CWD, FileType, StatxFlags, statx},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tracing::{info, warn};

use super::{Hierarchy, Keeper, keeper::State};

/// More processes than any node runs; what is beyond is not looked at, and said so.
const PROCESSES_MAX: usize = 32_768;

/// Files in all. At a microsecond each, a look takes no longer than some seconds.
const FILES_MAX: usize = 2_000_000;

/// Holders that are told.
const HOLDERS_MAX: usize = 4096;

/// How often holders are looked for, and how much longer than a look takes that is at least:
/// looking takes less than a hundredth of a processor.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_FACTOR: u32 = 100;

/// After a change of leases or taints a look comes sooner, but a look takes time of its own.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Why a process may have a device open, or may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Its cgroup holds a grant.
    Granted,
    /// It is held by the gate, and no claim lets it.
    Stale,
    /// It may, and the device is to be left.
    Tainted,
    /// Its cgroup is exempt.
    Exempt,
    /// The gate does not hold it, or there is none.
    Host,
}

impl Right {
    /// The word of the node API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Stale => "stale",
            Self::Tainted => "tainted",
            Self::Exempt => "exempt",
            Self::Host => "host",
        }
    }
}

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The devices that have the node.
    pub devices: Vec<String>,
    /// The node's number.
    pub number: DeviceNumber,
    /// The process, as the host numbers it.
    pub process: u32,
    /// When it started, in ticks after boot: tells it from a later one of its number.
    started: u64,
    /// Its name, which a tenant chooses.
    pub command: String,
    /// The path of its cgroup.
    pub cgroup: String,
    /// Claims that give it the right.
    pub claims: Vec<ClaimId>,
    /// By what right.
    pub right: Right,
    /// It is to be killed if it stays.
    kill: bool,
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// By process and number.
    pub holders: Vec<Holder>,
    /// How many processes were looked at.
    pub processes: usize,
    /// Not everything was looked at.
    pub partial: bool,
}

/// What is remembered between looks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    next: Option<Instant>,
    pub(super) hurry: bool,
    /// Who had no right at the last look: reported, and killed if it is still so.
    seen: BTreeSet<(u32, u64, DeviceNumber)>,
    pub(super) stale: usize,
    pub(super) killed: u64,
}

impl Keeper {
    /// Looks who has a guarded device open.
    #[must_use]
    pub fn holders(&self) -> Holders {
        let numbers: BTreeSet<DeviceNumber> = self.lock().guarded.nodes.keys().copied().collect();
        let (open, processes, partial) =
            open_devices(Path::new("/proc"), |it| numbers.contains(&it));
        let state = self.lock();
        let holders = open.into_iter().filter_map(|open| state.judge(open)).collect();
        Holders { holders, processes, partial }
    }

    /// A change of leases or taints: the next look comes soon.
    pub(super) fn hurry(&self) {
        self.lock().watch.hurry = true;
    }

    /// Looks for holders without a right if it is time; reports new ones and kills those whose
    /// pool says so and that were told before.
    pub(super) fn watch_holders(&self) {
        let started = Instant::now();
        {
            let mut state = self.lock();
            let due = state.watch.next.is_none_or(|next| {
                let early = PAUSE.saturating_sub(PAUSE_MIN);
                started
                    >= if state.watch.hurry {
                        next.checked_sub(early).unwrap_or(next)
                    } else {
                        next
                    }
            });
            if state.gate.is_none() || !due {
                return;
            }
            state.watch.hurry = false;
        }
        let found = self.holders();
        let wrong = |it: &&Holder| matches!(it.right, Right::Stale | Right::Tainted);
        let wrong: Vec<&Holder> = found.holders.iter().filter(wrong).collect();
        let mut state = self.lock();
        let mut seen = BTreeSet::new();
        for holder in wrong {
            let key = (holder.process, holder.started, holder.number);
            let Holder { process, command, cgroup, number, right, .. } = holder;
            let right = right.as_str();
            if !state.watch.seen.contains(&key) {
                warn!(pid = process, command, cgroup, %number, right, "a process keeps a device open");
            } else if holder.kill && kill(holder) {
                state.watch.killed += 1;
                info!(pid = process, command, cgroup, %number, right, "killed, as its pool says");
                continue;
            }
            seen.insert(key);
        }
        let processes: BTreeSet<u32> = seen.iter().map(|(process, ..)| *process).collect();
        state.watch.stale = processes.len();
        state.watch.seen = seen;
        let pause = (started.elapsed() * PAUSE_FACTOR).max(PAUSE);
        state.watch.next = Some(Instant::now() + pause);
    }
}

/// A process and a device that it has open.
struct Open {
    process: u32,
    number: DeviceNumber,
}

impl State {
    fn judge(&self, Open { process, number }: Open) -> Option<Holder> {
        let node = self.guarded.nodes.get(&number)?;
        let cgroup = Hierarchy::path_of_process(process).unwrap_or_default();
        let (command, started) = name_of(process)?;
        let hierarchy = Hierarchy::of(&self.root);
        let folder = hierarchy.cgroup(&cgroup).ok().map(|(folder, _)| folder);
        let inside =
            self.gate.is_some() && folder.as_ref().is_some_and(|it| it.starts_with(&self.root));
        let claims: Vec<ClaimId> = folder
            .iter()
            .flat_map(|folder| self.claims_at(folder))
            .filter(|claim| {
                self.claims.get(*claim).is_some_and(|it| it.duty.nodes.contains_key(&number))
            })
            .cloned()
            .collect();
        let exempt = || {
            let folder = folder.as_ref();
            folder.is_some_and(|folder| {
                let exempt = self.exempt.values().filter_map(|path| hierarchy.cgroup(path).ok());
                exempt.into_iter().any(|(exempt, _)| folder.starts_with(exempt))
            })
        };
        let right = match () {
            () if !inside => Right::Host,
            () if exempt() => Right::Exempt,
            () if claims.is_empty() => Right::Stale,
            () if node.tainted => Right::Tainted,
            () => Right::Granted,
        };
        let wrong = matches!(right, Right::Stale | Right::Tainted);
        let kill = wrong && node.kill && self.mode_of(number) == Mode::Enforce;
        let devices = node.devices.iter().cloned().collect();
        Some(Holder { devices, number, process, started, command, cgroup, claims, right, kill })
    }
}

/// Kills the process that `holder` is, and no later one of its number.
fn kill(holder: &Holder) -> bool {
    let Some(pid) = i32::try_from(holder.process).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    // From here on it cannot become another; what was found is asked once more.
    let same = name_of(holder.process).is_some_and(|(_, started)| started == holder.started);
    let there = Hierarchy::path_of_process(holder.process).is_ok_and(|path| path == holder.cgroup);
    let mut files = FILES_MAX;
    let open =
        devices_of(Path::new("/proc"), holder.process, &mut files, &|it| it == holder.number);
    same && there
        && !open.unwrap_or_default().is_empty()
        && pidfd_send_signal(process, Signal::KILL).is_ok()
}

/// The open device files of all processes, how many processes there are, and whether some were
/// not looked at.
fn open_devices(proc: &Path, wanted: impl Fn(DeviceNumber) -> bool) -> (Vec<Open>, usize, bool) {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let (mut found, mut count, mut partial, mut files) = (Vec::new(), 0, false, FILES_MAX);
    for process in processes {
        if count == PROCESSES_MAX || files == 0 || found.len() >= HOLDERS_MAX {
            return (found, count, true);
        }
        count += 1;
        match devices_of(proc, process, &mut files, &wanted) {
            Ok(numbers) => {
                found.extend(numbers.into_iter().map(|number| Open { process, number }));
            }
            // It ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => partial = true,
        }
    }
    found.sort_by_key(|open| (open.process, open.number));
    (found, count, partial)
}

/// The device files that a process has open, each number once.
fn devices_of(
    proc: &Path,
    process: u32,
    files: &mut usize,
    wanted: &impl Fn(DeviceNumber) -> bool,
) -> io::Result<BTreeSet<DeviceNumber>> {
    let folder: PathBuf = proc.join(process.to_string()).join("fd");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&folder)? {
        // The process may have ended, or closed the file.
        let Ok(entry) = entry else { break };
        let Some(left) = files.checked_sub(1) else { break };
        *files = left;
        // What is known without asking the file's file system: a type and a number are.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let Ok(file) = statx(CWD, entry.path(), flags, StatxFlags::TYPE) else { continue };
        let kind = match FileType::from_raw_mode(file.stx_mode.into()) {
            FileType::CharacterDevice => DeviceType::Character,
            FileType::BlockDevice => DeviceType::Block,
            FileType::RegularFile
            | FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::Unknown => continue,
        };
        let number = DeviceNumber::new(kind, file.stx_rdev_major, file.stx_rdev_minor);
        found.extend(number.ok().filter(|number| wanted(*number)));
    }
    Ok(found)
}

/// A process's name and when it started.
fn name_of(process: u32) -> Option<(String, u64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in parentheses, and may have some of its own.
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let started = tail.split_whitespace().nth(19)?.parse().ok()?;
    Some((name.chars().flat_map(char::escape_debug).collect(), started))
}

/// True if everybody is to leave a device that has these taints.
pub(super) fn is_to_be_left(taints: &[accelpool_model::Taint]) -> bool {
    taints.iter().any(|taint| match taint.effect {
        TaintEffect::NoExecute => true,
        TaintEffect::None | TaintEffect::NoSchedule => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_devices_are_found_by_their_numbers() {
        let null = fs::File::open("/dev/null").expect("it is everywhere");
        let number = super::super::guarded::number_of(Path::new("/dev/null")).expect("a device");
        let (found, processes, _) = open_devices(Path::new("/proc"), |it| it == number);
        assert!(processes > 1);
        let own = std::process::id();
        assert!(found.iter().any(|open| open.process == own && open.number == number));
        drop(null);
        let mut files = 0;
        let none = devices_of(Path::new("/proc"), own, &mut files, &|_| true);
        assert_eq!(none.expect("it runs"), BTreeSet::new(), "a limit is a limit");
        let gone = devices_of(Path::new("/proc"), u32::MAX, &mut files, &|_| true);
        assert_eq!(gone.expect_err("no such process").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_with_parentheses_is_no_riddle() {
        let (name, started) = name_of(std::process::id()).expect("it runs");
        assert!(!name.is_empty() && started > 0);
        assert!(name_of(u32::MAX).is_none());
    }
}
