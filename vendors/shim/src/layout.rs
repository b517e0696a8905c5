//! The pages, byte for byte. All fields are atomics; each hot group has its own cache line.
//!
//! A change of any offset changes [`LAYOUT_HASH`], which a test freezes. What stands before
//! [`ControlPage::devices`] never moves again: a shim of another layout still finds the
//! memory limits there. Numbers are in the byte order of the machine: pages do not travel.
//!
//! A word that was reserved is 0 where the other side does not know it. One that means "as before"
//! when it is 0 can be taken without a new hash: `host_bytes` and what counts it, `closes`, `came_ns`.

use core::{
    mem::{offset_of, size_of},
    sync::atomic::{AtomicU32, AtomicU64},
};

/// `ACCLPOOL`, as the first bytes of each page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ACCLPOOL");

/// Accelerators in one claim: the largest nodes have 16.
pub const DEVICES_MAX: usize = 16;

/// Processes of one claim that are registered at a time. A job has some per device.
pub const PROCESSES_MAX: usize = 64;

/// Threads of a process with a line of their own; further ones share [`OVERFLOW_LINE`].
pub const OWN_LINES: usize = 64;

/// The index of the line that threads without one of their own share.
pub const OVERFLOW_LINE: usize = OWN_LINES;

/// All lines of a process on a device.
pub const LINES: usize = OWN_LINES + 1;

/// Sixteen bytes in two words, as a vendor's library gives them.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Uuid(pub [AtomicU64; 2]);

/// What a claim may hold on a device; its place in the page is fixed for all layouts.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Limit {
    /// Identity of the device; its bytes in the order in which the vendor gives them.
    pub uuid: Uuid,
    /// Bytes of device memory, the reserve for contexts included.
    pub quota_bytes: AtomicU64,
    /// Bytes that a process is charged for a context on the device.
    pub reserve_bytes: AtomicU64,
}

/// The control page of a claim. Only the daemon can write it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ControlPage {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`LAYOUT_HASH`] of the daemon that writes.
    pub layout_hash: AtomicU64,
    /// Number of devices in use below, at most [`DEVICES_MAX`].
    pub devices_len: AtomicU32,
    /// Nonzero while the arbiter sleeps: who wants a turn must then signal it.
    pub asleep: AtomicU32,
    /// A number for each start of the daemon.
    pub incarnation: AtomicU64,
    /// The daemon's monotonic time, written every [`HEARTBEAT_NS`].
    pub heartbeat_ns: AtomicU64,
    /// Names the claim, so that a folder used again is noticed.
    pub claim_hash: AtomicU64,
    /// Bytes of host memory that the claim's processes may pin; 0 for no limit, as of a daemon
    /// that knows none. Its place is fixed as that of the limits.
    pub host_bytes: AtomicU64,
    reserved: AtomicU64,
    /// Limits of each device.
    pub limits: [Limit; DEVICES_MAX],
    /// The turn of each device.
    pub devices: [DeviceControl; DEVICES_MAX],
}

/// How often the daemon writes [`ControlPage::heartbeat_ns`].
pub const HEARTBEAT_NS: u64 = 100_000_000;

/// A heartbeat that stood still for this time belongs to a daemon that is gone.
pub const HEARTBEAT_STALE_NS: u64 = 500_000_000;

/// The turn of a claim on one device.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct DeviceControl {
    /// A [`Grant`](crate::gate::Grant).
    pub grant: AtomicU64,
    /// End of the turn in the daemon's monotonic time; 0 for none.
    pub deadline_ns: AtomicU64,
    /// When the next grant is expected, in the daemon's monotonic time; 0 for unknown.
    pub hint_ns: AtomicU64,
    /// Changes with each grant: what a waiting thread sleeps on.
    pub wake: AtomicU32,
    /// Bound on the estimated time of unfinished submissions; 0 for none.
    pub window_us: AtomicU32,
    /// Bound on the number of unfinished submissions; 0 for none.
    pub window_commands: AtomicU32,
    /// Weight of the claim, for display alone.
    pub weight: AtomicU32,
    /// Changes with each close: what a process's helper sleeps on, which a grant is nothing to.
    /// 0 of a daemon that knows it not: then `wake` is what changes.
    pub closes: AtomicU32,
    reserved_half: AtomicU32,
    reserved: [AtomicU64; 1],
}

/// The ledger page of a claim: what its processes hold.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct LedgerPage {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`LAYOUT_HASH`] of the daemon that made it.
    pub layout_hash: AtomicU64,
    /// [`ControlPage::claim_hash`] of the claim that it is for.
    pub claim_hash: AtomicU64,
    /// Bytes of host memory that the claim has pinned.
    pub host_used: AtomicU64,
    /// The most it has pinned.
    pub host_peak: AtomicU64,
    /// Pins that the limit refused.
    pub host_denied: AtomicU64,
    reserved: [AtomicU64; 2],
    /// The counters of each device.
    pub devices: [LedgerDevice; DEVICES_MAX],
    /// What each process holds, by its index.
    pub rows: [LedgerRow; PROCESSES_MAX],
}

/// The counter of one device.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct LedgerDevice {
    /// Bytes that the claim holds now.
    pub used: AtomicU64,
    /// The most it has held.
    pub peak: AtomicU64,
    /// Allocations that the quota refused.
    pub denied: AtomicU64,
    reserved: [AtomicU64; 5],
}

impl LedgerDevice {
    /// A counter that belongs to no page, at nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            reserved: [const { AtomicU64::new(0) }; 5],
        }
    }
}

impl LedgerRow {
    /// A row that belongs to no page, at nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            process_id: AtomicU64::new(0),
            host_bytes: AtomicU64::new(0),
            reserved: [const { AtomicU64::new(0) }; 4],
            bytes: [const { AtomicU64::new(0) }; DEVICES_MAX],
        }
    }
}

/// What one process holds. Its counters tell whether a change is half done.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct LedgerRow {
    /// Changes that were begun.
    pub begun: AtomicU64,
    /// Changes that were finished.
    pub done: AtomicU64,
    /// The id of the process as it sees it itself, for the claim's own list; 0 for none.
    pub process_id: AtomicU64,
    /// Bytes of host memory that it has pinned.
    pub host_bytes: AtomicU64,
    reserved: [AtomicU64; 4],
    /// Bytes on each device.
    pub bytes: [AtomicU64; DEVICES_MAX],
}

/// The page of one process.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct ProcessPage {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`LAYOUT_HASH`] of the daemon that made it.
    pub layout_hash: AtomicU64,
    /// Calls of functions that the shim's table does not know.
    pub unclassified: AtomicU64,
    reserved: [AtomicU64; 5],
    /// Progress on each device.
    pub devices: [Progress; DEVICES_MAX],
}

/// What a process submitted to a device, and what of it is known to be complete.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Progress {
    /// Submissions known to be complete; never more than the lines' sum.
    pub completed: AtomicU64,
    /// Estimated time of the submissions known to be complete.
    pub completed_us: AtomicU64,
    /// The last epoch that this process left with nothing unfinished.
    pub drained_epoch: AtomicU32,
    /// Threads that wait for a turn.
    pub want: AtomicU32,
    /// Lines in use: none at or beyond this index was ever touched. The overflow line is
    /// always looked at.
    pub lines_len: AtomicU32,
    /// Changes when `completed` does: what a thread over its window sleeps on.
    pub progress: AtomicU32,
    reserved: AtomicU64,
    /// Time that threads spent waiting for a turn, in all.
    pub waited_ns: AtomicU64,
    /// When a thread last came in after it had waited, in the daemon's time; 0 for never, and of
    /// a shim that does not tell.
    pub came_ns: AtomicU64,
    spare: [AtomicU64; 1],
    /// One for each thread, and the overflow line.
    pub lines: [ThreadLine; LINES],
}

/// What one thread does. The overflow line has sums instead, changed by many threads.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ThreadLine {
    /// Nonzero while the thread may be submitting.
    pub entering: AtomicU32,
    reserved: AtomicU32,
    /// Submissions that the driver took.
    pub submitted: AtomicU64,
    /// Their estimated time.
    pub submitted_us: AtomicU64,
}

/// Marks types that may be mapped from shared memory.
///
/// # Safety
///
/// Every bit pattern is a valid value and every field is an atomic, so that whatever another
/// process writes there is no undefined behaviour here.
#[expect(unsafe_code, reason = "the marker carries the proof for `Mapping`")]
pub unsafe trait Page: Sized + Sync {
    /// Bytes of the mapping: whole pages of 4 KiB.
    const BYTES: usize = size_of::<Self>().next_multiple_of(4096);
}

#[expect(unsafe_code, reason = "made of atomics alone")]
mod pages {
    // SAFETY: all fields, nested ones too, are atomic integers.
    unsafe impl super::Page for super::ControlPage {}
    // SAFETY: as above.
    unsafe impl super::Page for super::LedgerPage {}
    // SAFETY: as above.
    unsafe impl super::Page for super::ProcessPage {}
}

/// Offsets and sizes of all that both sides touch, in a fixed order.
pub const LAYOUT: [usize; 45] = [
    size_of::<Limit>(),
    offset_of!(Limit, uuid),
    offset_of!(Limit, quota_bytes),
    offset_of!(Limit, reserve_bytes),
    size_of::<ControlPage>(),
    offset_of!(ControlPage, magic),
    offset_of!(ControlPage, layout_hash),
    offset_of!(ControlPage, devices_len),
    offset_of!(ControlPage, asleep),
    offset_of!(ControlPage, incarnation),
    offset_of!(ControlPage, heartbeat_ns),
    offset_of!(ControlPage, claim_hash),
    offset_of!(ControlPage, limits),
    offset_of!(ControlPage, devices),
    size_of::<DeviceControl>(),
    offset_of!(DeviceControl, grant),
    offset_of!(DeviceControl, deadline_ns),
    offset_of!(DeviceControl, hint_ns),
    offset_of!(DeviceControl, wake),
    offset_of!(DeviceControl, window_us),
    offset_of!(DeviceControl, window_commands),
    size_of::<LedgerPage>(),
    offset_of!(LedgerPage, devices),
    offset_of!(LedgerPage, rows),
    size_of::<LedgerDevice>(),
    offset_of!(LedgerDevice, used),
    offset_of!(LedgerDevice, peak),
    offset_of!(LedgerDevice, denied),
    size_of::<LedgerRow>(),
    offset_of!(LedgerRow, begun),
    offset_of!(LedgerRow, done),
    offset_of!(LedgerRow, bytes),
    size_of::<ProcessPage>(),
    offset_of!(ProcessPage, devices),
    size_of::<Progress>(),
    offset_of!(Progress, completed),
    offset_of!(Progress, drained_epoch),
    offset_of!(Progress, want),
    offset_of!(Progress, lines_len),
    offset_of!(Progress, waited_ns),
    offset_of!(Progress, lines),
    size_of::<ThreadLine>(),
    offset_of!(ThreadLine, entering),
    offset_of!(ThreadLine, submitted),
    offset_of!(ThreadLine, submitted_us),
];

/// Raised when a field keeps its place and changes its meaning.
const MEANING: u64 = 1;

/// What both sides compare before they believe a page: FNV-1a over [`LAYOUT`].
pub const LAYOUT_HASH: u64 = {
    let mut hash = fnv_word(FNV_BASIS, MEANING);
    let mut index = 0;
    while index < LAYOUT.len() {
        hash = fnv_word(hash, LAYOUT[index] as u64);
        index += 1;
    }
    hash
};

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv_word(hash: u64, word: u64) -> u64 {
    fnv_bytes(hash, &word.to_le_bytes())
}

const fn fnv_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash
}

/// [`ControlPage::claim_hash`] of the claim with this id.
#[must_use]
pub const fn claim_hash(claim: &[u8]) -> u64 {
    fnv_bytes(FNV_BASIS, claim)
}

impl Uuid {
    /// Reads the sixteen bytes.
    #[must_use]
    pub fn get(&self) -> [u8; 16] {
        let [low, high] = &self.0;
        let word = |it: &AtomicU64| u128::from(it.load(core::sync::atomic::Ordering::Relaxed));
        (word(low) | word(high) << 64).to_le_bytes()
    }

    /// Writes the sixteen bytes; only before the page is published.
    pub fn set(&self, uuid: [u8; 16]) {
        let value = u128::from_le_bytes(uuid);
        let mask = u128::from(u64::MAX);
        for (word, part) in self.0.iter().zip([value & mask, value >> 64]) {
            // The mask leaves 64 bits.
            let part = u64::try_from(part).unwrap_or_default();
            word.store(part, core::sync::atomic::Ordering::Relaxed);
        }
    }
}
