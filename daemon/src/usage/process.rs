//! From a process to its cgroups, by procfs.
//!
//! A process id is reused, so an answer is kept only together with the time at which the
//! process started. What a process was stays known for as long as the vendor still bills it
//! after its end.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

/// Longer than any line of `stat`, and than the cgroup paths of a hybrid hierarchy.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Where a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Its cgroups' paths, of every hierarchy, each once.
    pub cgroups: Vec<String>,
    /// The pod that one of them belongs to.
    pub pod: Option<String>,
}

/// The processes of a host, as far as they were asked about.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    known: HashMap<u32, Known>,
    round: u64,
}

#[derive(Debug)]
struct Known {
    /// In clock ticks after boot.
    started: u64,
    place: Place,
    /// When it was asked about last.
    round: u64,
}

impl Processes {
    /// The processes whose procfs is mounted at `proc`.
    #[must_use]
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), known: HashMap::new(), round: 0 }
    }

    /// Where process `pid` runs, or ran if it has ended since it was asked about last; none if
    /// it was never seen.
    pub fn place(&mut self, pid: u32) -> Option<&Place> {
        let round = self.round;
        if let Some(started) = self.started(pid) {
            let fresh = self.known.get(&pid).is_some_and(|known| known.started == started);
            // One that is in no pod may still be on its way to its cgroup.
            let settled =
                fresh && self.known.get(&pid).is_some_and(|known| known.place.pod.is_some());
            if !settled
                && let Some(place) = self.read_place(pid)
                // Else it ended, and another has its id now.
                && self.started(pid) == Some(started)
            {
                self.known.insert(pid, Known { started, place, round });
            } else if !fresh {
                self.known.remove(&pid);
            }
        }
        let known = self.known.get_mut(&pid)?;
        known.round = round;
        Some(&known.place)
    }

    /// Forgets the processes that were not asked about since the last time.
    pub fn end_round(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        self.round += 1;
    }

    fn started(&self, pid: u32) -> Option<u64> {
        parse_started(&self.read(pid, "stat")?)
    }

    fn read_place(&self, pid: u32) -> Option<Place> {
        Some(parse_place(&self.read(pid, "cgroup")?))
    }

    fn read(&self, pid: u32, name: &str) -> Option<String> {
        let file = File::open(self.proc.join(pid.to_string()).join(name)).ok()?;
        let mut text = Vec::new();
        file.take(FILE_LEN_MAX).read_to_end(&mut text).ok()?;
        // A process names itself, in any bytes.
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The 22nd field of `stat`. The second is the process's own name, in parentheses, and may
/// hold parentheses and spaces itself.
#[must_use]
pub fn parse_started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The paths of a `cgroup` file, whose lines are `id:controllers:path`.
#[must_use]
pub fn parse_place(text: &str) -> Place {
    let mut place = Place::default();
    for line in text.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        if place.cgroups.iter().all(|known| known != path) {
            place.pod = place.pod.or_else(|| super::cgroup::pod_uid(path));
            place.cgroups.push(path.to_owned());
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UID: &str = "0f2b9c1e-5a77-4d6c-9a51-3f0a2c7d8e90";

    fn write(proc: &Path, pid: u32, started: u64, cgroup: &str) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        let zeros = "0 ".repeat(18);
        fs::write(folder.join("stat"), format!("{pid} (a) b) c) S {zeros}{started} 0 0\n"))
            .unwrap();
        fs::write(folder.join("cgroup"), cgroup).unwrap();
    }

    fn pod(processes: &mut Processes, pid: u32) -> Option<String> {
        processes.place(pid).and_then(|place| place.pod.clone())
    }

    #[test]
    fn a_process_is_known_by_its_id_and_its_start() {
        let proc = tempfile::tempdir().unwrap();
        let other = UID.replace('0', "1");
        let mut processes = Processes::new(proc.path());
        assert_eq!(processes.place(7), None);
        write(proc.path(), 7, 100, &format!("0::/kubepods/pod{UID}/c\n"));
        assert_eq!(pod(&mut processes, 7).as_deref(), Some(UID));
        processes.end_round();
        // The same id, another process.
        write(proc.path(), 7, 200, &format!("0::/kubepods/pod{other}/c\n"));
        assert_eq!(pod(&mut processes, 7).as_deref(), Some(&*other));
    }

    #[test]
    fn a_process_that_ended_is_remembered_while_it_is_asked_about() {
        let proc = tempfile::tempdir().unwrap();
        let mut processes = Processes::new(proc.path());
        write(proc.path(), 7, 100, &format!("0::/kubepods/pod{UID}/c\n"));
        pod(&mut processes, 7);
        processes.end_round();
        fs::remove_dir_all(proc.path().join("7")).unwrap();
        assert_eq!(pod(&mut processes, 7).as_deref(), Some(UID));
        processes.end_round();
        processes.end_round();
        assert_eq!(processes.place(7), None);
    }

    #[test]
    fn a_process_may_enter_its_cgroup_late() {
        let proc = tempfile::tempdir().unwrap();
        let mut processes = Processes::new(proc.path());
        write(proc.path(), 7, 100, "0::/system.slice/containerd.service\n");
        assert_eq!(pod(&mut processes, 7), None);
        write(proc.path(), 7, 100, &format!("0::/kubepods/pod{UID}/c\n"));
        assert_eq!(pod(&mut processes, 7).as_deref(), Some(UID));
    }

    #[test]
    fn a_hybrid_hierarchy_has_several_paths() {
        let place = parse_place(&format!(
            "5:memory:/kubepods/pod{UID}/c\n4:cpu,cpuacct:/kubepods/pod{UID}/c\n0::/\nnonsense\n"
        ));
        assert_eq!(place.pod.as_deref(), Some(UID));
        assert_eq!(place.cgroups, [format!("/kubepods/pod{UID}/c"), "/".to_owned()]);
    }

    #[test]
    fn this_process_has_a_place() {
        let mut processes = Processes::new(Path::new("/proc"));
        let place = processes.place(std::process::id()).expect("this process runs");
        assert!(place.cgroups.iter().all(|path| path.starts_with('/')), "{place:?}");
    }

    #[test]
    fn what_is_no_stat_has_no_start() {
        for text in ["", "1", "1 (x", "1 (x) S 1", "1 (x) S 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 x"]
        {
            assert_eq!(parse_started(text), None, "{text}");
        }
    }
}
