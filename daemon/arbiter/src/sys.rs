//! The socket calls whose results `nix` hands out as plain numbers. All unsafe code of the
//! crate is here.
#![expect(unsafe_code, reason = "owns descriptors that the kernel has just made")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use accelpool_shim::wire::{HELLO_DESCRIPTORS, RECORD_BYTES, Record};
use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        UnixAddr, bind, getsockopt, listen, recvmsg, sendmsg, socket, sockopt::PeerCredentials,
    },
};

/// `SO_PEERPIDFD` of Linux 6.5: the peer's pidfd, made when it connected.
const SO_PEERPIDFD: libc::c_int = 77;

/// Connections that wait to be accepted. A claim has at most 64 processes.
const BACKLOG: i32 = 64;

/// The niceness of a decision thread: it runs for some microseconds at a time, and until then a
/// device is idle while tenants keep every processor busy. Not a real-time class, which a flood
/// of tenants could turn against the node.
const NICENESS: libc::c_int = -15;

/// Has the calling thread come before those of tenants, where the daemon may say so.
pub(crate) fn come_first() {
    // SAFETY: takes numbers alone; 0 is the calling thread, which Linux gives a niceness of its own.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
}

/// Makes a listening `SOCK_SEQPACKET` socket. The path is gone through by way of its folder's
/// descriptor, as an address holds 107 bytes.
pub(crate) fn listener(folder: &OwnedFd, file: &str) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let path = format!("/proc/self/fd/{}/{file}", folder.as_raw_fd());
    bind(fd.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(fd))
}

/// Who is at the other end, as it was when it connected.
pub(crate) struct Peer {
    pub(crate) pid: i32,
    /// When it was started, in the kernel's ticks: tells it from a later one of its number.
    pub(crate) started: u64,
    pub(crate) pidfd: OwnedFd,
}

/// Finds the peer. Where the kernel keeps no pidfd with the connection, one is opened by
/// number, and the peer must still be connected afterwards: had it died and its number been
/// given away before, its end would be closed.
pub(crate) fn peer(connection: &UnixStream) -> io::Result<Peer> {
    let pid = getsockopt(&connection.as_fd(), PeerCredentials)?.pid();
    if pid <= 0 {
        let reason = "its process is not visible in this pid namespace";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    let pidfd = match kept_pidfd(connection) {
        Ok(pidfd) => pidfd,
        Err(_) => pidfd_open(pid)?,
    };
    let started = started(pid)?;
    if has_hung_up(connection)? {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(Peer { pid, started, pidfd })
}

/// The process of this number, if it is the one that was started then.
pub(crate) fn peer_of(pid: i32, started_then: u64) -> io::Result<Peer> {
    let pidfd = pidfd_open(pid)?;
    // Asked after the descriptor was made: that is of the process that is seen here.
    if started(pid)? == started_then {
        Ok(Peer { pid, started: started_then, pidfd })
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// The time of a process's start, as procfs has it.
fn started(pid: i32) -> io::Result<u64> {
    /// In `/proc/PID/stat`, after the name, which may hold anything but ends with the last `)`.
    const FIELD: usize = 19;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let started = fields.split_ascii_whitespace().nth(FIELD).and_then(|it| it.parse().ok());
    started.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn kept_pidfd(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    let mut len = libc::socklen_t::try_from(size_of::<RawFd>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes one descriptor to `fd` and its length to `len`, both of which
    // live through the call.
    let failed = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no address.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_hung_up(connection: &UnixStream) -> io::Result<bool> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut byte = [0_u8; 1];
    match nix::sys::socket::recv(connection.as_raw_fd(), &mut byte, flags) {
        Ok(len) => Ok(len == 0),
        Err(nix::errno::Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What came out of a connection.
pub(crate) enum Received {
    /// A record, with the descriptors beside it.
    Record(Record, Vec<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other end is closed, or has sent what is no record.
    Over,
}

/// Reads one packet without waiting. Descriptors that came along are never left open.
pub(crate) fn receive(connection: &UnixStream) -> Received {
    // One byte more than a record, so that a longer packet is no record.
    let mut bytes = [0_u8; RECORD_BYTES + 1];
    // Room for one more than is ever asked for, so that a surplus shows.
    let mut room = cmsg_space!([RawFd; HELLO_DESCRIPTORS + 1]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = match recvmsg::<()>(connection.as_raw_fd(), &mut buffers, Some(&mut room), flags)
    {
        Ok(received) => received,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::Over,
    };
    let mut descriptors = Vec::new();
    let mut sound = !received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    match received.cmsgs() {
        Ok(messages) => {
            for message in messages {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    // SAFETY: the kernel has just put them into this process; nothing else
                    // owns them.
                    descriptors
                        .extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                } else {
                    sound = false;
                }
            }
        }
        Err(_) => sound = false,
    }
    let len = received.bytes;
    if len == 0 || !sound {
        return Received::Over;
    }
    match bytes.get(..len).map(Record::decode) {
        Some(Ok(record)) => Received::Record(record, descriptors),
        Some(Err(_)) | None => Received::Over,
    }
}

/// Sends a record with descriptors, without waiting: a tenant that does not read is dropped.
pub(crate) fn send(
    connection: &UnixStream,
    record: &Record,
    descriptors: &[RawFd],
) -> io::Result<()> {
    let bytes = record.encode();
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights: &[_] = if descriptors.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None)?;
    Ok(())
}
