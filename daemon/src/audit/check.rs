//! Reading the log, on the node or where it was copied to, and finding what was done to it.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{ORIGIN, Record};

/// The longest line that is read: a record's message, labels and devices all have limits.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// More findings than this say nothing new.
const FINDINGS_MAX: usize = 100;

/// What a log holds.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What was done to it, each with its place; nothing, if it is as it was written.
    pub findings: Vec<String>,
    /// What is worth knowing and no fault.
    pub notes: Vec<String>,
    /// The records that are whole.
    pub records: u64,
    /// The number and the hash of the last.
    pub last: Option<(u64, String)>,
}

/// How far the log had come on disk.
#[derive(PartialEq, Eq)]
pub(super) enum Head {
    None,
    Bad,
    At(u64, String),
}

/// The end of one file.
pub(super) struct End {
    pub(super) n: u64,
    pub(super) hash: Option<String>,
    /// Up to the end of the last whole record.
    pub(super) len: u64,
    /// Bytes after it.
    pub(super) torn: u64,
    /// Nothing before a whole record is spoiled.
    pub(super) whole: bool,
}

/// The log's files in a folder, each with the number of its first record, in order.
pub(super) fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".log"));
        if let Some(first) = number.and_then(|number| number.parse().ok()) {
            files.push((first, path));
        }
    }
    files.sort();
    Ok(files)
}

/// How often `head` is read again while the daemon writes it.
const HEAD_READS_MAX: usize = 100;

pub(super) fn head(dir: &Path) -> io::Result<Head> {
    let mut before = head_once(dir)?;
    for _ in 0..HEAD_READS_MAX {
        let again = head_once(dir)?;
        if again == before {
            break;
        }
        before = again; // read while it was written
    }
    Ok(before)
}

fn head_once(dir: &Path) -> io::Result<Head> {
    let mut text = String::new();
    let read =
        File::open(dir.join("head")).and_then(|file| file.take(256).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Head::None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Head::Bad),
        read => read?,
    };
    if text.is_empty() {
        return Ok(Head::None);
    }
    let parsed = text.strip_suffix('\n').and_then(|text| text.split_once(' '));
    Ok(match parsed.map(|(n, hash)| (n.parse(), hash)) {
        Some((Ok(n), hash)) if text.len() == 86 => Head::At(n, hash.to_owned()),
        Some(_) | None => Head::Bad,
    })
}

/// The next line with its end, at most as long as a line may be; empty at the end.
fn line(file: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    file.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn record(line: &[u8]) -> Option<(Record, String)> {
    Record::of_line(line.strip_suffix(b"\n")?)
}

/// Reads a file to its end, as far as files can be long.
pub(super) fn end(path: &Path, file_bytes: u64) -> io::Result<End> {
    // One round may go beyond the limit before the next file begins.
    let mut file = BufReader::new(File::open(path)?.take(file_bytes.saturating_mul(4)));
    let mut end = End { n: 0, hash: None, len: 0, torn: 0, whole: true };
    loop {
        let line = line(&mut file)?;
        if line.is_empty() {
            return Ok(end);
        }
        let bytes = line.len() as u64;
        match record(&line) {
            Some((record, hash)) => {
                end.whole &= end.torn == 0;
                (end.n, end.hash) = (record.n, Some(hash));
                end.len += end.torn + bytes;
                end.torn = 0;
            }
            None => end.torn += bytes,
        }
    }
}

/// Reads the log of a folder, or one file of it, calls `each` with every record that is whole, and
/// says what was done to the log. `expect` is the hash of a record that is known to have been there.
pub fn verify(
    path: &Path,
    expect: Option<&str>,
    mut each: impl FnMut(&Record, &str),
) -> io::Result<Report> {
    let mut report = Report::default();
    let is_folder = fs::metadata(path)?.is_dir();
    // The head first: a daemon that writes meanwhile only makes the log longer.
    let head = if is_folder { head(path)? } else { Head::None };
    let files = if is_folder { files(path)? } else { vec![(0, path.to_owned())] };
    let (mut first, mut removed, mut unread) = (None, 0, 0);
    let (mut met_head, mut met_expected) = (false, false);
    for (index, (_, path)) in files.iter().enumerate() {
        let mut file = BufReader::new(match File::open(path) {
            // The oldest file may go while the others are read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        });
        let mut number = 0_u64;
        loop {
            let line = line(&mut file)?;
            if line.is_empty() {
                break;
            }
            number += 1;
            let place = format!("`{}` line {number}", path.display());
            let Some((record, hash)) = record(&line) else {
                let is_last = index + 1 == files.len() && file.fill_buf()?.is_empty();
                if is_last && !line.ends_with(b"\n") {
                    let words = format!("{place}: {} bytes of an unfinished record", line.len());
                    report.notes.push(words);
                } else {
                    report.find(format!("{place}: edited: it does not match its hash"));
                    unread += 1;
                }
                continue;
            };
            report.follow(&record, &place, unread);
            unread = 0;
            first.get_or_insert(record.n);
            if let Some(through) = removed_through(&record) {
                removed = removed.max(through);
            }
            met_head |= matches!(&head, Head::At(n, at) if *n == record.n && *at == hash);
            met_expected |= expect == Some(hash.as_str());
            each(&record, &hash);
            report.records += 1;
            report.last = Some((record.n, hash));
        }
    }
    let last = report.last.as_ref().map_or(0, |(n, _)| *n);
    match (&head, first) {
        (Head::At(n, _), _) if last < *n => {
            report.find(format!("cut: records {} to {n} are missing at the end", last + 1));
        }
        (Head::At(n, _), _) if *n > 0 && !met_head => {
            report.find(format!("record {n} is not the one that `head` names"));
        }
        (Head::Bad, _) => report.find("`head` was edited: it cannot be read".to_owned()),
        (Head::None, Some(_)) if is_folder => {
            report.notes.push("there is no `head`: a cut end would not be found".to_owned());
        }
        (Head::None | Head::At(..), _) => {}
    }
    if let Some(first) = first.filter(|first| is_folder && *first > 1) {
        if removed + 1 < first {
            report.find(format!(
                "deleted: records {} to {} are missing at the start",
                removed + 1,
                first - 1
            ));
        } else {
            report.notes.push(format!("records up to {} were removed by rotation", first - 1));
        }
    }
    if let Some(hash) = expect.filter(|_| !met_expected) {
        report.find(format!("no record has the hash {hash}"));
    }
    Ok(report)
}

fn removed_through(record: &Record) -> Option<u64> {
    let words = record.entry.message.strip_prefix("records up to ")?;
    let number = words.split(' ').next().filter(|_| record.entry.kind == "rotated")?;
    number.parse().ok()
}

impl Report {
    /// Prints what was found, and the last hash for who keeps it elsewhere.
    pub fn print(&self, json: bool, out: &mut dyn Write) -> io::Result<()> {
        if json {
            return writeln!(out, "{}", serde_json::to_string(self)?);
        }
        for finding in &self.findings {
            writeln!(out, "FOUND  {finding}")?;
        }
        for note in &self.notes {
            writeln!(out, "note   {note}")?;
        }
        writeln!(out, "whole records: {}", self.records)?;
        match &self.last {
            Some((n, hash)) => writeln!(out, "last: record {n}, hash {hash}"),
            None => Ok(()),
        }
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Compares a record with the one before, between which `unread` lines could not be read.
    fn follow(&mut self, record: &Record, place: &str, unread: u64) {
        let Some((before, hash)) = self.last.clone() else {
            if record.n == 1 && unread == 0 && record.previous != ORIGIN {
                self.find(format!("{place}: record 1 is not the first of a log"));
            }
            return;
        };
        let n = record.n;
        if n <= before {
            self.find(format!("{place}: reordered: record {n} stands after record {before}"));
        } else if n > before + 1 + unread {
            let missing = (before + 1, n - 1);
            self.find(format!(
                "{place}: deleted: records {} to {} are missing",
                missing.0, missing.1
            ));
        } else if unread == 0 && record.previous != hash {
            self.find(format!(
                "{place}: record {n} does not follow record {before}: one was replaced"
            ));
        }
    }
}
