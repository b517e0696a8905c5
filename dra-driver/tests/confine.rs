//! What the driver can no longer do to other processes. One test: it confines its own process.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use accelpool_dra_driver::confine::confine;
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::{Signal, kill},
        uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    },
    unistd::{Pid, getpid, getppid},
};

/// What may be done to the process `other`, of the same user.
fn powers(other: Pid) -> Vec<&'static str> {
    let mut buffer = [0; 8];
    // An address that means nothing there: what counts is whether the kernel looks.
    let remote = [RemoteIoVec { base: (&raw const buffer).addr(), len: 8 }];
    let read = process_vm_readv(other, &mut [IoSliceMut::new(&mut buffer)], &remote);
    let written = process_vm_writev(other, &[IoSlice::new(&buffer)], &remote);
    let attached = ptrace::attach(other);
    if attached.is_ok() {
        let _ = nix::sys::wait::waitpid(other, None);
        ptrace::detach(other, None).unwrap();
    }
    let raw = rustix::process::Pid::from_raw(other.as_raw()).unwrap();
    let limits = rustix::process::Rlimit { current: Some(1024), maximum: Some(1024) };
    let handle = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty());
    // A signal by way of a file: to whoever is said to own it. And calls that no filter sees.
    let (end, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let done = [
        ("fcntl F_SETOWN", owner::by_fcntl(&end, other).is_ok()),
        ("fcntl F_SETOWN_EX", owner::by_fcntl_ex(&end, other).is_ok()),
        ("fcntl F_SETSIG", owner::signal_by_fcntl(&end).is_ok()),
        ("ioctl FIOSETOWN", owner::by_ioctl(&end, owner::FIOSETOWN, other).is_ok()),
        ("ioctl SIOCSPGRP", owner::by_ioctl(&end, owner::SIOCSPGRP, other).is_ok()),
        ("io_uring_setup", owner::io_uring() != Err(Errno::EPERM)),
        ("kill", kill(other, None).is_ok()),
        ("pidfd_open", handle.is_ok()),
        ("ptrace", attached.is_ok()),
        // Without the filter it is the address that is wrong.
        ("process_vm_readv", read != Err(Errno::EPERM)),
        ("process_vm_writev", written != Err(Errno::EPERM)),
        ("setpriority", rustix::process::setpriority_process(Some(raw), 10).is_ok()),
        (
            "prlimit",
            rustix::process::prlimit(Some(raw), rustix::process::Resource::Core, limits).is_ok(),
        ),
    ];
    done.into_iter().filter(|(_, done)| *done).map(|(name, _)| name).collect()
}

#[test]
fn no_power_over_other_processes_is_left() {
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let other = Pid::from_raw(child.id().cast_signed());
    // Attached to in the midst of its `exec`, it would report that first and keep the stop for
    // after the detaching: for good.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"!").unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let all = powers(other);
    // `io_uring_setup` is left out: some hosts refuse that to everybody.
    for power in [
        "kill",
        "pidfd_open",
        "setpriority",
        "prlimit",
        "fcntl F_SETOWN",
        "fcntl F_SETOWN_EX",
        "fcntl F_SETSIG",
        "ioctl FIOSETOWN",
        "ioctl SIOCSPGRP",
    ] {
        assert!(all.contains(&power), "{power} is not there to be given up: {all:?}");
    }
    let (go, wait) = mpsc::channel::<()>();
    let earlier = thread::spawn(move || {
        wait.recv().unwrap();
        powers(other)
    });

    confine().unwrap();

    assert_eq!(powers(other), [""; 0]);
    assert_eq!(kill(getppid(), Signal::SIGCONT), Err(Errno::EPERM));
    go.send(()).unwrap();
    assert_eq!(earlier.join().unwrap(), [""; 0], "a thread that was there before");
    assert_eq!(thread::spawn(move || powers(other)).join().unwrap(), [""; 0], "a later one");

    // What the driver needs is left: its own threads, limits and end.
    assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).is_ok());
    assert!(rustix::process::getrlimit(rustix::process::Resource::Nofile).current.is_some());
    let shell = format!("kill -0 {} 2>/dev/null && echo able; exit 0", getpid());
    let heir = Command::new("sh").args(["-c", &shell]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&heir.stdout), "", "what it starts is confined too");
    drop(input);
    assert!(child.wait().unwrap().success(), "`cat` ends with its input");
}

/// What names the receiver or the number of a file's signal, and a way around every filter.
#[expect(unsafe_code, reason = "neither nix nor rustix offers these calls")]
mod owner {
    use std::os::{fd::AsRawFd as _, unix::net::UnixStream};

    use nix::{errno::Errno, libc, unistd::Pid};

    /// `asm-generic/sockios.h`.
    pub(super) const FIOSETOWN: libc::c_ulong = 0x8901;
    pub(super) const SIOCSPGRP: libc::c_ulong = 0x8902;

    /// `struct f_owner_ex` of `asm-generic/fcntl.h`.
    #[repr(C)]
    struct OwnerEx {
        kind: libc::c_int,
        pid: libc::pid_t,
    }

    fn done(result: libc::c_int) -> Result<(), Errno> {
        Errno::result(result).map(drop)
    }

    pub(super) fn by_fcntl(file: &UnixStream, owner: Pid) -> Result<(), Errno> {
        // SAFETY: the file is open, and this command takes a number.
        done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETOWN, owner.as_raw()) })
    }

    pub(super) fn by_fcntl_ex(file: &UnixStream, owner: Pid) -> Result<(), Errno> {
        const F_SETOWN_EX: libc::c_int = 15;
        const F_OWNER_PID: libc::c_int = 1;
        let owner = OwnerEx { kind: F_OWNER_PID, pid: owner.as_raw() };
        // SAFETY: the file is open, and this command reads one such structure.
        done(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) })
    }

    pub(super) fn signal_by_fcntl(file: &UnixStream) -> Result<(), Errno> {
        const F_SETSIG: libc::c_int = 10;
        // SAFETY: the file is open, and this command takes a number.
        done(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGTERM) })
    }

    pub(super) fn by_ioctl(
        file: &UnixStream,
        request: libc::c_ulong,
        owner: Pid,
    ) -> Result<(), Errno> {
        let owner = owner.as_raw();
        // SAFETY: the file is open, and both requests read one number.
        done(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const owner) })
    }

    /// Asks for a ring of no entries, which the kernel refuses as well, but otherwise.
    pub(super) fn io_uring() -> Result<(), Errno> {
        let nowhere = std::ptr::null::<libc::c_void>();
        // SAFETY: no memory is handed over; without any the call only reports that.
        let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, nowhere) };
        Errno::result(result).map(drop)
    }
}
