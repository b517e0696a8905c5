//! The kernel log: a GPU that fell off the bus stands there even if NVML says nothing of it.
//!
//! Recent drivers write it without an XID and over several lines. The log says who it is by
//! PCI address. What was logged before it was opened is left: the bus itself tells of that.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

use accelpool_model::PciAddress;
use nix::fcntl::OFlag;

use crate::roots::Roots;

/// Records of one look; the rest is read at the next.
const RECORDS_MAX: usize = 256;

/// The kernel cuts a record at about a kilobyte; a file of a test has more in one read.
const RECORD_LEN_MAX: usize = 8192;

/// How many of the driver's lines belong to one message at most.
const MESSAGE_LINES_MAX: usize = 3;

/// What a line of the log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// A GPU has an XID.
    Xid(PciAddress, u64),
    /// A GPU is off the bus.
    FellOff(PciAddress),
}

/// The kernel log, from when it was opened on.
#[derive(Debug)]
pub(crate) struct Kmsg {
    file: File,
    parser: Parser,
}

impl Kmsg {
    /// Opens the log at its end; none where it may not be read.
    pub(crate) fn open(roots: &Roots) -> Option<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut file = options.open(roots.devfs.join("kmsg")).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self { file, parser: Parser::default() })
    }

    /// What was logged since the last call. Never waits.
    pub(crate) fn read(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut buffer = [0; RECORD_LEN_MAX];
        for _ in 0..RECORDS_MAX {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&buffer[..len]);
                    lines.extend(text.lines().filter_map(|line| self.parser.line(line)));
                }
                // The log went round and records were lost; it goes on with the oldest.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        lines
    }
}

/// Reads the driver's lines, and remembers the address of a message that goes on.
#[derive(Debug, Default)]
struct Parser {
    /// The address named last, and how many more lines it may belong to.
    named: Option<(PciAddress, usize)>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Option<Line> {
        let (_, message) = line.split_once("NVRM: ")?;
        let named = address(message);
        if let Some(pci) = named {
            self.named = Some((pci, MESSAGE_LINES_MAX));
        }
        let (pci, left) = self.named?;
        self.named = left.checked_sub(1).filter(|left| *left > 0).map(|left| (pci, left));
        if let Some(rest) = message.strip_prefix("Xid (") {
            let (_, rest) = rest.split_once("): ")?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            return Some(Line::Xid(named?, digits.parse().ok()?));
        }
        message.contains("fallen off the bus").then_some(Line::FellOff(pci))
    }
}

/// The first PCI address in a text: `0000:1b:00.0`, or `PCI:0000:1b:00` without a function.
fn address(text: &str) -> Option<PciAddress> {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':' || c == '.'));
    let mut words = words.map(|word| word.trim_matches([':', '.']));
    words.find_map(|word| match word.len() {
        10 => format!("{word}.0").parse().ok(),
        _ => word.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &str, expected: &[Line]) {
        let mut parser = Parser::default();
        let found: Vec<Line> = log.lines().filter_map(|line| parser.line(line)).collect();
        assert_eq!(found, expected, "{log}");
    }

    fn at(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_xid_names_its_device() {
        check(
            "4,1,5,-;NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', Graphics SM Exception",
            &[Line::Xid(at("0000:cb:00.0"), 13)],
        );
        check(
            "NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus.",
            &[Line::Xid(at("0000:1b:00.0"), 79)],
        );
    }

    #[test]
    fn a_message_over_several_lines_is_one() {
        check(
            "NVRM: The NVIDIA GPU 0000:9d:00.0\n\
             NVRM: (PCI ID: 10de:2330) installed in this system has\n\
             NVRM: fallen off the bus and is not responding to commands.",
            &[Line::FellOff(at("0000:9d:00.0"))],
        );
        check(
            "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.",
            &[Line::FellOff(at("0000:1b:00.0"))],
        );
    }

    #[test]
    fn other_lines_say_nothing() {
        check("usb 0000:1b:00.0 has fallen off the bus", &[]);
        check("NVRM: has fallen off the bus", &[]);
        check("NVRM: Xid (PCI:0000:1b:00): none", &[]);
        check("NVRM: Xid (PCI:0000:1b:00", &[]);
        check("NVRM: GPU 0000:1b:00.0\nNVRM: a\nNVRM: b\nNVRM: c\nNVRM: fallen off the bus", &[]);
    }
}
