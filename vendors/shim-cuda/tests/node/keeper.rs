//! The daemon's end of one claim, as small as it can be.

use std::{
    fs::{self, File, OpenOptions},
    io::IoSlice,
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use accelpool_shim::{
    gate::Grant,
    layout::{ControlPage, LAYOUT_HASH, LedgerPage, MAGIC, ProcessPage, claim_hash},
    mapping::Mapping,
    sys,
    wire::{Hello, RECORD_BYTES, Record, Refusal, Welcome},
};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, listen, recvmsg, sendmsg, socket,
};

/// A process that is registered.
pub(crate) struct Process {
    pub(crate) index: u32,
    pub(crate) hello: Hello,
    pub(crate) page: Mapping<ProcessPage>,
    connection: OwnedFd,
}

pub(crate) struct Shared {
    pub(crate) control: Mapping<ControlPage>,
    pub(crate) processes: Mutex<Vec<Process>>,
    pub(crate) hints: Mutex<Vec<Record>>,
    ledger: Mutex<Option<(Mapping<LedgerPage>, OwnedFd)>>,
    refusal: Mutex<Option<Refusal>>,
    stop: AtomicBool,
    beats: AtomicBool,
}

pub(crate) struct Keeper {
    folder: PathBuf,
    incarnation: u64,
    pub(crate) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn new(folder: &Path, uuids: &[[u8; 16]], quota: u64, reserve: u64) -> Self {
        fs::create_dir(folder).unwrap();
        let file = File::create_new(folder.join("ctrl")).unwrap();
        drop(file);
        let mut keeper = Self::start(folder, 1);
        let control = &keeper.shared.control;
        for (limit, uuid) in control.limits.iter().zip(uuids) {
            limit.uuid.set(*uuid);
            limit.quota_bytes.store(quota, Ordering::SeqCst);
            limit.reserve_bytes.store(reserve, Ordering::SeqCst);
        }
        let count = u32::try_from(uuids.len()).unwrap();
        control.devices_len.store(count, Ordering::SeqCst);
        for device in &control.devices {
            device.open(Grant::new(1, Grant::OPEN), 0);
        }
        let made = Mapping::sealed(c"ledger").unwrap();
        *keeper.shared.ledger.lock().unwrap() = Some(made);
        keeper.serve();
        keeper
    }

    fn start(folder: &Path, incarnation: u64) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(folder.join("ctrl")).unwrap();
        let control = Mapping::<ControlPage>::of_own_file(file.as_fd()).unwrap();
        control.magic.store(MAGIC, Ordering::SeqCst);
        control.layout_hash.store(LAYOUT_HASH, Ordering::SeqCst);
        control.claim_hash.store(claim_hash(b"claim"), Ordering::SeqCst);
        control.incarnation.store(incarnation, Ordering::SeqCst);
        let shared = Arc::new(Shared {
            control,
            processes: Mutex::default(),
            hints: Mutex::default(),
            ledger: Mutex::new(None),
            refusal: Mutex::new(None),
            stop: AtomicBool::new(false),
            beats: AtomicBool::new(true),
        });
        Self { folder: folder.to_owned(), incarnation, shared, threads: Vec::new() }
    }

    /// The daemon begins anew on what lies in the folder, without a ledger of its own.
    pub(crate) fn restart(mut self) -> Self {
        self.stop();
        let mut next = Self::start(&self.folder, self.incarnation + 1);
        next.serve();
        next
    }

    /// The daemon is gone; the pages are as they are.
    pub(crate) fn stop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.shared.processes.lock().unwrap().clear();
        let _ = fs::remove_file(self.folder.join("sock"));
    }

    /// From now on each process that comes is refused.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        *self.shared.refusal.lock().unwrap() = Some(refusal);
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn control(&self) -> &ControlPage {
        &self.shared.control
    }

    /// Opens the gate of device 0.
    pub(crate) fn open(&self, epoch: u32, flags: u64) {
        self.control().devices[0].open(Grant::new(epoch, flags), 0);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used_of(0)
    }

    pub(crate) fn used_of(&self, device: usize) -> u64 {
        self.with_ledger(|it| it.devices[device].used.load(Ordering::SeqCst))
    }

    pub(crate) fn with_ledger<T>(&self, read: impl FnOnce(&LedgerPage) -> T) -> T {
        read(&self.shared.ledger.lock().unwrap().as_ref().expect("a ledger").0)
    }

    pub(crate) fn has_ledger(&self) -> bool {
        self.shared.ledger.lock().unwrap().is_some()
    }

    pub(crate) fn registered(&self) -> usize {
        self.shared.processes.lock().unwrap().len()
    }

    /// What the process that came so manieth has submitted to device 0 and completed.
    pub(crate) fn progress(&self, place: usize) -> (u64, u64) {
        self.with_process(place, |it| {
            let progress = &it.page.devices[0];
            (progress.submitted().0, progress.completed.load(Ordering::SeqCst))
        })
    }

    pub(crate) fn with_process<T>(&self, place: usize, read: impl FnOnce(&Process) -> T) -> T {
        read(&self.shared.processes.lock().unwrap()[place])
    }

    fn serve(&mut self) {
        let path = UnixAddr::new(&self.folder.join("sock")).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        bind(listener.as_raw_fd(), &path).unwrap();
        listen(&listener, Backlog::new(64).unwrap()).unwrap();
        let (shared, incarnation) = (Arc::clone(&self.shared), self.incarnation);
        self.threads.push(thread::spawn(move || {
            while !shared.stop.load(Ordering::SeqCst) {
                if shared.beats.load(Ordering::SeqCst) {
                    shared.control.heartbeat_ns.store(sys::now_ns(), Ordering::SeqCst);
                }
                if sys::wait_readable(listener.as_raw_fd(), 2_000_000).unwrap() {
                    shared.accept(listener.as_raw_fd(), incarnation);
                }
                shared.listen_to_all();
            }
        }));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn accept(&self, listener: RawFd, incarnation: u64) {
        let Ok(fd) = accept4(listener, SockFlag::SOCK_CLOEXEC) else { return };
        #[expect(unsafe_code, reason = "nix gives a number")]
        // SAFETY: the kernel has just given it; nothing else owns it.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        let Some((Record::Hello(hello), brought)) = receive(fd) else { return };
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            send(fd, &Record::Refused(refusal), &[]);
            return;
        }
        let mut ledger = self.ledger.lock().unwrap();
        let mut processes = self.processes.lock().unwrap();
        let free = |it: &u32| processes.iter().all(|known| known.index != *it);
        let index = hello.returns.map_or_else(
            || (0..64).find(free).expect("fewer than all numbers are taken"),
            |returns| returns.process_index,
        );
        let (event, _keep) = (eventfd(), ());
        let welcome = |keeps_pages| {
            Record::Welcome(Welcome {
                incarnation,
                monotonic_ns: sys::now_ns(),
                claim_hash: claim_hash(b"claim"),
                process_index: index,
                keeps_pages,
            })
        };
        let page = if let (Some(_), [brought_ledger, process]) = (hello.returns, &brought[..]) {
            if ledger.is_none() {
                let mapped = Mapping::of_sealed(brought_ledger.as_raw_fd()).unwrap();
                *ledger = Some((mapped, brought_ledger.try_clone().unwrap()));
            }
            send(fd, &welcome(true), &[event.as_raw_fd()]);
            Mapping::of_sealed(process.as_raw_fd()).unwrap()
        } else {
            let made = ledger.get_or_insert_with(|| Mapping::sealed(c"ledger").unwrap());
            let (page, page_fd) = Mapping::<ProcessPage>::sealed(c"process").unwrap();
            page.layout_hash.store(LAYOUT_HASH, Ordering::SeqCst);
            let descriptors = [made.1.as_raw_fd(), page_fd.as_raw_fd(), event.as_raw_fd()];
            send(fd, &welcome(false), &descriptors);
            page
        };
        processes.push(Process { index, hello, page, connection });
    }

    /// Takes hints, and forgets who is gone.
    fn listen_to_all(&self) {
        let mut ended = Vec::new();
        self.processes.lock().unwrap().retain(|process| {
            let fd = process.connection.as_raw_fd();
            if !sys::wait_readable(fd, 0).unwrap() {
                return true;
            }
            if let Some((record, _)) = receive(fd) {
                self.hints.lock().unwrap().push(record);
                return true;
            }
            ended.push(process.index);
            false
        });
        let ledger = self.ledger.lock().unwrap();
        for (process, (page, _)) in ended.into_iter().zip(ledger.iter().cycle()) {
            page.end(process as usize);
        }
    }
}

fn receive(fd: RawFd) -> Option<(Record, Vec<OwnedFd>)> {
    if !sys::wait_readable(fd, 5_000_000_000).unwrap() {
        return None;
    }
    let mut bytes = [0; RECORD_BYTES + 1];
    let mut room = nix::cmsg_space!([RawFd; 4]);
    let (len, descriptors) = {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(fd, &mut buffer, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC);
        let message = message.ok()?;
        let mut descriptors = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                #[expect(unsafe_code, reason = "nix gives numbers")]
                // SAFETY: the kernel has just given them; nothing else owns them.
                descriptors.extend(numbers.iter().map(|&it| unsafe { OwnedFd::from_raw_fd(it) }));
            }
        }
        (message.bytes, descriptors)
    };
    Some((Record::decode(&bytes[..len]).ok()?, descriptors))
}

fn send(fd: RawFd, record: &Record, descriptors: &[RawFd]) {
    let bytes = record.encode();
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    // A tenant that is gone does not hear it.
    let _ = sendmsg::<()>(fd, &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None);
}

fn eventfd() -> OwnedFd {
    nix::sys::eventfd::EventFd::new().unwrap().into()
}

/// Time enough for what must not happen to happen.
pub(crate) fn moment() {
    thread::sleep(Duration::from_millis(30));
}
