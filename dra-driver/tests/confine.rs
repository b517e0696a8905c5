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
    let done = [
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
    for power in ["kill", "pidfd_open", "setpriority", "prlimit"] {
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
