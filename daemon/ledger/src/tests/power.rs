//! Power lost, or the daemon killed, at any moment: what was acknowledged is there.
//!
//! A disk that keeps a log is cut off at every point of it. Of what was written since the
//! last sync any part survives, sector by sector, in any combination.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use super::{boot, lease, put_taints, remove, taint};
use crate::{
    Ledger, Replayed, Write,
    ledger::image,
    store::Contents,
    verify::{self, MemoryDisk},
    verify_bytes,
};

const SECTOR_LEN: usize = 512;

#[derive(Debug, Clone)]
enum Entry {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// The ledger has promised everything up to here: number of states so far.
    Promised(usize),
}

/// A disk that logs what is done to it.
#[derive(Debug)]
struct LoggedDisk {
    now: MemoryDisk,
    log: Mutex<Vec<Entry>>,
}

impl LoggedDisk {
    fn new(bytes: &[u8]) -> Arc<Self> {
        Arc::new(Self { now: MemoryDisk::new(bytes.to_vec()), log: Mutex::default() })
    }

    fn note(&self, entry: Entry) {
        self.log.lock().expect("no test panics under this lock").push(entry);
    }

    fn log(&self) -> Vec<Entry> {
        self.log.lock().expect("no test panics under this lock").clone()
    }
}

impl StorageBackend for LoggedDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.now.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.now.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.note(Entry::SetLen(len));
        self.now.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.note(Entry::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.note(Entry::Write(offset, data.to_vec()));
        self.now.write(offset, data)
    }
}

/// Splitmix64: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("it is below a usize")
    }
}

/// Which part of the writes since the last sync survives.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// All of it: the daemon was killed, the kernel lives.
    None,
    /// None of it.
    All,
    /// Some sectors of some writes.
    Some(u64),
}

/// The disk after the log ended at `cut`, and how many states were promised by then.
fn after(start: &[u8], log: &[Entry], cut: usize, loss: Loss) -> (Vec<u8>, usize) {
    let log = &log[..cut];
    let is_sync = |entry: &Entry| matches!(entry, Entry::Sync);
    let synced = log.iter().rposition(is_sync).unwrap_or(0);
    let mut numbers = match loss {
        Loss::Some(seed) => Some(Numbers(seed)),
        Loss::None | Loss::All => None,
    };
    let mut bytes = start.to_vec();
    let mut promised = 0;
    for (at, entry) in log.iter().enumerate() {
        let mut survives = || match (&mut numbers, loss) {
            (Some(numbers), _) if at >= synced => numbers.next().is_multiple_of(2),
            (None, Loss::All) => at < synced,
            (Some(_) | None, _) => true,
        };
        match entry {
            Entry::Write(offset, data) => write_sectors(&mut bytes, *offset, data, survives),
            Entry::SetLen(len) if survives() => {
                bytes.resize(usize::try_from(*len).expect("a small file"), 0);
            }
            Entry::SetLen(_) | Entry::Sync => {}
            Entry::Promised(states) => promised = *states,
        }
    }
    (bytes, promised)
}

fn write_sectors(bytes: &mut [u8], offset: u64, data: &[u8], mut survives: impl FnMut() -> bool) {
    let mut at = usize::try_from(offset).expect("a small file");
    let mut data = data;
    while !data.is_empty() {
        let (sector, rest) = data.split_at(data.len().min(SECTOR_LEN - at % SECTOR_LEN));
        // What lies behind the end of a file whose length was lost is lost with it.
        if let Some(place) = bytes.get_mut(at..at + sector.len()).filter(|_| survives()) {
            place.copy_from_slice(sector);
        }
        at += sector.len();
        data = rest;
    }
}

/// One life of the ledger: a start, commits, and perhaps an end in good order.
fn live(
    disk: &Arc<LoggedDisk>,
    bytes: Vec<u8>,
    boot_name: &str,
    commits: &[Vec<Write>],
    states: &mut Vec<Replayed>,
) {
    let contents = verify::contents(bytes).expect("a sound ledger is read");
    let mut promise = || {
        let now = verify_bytes(&disk.now.to_vec()).expect("an open ledger is sound");
        states.push(now);
        disk.note(Entry::Promised(states.len()));
    };
    let ledger = Ledger::start(Arc::clone(disk) as _, &boot(boot_name), &contents)
        .expect("a sound ledger starts");
    promise();
    for writes in commits {
        ledger.commit(writes).expect("a small commit succeeds");
        promise();
    }
}

fn commits(round: u32) -> Vec<Vec<Write>> {
    let put = |claim: &str, number| Write::PutLease(lease(claim, number));
    // Long enough to make the database grow, so that a torn growth is met as well.
    let long = (0..60).map(|number| put(&format!("long-{number}"), number)).collect();
    let shorten = (0..60).map(|number| remove(&format!("long-{number}"))).collect();
    vec![
        vec![put("a", round)],
        vec![put("b", round + 1), put_taints("GPU-1", vec![taint("link", round)])],
        long,
        vec![put("a", round + 2)],
        shorten,
        vec![remove("b"), put_taints("GPU-1", vec![])],
        vec![put("c", round)],
    ]
}

fn empty() -> Vec<u8> {
    let empty = Contents { sequence: 0, boot: None, records: std::collections::BTreeMap::new() };
    image(&empty).expect("an empty ledger can be made")
}

/// Two lives of one ledger: the disk at the start, the log, and the state at each promise.
fn two_lives() -> (Vec<u8>, Vec<Entry>, Vec<Replayed>) {
    let start = empty();
    let disk = LoggedDisk::new(&start);
    let mut states = vec![verify_bytes(&start).expect("an empty ledger is sound")];
    disk.note(Entry::Promised(1));
    live(&disk, start.clone(), "boot-1", &commits(1), &mut states);
    live(&disk, disk.now.to_vec(), "boot-2", &commits(5), &mut states);
    (start, disk.log(), states)
}

/// What was promised is there, and of the commit in hand all or nothing.
#[track_caller]
fn check(states: &[Replayed], promised: usize, bytes: &[u8], what: &str) -> Replayed {
    let found = verify_bytes(bytes).unwrap_or_else(|error| panic!("{what}: refused: {error:?}"));
    let allowed = &states[promised - 1..states.len().min(promised + 1)];
    assert!(allowed.contains(&found), "{what}: {promised} promised, found {found:?}");
    found
}

#[test]
fn nothing_promised_is_lost_wherever_the_power_fails() {
    let (start, log, states) = two_lives();
    let mut in_hand_survived = 0;
    // Before the first promise there is nothing to hold.
    for cut in 1..=log.len() {
        let seeds = (0..3).map(|seed| Loss::Some(seed << 32 | cut as u64));
        for loss in [Loss::None, Loss::All].into_iter().chain(seeds) {
            let (bytes, promised) = after(&start, &log, cut, loss);
            let found = check(&states, promised, &bytes, &format!("cut {cut} {loss:?}"));
            in_hand_survived += usize::from(found != states[promised - 1]);
        }
    }
    // Both kinds of end must have been met, or the losses were not losses.
    assert!(in_hand_survived > 0);
}

#[test]
fn nothing_promised_is_lost_if_the_recovery_is_cut_off_too() {
    let (start, log, states) = two_lives();
    let mut numbers = Numbers(7);
    for round in 0..60 {
        let cut = 1 + numbers.below(log.len());
        let (bytes, promised) = after(&start, &log, cut, Loss::Some(numbers.next()));
        let found = check(&states, promised, &bytes, &format!("round {round}, cut {cut}"));
        let disk = LoggedDisk::new(&bytes);
        let mut later = vec![found];
        disk.note(Entry::Promised(1));
        live(&disk, bytes.clone(), "boot-3", &commits(9)[..1], &mut later);
        let log = disk.log();
        for _ in 0..6 {
            let cut = 1 + numbers.below(log.len());
            let (bytes, promised) = after(&bytes, &log, cut, Loss::Some(numbers.next()));
            check(&later, promised, &bytes, &format!("round {round}, second cut {cut}"));
        }
    }
}
