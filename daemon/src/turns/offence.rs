//! Tenants that take more of a shared device than they were granted, and what becomes of them.
//!
//! The library in a tenant's program holds honest ones. Who goes round it is seen by the
//! vendor's own list of processes, and stopped from outside: by its cgroup.

use std::{fs, path::PathBuf};

use accelpool_arbiter::{Report, Violation, What};
use accelpool_model::{ClaimId, DeviceUuid, OnViolation};

use crate::gate::Hierarchy;

/// What somebody did, and by which processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The claim, if it is one's.
    pub claim: Option<ClaimId>,
    /// What it is, for people.
    pub words: String,
    /// The processes.
    pub pids: Vec<i32>,
}

pub(super) fn explain(found: Vec<Violation>, report: &Report) -> Vec<Offence> {
    let explain = |Violation { device, what }| match what {
        What::OverQuota { claim, held, quota } => {
            let words =
                format!("its processes hold {held} bytes of {device}, {quota} were granted");
            let pids = processes(report, &claim, &device);
            Offence { claim: Some(claim), words, pids }
        }
        What::OutOfTurn { claim, busy_permille, turns_permille } => {
            let words = format!(
                "its processes used {device} for {busy_permille} of 1000 ms, and its turns were \
                 {turns_permille}: they go round the gate"
            );
            let pids = processes(report, &claim, &device);
            Offence { claim: Some(claim), words, pids }
        }
        What::Unregistered { pid } => {
            let words = format!("process {pid} uses shared device {device} and takes no turns");
            Offence { claim: None, words, pids: vec![pid] }
        }
    };
    found.into_iter().map(explain).collect()
}

fn processes(report: &Report, claim: &ClaimId, device: &DeviceUuid) -> Vec<i32> {
    let row = report.claims.iter().find(|it| it.claim == *claim && it.device == *device);
    row.map(|row| row.processes.clone()).unwrap_or_default()
}

/// Does to the processes' cgroups what the pool's configuration says; what was done, for people.
/// The root's cgroup and the daemon's own are left alone. Blocks for a few system calls.
#[must_use]
pub fn punish(offence: &Offence, how: OnViolation) -> String {
    let file = match how {
        OnViolation::Report => return "reported".to_owned(),
        OnViolation::Freeze => "cgroup.freeze",
        OnViolation::Kill => "cgroup.kill",
    };
    let mut folders: Vec<PathBuf> = Vec::new();
    for pid in &offence.pids {
        let Some(folder) = folder_of(*pid) else { continue };
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if folders.is_empty() {
        return "reported: no cgroup of its own could be found".to_owned();
    }
    let done = folders.iter().map(|folder| match fs::write(folder.join(file), "1") {
        Ok(()) => format!("wrote {file} of `{}`", folder.display()),
        Err(error) => format!("failed to write {file} of `{}`: {error}", folder.display()),
    });
    done.collect::<Vec<_>>().join(", ")
}

fn folder_of(pid: i32) -> Option<PathBuf> {
    let path = |pid| Hierarchy::path_of_process(pid).ok();
    let own = path(std::process::id());
    let path = path(u32::try_from(pid).ok()?)?;
    // What the daemon itself runs in would stop with it, and with the root everything.
    let shared = path == "/" || own.is_some_and(|own| crate::usage::cgroup::is_within(&own, &path));
    let (folder, _) = Hierarchy::find().ok()?.cgroup(&path).ok()?;
    (!shared).then_some(folder)
}
