//! System calls, made without the C library: a shim must load beside any version of it, and
//! call nothing that another library in the process has replaced.
//!
//! All unsafe code of this crate that is no page is here and in `mapping`. Results are plain:
//! a number, or the error number that the kernel gave.
#![expect(unsafe_code, reason = "system calls take addresses")]

use core::{
    arch::asm,
    sync::atomic::{AtomicU32, Ordering},
};

/// An error number of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Interrupted by a signal.
    pub const INTERRUPTED: Self = Self(4);
    /// Forbidden, also by a filter of system calls.
    pub const NOT_PERMITTED: Self = Self(1);
    /// Not now.
    pub const AGAIN: Self = Self(11);
    /// An argument that cannot be.
    pub const INVALID: Self = Self(22);
}

#[cfg(feature = "std")]
impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// `futex_waitv` has one number everywhere.
const FUTEX_WAITV: usize = 449;

/// Numbers of system calls.
#[cfg(target_arch = "x86_64")]
pub(crate) mod number {
    pub(crate) const WRITE: usize = 1;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const LSEEK: usize = 8;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const SOCKET: usize = 41;
    pub(crate) const CONNECT: usize = 42;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const FCNTL: usize = 72;
    #[cfg(feature = "std")]
    pub(crate) const FTRUNCATE: usize = 77;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const GETDENTS64: usize = 217;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const PPOLL: usize = 271;
    #[cfg(feature = "std")]
    pub(crate) const MEMFD_CREATE: usize = 319;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const SIGPROCMASK: usize = 14;
}

/// Numbers of system calls.
#[cfg(target_arch = "aarch64")]
pub(crate) mod number {
    pub(crate) const WRITE: usize = 64;
    pub(crate) const CLOSE: usize = 57;
    pub(crate) const LSEEK: usize = 62;
    pub(crate) const MMAP: usize = 222;
    pub(crate) const MUNMAP: usize = 215;
    pub(crate) const SOCKET: usize = 198;
    pub(crate) const CONNECT: usize = 203;
    pub(crate) const SENDMSG: usize = 211;
    pub(crate) const RECVMSG: usize = 212;
    pub(crate) const FCNTL: usize = 25;
    #[cfg(feature = "std")]
    pub(crate) const FTRUNCATE: usize = 46;
    pub(crate) const FUTEX: usize = 98;
    pub(crate) const GETDENTS64: usize = 61;
    pub(crate) const OPENAT: usize = 56;
    pub(crate) const PPOLL: usize = 73;
    #[cfg(feature = "std")]
    pub(crate) const MEMFD_CREATE: usize = 279;
    pub(crate) const GETPID: usize = 172;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const SIGPROCMASK: usize = 135;
}

/// Makes a system call.
///
/// # Safety
///
/// The arguments must be what the call takes: pointers among them are valid for what the
/// kernel reads and writes there.
pub(crate) unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's convention; the caller answers for the arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            in("x5") arguments[5],
            options(nostack),
        );
    }
    // The last 4095 values are error numbers, by the kernel's convention.
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) if result < -4095 => Ok(result.cast_unsigned()),
        Err(_) => Err(Errno(i32::try_from(-result).unwrap_or(Errno::INVALID.0))),
    }
}

/// A descriptor as an argument; a negative one is refused by the kernel as it should be.
pub(crate) fn descriptor(fd: i32) -> usize {
    isize::try_from(fd).unwrap_or(-1).cast_unsigned()
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Timespec {
    fn new(ns: u64) -> Self {
        let part = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        Self { seconds: part(ns / 1_000_000_000), nanoseconds: part(ns % 1_000_000_000) }
    }
}

unsafe extern "C" {
    /// Of the C library after all, since it asks no kernel: a launch may need it.
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

/// Monotonic time, as this process sees it.
#[must_use]
pub fn now_ns() -> u64 {
    const CLOCK_MONOTONIC: i32 = 1;
    let mut time = Timespec::new(0);
    // SAFETY: `time` is what the call writes. Every kernel has this clock.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    let part = |it: i64| u64::try_from(it).unwrap_or_default();
    part(time.seconds) * 1_000_000_000 + part(time.nanoseconds)
}

/// The process id, asked of the kernel each time.
#[must_use]
pub fn process_id() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    let id = unsafe { call(number::GETPID, [0; 6]) };
    id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or_default()
}

const FUTEX_WAIT: usize = 0;
const FUTEX_WAKE: usize = 1;

/// Sleeps until `word` is woken, if it is still `expected`; at most `timeout_ns`.
///
/// The word may lie in a page that this process cannot write.
pub fn wait(word: &AtomicU32, expected: u32, timeout_ns: u64) {
    let timeout = Timespec::new(timeout_ns);
    let word = word.as_ptr().expose_provenance();
    let timeout = (&raw const timeout).expose_provenance();
    // SAFETY: the word and the time live through the call, which writes neither. Each way to
    // return, an error too, is a reason for the caller to look again.
    let _ = unsafe { call(number::FUTEX, [word, FUTEX_WAIT, expected as usize, timeout, 0, 0]) };
}

/// The most words that [`wait_any`] waits for: its caller's own, and one for each device.
pub const WAIT_WORDS_MAX: usize = 1 + crate::layout::DEVICES_MAX;

/// Sleeps until one of the words is woken, if all are still as expected; at most `timeout_ns`.
///
/// Words beyond [`WAIT_WORDS_MAX`] are left out. A kernel that cannot wait for several (before
/// 5.16) waits for the first, for at most `fallback_ns`.
pub fn wait_any(words: &[(&AtomicU32, u32)], timeout_ns: u64, fallback_ns: u64) {
    const CLOCK_MONOTONIC: usize = 1;
    const FUTEX_32: u32 = 2;
    const NO_SUCH_CALL: Errno = Errno(38);
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Waiter {
        expected: u64,
        word: u64,
        flags: u32,
        reserved: u32,
    }
    let mut waiters = [Waiter::default(); WAIT_WORDS_MAX];
    for (waiter, (word, expected)) in waiters.iter_mut().zip(words) {
        let word = word.as_ptr().expose_provenance() as u64;
        *waiter = Waiter { expected: u64::from(*expected), word, flags: FUTEX_32, reserved: 0 };
    }
    let until = Timespec::new(now_ns().saturating_add(timeout_ns));
    let there = (&raw const waiters).expose_provenance();
    let len = words.len().min(WAIT_WORDS_MAX);
    let time = (&raw const until).expose_provenance();
    // SAFETY: the waiters, their words and the time live through the call, which writes none.
    let outcome = unsafe { call(FUTEX_WAITV, [there, len, 0, time, CLOCK_MONOTONIC, 0]) };
    if let (Err(NO_SUCH_CALL | Errno::NOT_PERMITTED), Some((word, expected))) =
        (outcome, words.first())
    {
        wait(word, *expected, timeout_ns.min(fallback_ns));
    }
}

/// Lets short sleeps of this thread be short: by default the kernel may add 50 µs.
pub fn sleep_exactly() {
    const PR_SET_TIMERSLACK: usize = 29;
    // SAFETY: takes no address.
    let _ = unsafe { call(number::PRCTL, [PR_SET_TIMERSLACK, 1, 0, 0, 0, 0]) };
}

/// Memory of the process, all zero, for as long as it runs; whole pages.
#[must_use]
pub fn zeroed(bytes: usize) -> Option<core::ptr::NonNull<u8>> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
    let arguments = [0, bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, descriptor(-1), 0];
    // SAFETY: a fresh mapping at an address that the kernel chooses.
    let there = unsafe { call(number::MMAP, arguments) }.ok()?;
    core::ptr::NonNull::new(core::ptr::with_exposed_provenance_mut(there))
}

/// Gives back memory of [`zeroed`].
///
/// # Safety
///
/// It is of this many bytes, and nobody uses it any more.
pub unsafe fn unmap(there: core::ptr::NonNull<u8>, bytes: usize) {
    let address = there.as_ptr().expose_provenance();
    // SAFETY: as the caller says.
    let _ = unsafe { call(number::MUNMAP, [address, bytes, 0, 0, 0, 0]) };
}

/// Blocks all signals of the calling thread, or puts an earlier set back; gives the old set.
#[must_use = "the old set is to be put back"]
pub fn mask_signals(set: u64) -> u64 {
    const SIG_SETMASK: usize = 2;
    let mut old = 0_u64;
    let there = (&raw const set).expose_provenance();
    let back = (&raw mut old).expose_provenance();
    // SAFETY: a set of the kernel is eight bytes; both live through the call.
    let _ = unsafe { call(number::SIGPROCMASK, [SIG_SETMASK, there, back, 8, 0, 0]) };
    old
}

/// Wakes all that sleep on `word`, in whatever process.
pub fn wake(word: &AtomicU32) {
    let all = i32::MAX.cast_unsigned() as usize;
    let word = word.as_ptr().expose_provenance();
    // SAFETY: the word lives through the call, which does not write it.
    let _ = unsafe { call(number::FUTEX, [word, FUTEX_WAKE, all, 0, 0, 0]) };
}

/// Changes the word and wakes all that sleep on it.
pub fn bump(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
    wake(word);
}

/// Adds one to an eventfd. One that is full says all it can say already.
pub fn signal(eventfd: i32) {
    let one = 1_u64.to_ne_bytes();
    let address = one.as_ptr().expose_provenance();
    // SAFETY: eight bytes are read, which live through the call.
    let _ = unsafe { call(number::WRITE, [descriptor(eventfd), address, one.len(), 0, 0, 0]) };
}

/// Closes a descriptor.
pub fn close(fd: i32) {
    // SAFETY: takes no address. That nobody uses the number any more is the caller's business,
    // as with each descriptor that is a plain number.
    let _ = unsafe { call(number::CLOSE, [descriptor(fd), 0, 0, 0, 0, 0]) };
}

/// How [`open`] opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To be read and mapped.
    Read,
    /// A folder, to be listed.
    Folder,
    /// As a place alone.
    Place,
}

/// Opens what is at a path; the bytes must end with their only NUL.
pub fn open(path: &[u8], how: Open) -> Result<i32, Errno> {
    const AT_FDCWD: i32 = -100;
    const O_CLOEXEC: usize = 0o2_000_000;
    #[cfg(target_arch = "x86_64")]
    const O_DIRECTORY: usize = 0o200_000;
    #[cfg(target_arch = "aarch64")]
    const O_DIRECTORY: usize = 0o40_000;
    const O_PATH: usize = 0o10_000_000;
    if path.iter().position(|&byte| byte == 0) != path.len().checked_sub(1) || path.is_empty() {
        return Err(Errno::INVALID);
    }
    let flags = O_CLOEXEC
        | match how {
            Open::Read => 0,
            Open::Folder => O_DIRECTORY,
            Open::Place => O_PATH | O_DIRECTORY,
        };
    let address = path.as_ptr().expose_provenance();
    // SAFETY: the path ends with a NUL, as was just seen, and lives through the call.
    let fd = unsafe { call(number::OPENAT, [descriptor(AT_FDCWD), address, flags, 0, 0, 0]) }?;
    i32::try_from(fd).map_err(|_| Errno::INVALID)
}

/// Reads entries of an open folder into `buffer`, in the kernel's `linux_dirent64` form.
pub fn list(folder: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let address = buffer.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel writes at most the length of the buffer.
    unsafe { call(number::GETDENTS64, [descriptor(folder), address, buffer.len(), 0, 0, 0]) }
}

/// Waits until a descriptor can be read or has hung up; `false` when the time was over.
pub fn wait_readable(fd: i32, timeout_ns: u64) -> Result<bool, Errno> {
    const POLLIN: i16 = 1;
    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: i16,
        revents: i16,
    }
    let timeout = Timespec::new(timeout_ns);
    let mut poll = PollFd { fd, events: POLLIN, revents: 0 };
    let address = (&raw mut poll).expose_provenance();
    let timeout = (&raw const timeout).expose_provenance();
    // SAFETY: one entry and the time, both of which live through the call; no signal mask.
    match unsafe { call(number::PPOLL, [address, 1, timeout, 0, 0, 0]) } {
        Ok(ready) => Ok(ready != 0 && poll.revents != 0),
        Err(Errno::INTERRUPTED) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The size of what a descriptor names.
pub(crate) fn size(fd: i32) -> Result<usize, Errno> {
    const SEEK_END: usize = 2;
    // SAFETY: takes no address; nobody reads these files by position.
    unsafe { call(number::LSEEK, [descriptor(fd), 0, SEEK_END, 0, 0, 0]) }
}
