//! What a decision thread sleeps on: descriptors of tenants, a timer, its mailbox.

use std::{io, os::fd::AsFd, time::Duration};

use accelpool_shim::sys::now_ns;
use accelpool_turns::ClaimKey;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

/// What woke a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its mailbox.
    Post,
    /// A process connects to a claim.
    Listener(ClaimKey),
    /// A process that has not said who it is, by its place among those.
    Newcomer(ClaimKey, usize),
    /// A registered process said something or hung up, by its row.
    Connection(ClaimKey, usize),
    /// A thread of a registered process waits.
    Want(ClaimKey, usize),
    /// A process that has hung up is gone for good, by its row.
    Exit(ClaimKey, usize),
}

const TIMER: u64 = 0;
const INDEX_BITS: u32 = 16;
const KEY_BITS: u32 = 32;

impl Source {
    fn token(self) -> u64 {
        let (kind, key, index) = match self {
            Self::Post => (1, ClaimKey(0), 0),
            Self::Listener(key) => (2, key, 0),
            Self::Newcomer(key, index) => (3, key, index),
            Self::Connection(key, index) => (4, key, index),
            Self::Want(key, index) => (5, key, index),
            Self::Exit(key, index) => (6, key, index),
        };
        // An index counts rows or newcomers, of which there are few.
        let index = index as u64 & ((1 << INDEX_BITS) - 1);
        kind << (KEY_BITS + INDEX_BITS) | u64::from(key.0) << INDEX_BITS | index
    }

    fn of(token: u64) -> Option<Self> {
        let index = usize::try_from(token & ((1 << INDEX_BITS) - 1)).ok()?;
        let key = ClaimKey(u32::try_from(token >> INDEX_BITS & u64::from(u32::MAX)).ok()?);
        Some(match token >> (KEY_BITS + INDEX_BITS) {
            1 => Self::Post,
            2 => Self::Listener(key),
            3 => Self::Newcomer(key, index),
            4 => Self::Connection(key, index),
            5 => Self::Want(key, index),
            6 => Self::Exit(key, index),
            _ => return None,
        })
    }
}

/// Events taken at a time: the more there are, the fewer calls a flood costs.
const EVENTS: usize = 64;

/// What a thread sleeps on.
pub(crate) struct Waiter {
    epoll: Epoll,
    timer: TimerFd,
}

impl Waiter {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // A timer of its own: epoll's counts milliseconds, and a thread's is slack by 50 µs.
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        Ok(Self { epoll, timer })
    }

    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, source.token());
        Ok(self.epoll.add(fd, event)?)
    }

    /// Takes a descriptor out that stays open. A closed one goes by itself.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Sleeps until something happens or `until_ns` is there, and appends what woke it.
    pub(crate) fn sleep(&self, until_ns: u64, woken_by: &mut Vec<Source>) -> io::Result<()> {
        let left = until_ns.saturating_sub(now_ns());
        let timeout = if left == 0 {
            EpollTimeout::ZERO
        } else {
            let after = TimeSpec::from_duration(Duration::from_nanos(left));
            self.timer.set(Expiration::OneShot(after), TimerSetTimeFlags::empty())?;
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            waited => waited?,
        };
        woken_by.extend(events.iter().take(count).filter_map(|event| Source::of(event.data())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_token() {
        let key = ClaimKey(u32::MAX);
        for source in [
            Source::Post,
            Source::Listener(key),
            Source::Newcomer(key, 15),
            Source::Connection(key, 63),
            Source::Want(ClaimKey(1), 0),
            Source::Exit(ClaimKey(0), 63),
        ] {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(TIMER), None);
        assert_eq!(Source::of(u64::MAX), None);
    }
}
