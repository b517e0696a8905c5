//! Registers with the daemon of a claim, and again when that comes back.
//!
//! The states are `accelpool_shim::client`'s; here is what they do. A daemon that is away or
//! slow costs the program one short wait at its start, and nothing later.

use core::sync::atomic::Ordering;

use accelpool_shim::{
    SOCKET_FILE,
    client::{Client, Event, State, clock_offset_ns},
    layout::{LAYOUT_HASH, LedgerPage, ProcessPage},
    mapping::{Access, Mapping},
    socket::{Connection, Received},
    sys::{self, Errno, Open},
    wire::{Hello, Hint, Record, Returns, Welcome, What},
};

use crate::{
    device, lookup,
    process::{Claim, Path},
    surface,
};

/// An answer takes the daemon some microseconds; a program does not wait longer at its start.
const ANSWER_NS: u64 = 500_000_000;

/// How often a connection is looked at that nothing is expected of.
const REST_NS: u64 = 200_000_000;

/// What was said of a process last.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Said {
    unclassified: u64,
    not_expected: u64,
}

/// The registration of the process in one claim.
pub(crate) struct Registration {
    folder: Path,
    client: Client,
    connection: Option<Connection>,
    /// The descriptors of the ledger page and of the process page, to return with.
    pages: Option<[i32; 2]>,
    said: Said,
}

/// Registers for the first time, and waits for it a moment.
pub(crate) fn start(claim: &'static Claim) {
    let mut registration = claim.registration.lock();
    if registration.client.step(sys::now_ns(), Event::Needed) == State::Connecting {
        registration.try_once(claim);
    }
}

/// Sees to the registration; gives the time after which to look again.
pub(crate) fn look(claim: &'static Claim) -> u64 {
    let Some(mut registration) = claim.registration.try_lock() else { return REST_NS };
    let now_ns = sys::now_ns();
    if matches!(registration.client.state(), State::Registered { .. }) {
        registration.look_at_connection(now_ns);
        registration.say_news(claim);
    }
    if registration.client.step(now_ns, Event::Tick) == State::Connecting {
        registration.try_once(claim);
    }
    match registration.client.state() {
        State::Waiting { until_ns } => until_ns.saturating_sub(sys::now_ns()),
        State::Fresh | State::Connecting | State::Registered { .. } | State::Refused(_) => REST_NS,
    }
}

impl Registration {
    pub(crate) const fn new() -> Self {
        Self {
            folder: Path::EMPTY,
            client: Client::new(),
            connection: None,
            pages: None,
            said: Said { unclassified: 0, not_expected: 0 },
        }
    }

    pub(crate) fn set_folder(&mut self, folder: &Path) {
        self.folder = *folder;
    }

    /// In the child of a fork: closes the copies of the parent's descriptors.
    pub(crate) fn forget(&mut self) {
        self.connection = None;
        for fd in self.pages.take().into_iter().flatten() {
            sys::close(fd);
        }
        self.client.step(0, Event::Forked);
        self.said = Said::default();
    }

    fn try_once(&mut self, claim: &'static Claim) {
        let event = match self.ask(claim) {
            Ok(event) => event,
            Err(Errno(_)) => Event::Failed,
        };
        if !matches!(event, Event::Welcomed(_)) {
            self.connection = None;
        }
        self.client.step(sys::now_ns(), event);
        if matches!(event, Event::Welcomed(_)) {
            device::all().for_each(|device| device.register(claim));
        }
    }

    /// One exchange of records.
    fn ask(&mut self, claim: &'static Claim) -> Result<Event, Errno> {
        self.map_control_again(claim);
        let connection = Connection::connect(self.folder.with_nul(), SOCKET_FILE)?;
        let returns = self.client.welcomed().filter(|_| self.pages.is_some());
        let returns =
            returns.map(|(incarnation, process_index)| Returns { incarnation, process_index });
        let asked_ns = sys::now_ns();
        let hello = Record::Hello(Hello {
            layout_hash: LAYOUT_HASH,
            shim_version: shim_version(),
            api_version: api_version(),
            process_id: sys::process_id(),
            monotonic_ns: asked_ns,
            returns,
        });
        connection.send(&hello, self.pages.filter(|_| returns.is_some()))?;
        let Received { record, mut descriptors } = connection.receive(ANSWER_NS)?;
        match record {
            Record::Welcome(welcome) => {
                let offset_ns = clock_offset_ns(asked_ns, welcome.monotonic_ns, sys::now_ns());
                let eventfd = descriptors.pop().ok_or(Errno::INVALID)?;
                claim.take_welcome(welcome.process_index, eventfd, offset_ns);
                if !welcome.keeps_pages {
                    let process = descriptors.pop().ok_or(Errno::INVALID)?;
                    let ledger = descriptors.pop();
                    self.take_pages(claim, ledger, process)?;
                }
                claim.sign_row();
                self.connection = Some(connection);
                self.said = Said::default();
                Ok(Event::Welcomed(Welcome { ..welcome }))
            }
            Record::Refused(refusal) => Ok(Event::Refused(refusal)),
            Record::Hello(_) | Record::Hint(_) => Err(Errno::INVALID),
        }
    }

    fn take_pages(
        &mut self,
        claim: &'static Claim,
        ledger: Option<i32>,
        process: i32,
    ) -> Result<(), Errno> {
        let Some(ledger) = ledger else {
            sys::close(process);
            return Err(Errno::INVALID);
        };
        let old = self.pages.replace([ledger, process]);
        for fd in old.into_iter().flatten() {
            sys::close(fd);
        }
        let ledger = Mapping::<LedgerPage>::of_sealed(ledger)?;
        let process = Mapping::<ProcessPage>::of_sealed(process)?;
        if process.layout_hash.load(Ordering::Relaxed) != LAYOUT_HASH {
            return Err(Errno::INVALID);
        }
        claim.take_pages(ledger, process);
        Ok(())
    }

    /// A daemon that has begun anew may have made the control page anew too.
    fn map_control_again(&self, claim: &'static Claim) {
        let (Some(page), Some(path)) = (claim.control(), self.folder.control_file()) else {
            return;
        };
        if self.client.welcomed().is_none() {
            return;
        }
        if let Ok(fd) = sys::open(path.with_nul(), Open::Read) {
            // Where that fails the old page stays, whose heartbeat stands still.
            let _ = Mapping::replace(page, fd, Access::Read);
            sys::close(fd);
        }
    }

    /// Nothing comes from a daemon that is well: what can be read is the end.
    fn look_at_connection(&mut self, now_ns: u64) {
        let is_well = match &self.connection {
            Some(connection) => connection.receive(0).is_err_and(|errno| errno == Errno::AGAIN),
            None => false,
        };
        if !is_well {
            self.connection = None;
            self.client.step(now_ns, Event::HungUp);
        }
    }

    /// Reports what no page says, when it has changed.
    fn say_news(&mut self, claim: &'static Claim) {
        let news = Said {
            unclassified: lookup::UNCLASSIFIED.load(Ordering::Relaxed),
            not_expected: lookup::NOT_EXPECTED.load(Ordering::Relaxed),
        };
        let Some(connection) = &self.connection else { return };
        if news == self.said {
            return;
        }
        if let Some(page) = claim.process() {
            page.unclassified.store(news.unclassified, Ordering::Relaxed);
        }
        let all = [
            (What::Unclassified, news.unclassified, self.said.unclassified),
            (What::NotWrapped, news.not_expected, self.said.not_expected),
        ];
        for (what, value, _) in all.into_iter().filter(|(_, value, said)| value != said) {
            // One that does not arrive is said again after the next change.
            let _ = connection.send(&Record::Hint(Hint { what, device: 0, value }), None);
        }
        self.said = news;
    }
}

/// Of the crate: a byte each for major, minor and patch.
fn shim_version() -> u32 {
    const fn number(text: &str) -> u32 {
        let (mut value, mut index) = (0, 0);
        while index < text.len() {
            value = value * 10 + (text.as_bytes()[index] - b'0') as u32;
            index += 1;
        }
        value
    }
    const VERSION: u32 = {
        let major = option_env!("CARGO_PKG_VERSION_MAJOR");
        let minor = option_env!("CARGO_PKG_VERSION_MINOR");
        let patch = option_env!("CARGO_PKG_VERSION_PATCH");
        match (major, minor, patch) {
            (Some(major), Some(minor), Some(patch)) => {
                number(major) << 16 | number(minor) << 8 | number(patch)
            }
            _ => 0,
        }
    };
    VERSION
}

#[expect(unsafe_code, reason = "asks the driver")]
fn api_version() -> u32 {
    let mut version = 0_i32;
    // SAFETY: the version is written.
    unsafe { surface::cuDriverGetVersion((&raw mut version).cast()) };
    u32::try_from(version).unwrap_or_default()
}
