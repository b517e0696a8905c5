//! What the gate audited or denied, as the kernel reports it.
//!
//! The kernel reports a cgroup once a second for each device, and only as fast as the reader
//! empties the ring; what is not reported is counted. Ids of processes are those of the
//! host's own namespace: a reader in a container must share it to look them up.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    device::{Access, DeviceNumber},
    error::GateError,
    layout::{self, DENIAL, Map},
    rules::{CgroupId, Mode},
    sys::{MapFd, Ring, text},
};

/// One attempt that no grant admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When, on the clock that also counts while the machine sleeps (`CLOCK_BOOTTIME`).
    pub time_since_boot: Duration,
    /// The process's own cgroup: a container's, as a rule, or one below it.
    pub cgroup: CgroupId,
    /// The process.
    pub process: u32,
    /// Its thread.
    pub thread: u32,
    /// The thread's name; a tenant chooses it, so it is text to be escaped, not to be trusted.
    pub thread_name: String,
    /// The device.
    pub device: DeviceNumber,
    /// What was wanted of it.
    pub access: Access,
    /// Whether it was refused; else it passed and is only reported.
    pub denied: bool,
}

impl Denial {
    /// Reads a record; nothing if it is none of ours.
    #[expect(clippy::cast_possible_truncation, reason = "two halves of one word")]
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; DENIAL] = bytes.try_into().ok()?;
        let word = |at| layout::u32_at(bytes, at);
        let pid_tgid = layout::u64_at(bytes, 16)?;
        Some(Self {
            time_since_boot: Duration::from_nanos(layout::u64_at(bytes, 0)?),
            cgroup: CgroupId(layout::u64_at(bytes, 8)?),
            process: (pid_tgid >> 32) as u32,
            thread: pid_tgid as u32,
            thread_name: text(&bytes[48..]),
            device: layout::device_of(&bytes[24..36])?,
            access: Access::of_bits(word(36)?),
            denied: layout::mode_of_number(word(40)?)? == Mode::Enforce,
        })
    }
}

/// The reader of a gate's denials. One at a time: two would each miss some.
#[derive(Debug)]
pub struct Denials {
    map: MapFd,
    ring: Ring,
}

impl Denials {
    pub(crate) fn open(map: MapFd) -> Result<Self, GateError> {
        let refuse = |source| fail("map", source);
        let ring = Ring::open(&map).map_err(refuse)?;
        Ok(Self { map, ring })
    }

    /// Takes what has arrived, at most one ring full, without waiting.
    ///
    /// A tenant can fill the ring as fast as it is emptied: a caller that takes no more often
    /// than it can digest loses records to the counts, and nothing else.
    pub fn take(&mut self) -> Vec<Denial> {
        let most = layout::DENIALS_BYTES as usize / (DENIAL + 8);
        let ring = &mut self.ring;
        std::iter::from_fn(|| ring.next())
            .take(most)
            .filter_map(|record| Denial::of_bytes(&record))
            .collect()
    }

    /// Waits until something arrives, at most so long, and takes it. Nothing is no error.
    pub fn wait(&mut self, timeout: Duration) -> Result<Vec<Denial>, GateError> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.map.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(self.take()),
            Err(error) => Err(fail("wait for", error.into())),
        }
    }
}

impl AsFd for Denials {
    /// Readable when there is something to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

fn fail(action: &'static str, source: std::io::Error) -> GateError {
    GateError::Map { action, map: Map::Denials.contents(), source }
}
