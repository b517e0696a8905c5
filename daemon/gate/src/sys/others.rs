//! What others do, for tests: container runtimes and systemd to their cgroups' programs, and
//! who means harm to the gate.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use io_uring::{IoUring, opcode, squeue, types};

use super::{LinkFd, ProgramFd, abi, bpf, bpf_fd};

const ALLOW_MULTI: u32 = 2;

/// Attaches a program that tolerates no other at this cgroup or below.
pub(crate) fn attach_alone(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    // r0 = 1; exit
    let code = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    change(abi::PROG_ATTACH, &ProgramFd::load("alone", &code, None)?, cgroup, 0)
}

/// Attaches a program as runtimes and systemd do: without a link, beside others.
pub(crate) fn attach(program: &ProgramFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    change(abi::PROG_ATTACH, program, cgroup, ALLOW_MULTI)
}

/// Takes a program off a cgroup as they do.
pub(crate) fn detach(program: &ProgramFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    change(abi::PROG_DETACH, program, cgroup, 0)
}

fn change(
    command: u32,
    program: &ProgramFd,
    cgroup: BorrowedFd<'_>,
    attach_flags: u32,
) -> io::Result<()> {
    let mut attribute = abi::Attach {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.0.as_raw_fd().cast_unsigned(),
        attach_type: abi::ATTACH_CGROUP_DEVICE,
        attach_flags,
    };
    // SAFETY: the attribute holds no pointer.
    unsafe { bpf(command, &mut attribute) }.map(drop)
}

/// Opens a link by its number.
pub(crate) fn link(id: u32) -> io::Result<LinkFd> {
    let mut attribute = abi::ById { id, ..abi::ById::default() };
    // SAFETY: the attribute holds no pointer.
    unsafe { bpf_fd(abi::LINK_FD_BY_ID, &mut attribute) }.map(LinkFd)
}

/// Opens a file by `io_uring`, on a thread of the kernel. Where that is turned off, nobody
/// can: `Unsupported`.
pub(crate) fn open_by_ring(path: &Path) -> io::Result<()> {
    let mut ring = IoUring::new(2).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(libc::O_RDONLY);
    let entry = open.build().flags(squeue::Flags::ASYNC);
    // SAFETY: the path, which is all that the entry points to, lives until it has come back.
    let pushed = unsafe { ring.submission().push(&entry) };
    pushed.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
    // What it opens is closed with this process.
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
