//! The end of the log that grows.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tracing::{error, info};

use super::{Entry, MESSAGE_CHARS_MAX, ORIGIN, PAGE, Record, check};
use crate::node::now_ms;

/// How long records wait for others before they are brought to the disk.
const SYNC_LAG: Duration = Duration::from_millis(100);

/// How large the log may grow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A file that has reached this is followed by the next.
    pub file_bytes: u64,
    /// The files kept; the oldest goes.
    pub files: usize,
}

impl Default for Limits {
    /// 64 MiB: some 150,000 records, months of a busy node.
    fn default() -> Self {
        Self { file_bytes: 8 << 20, files: 8 }
    }
}

/// The log, open at its end. One process has it: the one that holds the ledger.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    limits: Limits,
    pub(super) file: Arc<File>,
    /// The length of what is whole; after a write that failed there may be more.
    len: u64,
    broken: bool,
    lost: u64,
    n: u64,
    hash: String,
    files: VecDeque<(u64, PathBuf)>,
    head: Arc<File>,
    syncing: Arc<Syncing>,
}

/// What is to be brought to the disk: always the latest alone.
#[derive(Debug, Default)]
struct Wanted {
    /// The file, and what `head` says then.
    work: Option<(Arc<File>, String)>,
    closed: bool,
}

/// Between the owner and the thread that syncs.
#[derive(Debug, Default)]
struct Syncing {
    wanted: Mutex<Wanted>,
    woken: Condvar,
}

impl Log {
    /// Opens the log in `dir`. A last line that a crash tore is cut off, and what is damaged is
    /// left as it is; either is said by the next record.
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let head = Arc::new(options.open(dir.join("head"))?);
        let mut end = Ending::read(dir, limits)?;
        end.compare(&head, &check::head(dir)?)?;
        let (file, len) = end.continue_in(dir)?;
        File::open(dir)?.sync_all()?;
        let syncing = Arc::new(Syncing::default());
        let mut log = Self {
            dir: dir.to_owned(),
            limits,
            file: Arc::new(file),
            len,
            broken: false,
            lost: 0,
            n: end.n,
            hash: end.hash,
            files: end.files,
            head: Arc::clone(&head),
            syncing: Arc::clone(&syncing),
        };
        thread::Builder::new().name("audit".to_owned()).spawn(move || syncing.run(&head))?;
        log.write(end.found.into_iter().map(|(kind, message)| own(kind, message)).collect())?;
        Ok(log)
    }

    /// Writes records in order. What cannot be written is counted, and said by a record as soon
    /// as there is room again: a full disk takes no claim down.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let count = entries.len() as u64;
        let mut all = Vec::with_capacity(entries.len() + 1);
        if self.lost > 0 {
            let message = format!("{} records could not be written before this one", self.lost);
            all.push(own("lost", message));
        }
        all.extend(entries);
        match self.write(all) {
            Ok(()) if self.lost > 0 => {
                info!(lost = self.lost, "the audit log is written again");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    error!(%error, code = PAGE, "the audit log cannot be written: records are lost");
                }
                self.lost += count;
            }
        }
    }

    fn write(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.broken {
            self.file.set_len(self.len)?;
            self.broken = false;
        }
        let (mut n, mut hash, mut text) = (self.n, self.hash.clone(), String::new());
        for mut entry in entries {
            if let Some((end, _)) = entry.message.char_indices().nth(MESSAGE_CHARS_MAX) {
                entry.message.truncate(end);
            }
            n += 1;
            let record = Record { n, previous: hash, entry };
            let (line, next) = record.to_line()?;
            text.push_str(&line);
            text.push('\n');
            hash = next;
        }
        if let Err(error) = (&*self.file).write_all(text.as_bytes()) {
            // Part of it may stand there.
            self.broken = self.file.set_len(self.len).is_err();
            return Err(error);
        }
        self.len += text.len() as u64;
        (self.n, self.hash) = (n, hash);
        if self.len >= self.limits.file_bytes {
            // The records are written: what fails here is tried again with the next.
            if let Err(error) = self.rotate() {
                error!(%error, code = PAGE, "the audit log cannot begin its next file");
            }
        }
        self.syncing.want(Arc::clone(&self.file), mark(self.n, &self.hash));
        Ok(())
    }

    /// Begins the next file, whose first record carries the chain on.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let path = name(&self.dir, self.n + 1);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        self.files.push_back((self.n + 1, path));
        (self.file, self.len) = (Arc::new(file), 0);
        if self.files.len() > self.limits.files {
            // Said before it is done: verify knows by it that nobody else took the file away.
            let keep = self.files.len() - self.limits.files;
            let through = self.files.get(keep).map_or(0, |(first, _)| first - 1);
            let message = format!("records up to {through} are removed: the log is full");
            self.write(vec![own("rotated", message)])?;
            self.file.sync_data()?;
            for (_, path) in self.files.drain(..keep) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Brings everything to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.head.write_all_at(mark(self.n, &self.hash).as_bytes(), 0)
    }
}

/// Where a log stands that somebody left: what is gone on from, and what is to be said of it.
#[derive(Debug)]
struct Ending {
    /// The last whole record, and its hash.
    n: u64,
    hash: String,
    files: VecDeque<(u64, PathBuf)>,
    /// The length of what is whole in the last file.
    len: u64,
    /// Nothing in the last file is spoiled before its end.
    whole: bool,
    /// Records about the log itself, by kind.
    found: Vec<(&'static str, String)>,
}

impl Ending {
    /// Finds the last record. What a crash left unfinished after it is cut off.
    fn read(dir: &Path, limits: Limits) -> io::Result<Self> {
        let files: VecDeque<(u64, PathBuf)> = check::files(dir)?.into();
        let (n, hash, found) = (0, ORIGIN.to_owned(), Vec::new());
        let mut ending = Self { n, hash, files, len: 0, whole: true, found };
        for index in (0..ending.files.len()).rev() {
            let path = ending.files[index].1.clone();
            let end = check::end(&path, limits.file_bytes)?;
            if let Some(last) = &end.hash {
                (ending.n, ending.hash) = (end.n, last.clone());
            }
            if index + 1 == ending.files.len() {
                ending.take_last(&path, &end)?;
            }
            // A file that was just begun has no record yet: the chain ends in the one before.
            if ending.n > 0 {
                break;
            }
        }
        Ok(ending)
    }

    fn take_last(&mut self, path: &Path, end: &check::End) -> io::Result<()> {
        (self.len, self.whole) = (end.len, end.whole);
        if !end.whole {
            let path = path.display();
            let message =
                format!("`{path}` has records that are not whole: see `accelpool audit verify`");
            self.found.push(("damaged", message));
        } else if end.torn > 0 {
            OpenOptions::new().write(true).open(path)?.set_len(end.len)?;
            let message = format!("{} bytes of an unfinished record were cut off", end.torn);
            self.found.push(("torn", message));
        }
        Ok(())
    }

    /// Compares with how far the log had come on disk. Missing numbers are not given again.
    fn compare(&mut self, file: &File, head: &check::Head) -> io::Result<()> {
        let damage = match head {
            check::Head::None if self.n == 0 => {
                return file.write_all_at(mark(0, ORIGIN).as_bytes(), 0);
            }
            check::Head::None => "the file `head` is missing or empty".to_owned(),
            check::Head::Bad => "the file `head` cannot be read".to_owned(),
            check::Head::At(at, _) if *at > self.n => {
                let first = std::mem::replace(&mut self.n, *at) + 1;
                format!("records {first} to {at} are missing at the end")
            }
            check::Head::At(..) => return Ok(()),
        };
        self.found.push(("damaged", damage));
        Ok(())
    }

    /// Opens the file that grows, with its length: the last one, or a new one after a spoiled one.
    fn continue_in(&mut self, dir: &Path) -> io::Result<(File, u64)> {
        if self.files.is_empty() || !self.whole {
            let path = name(dir, self.n + 1);
            // The name of a file that has no whole record yet may be taken by it.
            self.files.retain(|(_, other)| *other != path);
            self.files.push_back((self.n + 1, path));
            self.len = 0;
        }
        let path = self.files.back().map(|(_, path)| path.clone()).unwrap_or_default();
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(&path)?;
        let len = if self.whole { self.len } else { file.metadata()?.len() };
        Ok((file, len))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let mut wanted = self.syncing.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.closed = true;
        drop(wanted);
        self.syncing.woken.notify_one();
    }
}

impl Syncing {
    fn want(&self, file: Arc<File>, mark: String) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).work = Some((file, mark));
        self.woken.notify_one();
    }

    /// Syncs whatever is the latest, until the log is dropped.
    fn run(&self, head: &File) {
        loop {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let (file, mark) = loop {
                match (wanted.work.take(), wanted.closed) {
                    (Some(work), _) => break work,
                    (None, true) => return,
                    (None, false) => {}
                }
                wanted = self.woken.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            };
            // Records that come soon share the sync, and it does not stand beside the commit of
            // the step that these are about.
            if !wanted.closed {
                let lag = self.woken.wait_timeout_while(wanted, SYNC_LAG, |it| !it.closed);
                wanted = lag.unwrap_or_else(PoisonError::into_inner).0;
            }
            let (file, mark) = wanted.work.take().unwrap_or((file, mark));
            drop(wanted);
            // Records first: the head never says more than the disk has.
            let synced = file.sync_data().and_then(|()| head.write_all_at(mark.as_bytes(), 0));
            if let Err(error) = synced {
                error!(%error, code = PAGE, "the audit log cannot be brought to the disk");
            }
        }
    }
}

/// What the log says of itself.
fn own(kind: &str, message: String) -> Entry {
    Entry { at_ms: now_ms(), kind: kind.to_owned(), message, ..Entry::default() }
}

/// What `head` holds: always of the same length, so that it is overwritten in one piece.
fn mark(n: u64, hash: &str) -> String {
    format!("{n:020} {hash}\n")
}

fn name(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("audit-{first:020}.log"))
}
