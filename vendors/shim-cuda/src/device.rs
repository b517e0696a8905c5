//! The devices of the process: which is which of a claim, and the calling thread's current one.
//!
//! Told apart by the UUID that the driver gives after its initialization: the numbers that a
//! program uses depend on its environment.
#![expect(unsafe_code, reason = "calls the driver and keeps pages that stay mapped")]

use core::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use accelpool_shim::{
    gate::{Grant, Word},
    layout::{ControlPage, DeviceControl, LedgerDevice, LedgerRow, Limit, Progress},
    quota::{Account, OverQuota, Reservation},
};

use crate::{
    fence::Fences,
    pass,
    process::{self, Claim},
    surface::{self, SUCCESS},
    thread::Thread,
};

/// More than any node has; the driver numbers them from 0.
pub(crate) const NUMBERS_MAX: usize = 32;

/// Charges are in steps of what the driver's allocator takes at the least.
const GRANULE_BYTES: u64 = 512;

/// What the host pins at a time.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// One device as the process sees it.
pub(crate) struct Device {
    /// The index of its claim plus one; 0 for a device of no claim.
    claim: AtomicU32,
    /// Its index in the claim's pages.
    index: AtomicUsize,
    pub(crate) control: AtomicPtr<DeviceControl>,
    /// Null while no daemon has registered the process.
    pub(crate) progress: AtomicPtr<Progress>,
    /// Contexts of the process on it.
    pub(crate) contexts: AtomicU32,
    /// Bytes that its contexts were charged.
    pub(crate) context_bytes: AtomicU64,
    /// Times that its primary context was retained, and which that is.
    pub(crate) retained: AtomicU32,
    pub(crate) primary: AtomicUsize,
    /// Bytes freed in stream order since the pools were trimmed.
    pub(crate) pooled_bytes: AtomicU64,
    /// Bytes that graphs with allocations were charged.
    graph_bytes: AtomicU64,
    pub(crate) fences: Fences,
    /// What the process holds while no daemon has given it a ledger page.
    own: LedgerDevice,
    /// The first word of bytes is the device's, the second what was pinned for it.
    own_row: LedgerRow,
    own_host: LedgerDevice,
}

static DEVICES: [Device; NUMBERS_MAX] = [const { Device::new() }; NUMBERS_MAX];

/// The number of the only device of the process, plus one; 0 where there are several.
static ONLY: AtomicI32 = AtomicI32::new(0);

/// A thread's current device: none of a claim.
const FOREIGN: u32 = u32::MAX;

pub(crate) fn all() -> impl Iterator<Item = &'static Device> {
    DEVICES.iter().filter(|it| it.claim.load(Ordering::Acquire) != 0)
}

/// The device of a number, if a claim has it.
pub(crate) fn by_number(number: c_int) -> Option<&'static Device> {
    let device = DEVICES.get(usize::try_from(number).ok()?)?;
    (device.claim.load(Ordering::Acquire) != 0).then_some(device)
}

/// The device with a UUID, if a claim has it.
pub(crate) fn by_uuid(uuid: [u8; 16]) -> Option<(&'static Claim, usize)> {
    process::claims().find_map(|claim| claim.device(uuid).map(|index| (claim, index)))
}

/// The device of the thread's current context, if a claim has it.
#[inline]
pub(crate) fn current(thread: &Thread) -> Option<&'static Device> {
    match thread.device.get() {
        0 => find_current(thread),
        FOREIGN => None,
        number => DEVICES.get(number as usize - 1),
    }
}

#[cold]
fn find_current(thread: &Thread) -> Option<&'static Device> {
    let mut number = ONLY.load(Ordering::Relaxed) - 1;
    if number < 0 {
        // SAFETY: the number is written.
        let outcome =
            thread.inside(|| unsafe { surface::cuCtxGetDevice((&raw mut number).cast()) });
        if outcome != SUCCESS {
            return None;
        }
    }
    let device = by_number(number);
    let known = device.and(u32::try_from(number + 1).ok()).unwrap_or(FOREIGN);
    thread.device.set(known);
    device
}

/// Finds the devices that the driver shows in the claims; after its initialization.
pub(crate) fn bind_all(thread: &Thread) {
    let mut count: c_int = 0;
    // SAFETY: the count is written.
    let outcome = thread.inside(|| unsafe { surface::cuDeviceGetCount((&raw mut count).cast()) });
    if outcome != SUCCESS {
        return;
    }
    let count = count.min(c_int::try_from(NUMBERS_MAX).unwrap_or(c_int::MAX));
    for ordinal in 0..count {
        let (mut number, mut uuid): (c_int, [u8; 16]) = (ordinal, [0; 16]);
        // SAFETY: a number and sixteen bytes are written. The older call knows no partitions.
        let outcome = thread.inside(|| unsafe {
            surface::cuDeviceGet((&raw mut number).cast(), ordinal);
            match surface::cuDeviceGetUuid_v2((&raw mut uuid).cast(), number) {
                surface::NOT_FOUND => surface::cuDeviceGetUuid((&raw mut uuid).cast(), number),
                outcome => outcome,
            }
        });
        let place = usize::try_from(number).ok().and_then(|number| DEVICES.get(number));
        if outcome == SUCCESS
            && let (Some(device), Some((claim, index))) = (place, by_uuid(uuid))
        {
            device.bind(claim, index);
        }
    }
    ONLY.store(i32::from(count == 1), Ordering::Relaxed);
}

/// In the child of a fork: devices are found anew, and nothing is held.
pub(crate) fn forget_all() {
    ONLY.store(0, Ordering::Relaxed);
    for device in &DEVICES {
        device.claim.store(0, Ordering::Relaxed);
        device.progress.store(null_mut(), Ordering::Relaxed);
        device.contexts.store(0, Ordering::Relaxed);
        device.context_bytes.store(0, Ordering::Relaxed);
        device.retained.store(0, Ordering::Relaxed);
        device.primary.store(0, Ordering::Relaxed);
        device.pooled_bytes.store(0, Ordering::Relaxed);
        device.graph_bytes.store(0, Ordering::Relaxed);
        device.own.used.store(0, Ordering::Relaxed);
        device.own_row.bytes[0].store(0, Ordering::Relaxed);
        device.own_host.used.store(0, Ordering::Relaxed);
        device.own_row.bytes[1].store(0, Ordering::Relaxed);
        device.fences.forget();
    }
}

impl Device {
    const fn new() -> Self {
        Self {
            claim: AtomicU32::new(0),
            index: AtomicUsize::new(0),
            control: AtomicPtr::new(null_mut()),
            progress: AtomicPtr::new(null_mut()),
            contexts: AtomicU32::new(0),
            context_bytes: AtomicU64::new(0),
            retained: AtomicU32::new(0),
            primary: AtomicUsize::new(0),
            pooled_bytes: AtomicU64::new(0),
            graph_bytes: AtomicU64::new(0),
            fences: Fences::new(),
            own: LedgerDevice::new(),
            own_row: LedgerRow::new(),
            own_host: LedgerDevice::new(),
        }
    }

    fn bind(&self, claim: &'static Claim, index: usize) {
        let Some(control) = claim.control() else { return };
        let Some(device) = control.devices.get(index) else { return };
        self.index.store(index, Ordering::Relaxed);
        self.control.store(core::ptr::from_ref(device).cast_mut(), Ordering::Relaxed);
        self.claim.store(claim.number() + 1, Ordering::Release);
        self.register(claim);
    }

    /// Takes over the pages that a registration has brought, and what was held before it.
    pub(crate) fn register(&self, claim: &'static Claim) {
        if self.claim.load(Ordering::Acquire) != claim.number() + 1 {
            return;
        }
        let index = self.index.load(Ordering::Relaxed);
        let Some(process) = claim.process() else { return };
        // From here on the shared account is used; a free that still goes to the old one
        // finds nothing there, so that the shared one is never too low.
        let held = self.own_row.bytes[0].swap(0, Ordering::AcqRel);
        self.own.used.store(0, Ordering::Relaxed);
        if held != 0
            && let Some(account) = claim.account(index)
        {
            account.charge(held);
        }
        let pinned = self.own_row.bytes[1].swap(0, Ordering::AcqRel);
        self.own_host.used.store(0, Ordering::Relaxed);
        if pinned != 0
            && let Some(account) = claim.host_account()
        {
            account.charge(pinned);
        }
        if let Some(progress) = process.devices.get(index) {
            self.progress.store(core::ptr::from_ref(progress).cast_mut(), Ordering::Release);
            pass::forget_all();
        }
    }

    pub(crate) fn claim(&self) -> Option<&'static Claim> {
        process::claim(self.claim.load(Ordering::Acquire).checked_sub(1)?)
    }

    pub(crate) fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn control(&self) -> Option<&'static DeviceControl> {
        // SAFETY: null, or within a page that stays mapped for good.
        unsafe { self.control.load(Ordering::Relaxed).as_ref() }
    }

    #[inline]
    pub(crate) fn progress(&self) -> Option<&'static Progress> {
        // SAFETY: as above.
        unsafe { self.progress.load(Ordering::Acquire).as_ref() }
    }

    fn page(&self) -> Option<&'static ControlPage> {
        self.claim()?.control()
    }

    fn limit(&self) -> Option<&'static Limit> {
        self.page()?.limits.get(self.index())
    }

    /// The account of the process: the claim's, or its own while it has none.
    pub(crate) fn account(&self) -> Option<Account<'_>> {
        let shared = self.claim().and_then(|claim| claim.account(self.index()));
        shared.or_else(|| Account::new(&self.own, &self.own_row, 0))
    }

    /// Bytes that the claim may hold; nothing more once it is revoked.
    pub(crate) fn quota_bytes(&self) -> u64 {
        let is_revoked = self.has_layout()
            && self.control().is_some_and(|it| it.grant.read().has(Grant::REVOKED));
        if is_revoked {
            return 0;
        }
        self.limit().map_or(u64::MAX, |it| it.quota_bytes.load(Ordering::Relaxed))
    }

    /// Bytes that the process is charged for having a context.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.limit().map_or(0, |it| it.reserve_bytes.load(Ordering::Relaxed))
    }

    /// Whether the page's turns are laid out as this shim knows them.
    pub(crate) fn has_layout(&self) -> bool {
        self.claim().is_some_and(Claim::has_layout)
    }

    /// Reserves what an allocation takes.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation<'_>, OverQuota> {
        let charged = rounded(bytes).ok_or(OverQuota)?;
        self.account().ok_or(OverQuota)?.reserve(charged, self.quota_bytes())
    }

    pub(crate) fn release(&self, charged: u64) {
        if let Some(account) = self.account() {
            account.release(charged);
        }
    }

    /// The account of the process for memory of the host: the claim's, or one of its own for each
    /// device while it has none.
    fn host_account(&self) -> Option<Account<'_>> {
        let shared = self.claim().and_then(Claim::host_account);
        shared.or_else(|| Account::new(&self.own_host, &self.own_row, 1))
    }

    /// Reserves what is to be pinned, by whole pages.
    pub(crate) fn reserve_host(&self, bytes: u64) -> Result<Reservation<'_>, OverQuota> {
        let charged = bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(OverQuota)?;
        let limit = self.page().map_or(0, |it| it.host_bytes.load(Ordering::Relaxed));
        let most = if limit == 0 { u64::MAX } else { limit };
        self.host_account().ok_or(OverQuota)?.reserve(charged, most)
    }

    pub(crate) fn release_host(&self, charged: u64) {
        if let Some(account) = self.host_account() {
            account.release(charged);
        }
    }

    /// What the claim holds and may hold.
    pub(crate) fn usage(&self) -> Option<(u64, u64)> {
        Some((self.account()?.used(), self.quota_bytes()))
    }
}

/// What an allocation is charged.
pub(crate) fn rounded(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(GRANULE_BYTES)
}

/// `CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT`.
const GRAPH_MEMORY_RESERVED: u32 = 2;

impl Device {
    /// The driver's number of it.
    pub(crate) fn number(&self) -> c_int {
        let place = DEVICES.iter().position(|it| core::ptr::eq(it, self));
        place.and_then(|place| c_int::try_from(place).ok()).unwrap_or(-1)
    }

    /// Charges what the device has taken already.
    pub(crate) fn charge(&self, bytes: u64) {
        if let Some(account) = self.account() {
            account.charge(bytes);
        }
    }

    /// Lets the pools of the device give back what nobody uses.
    pub(crate) fn trim_pools(&self) {
        let number = self.number();
        // SAFETY: a pool is written, and then trimmed where there is one.
        unsafe {
            let mut pool: *mut c_void = null_mut();
            if surface::cuDeviceGetMemPool((&raw mut pool).cast(), number) == SUCCESS {
                surface::cuMemPoolTrimTo(pool, 0);
            }
            let mut default: *mut c_void = null_mut();
            let outcome = surface::cuDeviceGetDefaultMemPool((&raw mut default).cast(), number);
            if outcome == SUCCESS && default != pool {
                surface::cuMemPoolTrimTo(default, 0);
            }
        }
    }

    /// Brings what graphs are charged in line with what they have reserved.
    pub(crate) fn true_up_graphs(&self) {
        let mut reserved = 0_u64;
        // SAFETY: eight bytes are written.
        let outcome = unsafe {
            surface::cuDeviceGetGraphMemAttribute(
                self.number(),
                GRAPH_MEMORY_RESERVED,
                (&raw mut reserved).cast(),
            )
        };
        if outcome != SUCCESS {
            return;
        }
        let before = self.graph_bytes.swap(reserved, Ordering::AcqRel);
        if reserved > before {
            self.charge(reserved - before);
        } else {
            self.release(before - reserved);
        }
    }
}
