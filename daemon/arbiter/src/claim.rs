//! One armed claim: its pages, its processes, and the rows of those that are gone.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::atomic::Ordering,
};

use accelpool_model::MemoryBytes;
use accelpool_shim::{
    gate::{Grant, Word},
    layout::{
        ControlPage, DEVICES_MAX, LAYOUT_HASH, LedgerDevice, LedgerPage, MAGIC, PROCESSES_MAX,
        claim_hash,
    },
    mapping::Mapping,
    sys::now_ns,
    wire::{HELLO_DESCRIPTORS, Hello, Record, Refusal, Welcome},
};
use accelpool_turns::{Access, ClaimKey, DeviceKey, Seen};
use nix::sys::stat::fstat;
use tracing::warn;

use crate::{
    arming::{Arming, uuid_bytes},
    folder::Folder,
    process::{Allowance, Process, Rate},
    report::Measured,
    rows,
    sys::{self, Peer},
};

/// Connections of a claim that have not said who they are. A shim speaks at once.
pub(crate) const NEWCOMERS_MAX: usize = 16;
/// How long a connection may be silent before that.
const NEWCOMER_NS: u64 = 1_000_000_000;
/// A job starts its processes at once, and seldom some more.
const REGISTRATIONS: Rate = Rate { burst: 128, per_second: 20 };
/// What a process that is gone held is given back when the kernel has ended it, which is after
/// its driver's files are closed; at the latest after this time, as it may only have hung up.
const DEPARTED_NS: u64 = 2_000_000_000;
/// How long the tenants of an earlier daemon have to bring their pages back before others get
/// new ones: twice the shim's longest back-off.
const RETURN_NS: u64 = 2_000_000_000;

/// A claim that takes part.
pub(crate) struct Claim {
    pub(crate) key: ClaimKey,
    pub(crate) arming: Arming,
    /// Of its devices, in the order of the page.
    pub(crate) devices: Vec<DeviceKey>,
    pub(crate) folder: Folder,
    pub(crate) processes: BTreeMap<usize, Process>,
    pub(crate) newcomers: BTreeMap<usize, Newcomer>,
    pub(crate) departed: BTreeMap<usize, Departed>,
    pub(crate) measured: Measured,
    pub(crate) stuck: u64,
    /// What was seen of it last.
    pub(crate) seen: Seen,
    ledger: Option<Ledger>,
    incarnation: u64,
    epoch: u32,
    registrations: Allowance,
    /// Tenants of an earlier daemon may come back until then.
    returns_until_ns: Option<u64>,
    /// Counters that a process left half changed.
    is_inexact: bool,
}

/// A connection that has not said who it is.
pub(crate) struct Newcomer {
    pub(crate) connection: UnixStream,
    since_ns: u64,
}

/// A process that has hung up, or has not come back to this daemon yet, and whose bytes are not
/// given back.
pub(crate) struct Departed {
    pub(crate) peer: Peer,
    /// When it hung up. Who was there before this daemon may take its time: it holds its row for
    /// as long as it lives.
    since_ns: Option<u64>,
}

struct Ledger {
    page: Mapping<LedgerPage>,
    fd: OwnedFd,
}

/// Memory of a claim on one device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) used: u64,
    pub(crate) peak: u64,
    pub(crate) denied: u64,
}

impl Claim {
    /// Makes the claim's folder and writes what it may hold. Its gates are closed until a
    /// process registers; what an earlier daemon left stays open, since its tenants run.
    pub(crate) fn new(
        folder: PathBuf,
        key: ClaimKey,
        arming: Arming,
        devices: Vec<DeviceKey>,
        incarnation: u64,
    ) -> io::Result<Self> {
        let now = now_ns();
        let folder = Folder::open(folder)?;
        let control = &*folder.control;
        let hash = claim_hash(arming.claim.as_str().as_bytes());
        let inherits = control.magic.load(Ordering::Relaxed) == MAGIC
            && control.layout_hash.load(Ordering::Relaxed) == LAYOUT_HASH
            && control.claim_hash.load(Ordering::Relaxed) == hash;
        let grants = control.devices.iter().map(|device| device.grant.read().epoch());
        let epoch = if inherits { grants.max().unwrap_or(0) } else { 0 };
        let mut claim = Self {
            key,
            arming,
            devices,
            processes: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            departed: BTreeMap::new(),
            measured: Measured::default(),
            stuck: 0,
            seen: Seen::default(),
            ledger: None,
            incarnation,
            epoch,
            registrations: Allowance::new(REGISTRATIONS, now),
            returns_until_ns: inherits.then_some(now.saturating_add(RETURN_NS)),
            is_inexact: false,
            folder,
        };
        claim.write_limits();
        let control = &*claim.folder.control;
        control.claim_hash.store(hash, Ordering::Relaxed);
        control.incarnation.store(incarnation, Ordering::Relaxed);
        control.asleep.store(1, Ordering::Relaxed);
        control.heartbeat_ns.store(now, Ordering::Relaxed);
        control.layout_hash.store(LAYOUT_HASH, Ordering::Relaxed);
        control.magic.store(MAGIC, Ordering::Release);
        if inherits {
            claim.open(Grant::FAIL_OPEN, 0);
            claim.take_over_rows();
        }
        Ok(claim)
    }

    /// Keeps the rows of an earlier daemon's processes that live, stopped ones too, and finds
    /// what they hold.
    fn take_over_rows(&mut self) {
        for (index, peer) in rows::read(self.folder.path()) {
            if self.ledger.is_none() {
                rows::ledgers(&peer).any(|ledger| self.adopt(ledger));
            }
            self.departed.insert(index, Departed { peer, since_ns: None });
        }
    }

    /// Writes down whose rows are taken.
    fn keep_rows(&self) {
        let processes = self.processes.iter().map(|(index, process)| (*index, &process.peer));
        let departed = self.departed.iter().map(|(index, departed)| (*index, &departed.peer));
        if let Err(error) = rows::write(self.folder.path(), processes.chain(departed)) {
            let claim = &self.arming.claim;
            warn!(%claim, %error, "after a restart, who comes back late will not be known");
        }
    }

    /// Takes over other terms, as a repeated call may bring. The devices stay.
    pub(crate) fn rearm(&mut self, arming: Arming) {
        self.arming = arming;
        self.write_limits();
    }

    fn write_limits(&self) {
        let control = self.control();
        for (index, device) in self.arming.devices.iter().enumerate().take(DEVICES_MAX) {
            let limit = &control.limits[index];
            // Checked when the claim was armed.
            limit.uuid.set(uuid_bytes(&device.uuid).unwrap_or_default());
            limit.quota_bytes.store(device.quota.bytes(), Ordering::Relaxed);
            limit.reserve_bytes.store(device.reserve.bytes(), Ordering::Relaxed);
            control.devices[index].weight.store(self.arming.weight.value(), Ordering::Relaxed);
            control.devices[index].closes.fetch_max(1, Ordering::Relaxed);
        }
        // A limit of nothing is a byte, of which no page can be had: 0 says that there is none.
        let host = self.arming.host.map_or(0, |most| most.bytes().max(1));
        control.host_bytes.store(host, Ordering::Relaxed);
        let len = u32::try_from(self.arming.devices.len().min(DEVICES_MAX)).unwrap_or_default();
        control.devices_len.store(len, Ordering::Release);
    }

    pub(crate) fn control(&self) -> &ControlPage {
        &self.folder.control
    }

    // ---- turns

    fn open(&mut self, flags: u64, deadline_ns: u64) {
        self.epoch = self.epoch.wrapping_add(1);
        let grant = Grant::new(self.epoch, flags);
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.hint_ns.store(0, Ordering::Relaxed);
            device.open(grant, deadline_ns);
        }
    }

    pub(crate) fn grant(&mut self, access: Access, deadline_ns: Option<u64>) {
        let flags = match access {
            Access::Open => Grant::OPEN,
            Access::Exclusive => Grant::EXCLUSIVE,
        };
        self.open(flags, deadline_ns.unwrap_or(0));
    }

    /// It is drained and stays off: its programs see why they wait.
    pub(crate) fn park(&mut self) {
        self.open(Grant::PARK, 0);
    }

    pub(crate) fn extend(&self, deadline_ns: Option<u64>) {
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.renew(deadline_ns.unwrap_or(0));
        }
    }

    pub(crate) fn close(&self) {
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.close();
        }
    }

    pub(crate) fn bound(&self, bound_us: Option<u32>) {
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.window_us.store(bound_us.unwrap_or(0), Ordering::Relaxed);
        }
    }

    pub(crate) fn expect(&self, at_ns: u64) {
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.hint_ns.store(at_ns, Ordering::Relaxed);
        }
    }

    /// The claim is over: no gate opens again and no byte is granted.
    pub(crate) fn revoke(&self) {
        for device in self.control().devices.iter().take(self.devices.len()) {
            device.revoke();
        }
    }

    /// Looks at its processes, once at each value they write.
    pub(crate) fn look(&mut self) -> Seen {
        let mut seen = Seen::default();
        for process in self.processes.values() {
            process.look(self.devices.len(), self.epoch, &mut seen);
        }
        self.seen = seen;
        seen
    }

    /// Whether a thread waits that was not seen waiting: it signals only while this sleeps.
    pub(crate) fn is_called(&self) -> bool {
        let mut heard = self.processes.values().filter(|process| !process.is_muted);
        !self.seen.waiting && heard.any(|process| process.is_waiting(self.devices.len()))
    }

    // ---- processes

    /// Takes a connection in, or drops it if there are too many that say nothing.
    pub(crate) fn welcome_newcomer(
        &mut self,
        connection: UnixStream,
        now_ns: u64,
    ) -> Option<usize> {
        let index = (0..NEWCOMERS_MAX).find(|index| !self.newcomers.contains_key(index))?;
        self.newcomers.insert(index, Newcomer { connection, since_ns: now_ns });
        Some(index)
    }

    /// Registers a process that said hello, and answers it. Gives its row.
    pub(crate) fn register(
        &mut self,
        connection: UnixStream,
        hello: &Hello,
        descriptors: Vec<OwnedFd>,
        is_member: impl FnOnce(i32) -> bool,
        now_ns: u64,
    ) -> Option<usize> {
        match self.try_register(&connection, hello, descriptors, is_member, now_ns) {
            Ok((index, peer, page, new_page)) => {
                let process = Process::new(peer, connection, page, now_ns).ok()?;
                let welcome = Welcome {
                    incarnation: self.incarnation,
                    // Read after the hello came: the process compares it with its own clock.
                    monotonic_ns: accelpool_shim::sys::now_ns(),
                    claim_hash: claim_hash(self.arming.claim.as_str().as_bytes()),
                    // A row is one of a few.
                    process_index: u32::try_from(index).unwrap_or_default(),
                    keeps_pages: new_page.is_none(),
                };
                let mut numbers = Vec::new();
                if let Some(new_page) = &new_page {
                    // There is a ledger since this process was given a page.
                    numbers.push(self.ledger.as_ref()?.fd.as_raw_fd());
                    numbers.push(new_page.as_raw_fd());
                }
                numbers.push(process.eventfd_number());
                sys::send(&process.connection, &Record::Welcome(welcome), &numbers).ok()?;
                self.processes.insert(index, process);
                self.keep_rows();
                Some(index)
            }
            Err(refusal) => {
                let _ = sys::send(&connection, &Record::Refused(refusal), &[]);
                None
            }
        }
    }

    fn try_register(
        &mut self,
        connection: &UnixStream,
        hello: &Hello,
        descriptors: Vec<OwnedFd>,
        is_member: impl FnOnce(i32) -> bool,
        now_ns: u64,
    ) -> Result<(usize, Peer, Mapping<accelpool_shim::layout::ProcessPage>, Option<OwnedFd>), Refusal>
    {
        if !self.registrations.take(now_ns) {
            return Err(Refusal::TooFast);
        }
        if hello.layout_hash != LAYOUT_HASH {
            return Err(Refusal::Layout);
        }
        let peer = sys::peer(connection).map_err(|_| Refusal::Stranger)?;
        if !is_member(peer.pid) {
            return Err(Refusal::Stranger);
        }
        if let Some(returns) = &hello.returns {
            let index = usize::try_from(returns.process_index).map_err(|_| Refusal::Pages)?;
            let free = index < PROCESSES_MAX && !self.processes.contains_key(&index);
            let pages: [OwnedFd; HELLO_DESCRIPTORS] =
                descriptors.try_into().map_err(|_| Refusal::Pages)?;
            let [ledger, process] = pages;
            // A row is still its own if it hung up a moment ago.
            let own = self.departed.get(&index).is_none_or(|row| row.peer.pid == peer.pid);
            let page = Process::returned_page(&process).ok_or(Refusal::Pages)?;
            if !free || !own || !self.adopt(ledger) {
                return Err(Refusal::Pages);
            }
            self.departed.remove(&index);
            return Ok((index, peer, page, None));
        }
        if self.ledger.is_none() {
            if self.returns_until_ns.is_some() {
                return Err(Refusal::TooFast);
            }
            self.ledger = Some(self.new_ledger().map_err(|_| Refusal::TooFast)?);
        }
        let index = (0..PROCESSES_MAX)
            .find(|row| !self.processes.contains_key(row) && !self.departed.contains_key(row))
            .ok_or(Refusal::TooMany)?;
        let (page, fd) = Process::new_page().map_err(|_| Refusal::TooFast)?;
        Ok((index, peer, page, Some(fd)))
    }

    fn new_ledger(&self) -> io::Result<Ledger> {
        let (page, fd) = Mapping::<LedgerPage>::sealed(c"accelpool-ledger")?;
        let hash = claim_hash(self.arming.claim.as_str().as_bytes());
        page.claim_hash.store(hash, Ordering::Relaxed);
        page.layout_hash.store(LAYOUT_HASH, Ordering::Relaxed);
        page.magic.store(MAGIC, Ordering::Relaxed);
        Ok(Ledger { page, fd })
    }

    /// Takes a ledger page that a process brings back: the first one of this claim, and then
    /// only the same one. The page is the tenant's to write, so it can lie of itself alone.
    fn adopt(&mut self, fd: OwnedFd) -> bool {
        if let Some(ledger) = &self.ledger {
            let same = |a: &OwnedFd, b: &OwnedFd| -> nix::Result<bool> {
                let (a, b) = (fstat(a)?, fstat(b)?);
                Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
            };
            return same(&ledger.fd, &fd).unwrap_or(false);
        }
        let Ok(page) = Mapping::<LedgerPage>::of_sealed(fd.as_raw_fd()) else { return false };
        let hash = claim_hash(self.arming.claim.as_str().as_bytes());
        let sound = page.magic.load(Ordering::Relaxed) == MAGIC
            && page.layout_hash.load(Ordering::Relaxed) == LAYOUT_HASH
            && page.claim_hash.load(Ordering::Relaxed) == hash;
        if sound {
            self.ledger = Some(Ledger { page, fd });
        }
        sound
    }

    /// A process has hung up: its turn is over now, its bytes come back when it has ended.
    pub(crate) fn depart(&mut self, index: usize, now_ns: u64) {
        if let Some(process) = self.processes.remove(&index) {
            let since_ns = Some(now_ns);
            self.departed.insert(index, Departed { peer: process.peer, since_ns });
        }
        if self.processes.is_empty() {
            self.close();
        }
    }

    /// Gives back what a process held that has ended.
    pub(crate) fn end(&mut self, index: usize) {
        if self.departed.remove(&index).is_none() {
            return;
        }
        if let Some(ledger) = &self.ledger {
            self.is_inexact |= !ledger.page.end(index).is_exact;
        }
        self.keep_rows();
    }

    /// What is due every heartbeat.
    pub(crate) fn beat(&mut self, now_ns: u64) {
        self.control().heartbeat_ns.store(now_ns, Ordering::Relaxed);
        let late = |since_ns: u64, most_ns| now_ns.saturating_sub(since_ns) > most_ns;
        self.newcomers.retain(|_, newcomer| !late(newcomer.since_ns, NEWCOMER_NS));
        let ended: Vec<usize> = self
            .departed
            .iter()
            .filter(|(_, departed)| departed.since_ns.is_some_and(|at| late(at, DEPARTED_NS)))
            .map(|(index, _)| *index)
            .collect();
        for index in ended {
            self.end(index);
        }
        if self.returns_until_ns.is_some_and(|until| now_ns > until) {
            self.returns_until_ns = None;
            self.end_lost();
        }
        self.correct();
    }

    /// Rows of processes that an earlier daemon knew and that did not come back.
    fn end_lost(&mut self) {
        let Some(ledger) = &self.ledger else { return };
        for index in 0..PROCESSES_MAX {
            let known = self.processes.contains_key(&index) || self.departed.contains_key(&index);
            if !known {
                self.is_inexact |= !ledger.page.end(index).is_exact;
            }
        }
    }

    fn correct(&mut self) {
        if !self.is_inexact {
            return;
        }
        let Some(ledger) = &self.ledger else { return };
        let live =
            |row: usize| self.processes.contains_key(&row) || self.departed.contains_key(&row);
        let done =
            (0..self.devices.len()).all(|device| ledger.page.reconcile(device, live).is_some());
        self.is_inexact = !done || ledger.page.reconcile_host(live).is_none();
    }

    // ---- telling

    pub(crate) fn memory(&self, device: usize) -> Memory {
        let Some(ledger) = &self.ledger else { return Memory::default() };
        let Some(LedgerDevice { used, peak, denied, .. }) = ledger.page.devices.get(device) else {
            return Memory::default();
        };
        Memory {
            used: used.load(Ordering::Relaxed),
            peak: peak.load(Ordering::Relaxed),
            denied: denied.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn quota(&self, device: usize) -> MemoryBytes {
        self.arming.devices.get(device).map_or(MemoryBytes::ZERO, |device| device.quota)
    }

    pub(crate) fn unclassified(&self) -> u64 {
        self.processes.values().fold(0, |sum, it| sum.saturating_add(it.unclassified()))
    }

    pub(crate) fn process_ids(&self) -> Vec<i32> {
        self.processes.values().map(|process| process.peer.pid).collect()
    }
}
