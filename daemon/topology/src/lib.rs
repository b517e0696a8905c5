//! The host's topology as hwloc describes it: NUMA nodes, distances, the PCIe tree.
//!
//! hwloc looks at the running host only, and hands over what it found as XML; a captured
//! file of another machine is the same XML. One strict reader takes both, so a replayed
//! machine looks as it did at home. No file ever reaches hwloc's own reader: in 2.9.0 about
//! one damaged file in 150 brings the whole process down (`tests/data/crashes-hwloc.xml`).
//! Vendors know links and devices; [`merge`] joins the two views.

#![forbid(unsafe_code)]

mod error;
mod host;
mod merge;
mod set;
mod xml;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use accelpool_model::Topology;

pub use crate::error::{TopologyError, XmlError};
pub use crate::merge::{Position, merge, place};

/// The largest XML that is read. A machine of 1,024 processors takes about 2 MiB.
pub const XML_BYTES_MAX: u64 = 16 << 20;

/// Where a topology comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The machine that this process runs on.
    Host,
    /// A file captured on any machine with `lstopo --of xml`, in the format of hwloc 2.
    File(PathBuf),
}

/// Reads a topology; its links stay empty until [`merge`] adds the vendors' ones.
///
/// # Errors
///
/// See [`TopologyError`]. A file never does worse than that, whatever it holds.
pub fn read(source: &Source) -> Result<Topology, TopologyError> {
    match source {
        Source::Host => {
            let text = host::capture()?;
            xml::parse(text.as_bytes(), "host").map_err(TopologyError::Host)
        }
        Source::File(path) => {
            let refuse = |source| TopologyError::Xml { path: path.clone(), source };
            let bytes = bytes_of(path)?;
            xml::parse(&bytes, &path.display().to_string()).map_err(refuse)
        }
    }
}

/// Reads a topology from the text of a captured file, named `origin` in the result.
///
/// # Errors
///
/// [`XmlError`] for anything but the XML of hwloc 2 within its limits.
pub fn parse(bytes: &[u8], origin: &str) -> Result<Topology, XmlError> {
    xml::parse(bytes, origin)
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, TopologyError> {
    let refuse = |source| TopologyError::Read { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe waits for somebody to write.
    if !fs::metadata(path).map_err(refuse)?.is_file() {
        return Err(refuse(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(refuse)?;
    // One byte above the limit is enough for the parser to see that the limit is passed.
    file.take(XML_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(refuse)?;
    Ok(bytes)
}
