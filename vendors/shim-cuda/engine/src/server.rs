//! The thread that serves: sockets in, time on, pages out.

use std::{
    collections::BTreeMap,
    fs, io,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::SigSet,
        socket::{
            AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind,
            listen, recv, send, sendmsg, socket, socketpair,
        },
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    core::Core,
    device::ClientId,
    page::Page,
    process::{Checkpoint, Client},
    wire::{Op, REQUEST_LEN, Reply, Request, VERSION, code},
};

/// Connections at a time; more than any suite has processes.
const CONNECTIONS_MAX: usize = 512;
/// Requests of one client in a round, so that one does not starve the rest.
const REQUESTS_A_ROUND: usize = 256;
/// Publications closer together than this are made at once: waking costs more than it gains.
const COALESCE_NS: u64 = 20_000;

/// Ends the serving thread.
pub(crate) struct Stop {
    wanted: Arc<AtomicBool>,
    bell: Arc<EventFd>,
}

impl Stop {
    pub(crate) fn stop(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.look_again();
    }

    pub(crate) fn look_again(&self) {
        // It fails only if it was rung 2^64 times without being heard.
        let _ = self.bell.write(1);
    }
}

/// `CLOCK_MONOTONIC`, which all processes of the machine share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

pub(crate) fn start(core: Arc<Mutex<Core>>, path: &Path) -> io::Result<(Stop, JoinHandle<()>)> {
    let kind = SockType::SeqPacket;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, kind, flags, None)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(128)?)?;
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let wanted = Arc::new(AtomicBool::new(false));
    let stop = Stop { wanted: Arc::clone(&wanted), bell: Arc::clone(&bell) };
    let server = Server { core, listener, bell, stop: wanted, connections: BTreeMap::new() };
    let thread = std::thread::Builder::new().name("cuda-engine".to_owned());
    Ok((stop, thread.spawn(move || server.serve())?))
}

struct Server {
    core: Arc<Mutex<Core>>,
    listener: OwnedFd,
    bell: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    connections: BTreeMap<ClientId, OwnedFd>,
}

impl Server {
    fn serve(mut self) {
        // Waits end when they are to, not some 50 us later.
        let _ = nix::sys::prctl::set_timerslack(1);
        let mut published_ns = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let (wait, locked) = {
                let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
                let locked: Vec<ClientId> = core
                    .clients
                    .iter()
                    .filter(|(_, client)| client.checkpoint != Checkpoint::Running)
                    .map(|(id, _)| *id)
                    .collect();
                (core.next_ns(), locked)
            };
            let due = wait.map(|due| due.max(published_ns + COALESCE_NS));
            let ready = self.poll(due, &locked);
            if self.bell.read().is_ok() && self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.accept();
            let core = Arc::clone(&self.core);
            let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ready {
                self.receive(&mut core, id);
            }
            published_ns = now_ns();
            core.advance(published_ns);
        }
    }

    /// Waits for a request or until it is time, and says who asks something.
    fn poll(&self, due: Option<u64>, locked: &[ClientId]) -> Vec<ClientId> {
        let timeout = due.map(|due| {
            let left = due.saturating_sub(now_ns());
            TimeSpec::from_duration(std::time::Duration::from_nanos(left))
        });
        let mut polled = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        let heard = |id: &ClientId| {
            // One that is locked is heard no more, but its end is.
            if locked.contains(id) { PollFlags::empty() } else { PollFlags::POLLIN }
        };
        polled.extend(self.connections.iter().map(|(id, fd)| PollFd::new(fd.as_fd(), heard(id))));
        if nix::poll::ppoll(&mut polled, timeout, None::<SigSet>).is_err() {
            return Vec::new();
        }
        let ready =
            polled[2..].iter().map(|fd| fd.revents().is_some_and(|found| !found.is_empty()));
        self.connections.keys().zip(ready).filter(|(_, ready)| *ready).map(|(id, _)| *id).collect()
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        while self.connections.len() < CONNECTIONS_MAX {
            let Ok(raw) = nix::sys::socket::accept4(self.listener.as_raw_fd(), flags) else {
                return;
            };
            let id = self.core.lock().unwrap_or_else(PoisonError::into_inner).id();
            self.connections.insert(id, own(raw));
        }
    }

    fn receive(&mut self, core: &mut Core, id: ClientId) {
        for _ in 0..REQUESTS_A_ROUND {
            let Some(fd) = self.connections.get(&id) else { return };
            let mut bytes = [0; REQUEST_LEN + 1];
            let request = match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => continue,
                Ok(len) => Request::decode(&bytes[..len]),
                Err(_) => None,
            };
            // Its end, or nonsense, which is its end too.
            let Some(request) = request else {
                self.connections.remove(&id);
                core.depart(id, now_ns());
                return;
            };
            let now = now_ns();
            if request.op == Op::Hello {
                if !hello(core, id, fd, &request) {
                    self.connections.remove(&id);
                    core.depart(id, now);
                    return;
                }
                continue;
            }
            if core.clients.contains_key(&id)
                && let Some(reply) = core.handle(id, &request, now)
                && send(fd.as_raw_fd(), &reply.encode(), MsgFlags::MSG_NOSIGNAL).is_err()
            {
                self.connections.remove(&id);
                core.depart(id, now);
                return;
            }
        }
    }
}

/// Makes a connection a client: it gets its page and the end for host functions.
fn hello(core: &mut Core, id: ClientId, fd: &OwnedFd, request: &Request) -> bool {
    let welcome = || -> Result<Client, Errno> {
        let peer = nix::sys::socket::getsockopt(fd, nix::sys::socket::sockopt::PeerCredentials)?;
        let (page, file) = Page::create().map_err(|_| Errno::ENOMEM)?;
        let kind = SockType::SeqPacket;
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        let reply = Reply { x: VERSION, y: core.devices() as u64, ..Reply::default() }.encode();
        let fds = [file.as_raw_fd(), theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(&reply)], &rights, flags, None)?;
        Ok(Client {
            pid: peer.pid(),
            page,
            host: ours,
            events: std::collections::HashMap::new(),
            contexts: std::collections::HashMap::new(),
            checkpoint: Checkpoint::Running,
            dirty: false,
        })
    };
    if request.a != VERSION || core.clients.contains_key(&id) {
        let refused = Reply::error(code::INVALID_VALUE).encode();
        let _ = send(fd.as_raw_fd(), &refused, MsgFlags::MSG_NOSIGNAL);
        return false;
    }
    let Ok(client) = welcome() else { return false };
    core.clients.insert(id, client);
    true
}

#[expect(unsafe_code, reason = "nix gives accepted sockets as numbers")]
fn own(raw: std::os::fd::RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: `accept4` has just returned it to us; nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
