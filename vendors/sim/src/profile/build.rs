//! From a profile as written to a valid one: devices with their nodes, and links.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{Bandwidth, Device, Injection, Link, LinkKind, Partition, Route, VendorName};

use super::{
    Node, PartitionNodes, Profile, Unit,
    model::Model,
    nodes::{Template, place_count},
    raw,
};
use crate::refusal::{ATTRIBUTE_LEN_MAX, Refusal, count, number, parse, refuse, words};

/// The most devices a node may have: no accelerator server has more than 16.
const DEVICES_MAX: usize = 64;
const MODELS_MAX: usize = 16;
/// Nodes of a profile, those of all partitions it could ever have too.
const NODES_MAX: usize = 16_384;
/// Links as written; the pairs of 64 devices are 2016.
const LINKS_MAX: usize = 4096;
/// A hundred times the fastest link there is.
const BANDWIDTH_MAX: u64 = 100_000_000_000_000;

pub(super) fn profile(raw: &raw::Profile) -> Result<Profile, Refusal> {
    let name: VendorName = parse("name", &raw.name)?;
    // Documentation/admin-guide/devices.txt: 240 to 254 are for local and experimental use.
    let major = number("major", raw.major, 240..=254)?;
    count("model", raw.model.len(), 1..=MODELS_MAX)?;
    count("device", raw.device.len(), 1..=DEVICES_MAX)?;
    let mut models = BTreeMap::new();
    for (i, raw) in raw.model.iter().enumerate() {
        let model = Model::read(&format!("model[{i}]"), raw)?;
        if models.insert(raw.name.as_str(), model).is_some() {
            return Err(refuse(format!("model[{i}].name"), &raw.name, "use each name once"));
        }
    }
    let units = units(raw, &models)?;
    let links = links(raw, &units)?;
    Ok(Profile { name: name.to_string(), major, units, links })
}

fn units(raw: &raw::Profile, models: &BTreeMap<&str, Model<'_>>) -> Result<Vec<Unit>, Refusal> {
    let mut units: Vec<Unit> = Vec::new();
    let mut minors = Minors::default();
    let mut ordinals: BTreeMap<&str, u32> = BTreeMap::new();
    for (i, written) in raw.device.iter().enumerate() {
        let path = format!("device[{i}]");
        let model = models.get(written.model.as_str()).ok_or_else(|| {
            refuse(format!("{path}.model"), &written.model, "use the name of a `[[model]]`")
        })?;
        let device = device(&path, written, model)?;
        for (key, taken) in [
            ("uuid", units.iter().any(|unit| unit.device.uuid == device.uuid)),
            ("pci", units.iter().any(|unit| unit.device.pci == device.pci)),
        ] {
            if taken {
                let value = if key == "uuid" { &written.uuid } else { &written.pci };
                return Err(refuse(format!("{path}.{key}"), value, "use each once"));
            }
        }
        let ordinal = ordinals.entry(&written.model).or_default();
        let nodes = minors.of_device(&path, &model.nodes, *ordinal)?;
        let partitions = match &model.cut {
            None => None,
            Some(cut) => {
                let places = cut.partitioning.profiles.iter().map(place_count).sum::<u32>();
                let inherits = |node: &&Node| cut.inherit_all || node.shared;
                let nodes = PartitionNodes {
                    uuid_prefix: cut.uuid_prefix.clone(),
                    inherited: nodes.iter().filter(inherits).cloned().collect(),
                    templates: cut.nodes.clone(),
                    places_before: *ordinal * places,
                    first_minor: minors.next,
                };
                minors.claim(&path, nodes.all(&cut.partitioning))?;
                Some(nodes)
            }
        };
        *ordinal += 1;
        units.push(Unit { device, nodes, partitions });
    }
    Ok(units)
}

/// Hands out minor numbers and keeps paths apart.
#[derive(Default)]
struct Minors {
    next: u32,
    by_path: BTreeMap<String, u32>,
}

impl Minors {
    /// The nodes of one device; those in common get their number with the first device.
    fn of_device(
        &mut self,
        path: &str,
        templates: &[Template],
        ordinal: u32,
    ) -> Result<Vec<Node>, Refusal> {
        let mut nodes: Vec<Node> = Vec::new();
        for template in templates {
            let mut node = template.node(ordinal, self.next);
            match self.by_path.get(&node.path) {
                Some(minor) if node.shared && !nodes.iter().any(|n| n.path == node.path) => {
                    node.minor = *minor;
                }
                _ => self.claim(path, [node.clone()])?,
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn claim(&mut self, path: &str, nodes: impl IntoIterator<Item = Node>) -> Result<(), Refusal> {
        for node in nodes {
            if self.by_path.len() >= NODES_MAX {
                let rule = format!("use fewer places: a profile has at most {NODES_MAX} nodes");
                return Err(refuse(path, "too many device nodes", rule));
            }
            if let Some(taken) = self.by_path.insert(node.path, node.minor) {
                let rule = "use paths that differ, with `{n}` and `first`";
                return Err(refuse(path, format!("a second node with minor {taken}"), rule));
            }
            self.next += 1;
        }
        Ok(())
    }
}

fn device(path: &str, raw: &raw::Device, model: &Model<'_>) -> Result<Device, Refusal> {
    let pci = parse(format!("{path}.pci"), &raw.pci)?;
    let attribute = |key: &str, text: &Option<String>| {
        let read = |text| words(format!("{path}.{key}"), text, ATTRIBUTE_LEN_MAX);
        text.as_deref().map(read).transpose()
    };
    let numa_node = raw.numa_node.map(|id| number(format!("{path}.numa_node"), id, 0..=1023));
    let device = Device {
        name: Device::name_at(model.kind, pci),
        uuid: parse(format!("{path}.uuid"), &raw.uuid)?,
        vendor: model.vendor.clone(),
        kind: model.kind,
        model: model.raw.product.clone(),
        architecture: model.raw.architecture.clone(),
        pci,
        driver_version: model.raw.driver_version.clone(),
        memory: model.memory,
        numa_node: numa_node.transpose()?,
        pcie_root: attribute("pcie_root", &raw.pcie_root)?,
        fabric_clique: attribute("fabric_clique", &raw.fabric_clique)?,
        partitioning: model.cut.as_ref().map(|cut| cut.partitioning.clone()),
        share_enforcement: model.share_enforcement,
        traits: accelpool_model::DeviceTraits::default(),
        injection: Injection::default(),
    };
    if let Some(partitioning) = &device.partitioning {
        for profile in &partitioning.profiles {
            for start in profile.starts() {
                Partition::name_at(&device.name, &partitioning.scheme, &profile.name, start)
                    .map_err(|error| refuse(path, &profile.name, error.to_string()))?;
            }
        }
    }
    Ok(device)
}

fn links(raw: &raw::Profile, units: &[Unit]) -> Result<Vec<Link>, Refusal> {
    count("mesh", raw.mesh.len(), 0..=MODELS_MAX)?;
    count("link", raw.link.len(), 0..=LINKS_MAX)?;
    let mut links = Vec::new();
    for (i, mesh) in raw.mesh.iter().enumerate() {
        let path = format!("mesh[{i}]");
        let kind: LinkKind = parse(format!("{path}.kind"), &mesh.kind)?;
        let bandwidth = bandwidth(&path, mesh.bandwidth_bytes_per_second)?;
        let of_model = |(written, _): &(&raw::Device, &Unit)| written.model == mesh.model;
        let members: Vec<&Unit> =
            raw.device.iter().zip(units).filter(of_model).map(|(_, unit)| unit).collect();
        if members.len() < 2 {
            let rule = "use a model with two or more devices";
            return Err(refuse(format!("{path}.model"), &mesh.model, rule));
        }
        for (i, a) in members.iter().enumerate() {
            for b in &members[i + 1..] {
                let ends = (a.device.name.clone(), b.device.name.clone());
                let (strands, route) = (0, Route::Direct);
                links.push((path.clone(), Link { ends, kind, bandwidth, strands, route }));
            }
        }
    }
    for (i, written) in raw.link.iter().enumerate() {
        let path = format!("link[{i}]");
        let end = |k: usize| {
            let text = &written.ends[k];
            let pci: accelpool_model::PciAddress = parse(format!("{path}.ends[{k}]"), text)?;
            let unit = units.iter().find(|unit| unit.device.pci == pci);
            let rule = "use the PCI address of a `[[device]]`";
            let unit = unit.ok_or_else(|| refuse(format!("{path}.ends[{k}]"), text, rule))?;
            Ok(unit.device.name.clone())
        };
        let ends = (end(0)?, end(1)?);
        let kind = parse(format!("{path}.kind"), &written.kind)?;
        let bandwidth = bandwidth(&path, written.bandwidth_bytes_per_second)?;
        links.push((path, Link { ends, kind, bandwidth, strands: 0, route: Route::Direct }));
    }
    distinct(links)
}

/// Refuses a link from a device to itself, and a second of one kind between two devices.
fn distinct(links: Vec<(String, Link)>) -> Result<Vec<Link>, Refusal> {
    let mut seen = BTreeSet::new();
    for (path, Link { ends: (a, b), kind, .. }) in &links {
        let pair = if a < b { (a, b) } else { (b, a) };
        if a == b {
            return Err(refuse(format!("{path}.ends"), a, "use two devices"));
        }
        if !seen.insert((pair, *kind)) {
            let rule = "use one link of a kind between two devices";
            return Err(refuse(format!("{path}.ends"), format!("{a} and {b}"), rule));
        }
    }
    Ok(links.into_iter().map(|(_, link)| link).collect())
}

fn bandwidth(path: &str, rate: i64) -> Result<Bandwidth, Refusal> {
    let valid = u64::try_from(rate).ok().filter(|rate| (1..=BANDWIDTH_MAX).contains(rate));
    valid.map(Bandwidth::from_bytes_per_second).ok_or_else(|| {
        let path = format!("{path}.bandwidth_bytes_per_second");
        refuse(path, rate, format!("use 1 to {BANDWIDTH_MAX}"))
    })
}
