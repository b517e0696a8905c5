//! The memory quota: reserve by compare-and-swap, call the driver, commit or roll back.
//!
//! Exact across the processes of a claim without a lock, so that nobody can die holding one.
//! Every change touches the claim's counter first and the process's row second, between two
//! marks: so the daemon can tell when the sum of the rows is the truth, and correct the counter
//! by what a killed process left half done. The page is the tenant's to write: this is exact
//! for an honest one, and the daemon compares with the device for the others.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::layout::{DEVICES_MAX, LedgerDevice, LedgerPage, LedgerRow, PROCESSES_MAX};

/// The quota does not allow as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota;

/// The counter of a claim on one device, or of what it has pinned on the host, and the row of one
/// of its processes.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    used: &'a AtomicU64,
    peak: &'a AtomicU64,
    denied: &'a AtomicU64,
    row: &'a LedgerRow,
    held: &'a AtomicU64,
}

/// Bytes that were reserved; given back when dropped, unless committed.
#[derive(Debug)]
#[must_use = "a reservation that is dropped is rolled back"]
pub struct Reservation<'a> {
    account: Account<'a>,
    bytes: u64,
}

impl LedgerPage {
    /// The account of a process on a device, or nothing for an index beyond the page.
    #[must_use]
    pub fn account(&self, process: usize, device: usize) -> Option<Account<'_>> {
        let row = self.rows.get(process)?;
        Account::new(self.devices.get(device)?, row, device)
    }

    /// The account of a process for host memory, or nothing for an index beyond the page.
    #[must_use]
    pub fn host_account(&self, process: usize) -> Option<Account<'_>> {
        let row = self.rows.get(process)?;
        Some(Account {
            used: &self.host_used,
            peak: &self.host_peak,
            denied: &self.host_denied,
            row,
            held: &row.host_bytes,
        })
    }

    /// Corrects the counter of a device by what ended processes left half done.
    ///
    /// `is_live` says which rows belong to processes that run; the others must have been
    /// cleared by [`LedgerPage::end`]. Gives the bytes that it took away, or `None` where a
    /// change was under way: then ask again later, as the counter is not too low meanwhile.
    pub fn reconcile(&self, device: usize, is_live: impl Fn(usize) -> bool) -> Option<u64> {
        let counter = &self.devices.get(device)?.used;
        self.correct(counter, |row| &row.bytes[device], is_live)
    }

    /// The same for the counter of host memory.
    pub fn reconcile_host(&self, is_live: impl Fn(usize) -> bool) -> Option<u64> {
        self.correct(&self.host_used, |row| &row.host_bytes, is_live)
    }

    fn correct(
        &self,
        counter: &AtomicU64,
        held: impl Fn(&LedgerRow) -> &AtomicU64,
        is_live: impl Fn(usize) -> bool,
    ) -> Option<u64> {
        let used = counter.load(Ordering::SeqCst);
        let live = || (0..PROCESSES_MAX).filter(|&it| is_live(it)).map(|it| &self.rows[it]);
        let mut begun = [0; PROCESSES_MAX];
        for (row, begun) in live().zip(&mut begun) {
            *begun = row.begun.load(Ordering::SeqCst);
            if row.done.load(Ordering::SeqCst) != *begun {
                return None;
            }
        }
        let sum =
            live().fold(0_u64, |sum, row| sum.saturating_add(held(row).load(Ordering::SeqCst)));
        fence(Ordering::SeqCst);
        let unchanged =
            live().zip(&begun).all(|(row, begun)| row.begun.load(Ordering::SeqCst) == *begun);
        if !unchanged {
            return None;
        }
        counter.compare_exchange(used, sum, Ordering::SeqCst, Ordering::SeqCst).ok()?;
        Some(used.saturating_sub(sum))
    }

    /// Takes what an ended process held out of the counters, and clears its row for the next.
    ///
    /// A process that was killed within a change leaves the counters as they are, which is
    /// never too low: then [`LedgerPage::reconcile`] must follow.
    pub fn end(&self, process: usize) -> Ended {
        let mut bytes = [0; DEVICES_MAX];
        let Some(row) = self.rows.get(process) else { return Ended { bytes, is_exact: true } };
        let begun = row.begun.load(Ordering::SeqCst);
        let is_exact = row.done.load(Ordering::SeqCst) == begun;
        for (index, bytes) in bytes.iter_mut().enumerate() {
            *bytes = row.bytes[index].swap(0, Ordering::SeqCst);
            if is_exact {
                subtract(&self.devices[index].used, *bytes);
            }
        }
        let pinned = row.host_bytes.swap(0, Ordering::SeqCst);
        if is_exact {
            subtract(&self.host_used, pinned);
        }
        row.process_id.store(0, Ordering::SeqCst);
        row.done.store(begun, Ordering::SeqCst);
        Ended { bytes, is_exact }
    }
}

/// What an ended process held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Bytes on each device, as its row said.
    pub bytes: [u64; DEVICES_MAX],
    /// Whether the counters are right again; else it was killed within a change.
    pub is_exact: bool,
}

impl<'a> Account<'a> {
    /// An account on counters that need not lie in a [`LedgerPage`].
    #[must_use]
    pub fn new(device: &'a LedgerDevice, row: &'a LedgerRow, index: usize) -> Option<Self> {
        let LedgerDevice { used, peak, denied, .. } = device;
        Some(Self { used, peak, denied, row, held: row.bytes.get(index)? })
    }

    /// Reserves `bytes` within `quota`, or counts the refusal.
    pub fn reserve(&self, bytes: u64, quota: u64) -> Result<Reservation<'a>, OverQuota> {
        self.change(|| {
            let used = self.used;
            let mut now = used.load(Ordering::Relaxed);
            loop {
                let next = now.checked_add(bytes).filter(|&next| next <= quota);
                let Some(next) = next else {
                    self.denied.fetch_add(1, Ordering::Relaxed);
                    return Err(OverQuota);
                };
                match used.compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::Relaxed) {
                    Ok(_) => {
                        self.peak.fetch_max(next, Ordering::Relaxed);
                        break;
                    }
                    Err(changed) => now = changed,
                }
            }
            self.held.fetch_add(bytes, Ordering::SeqCst);
            Ok(Reservation { account: *self, bytes })
        })
    }

    /// Gives back what an earlier reservation committed.
    pub fn release(&self, bytes: u64) {
        self.change(|| {
            subtract(self.used, bytes);
            subtract(self.held, bytes);
        });
    }

    /// Bytes that the claim holds.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that this process holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Charges what the device has already taken; even beyond the quota, since it is a fact.
    pub fn charge(&self, bytes: u64) {
        self.change(|| {
            self.used.fetch_add(bytes, Ordering::SeqCst);
            self.held.fetch_add(bytes, Ordering::SeqCst);
        });
    }

    /// A change between its two marks.
    fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        self.row.begun.fetch_add(1, Ordering::SeqCst);
        let outcome = change();
        self.row.done.fetch_add(1, Ordering::SeqCst);
        outcome
    }
}

impl Reservation<'_> {
    /// The allocation exists: the bytes stay until they are released.
    #[must_use = "what was committed must be released some day"]
    pub fn commit(self) -> u64 {
        let bytes = self.bytes;
        core::mem::forget(self);
        bytes
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

/// Subtracts without going below nothing, whatever a tenant wrote there.
fn subtract(counter: &AtomicU64, bytes: u64) {
    let mut now = counter.load(Ordering::Relaxed);
    loop {
        let next = now.saturating_sub(bytes);
        match counter.compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return,
            Err(changed) => now = changed,
        }
    }
}
