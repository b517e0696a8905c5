//! Gives up the power over other processes, for good.
//!
//! The driver shares its pod with the daemon, which must see the host's processes. So they are
//! in sight here too, and user 0 may send signals to those of the same user without any
//! capability. A program that speaks to the network has no use for that: the kernel refuses it
//! from now on, to every thread and whatever this program starts.
//!
//! What stays: to read what `/proc` shows of every process, and to write the few files there
//! that its user alone guards (`oom_score_adj`); seccomp sees no paths.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that name another process to send to it, look into it, or change how it runs.
/// `io_uring` could make some calls unseen.
const REFUSED: [libc::c_long; 24] = [
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// A file can send a signal to whoever is said to own it.
const FCNTL_REFUSED: [libc::c_int; 3] = [libc::F_SETOWN, F_SETOWN_EX, F_SETSIG];
const IOCTL_REFUSED: [u64; 2] = [FIOSETOWN, SIOCSPGRP];

// Not in the libc crate for every platform; the same on all that this is built for
// (`asm-generic/fcntl.h`, `asm-generic/sockios.h`).
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;

/// Why the power could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The filter cannot be made for this machine.
    #[error("failed to make the seccomp filter")]
    Filter(#[from] BackendError),
    /// The kernel does not take it.
    #[error("the kernel takes no seccomp filter: it needs CONFIG_SECCOMP_FILTER")]
    Apply(#[from] seccompiler::Error),
}

/// Gives it up for this process and all its threads.
///
/// # Errors
///
/// The kernel knows no seccomp filters.
pub fn confine() -> Result<(), ConfineError> {
    let always = REFUSED.into_iter().map(|call| (call, Vec::new()));
    // To itself a process may send: that is how it aborts. And it may ask for its own limits.
    let own = u64::from(std::process::id());
    let others = [
        (libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Ne, own)?]),
        (libc::SYS_prlimit64, vec![argument(0, SeccompCmpOp::Ne, 0)?]),
    ];
    let command = |command: u64| argument(1, SeccompCmpOp::Eq, command);
    let fcntl = FCNTL_REFUSED.into_iter().map(|number| command(number.unsigned_abs().into()));
    let ioctl = IOCTL_REFUSED.into_iter().map(command);
    let files = [
        (libc::SYS_fcntl, fcntl.collect::<Result<_, _>>()?),
        (libc::SYS_ioctl, ioctl.collect::<Result<_, _>>()?),
    ];
    let rules: BTreeMap<_, _> = always.chain(others).chain(files).collect();
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, machine)?;
    let program = BpfProgram::try_from(filter)?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}

/// True of a call whose argument `number`, 32 bits of it, is so.
fn argument(number: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, is, value)?;
    SeccompRule::new(vec![condition])
}
