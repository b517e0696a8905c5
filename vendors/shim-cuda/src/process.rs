//! The claims of the process: found once, when the driver is first initialized.
//!
//! Until then nothing happens: a process that never comes to the driver pays for loading the
//! library and no more.
#![expect(unsafe_code, reason = "keeps pages that stay mapped")]

use core::{
    ffi::CStr,
    ptr::{from_ref, null_mut},
    sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, Ordering},
};

use accelpool_shim::{
    CONTROL_FILE, TURNS_FOLDER,
    layout::{ControlPage, LAYOUT_HASH, LedgerPage, MAGIC, ProcessPage},
    mapping::{Access, Mapping},
    quota::Account,
    sys::{self, Open},
    turn::Heartbeat,
};

use crate::{
    capture, context, device, helper, libc,
    lock::Lock,
    memory, pass, registration, submit,
    thread::{Thread, thread},
    timing,
};

/// A container has one claim for each request for devices; more than some are never seen.
pub(crate) const CLAIMS_MAX: usize = 8;

/// Paths in a container are short; a longer one is not found.
pub(crate) const PATH_BYTES_MAX: usize = 512;

/// Nothing was looked for.
const FRESH: u32 = 0;
/// There is a claim.
const ACTIVE: u32 = 1;
/// There is none: everything passes.
const IDLE: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(FRESH);
static ATTACHING: Lock<()> = Lock::new(());

/// Forks are looked at: children inherit that.
static HOOKED: AtomicU32 = AtomicU32::new(0);

static CLAIMS: [Claim; CLAIMS_MAX] = [
    Claim::new(0),
    Claim::new(1),
    Claim::new(2),
    Claim::new(3),
    Claim::new(4),
    Claim::new(5),
    Claim::new(6),
    Claim::new(7),
];

/// One claim: its pages, as far as there are any, and what its registration has brought.
pub(crate) struct Claim {
    number: u32,
    control: AtomicPtr<ControlPage>,
    ledger: AtomicPtr<LedgerPage>,
    process: AtomicPtr<ProcessPage>,
    /// The row of the process in the ledger page.
    process_index: AtomicU32,
    eventfd: AtomicI32,
    clock_offset_ns: AtomicI64,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) registration: Lock<registration::Registration>,
}

/// Claims with a control page.
pub(crate) fn claims() -> impl Iterator<Item = &'static Claim> {
    CLAIMS.iter().filter(|it| it.control().is_some())
}

pub(crate) fn claim(number: u32) -> Option<&'static Claim> {
    CLAIMS.get(number as usize)
}

/// Whether the process has a claim, as far as was looked.
#[inline]
pub(crate) fn is_active() -> bool {
    STATE.load(Ordering::Acquire) == ACTIVE
}

/// Looks for claims and registers, once. Afterwards the driver may be asked for its devices.
pub(crate) fn attach(thread: &Thread) {
    if STATE.load(Ordering::Acquire) == FRESH {
        thread.inside(attach_once);
    }
}

fn attach_once() {
    let attaching = ATTACHING.lock();
    if STATE.load(Ordering::Acquire) != FRESH {
        return;
    }
    if HOOKED.swap(1, Ordering::AcqRel) == 0 {
        libc::at_fork(forked);
    }
    find_claims();
    if claims().next().is_none() {
        STATE.store(IDLE, Ordering::Release);
        return;
    }
    for claim in claims() {
        registration::start(claim);
    }
    STATE.store(ACTIVE, Ordering::Release);
    drop(attaching);
    helper::start();
}

/// In the child of a fork: it is nobody, holds nothing and has no helper. The parent's pages
/// and descriptors are not its own. Only what is safe where other threads have vanished.
unsafe extern "C" fn forked() {
    let was = STATE.swap(FRESH, Ordering::AcqRel);
    ATTACHING.forget_holder();
    if was == FRESH {
        return;
    }
    helper::forget();
    submit::forget_lines();
    timing::forget();
    device::forget_all();
    memory::forget();
    context::forget();
    capture::forget();
    pass::forget_all();
    let thread = thread();
    thread.line.set(0);
    thread.forget_device();
    thread.depth.set(0);
    for claim in &CLAIMS {
        claim.ledger.store(null_mut(), Ordering::Relaxed);
        claim.process.store(null_mut(), Ordering::Relaxed);
        claim.control.store(null_mut(), Ordering::Relaxed);
        let eventfd = claim.eventfd.swap(-1, Ordering::Relaxed);
        if eventfd >= 0 {
            sys::close(eventfd);
        }
        claim.registration.forget_holder();
        claim.registration.lock().forget();
    }
}

fn find_claims() {
    let folder = libc::environment(c"ACCELPOOL_TURNS").map(CStr::to_bytes);
    let folder = folder.unwrap_or(TURNS_FOLDER.as_bytes());
    let Some(folder) = Path::new(folder) else { return };
    if try_folder(&folder) {
        return;
    }
    let Ok(open) = sys::open(folder.with_nul(), Open::Folder) else { return };
    let mut entries = [0; 4096];
    while let Ok(len @ 1..) = sys::list(open, &mut entries) {
        for name in Names(&entries[..len]) {
            if name != b"."
                && name != b".."
                && let Some(claim) = folder.join(name)
            {
                try_folder(&claim);
            }
        }
    }
    sys::close(open);
}

/// Takes a folder if it is a claim's.
fn try_folder(folder: &Path) -> bool {
    let Some(file) = folder.join(CONTROL_FILE.as_bytes()) else { return false };
    let Ok(fd) = sys::open(file.with_nul(), Open::Read) else { return false };
    let mapped = Mapping::<ControlPage>::of_file(fd, Access::Read);
    sys::close(fd);
    let Ok(page) = mapped else { return false };
    if page.magic.load(Ordering::Relaxed) != MAGIC {
        return false;
    }
    let Some(free) = CLAIMS.iter().find(|it| it.control().is_none()) else { return false };
    free.registration.lock().set_folder(folder);
    free.control.store(from_ref(page.leak()).cast_mut(), Ordering::Release);
    true
}

/// The names in a buffer of `linux_dirent64` entries.
struct Names<'a>(&'a [u8]);

impl<'a> Iterator for Names<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        // Inode and offset, eight bytes each; length, two; type, one; the name with its NUL.
        let len = usize::from(u16::from_ne_bytes(self.0.get(16..18)?.try_into().ok()?));
        let (entry, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        let name = entry.get(19..)?;
        name.get(..name.iter().position(|&byte| byte == 0)?)
    }
}

/// A path with a NUL at its end.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    bytes: [u8; PATH_BYTES_MAX],
    len: usize,
}

impl Path {
    pub(crate) const EMPTY: Self = Self { bytes: [0; PATH_BYTES_MAX], len: 0 };

    fn new(path: &[u8]) -> Option<Self> {
        let mut bytes = [0; PATH_BYTES_MAX];
        // Less than the whole, so that a NUL is left.
        bytes[..PATH_BYTES_MAX - 1].get_mut(..path.len())?.copy_from_slice(path);
        Some(Self { bytes, len: path.len() })
    }

    fn join(&self, name: &[u8]) -> Option<Self> {
        let mut joined = *self;
        let end = self.len + 1 + name.len();
        let room = joined.bytes[..PATH_BYTES_MAX - 1].get_mut(self.len..end)?;
        let (slash, rest) = room.split_first_mut()?;
        *slash = b'/';
        rest.copy_from_slice(name);
        joined.len = end;
        Some(joined)
    }

    pub(crate) fn with_nul(&self) -> &[u8] {
        &self.bytes[..=self.len]
    }

    pub(crate) fn control_file(&self) -> Option<Self> {
        self.join(CONTROL_FILE.as_bytes())
    }
}

impl Claim {
    const fn new(number: u32) -> Self {
        Self {
            number,
            control: AtomicPtr::new(null_mut()),
            ledger: AtomicPtr::new(null_mut()),
            process: AtomicPtr::new(null_mut()),
            process_index: AtomicU32::new(0),
            eventfd: AtomicI32::new(-1),
            clock_offset_ns: AtomicI64::new(0),
            heartbeat: Heartbeat::new(),
            registration: Lock::new(registration::Registration::new()),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn control(&self) -> Option<&'static ControlPage> {
        // SAFETY: null, or a page that stays mapped for good.
        unsafe { self.control.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn ledger(&self) -> Option<&'static LedgerPage> {
        // SAFETY: as above.
        unsafe { self.ledger.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn process(&self) -> Option<&'static ProcessPage> {
        // SAFETY: as above.
        unsafe { self.process.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn eventfd(&self) -> Option<i32> {
        Some(self.eventfd.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
    }

    pub(crate) fn clock_offset_ns(&self) -> i64 {
        self.clock_offset_ns.load(Ordering::Relaxed)
    }

    /// Whether the daemon lays the pages out as this shim does. Else only the limits are read.
    pub(crate) fn has_layout(&self) -> bool {
        self.control().is_some_and(|it| it.layout_hash.load(Ordering::Relaxed) == LAYOUT_HASH)
    }

    /// The index of the device with a UUID.
    pub(crate) fn device(&self, uuid: [u8; 16]) -> Option<usize> {
        let control = self.control()?;
        let len = control.devices_len.load(Ordering::Relaxed) as usize;
        control.limits.iter().take(len).position(|it| it.uuid.get() == uuid)
    }

    pub(crate) fn account(&self, device: usize) -> Option<Account<'static>> {
        let process = self.process_index.load(Ordering::Relaxed) as usize;
        self.ledger()?.account(process, device)
    }

    pub(crate) fn host_account(&self) -> Option<Account<'static>> {
        let process = self.process_index.load(Ordering::Relaxed) as usize;
        self.ledger()?.host_account(process)
    }

    /// New pages of a registration; they stay mapped for good.
    pub(crate) fn take_pages(&self, ledger: Mapping<LedgerPage>, process: Mapping<ProcessPage>) {
        self.ledger.store(from_ref(ledger.leak()).cast_mut(), Ordering::Release);
        self.process.store(from_ref(process.leak()).cast_mut(), Ordering::Release);
    }

    /// The processes of the claim, as each numbers itself, and what they hold of a device.
    pub(crate) fn holders(&self, device: usize) -> impl Iterator<Item = (u32, u64)> {
        let rows = self.ledger().into_iter().flat_map(|it| &it.rows);
        rows.filter_map(move |row| {
            // What another process has written there may be no number of a process.
            let pid = u32::try_from(row.process_id.load(Ordering::Relaxed)).ok()?;
            let bytes = row.bytes.get(device)?.load(Ordering::Relaxed);
            (pid != 0).then_some((pid, bytes))
        })
    }

    /// Says in the ledger page whose row it is; once there are pages.
    pub(crate) fn sign_row(&self) {
        let index = self.process_index.load(Ordering::Acquire) as usize;
        if let Some(row) = self.ledger().and_then(|it| it.rows.get(index)) {
            row.process_id.store(sys::process_id().into(), Ordering::Relaxed);
        }
    }

    pub(crate) fn take_welcome(&self, process_index: u32, eventfd: i32, clock_offset_ns: i64) {
        self.process_index.store(process_index, Ordering::Release);
        self.clock_offset_ns.store(clock_offset_ns, Ordering::Relaxed);
        // The old one is left open, since a thread may be about to write to it: some bytes
        // for each restart of the daemon.
        self.eventfd.store(eventfd, Ordering::Relaxed);
    }
}
