//! One registered process of a claim: its page, its connection, and what it may cost.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering,
};

use accelpool_shim::{
    layout::{LAYOUT_HASH, MAGIC, ProcessPage},
    mapping::Mapping,
};
use accelpool_turns::Seen;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::Peer;

/// What a process may do to the thread in a second before it is no longer listened to. A
/// process whose every launch waits comes a few thousand times.
const SIGNALS: Rate = Rate { burst: 4_000, per_second: 20_000 };

/// A process that registered.
pub(crate) struct Process {
    pub(crate) peer: Peer,
    pub(crate) connection: UnixStream,
    pub(crate) eventfd: EventFd,
    page: Mapping<ProcessPage>,
    signals: Allowance,
    /// True once it signalled too often: it is looked at with the heartbeat then.
    pub(crate) is_muted: bool,
}

impl Process {
    pub(crate) fn new(
        peer: Peer,
        connection: UnixStream,
        page: Mapping<ProcessPage>,
        now_ns: u64,
    ) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd = EventFd::from_flags(flags)?;
        let signals = Allowance::new(SIGNALS, now_ns);
        Ok(Self { peer, connection, eventfd, page, signals, is_muted: false })
    }

    /// Makes a page for a process that brings none, and the descriptor to send.
    pub(crate) fn new_page() -> io::Result<(Mapping<ProcessPage>, OwnedFd)> {
        let (page, fd) = Mapping::<ProcessPage>::sealed(c"accelpool-process")?;
        page.magic.store(MAGIC, Ordering::Relaxed);
        page.layout_hash.store(LAYOUT_HASH, Ordering::Relaxed);
        Ok((page, fd))
    }

    /// Maps a page that a process brings back; another one is refused.
    pub(crate) fn returned_page(fd: &OwnedFd) -> Option<Mapping<ProcessPage>> {
        let page = Mapping::<ProcessPage>::of_sealed(fd.as_raw_fd()).ok()?;
        let sound = page.magic.load(Ordering::Relaxed) == MAGIC
            && page.layout_hash.load(Ordering::Relaxed) == LAYOUT_HASH;
        sound.then_some(page)
    }

    pub(crate) fn eventfd_number(&self) -> RawFd {
        use std::os::fd::AsFd;
        self.eventfd.as_fd().as_raw_fd()
    }

    /// Takes a signal; false once there were too many.
    pub(crate) fn take_signal(&mut self, now_ns: u64) -> bool {
        let _ = self.eventfd.read();
        self.signals.take(now_ns)
    }

    /// Adds what is seen of it on the first `devices` devices. `epoch` is that of the claim's
    /// last grant: who left it with nothing unfinished is drained, whatever its counters say.
    pub(crate) fn look(&self, devices: usize, epoch: u32, seen: &mut Seen) {
        for progress in self.page.devices.iter().take(devices) {
            seen.entering |= progress.is_anyone_inside();
            let drained = progress.drained_epoch.load(Ordering::Acquire) == epoch;
            seen.outstanding |= !drained && progress.unfinished().0 != 0;
            seen.waiting |= progress.want.load(Ordering::SeqCst) != 0;
            seen.submitted = seen.submitted.wrapping_add(progress.submitted().0);
            let completed = progress.completed.load(Ordering::Acquire);
            seen.completed = seen.completed.wrapping_add(completed);
        }
    }

    pub(crate) fn is_waiting(&self, devices: usize) -> bool {
        let mut devices = self.page.devices.iter().take(devices);
        devices.any(|progress| progress.want.load(Ordering::SeqCst) != 0)
    }

    /// When a thread of it last came in after it had waited, on each of the first `devices`.
    pub(crate) fn came_ns(&self, devices: usize) -> impl Iterator<Item = u64> {
        let devices = self.page.devices.iter().take(devices);
        devices.map(|progress| progress.came_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn unclassified(&self) -> u64 {
        self.page.unclassified.load(Ordering::Relaxed)
    }
}

/// So many at once, and so many a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: u64,
    pub(crate) per_second: u64,
}

/// What is left of a [`Rate`].
#[derive(Debug)]
pub(crate) struct Allowance {
    rate: Rate,
    /// In billionths, so that short times count.
    left: u128,
    at_ns: u64,
}

impl Allowance {
    pub(crate) fn new(rate: Rate, now_ns: u64) -> Self {
        Self { rate, left: u128::from(rate.burst) * Self::ONE, at_ns: now_ns }
    }

    const ONE: u128 = 1_000_000_000;

    /// Takes one, if one is left.
    pub(crate) fn take(&mut self, now_ns: u64) -> bool {
        let gained =
            u128::from(now_ns.saturating_sub(self.at_ns)) * u128::from(self.rate.per_second);
        self.left = (self.left + gained).min(u128::from(self.rate.burst) * Self::ONE);
        self.at_ns = self.at_ns.max(now_ns);
        match self.left.checked_sub(Self::ONE) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_fills_with_time() {
        let mut allowance = Allowance::new(Rate { burst: 2, per_second: 10 }, 0);
        let mut taken = Vec::new();
        for now_ms in [0, 0, 0, 50, 100, 100, 1_000, 1_000, 1_000] {
            taken.push(allowance.take(now_ms * 1_000_000));
        }
        let expected = [true, true, false, false, true, false, true, true, false];
        assert_eq!(taken, expected);
    }
}
