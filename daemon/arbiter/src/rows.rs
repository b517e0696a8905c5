//! Whose rows of a claim's ledger page are taken, for the next daemon: a file beside the control
//! page, and the page itself, found among the descriptors of a process that lives.
//!
//! A process that is stopped while the daemon is replaced comes back late. Until it does or ends,
//! its row is nobody else's and what it holds is counted.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use accelpool_shim::layout::PROCESSES_MAX;

use crate::sys::{self, Peer};

const FILE: &str = "rows";
/// Only the daemon reads it; who is mounted in a container has no business with host's ids.
const MODE: u32 = 0o600;
/// A row, a process id and a time are no longer than this.
const LINE_LEN_MAX: u64 = 48;

/// What the ledger page of a claim is called among descriptors.
const LEDGER: &str = "/memfd:accelpool-ledger";
/// Descriptors of a process that are looked through.
const DESCRIPTORS_MAX: usize = 16 * 1024;

/// Writes down whose row is which.
pub(crate) fn write<'a>(
    folder: &Path,
    rows: impl Iterator<Item = (usize, &'a Peer)>,
) -> io::Result<()> {
    let mut text = String::new();
    for (index, peer) in rows {
        let line = writeln!(text, "{index} {} {}", peer.pid, peer.started);
        line.map_err(io::Error::other)?;
    }
    let next = folder.join("rows.next");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&next)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(next, folder.join(FILE))
}

/// Rows that an earlier daemon gave away to processes that live.
pub(crate) fn read(folder: &Path) -> Vec<(usize, Peer)> {
    let mut text = String::new();
    let Ok(file) = File::open(folder.join(FILE)) else { return Vec::new() };
    let most = LINE_LEN_MAX * PROCESSES_MAX as u64;
    // A half of it is as good as none: its processes bring their pages back themselves.
    if file.take(most).read_to_string(&mut text).is_err() {
        return Vec::new();
    }
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(usize, Peer)> {
    let mut words = line.split(' ');
    let index = words.next()?.parse().ok().filter(|index| *index < PROCESSES_MAX)?;
    let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let peer = sys::peer_of(pid, started).ok()?;
    Some((index, peer))
}

/// Ledger pages that a process has, one of which may be its claim's.
pub(crate) fn ledgers(peer: &Peer) -> impl Iterator<Item = OwnedFd> {
    let folder = format!("/proc/{}/fd", peer.pid);
    let entries = fs::read_dir(folder).into_iter().flatten().take(DESCRIPTORS_MAX);
    entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_link(&path).ok()?;
        // The name is the tenant's word; the seals and the page's own words are looked at next.
        if !name.to_str()?.starts_with(LEDGER) || !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
        Some(file.into())
    })
}
