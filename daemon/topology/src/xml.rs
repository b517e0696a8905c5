//! Reads the XML that hwloc 2 writes (`hwloc2.dtd`), and refuses everything else.
//!
//! It takes only what [`Topology`] holds. Elements and attributes that are none of its
//! business are passed over, so that a newer hwloc 2 can be read. Nothing here recurses.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{NumaNode, PciAddress, PcieNode, Topology};
use roxmltree::{Document, Node, ParsingOptions};

use crate::{XML_BYTES_MAX, XmlError, set};

/// The most nodes of a PCIe tree: one bus has at most 256 functions, and the largest hosts
/// have a few hundred devices.
pub(crate) const PCIE_NODES_MAX: usize = 4096;

/// The most NUMA nodes: Linux has numbers for 1,024 (`MAX_NUMNODES`).
pub(crate) const NUMA_NODES_MAX: usize = 1024;

/// The most XML nodes: as many as fit into [`XML_BYTES_MAX`] when hwloc writes them.
const XML_NODES_MAX: u32 = 500_000;

/// The most equals signs from one `<` to the next, and so attributes of an element: hwloc
/// writes at most 20, and the parser compares each attribute with all others.
const EQUALS_MAX: usize = 64;

/// The most bytes of an outside text that are shown again.
const SHOWN_MAX: usize = 64;

/// What hwloc writes above its XML. It names a file and declares nothing, so it can go;
/// any other document type is refused.
const DOCTYPE: &str = "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">";

/// Reads a topology from `bytes`, named `origin` in the result.
pub(crate) fn parse(bytes: &[u8], origin: &str) -> Result<Topology, XmlError> {
    if bytes.len() as u64 > XML_BYTES_MAX {
        return Err(XmlError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::NotText)?;
    if text.trim().is_empty() {
        return Err(XmlError::Empty);
    }
    if text.split('<').any(|part| part.matches('=').count() > EQUALS_MAX) {
        return Err(XmlError::TooManyAttributes);
    }
    // The parser copies namespaces from element to element: minutes for a crafted file.
    if text.contains("xmlns") {
        return Err(XmlError::Namespaces);
    }
    // Blanks instead of nothing: lines and columns in messages stay true.
    let text = text.replacen(DOCTYPE, &" ".repeat(DOCTYPE.len()), 1);
    let options = ParsingOptions { nodes_limit: XML_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&text, options).map_err(XmlError::Malformed)?;
    let root = document.root_element();
    if !root.has_tag_name("topology") {
        return Err(XmlError::NotTopology(shown(root.tag_name().name())));
    }
    let version = root.attribute("version").unwrap_or("1");
    if version.split('.').next() != Some("2") {
        return Err(XmlError::Version(shown(version)));
    }
    let mut reader = Reader::default();
    reader.read_objects(root)?;
    reader.read_distances(root)?;
    let Reader { numa, pcie, .. } = reader;
    let numa = numa.into_values().collect();
    Ok(Topology { source: origin.to_owned(), numa, pcie, links: Vec::new() })
}

#[derive(Default)]
struct Reader {
    numa: BTreeMap<u32, NumaNode>,
    pcie: Vec<PcieNode>,
    addresses: BTreeSet<PciAddress>,
}

/// What an object takes over from those above it.
#[derive(Clone, Copy, Default)]
struct Above {
    numa_node: Option<u32>,
    pcie: Option<usize>,
}

impl Reader {
    fn read_objects(&mut self, root: Node<'_, '_>) -> Result<(), XmlError> {
        let machines: Vec<_> = objects(root).collect();
        let [machine] = machines[..] else { return Err(XmlError::Machines(machines.len())) };
        if machine.attribute("type") != Some("Machine") {
            return Err(XmlError::Machines(0));
        }
        // A stack of our own, since the depth is the file's choice.
        let mut open = vec![(machine, Above::default())];
        while let Some((object, above)) = open.pop() {
            let above = self.read_object(object, above)?;
            // Reversed, so that they come off the stack in the order of the file.
            open.extend(objects(object).rev().map(|child| (child, above)));
        }
        if self.numa.is_empty() { Err(XmlError::NoNumaNode) } else { Ok(()) }
    }

    /// Reads one object, and says what those below it take over.
    fn read_object(&mut self, object: Node<'_, '_>, mut above: Above) -> Result<Above, XmlError> {
        match object.attribute("type") {
            Some("NUMANode") => self.read_numa_node(object)?,
            Some("Bridge") => above.pcie = self.read_bridge(object, above)?,
            Some("PCIDev") => above.pcie = self.read_device(object, above)?,
            _ => {}
        }
        if let Some(text) = object.attribute("nodeset") {
            let nodes = set::members(text).ok_or_else(|| value(object, "nodeset"))?;
            // What spans several nodes is near none of them.
            above.numa_node = if let [node] = nodes[..] { Some(node) } else { None };
        }
        Ok(above)
    }

    fn read_numa_node(&mut self, object: Node<'_, '_>) -> Result<(), XmlError> {
        if self.numa.len() == NUMA_NODES_MAX {
            return Err(XmlError::TooManyNumaNodes);
        }
        let id: u32 = required(object, "os_index", |text| text.parse().ok())?;
        let cpus = required(object, "cpuset", set::members)?;
        let memory_bytes = match object.attribute("local_memory") {
            Some(_) => required(object, "local_memory", |text| text.parse().ok())?,
            None => 0,
        };
        let node = NumaNode { id, cpus, memory_bytes, distances: BTreeMap::new() };
        match self.numa.insert(id, node) {
            None => Ok(()),
            Some(_) => Err(XmlError::NumaNodeTwice(id)),
        }
    }

    fn read_bridge(
        &mut self,
        object: Node<'_, '_>,
        above: Above,
    ) -> Result<Option<usize>, XmlError> {
        // Upstream and downstream, each 0 for the host's side and 1 for PCI.
        match object.attribute("bridge_type") {
            Some("0-1") => {
                let Address::Of(first) = required(object, "bridge_pci", first_address)? else {
                    return Ok(above.pcie);
                };
                // The kernel's name for it: `pci`, domain and bus.
                let label = format!("pci{}", first.to_string().trim_end_matches(":00.0"));
                self.add(above, None, label).map(Some)
            }
            Some("1-1") => self.read_device(object, above),
            _ => Err(value(object, "bridge_type")),
        }
    }

    fn read_device(
        &mut self,
        object: Node<'_, '_>,
        above: Above,
    ) -> Result<Option<usize>, XmlError> {
        let Address::Of(pci) = required(object, "pci_busid", address)? else {
            return Ok(above.pcie);
        };
        if !self.addresses.insert(pci) {
            return Err(XmlError::PciTwice(pci));
        }
        let class = required(object, "pci_type", class)?;
        let label = match object.attribute("name") {
            Some(name) if !name.trim().is_empty() => shown(name.trim()),
            _ => class,
        };
        self.add(above, Some(pci), label).map(Some)
    }

    fn add(
        &mut self,
        above: Above,
        pci: Option<PciAddress>,
        label: String,
    ) -> Result<usize, XmlError> {
        if self.pcie.len() == PCIE_NODES_MAX {
            return Err(XmlError::PcieTooLarge);
        }
        let Above { numa_node, pcie: parent } = above;
        self.pcie.push(PcieNode { pci, label, parent, numa_node });
        Ok(self.pcie.len() - 1)
    }

    /// Reads the matrix of NUMA latencies that the firmware gives (ACPI SLIT), if there is one.
    fn read_distances(&mut self, root: Node<'_, '_>) -> Result<(), XmlError> {
        let matrices = root.children().filter(|child| child.has_tag_name("distances2"));
        for matrix in matrices {
            let kind: u64 = required(matrix, "kind", |text| text.parse().ok())?;
            let by_number = matrix.attribute("indexing") == Some("os");
            let of_nodes = matrix.attribute("type") == Some("NUMANode");
            // From the operating system, and a latency (`hwloc_distances_kind_e`).
            if !of_nodes || !by_number || kind & 1 == 0 || kind & 4 == 0 {
                continue;
            }
            let nodes = numbers(matrix, "indexes")?;
            let distances = numbers(matrix, "u64values")?;
            if nodes.is_empty() || distances.len() != nodes.len().saturating_mul(nodes.len()) {
                let found = format!("{} numbers", distances.len());
                return Err(refused(matrix, "u64values", &found));
            }
            for (number, row) in nodes.iter().zip(distances.chunks(nodes.len())) {
                let from = u32::try_from(*number).ok().and_then(|id| self.numa.get_mut(&id));
                let from = from.ok_or_else(|| refused(matrix, "indexes", &number.to_string()))?;
                let to = nodes.iter().filter_map(|to| u32::try_from(*to).ok());
                from.distances = to.zip(row.iter().copied()).collect();
            }
        }
        Ok(())
    }
}

fn objects<'a, 'input>(
    parent: Node<'a, 'input>,
) -> impl DoubleEndedIterator<Item = Node<'a, 'input>> {
    parent.children().filter(|child| child.has_tag_name("object"))
}

/// The attribute `what`, as `read` takes it.
fn required<T>(
    element: Node<'_, '_>,
    what: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, XmlError> {
    element.attribute(what).and_then(read).ok_or_else(|| value(element, what))
}

/// The numbers in all children `what`: hwloc begins a new one every few numbers.
fn numbers(parent: Node<'_, '_>, what: &'static str) -> Result<Vec<u64>, XmlError> {
    let lists = parent.children().filter(|child| child.has_tag_name(what));
    let words = lists.flat_map(|list| list.text().unwrap_or_default().split_ascii_whitespace());
    words.map(|word| word.parse().map_err(|_| refused(parent, what, word))).collect()
}

/// A PCI address as hwloc writes it.
enum Address {
    Of(PciAddress),
    /// A domain beyond 16 bits is a storage controller's own (Intel VMD): no accelerator is there.
    Beyond,
}

fn address(text: &str) -> Option<Address> {
    let (domain, rest) = text.split_once(':')?;
    let hexadecimal = domain.bytes().all(|byte| byte.is_ascii_hexdigit());
    match domain.len() {
        4 => text.parse().ok().map(Address::Of),
        5..=8 if hexadecimal => address(&format!("0000:{rest}")).map(|_| Address::Beyond),
        _ => None,
    }
}

/// The first address on the first bus of a range such as `0000:[15-1b]`.
fn first_address(text: &str) -> Option<Address> {
    let (domain, buses) = text.split_once(":[")?;
    let (first, last) = buses.strip_suffix(']')?.split_once('-')?;
    address(&format!("{domain}:{last}:00.0"))?;
    address(&format!("{domain}:{first}:00.0"))
}

/// What a device is, from its class and its numbers: `0302 [10de:2330] [...] a1`.
fn class(text: &str) -> Option<String> {
    let (class, rest) = text.split_once(" [")?;
    let (numbers, _) = rest.split_once(']')?;
    let (vendor, device) = numbers.split_once(':')?;
    for part in [class, vendor, device] {
        let plain = part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then_some(())?;
    }
    // PCI Code and ID Assignment Specification, section 1.
    let word = match (&class[..2], &class[2..]) {
        ("01", _) => "storage controller",
        ("02", "07") => "InfiniBand controller",
        ("02", _) => "network controller",
        ("03", "02") => "3D controller",
        ("03", _) => "display controller",
        ("06", _) => "bridge",
        ("0b", _) => "processor",
        ("12", _) => "processing accelerator",
        _ => "device",
    };
    Some(format!("{word} {vendor}:{device}"))
}

/// The attribute `what` is absent, or it is not what it should be.
fn value(element: Node<'_, '_>, what: &'static str) -> XmlError {
    refused(element, what, element.attribute(what).unwrap_or_default())
}

fn refused(element: Node<'_, '_>, what: &'static str, text: &str) -> XmlError {
    let line = element.document().text_pos_at(element.range().start).row;
    let name = element.tag_name().name();
    let element = element.attribute("type").filter(|_| name == "object").unwrap_or(name);
    XmlError::Value { line, what, text: shown(text), element: shown(element) }
}

/// A text from outside, short enough to be shown and without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}
