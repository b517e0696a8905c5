//! What the gate refused, in the words of the node: which device, which cgroup, which claims.
//!
//! A tenant decides how often this happens. The kernel reports a cgroup once a second for each
//! device; what is written to the log has a limit of its own beside that.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use accelpool_model::{CgroupId, ClaimId};
use tracing::warn;

use super::{
    Hierarchy,
    cgroups::{all_below, id_of},
    keeper::State,
};
use crate::node::now_ms;

/// How long the reader sleeps at most: it looks whether the daemon still wants it.
pub(super) const WAIT: Duration = Duration::from_millis(500);

/// Denials that are remembered for whoever asks later.
pub(super) const RECENT_MAX: usize = 64;

/// All cgroups are looked through no more often for that.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// Lines of denials in the log, a minute.
const LINES_MAX: u32 = 60;

/// One open that the gate refused, or would have refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// It was refused; else it passed and is only reported.
    pub denied: bool,
    /// The process, as the host numbers it.
    pub process: u32,
    /// Its thread's name, which a tenant chooses: printable, at most 15 bytes.
    pub command: String,
    /// The path of its cgroup; empty if it is gone.
    pub cgroup: String,
    /// Its cgroup.
    pub cgroup_id: CgroupId,
    /// The device, if one alone has that node.
    pub device: String,
    /// The device number.
    pub number: String,
    /// Of `r` and `w`.
    pub access: String,
    /// Claims that the cgroup is bound to; none holds this device.
    pub claims: Vec<ClaimId>,
}

impl State {
    pub(super) fn describe(&mut self, denial: &accelpool_gate::Denial) -> Denial {
        let folder = self.folder_of(denial.process, denial.cgroup);
        let node = self.guarded.nodes.get(&denial.device);
        let device = node.filter(|node| node.devices.len() == 1);
        let device = device.and_then(|node| node.devices.first().cloned()).unwrap_or_default();
        let (cgroup, claims) = match folder {
            Some(folder) => {
                let claims = self.claims_at(&folder).cloned().collect();
                (Hierarchy::of(&self.root).path_of(&folder), claims)
            }
            None => (String::new(), Vec::new()),
        };
        Denial {
            unix_ms: now_ms(),
            denied: denial.denied,
            process: denial.process,
            command: denial.thread_name.chars().flat_map(char::escape_debug).collect(),
            cgroup,
            cgroup_id: denial.cgroup,
            device,
            number: denial.device.to_string(),
            access: denial.access.to_string(),
            claims,
        }
    }

    /// The folder of a cgroup: where its process is now, else found by its number.
    fn folder_of(&mut self, process: u32, id: CgroupId) -> Option<PathBuf> {
        let is_it = |folder: &Path| id_of(folder).is_ok_and(|found| found == id);
        let path = Hierarchy::path_of_process(process).ok();
        let now = path.and_then(|path| Hierarchy::of(&self.root).cgroup(&path).ok());
        if let Some(folder) = now.map(|(folder, _)| folder).filter(|folder| is_it(folder)) {
            return Some(folder);
        }
        // To look through all cgroups is costly, and a tenant decides how often it is needed.
        if self.searched.is_some_and(|last| last.elapsed() < SEARCH_INTERVAL) {
            return None;
        }
        self.searched = Some(Instant::now());
        all_below(&self.root).into_iter().find(|(_, found)| *found == id).map(|(it, _)| it)
    }
}

/// The lines of the log, of which a tenant gets no more than some a minute.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Option<Instant>,
    written: u32,
    withheld: u64,
}

impl Lines {
    pub(super) fn write(&mut self, denial: &Denial) {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_mins(1)) {
            if self.withheld > 0 {
                warn!(withheld = self.withheld, "denials that were not logged");
            }
            *self = Self { since: Some(now), ..Self::default() };
        }
        if self.written >= LINES_MAX {
            self.withheld += 1;
            return;
        }
        self.written += 1;
        let Denial { process, command, cgroup, device, number, .. } = denial;
        let what = if denial.denied { "open refused" } else { "open without a grant" };
        warn!(pid = process, command, cgroup, device, number, "{what}");
    }
}
