//! The line to the engine: requests, replies, and the page of what is complete.

use std::{
    env,
    ffi::OsString,
    io::IoSliceMut,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use accelpool_cuda_engine::{
    Engine,
    machine::Machine,
    page::Page,
    wire::{Op, REPLY_LEN, Reply, Request, VERSION},
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv,
        recvmsg, send, socket,
    },
    time::{ClockId, clock_gettime},
};

use crate::abi::{Code, NO_DEVICE, SUCCESS, UNKNOWN};

/// The engine's socket; without it each process has an engine of its own.
const VARIABLE: &str = "ACCELPOOL_CUDA_STANDIN";

/// A connection that was welcomed.
pub(crate) struct Link {
    socket: OwnedFd,
    pub(crate) page: Arc<Page>,
    pub(crate) host: Arc<OwnedFd>,
    pub(crate) devices: u64,
    /// The engine, if it is this process's own.
    _own: Option<Engine>,
}

impl Link {
    pub(crate) fn open() -> Result<Self, Code> {
        let (path, own) = match env::var_os(VARIABLE) {
            Some(path) => (path, None),
            None => own_engine()?,
        };
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|_| UNKNOWN)?;
        let address = UnixAddr::new(Path::new(&path)).map_err(|_| NO_DEVICE)?;
        connect(fd.as_raw_fd(), &address).map_err(|_| NO_DEVICE)?;
        let hello = Request { a: VERSION, ..Request::new(Op::Hello) };
        send(fd.as_raw_fd(), &hello.encode(), MsgFlags::MSG_NOSIGNAL).map_err(|_| NO_DEVICE)?;
        let (reply, mut fds) = welcome(&fd).ok_or(NO_DEVICE)?;
        if reply.code != SUCCESS || reply.x != VERSION || fds.len() != 2 {
            return Err(NO_DEVICE);
        }
        let host = fds.pop().ok_or(NO_DEVICE)?;
        let page = Page::map(&fds.pop().ok_or(NO_DEVICE)?).map_err(|_| UNKNOWN)?;
        Ok(Self {
            socket: fd,
            page: Arc::new(page),
            host: Arc::new(host),
            devices: reply.y,
            _own: own,
        })
    }

    /// Sends what is not answered.
    pub(crate) fn submit(&self, request: &Request) -> Result<(), Code> {
        loop {
            match send(self.socket.as_raw_fd(), &request.encode(), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(UNKNOWN),
            }
        }
    }

    /// Asks and waits for the answer; one caller at a time.
    pub(crate) fn ask(&self, request: &Request) -> Result<Reply, Code> {
        self.submit(request)?;
        let mut bytes = [0; REPLY_LEN];
        let len = loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(len) => break len,
                Err(Errno::EINTR) => {}
                Err(_) => return Err(UNKNOWN),
            }
        };
        let reply = Reply::decode(&bytes[..len]).ok_or(UNKNOWN)?;
        if reply.code == SUCCESS { Ok(reply) } else { Err(reply.code) }
    }

    /// Whether the engine is gone.
    pub(crate) fn gone(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.socket.as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::ECONNRESET))
    }
}

/// `CLOCK_MONOTONIC`.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn own_engine() -> Result<(OsString, Option<Engine>), Code> {
    let name = format!("accelpool-cuda-standin-{}-{}.sock", std::process::id(), now_ns());
    let path = env::temp_dir().join(name);
    let engine = Engine::start(Machine::default(), &path).map_err(|_| NO_DEVICE)?;
    Ok((path.into_os_string(), Some(engine)))
}

fn welcome(fd: &OwnedFd) -> Option<(Reply, Vec<OwnedFd>)> {
    let mut bytes = [0; REPLY_LEN];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let (len, raw) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
        let mut raw = Vec::new();
        for message in got.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                raw.extend(fds);
            }
        }
        (got.bytes, raw)
    };
    // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
    let fds = raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).collect();
    Some((Reply::decode(bytes.get(..len)?)?, fds))
}
