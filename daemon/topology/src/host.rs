//! Asks hwloc for this host: the only place that speaks to the library.
//!
//! Caches, operating-system devices and processor kinds are left out. Nothing here reads
//! them, and looking for operating-system devices is what makes hwloc's plugins load
//! vendors' libraries, which must not come into this process.

use hwlocality::{
    Topology,
    object::types::ObjectType,
    topology::{
        builder::{BuildFlags, TypeFilter},
        export::xml::XMLExportFlags,
    },
};

use crate::TopologyError;

/// The description of this host, as the XML that hwloc writes.
pub(crate) fn capture() -> Result<String, TopologyError> {
    let topology = discover().map_err(TopologyError::Hwloc)?;
    if !topology.is_this_system() {
        return Err(TopologyError::OtherHost);
    }
    let xml = topology
        .export_xml(XMLExportFlags::empty())
        .map_err(|error| TopologyError::Hwloc(error.into()))?;
    let text: &str = xml.as_ref();
    Ok(text.to_owned())
}

fn discover() -> Result<Topology, Box<dyn std::error::Error + Send + Sync>> {
    // The whole machine, not what this process's cgroup may use, since tenants run
    // elsewhere; and threads of the daemon must not be moved about to look at processors.
    let flags = BuildFlags::INCLUDE_DISALLOWED | BuildFlags::DONT_CHANGE_BINDING;
    let topology = Topology::builder()
        .with_flags(flags)?
        .with_cpu_cache_type_filter(TypeFilter::KeepNone)?
        .with_cpu_icache_type_filter(TypeFilter::KeepNone)?
        // Displays, accelerators, network, storage, and the bridges above them.
        .with_io_type_filter(TypeFilter::KeepImportant)?
        .with_type_filter(ObjectType::OSDevice, TypeFilter::KeepNone)?
        .build()?;
    Ok(topology)
}
