//! Claims that last as long as a process: who holds them, and their release once it is gone.
//!
//! The holder stands in the claim's labels, so that it is on disk with the lease: a daemon that
//! was down meanwhile finds out at its next start. A pid alone names no process, so the time of
//! its start and the boot go with it. Whoever asks with `held` also releases; this is for those
//! that were killed.

use std::{fmt, fs, io, path::Path, path::PathBuf, str::FromStr, time::Duration};

use accelpool_model::{BootId, ClaimId};
use tracing::{info, warn};

use crate::{
    error::Chain,
    node::{Node, NodeError},
};

/// The label that only the daemon sets.
pub const LABEL: &str = "accelpool.dev/holder";

/// How often holders are looked at, while there are any.
const INTERVAL: Duration = Duration::from_millis(250);

/// A process that holds a claim, as the label says it: pid, start in ticks, boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pid: u32,
    start: u64,
    boot: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start, self.boot)
    }
}

impl FromStr for Holder {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or(());
        let pid = word()?.parse().map_err(|_| ())?;
        let start = word()?.parse().map_err(|_| ())?;
        Ok(Self { pid, start, boot: word()?.to_owned() })
    }
}

impl Holder {
    /// The process `pid`, which is there.
    ///
    /// # Errors
    ///
    /// It is not, or procfs does not say when it began.
    pub fn of(proc: &Path, pid: u32, boot: &BootId) -> io::Result<Self> {
        Ok(Self { pid, start: start_of(proc, pid)?, boot: boot.to_string() })
    }

    /// Whether that very process is there no more. What cannot be told counts as there.
    fn is_gone(&self, proc: &Path, boot: &BootId) -> bool {
        if self.boot != boot.to_string() {
            return true;
        }
        match start_of(proc, self.pid) {
            Ok(start) => start != self.start,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// When a process began, in ticks since the boot. One that has ended and waits for its parent is
/// not found.
fn start_of(proc: &Path, pid: u32) -> io::Result<u64> {
    let text =
        fs::read_to_string(proc.join(pid.to_string()).join("stat")).map_err(|error| match error
            .raw_os_error()
        {
            // It ended between the opening and the reading.
            Some(nix::libc::ESRCH) => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
    parse_start(&text)
}

fn parse_start(stat: &str) -> io::Result<u64> {
    // The name, in parentheses, may hold anything; the state is the first word behind it.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    let mut words = rest.unwrap_or_default().split_ascii_whitespace();
    if matches!(words.next(), Some("Z" | "X")) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // Field 22 of `proc_pid_stat(5)`; the state is field 3.
    let found = words.nth(18).and_then(|word| word.parse().ok());
    found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Releases claims whose holders are gone, until the node is.
pub async fn watch(node: Node, proc: PathBuf, boot: BootId) {
    let mut revisions = node.revisions();
    loop {
        revisions.mark_unchanged();
        let Ok(held) = held(&node).await else { return };
        let changed = loop {
            if held.is_empty() {
                break revisions.changed().await;
            }
            let gone = held.iter().filter(|(_, holder)| holder.is_gone(&proc, &boot));
            let gone: Vec<_> = gone.collect();
            for (claim, holder) in &gone {
                info!(%claim, pid = holder.pid, "the process that held the claim has ended");
                match node.release(claim.clone()).await {
                    Ok(_) => {}
                    Err(NodeError::Draining) => return,
                    Err(error) => {
                        warn!(%claim, error = %Chain(&error), "release failed, to be tried again");
                    }
                }
            }
            match tokio::time::timeout(INTERVAL, revisions.changed()).await {
                Ok(changed) => break changed,
                Err(_) if gone.is_empty() => {}
                Err(_) => break Ok(()),
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn held(node: &Node) -> Result<Vec<(ClaimId, Holder)>, NodeError> {
    let state = node.read(None).await?;
    let holder = |lease: &accelpool_model::Lease| {
        let holder = lease.claim.labels.get(LABEL)?.parse().ok()?;
        Some((lease.claim.id.clone(), holder))
    };
    Ok(state.leases.values().filter_map(holder).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_stands_behind_a_name_that_may_hold_anything() {
        let fields = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 8765 0 0";
        let start = |name: &str, state: &str| {
            parse_start(&format!("7 ({name}) {state} {fields}")).map_err(|error| error.kind())
        };
        assert_eq!(start("sh", "S"), Ok(8765));
        assert_eq!(start("a) R 1 (b", "R"), Ok(8765));
        assert_eq!(start("sh", "Z"), Err(io::ErrorKind::NotFound));
        assert_eq!(parse_start("7").map_err(|e| e.kind()), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn a_holder_is_that_very_process() {
        let boot: BootId = "0b9c7f1e-0000-4000-8000-000000000001".parse().expect("a boot id");
        let other: BootId = "0b9c7f1e-0000-4000-8000-000000000002".parse().expect("a boot id");
        let proc = Path::new("/proc");
        let own = Holder::of(proc, std::process::id(), &boot).expect("this process is there");
        assert_eq!(own.to_string().parse(), Ok(own.clone()));
        assert!(!own.is_gone(proc, &boot));
        assert!(own.is_gone(proc, &other), "no process outlives a boot");
        let later = Holder { start: own.start + 1, ..own.clone() };
        assert!(later.is_gone(proc, &boot), "the pid was given anew");
        assert!(Holder { pid: u32::MAX, ..own }.is_gone(proc, &boot));
        assert!("1 x".parse::<Holder>().is_err());
    }
}
