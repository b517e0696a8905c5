//! Why a topology cannot be read.

use std::{error::Error, io, path::PathBuf};

use crate::{
    XML_BYTES_MAX,
    xml::{NUMA_NODES_MAX, PCIE_NODES_MAX},
};

/// Why [`crate::read`] has no topology to give.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The library failed.
    #[error("hwloc failed to look at this host")]
    Hwloc(#[source] Box<dyn Error + Send + Sync>),
    /// The environment makes hwloc answer for another machine.
    #[error(
        "hwloc does not look at this host: unset HWLOC_XMLFILE, HWLOC_SYNTHETIC and HWLOC_FSROOT"
    )]
    OtherHost,
    /// What hwloc found on this host is not what it is known to write.
    #[error("hwloc's description of this host is not usable")]
    Host(#[source] XmlError),
    /// A captured file cannot be read.
    #[error("failed to read hwloc XML `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A captured file does not hold what it should.
    #[error("hwloc XML `{path}` is not usable")]
    Xml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: XmlError,
    },
}

/// Why a text is not the XML of a topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// More than [`XML_BYTES_MAX`].
    #[error("it is larger than {} MiB", XML_BYTES_MAX >> 20)]
    TooLarge,
    /// Not text.
    #[error("it is not UTF-8 text")]
    NotText,
    /// An element with far more attributes than hwloc writes.
    #[error("an element has too many attributes")]
    TooManyAttributes,
    /// hwloc writes no namespaces.
    #[error("it declares XML namespaces")]
    Namespaces,
    /// Not XML, or XML with more than a topology needs: entities, a document type of its own.
    #[error("it is not well-formed XML without entities")]
    Malformed(#[source] roxmltree::Error),
    /// XML of something else.
    #[error("its root element is `{0}`, not `topology`")]
    NotTopology(String),
    /// A format other than that of hwloc 2.
    #[error("its format version is `{0}`: capture it again with hwloc 2")]
    Version(String),
    /// Not exactly one machine.
    #[error("it describes {0} machines, not one")]
    Machines(usize),
    /// A host has memory, and memory has a node.
    #[error("it has no NUMA node")]
    NoNumaNode,
    /// More nodes than the kernel has numbers for.
    #[error("it has more than {NUMA_NODES_MAX} NUMA nodes")]
    TooManyNumaNodes,
    /// One number, two nodes.
    #[error("it has two NUMA nodes of number {0}")]
    NumaNodeTwice(u32),
    /// One address, two devices.
    #[error("it has two PCI devices at {0}")]
    PciTwice(accelpool_model::PciAddress),
    /// A tree beyond any machine's size.
    #[error("its PCIe tree has more than {PCIE_NODES_MAX} nodes")]
    PcieTooLarge,
    /// An attribute or a list is absent or is not what it should be.
    #[error("line {line}: {what} `{text}` of `{element}` is not valid")]
    Value {
        /// Where it stands.
        line: u32,
        /// The attribute, or the list.
        what: &'static str,
        /// What was found, shortened; empty if it is absent.
        text: String,
        /// The element that it belongs to.
        element: String,
    },
}
