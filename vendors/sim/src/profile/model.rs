//! What devices of one product have in common, read from a profile.

use std::collections::BTreeSet;

use accelpool_model::{
    DeviceKind, Enforcements, MemoryBytes, PartitionProfile, Partitioning, PartitioningMode,
    Placements, VendorName,
};

use super::{nodes::Template, raw};
use crate::refusal::{ATTRIBUTE_LEN_MAX, Refusal, count, number, parse, refuse, words};

const PARTITION_PROFILES_MAX: usize = 32;
const SLICES_MAX: u32 = 1024;
const INSTANCES_MAX: u32 = 64;
const NODES_PER_DEVICE_MAX: usize = 16;
const NODES_PER_PARTITION_MAX: usize = 4;
/// Memory of one device: far above any that is sold, far below the overflow of a sum.
const MEMORY_MAX: MemoryBytes = MemoryBytes::new(1 << 44);

/// What devices of one product have in common.
pub(super) struct Model<'a> {
    pub(super) raw: &'a raw::Model,
    pub(super) vendor: VendorName,
    pub(super) kind: DeviceKind,
    pub(super) memory: MemoryBytes,
    pub(super) share_enforcement: Enforcements,
    pub(super) nodes: Vec<Template>,
    pub(super) cut: Option<Cut>,
}

/// How it can be cut, and what its partitions are called.
pub(super) struct Cut {
    pub(super) partitioning: Partitioning,
    pub(super) uuid_prefix: String,
    pub(super) inherit_all: bool,
    pub(super) nodes: Vec<Template>,
}

impl<'a> Model<'a> {
    pub(super) fn read(path: &str, raw: &'a raw::Model) -> Result<Self, Refusal> {
        for (key, text) in [
            ("name", &raw.name),
            ("product", &raw.product),
            ("architecture", &raw.architecture),
            ("driver_version", &raw.driver_version),
        ] {
            words(format!("{path}.{key}"), text, ATTRIBUTE_LEN_MAX)?;
        }
        let memory = memory(&format!("{path}.memory"), &raw.memory, MEMORY_MAX)?;
        let share = |key: &str, text| parse(format!("{path}.share_enforcement.{key}"), text);
        let cut = raw.partitioning.as_ref();
        Ok(Self {
            raw,
            vendor: parse(format!("{path}.vendor"), &raw.vendor)?,
            kind: parse(format!("{path}.kind"), &raw.kind)?,
            memory,
            share_enforcement: Enforcements {
                memory: share("memory", &raw.share_enforcement.memory)?,
                compute: share("compute", &raw.share_enforcement.compute)?,
            },
            nodes: templates(path, &raw.nodes, NODES_PER_DEVICE_MAX)?,
            cut: cut.map(|raw| cut_of(&format!("{path}.partitioning"), raw, memory)).transpose()?,
        })
    }
}

fn templates(path: &str, raw: &[raw::NodeTemplate], max: usize) -> Result<Vec<Template>, Refusal> {
    count(format!("{path}.nodes"), raw.len(), 1..=max)?;
    let read = |(i, raw)| Template::read(&format!("{path}.nodes[{i}]"), raw);
    raw.iter().enumerate().map(read).collect()
}

fn cut_of(path: &str, raw: &raw::Partitioning, memory: MemoryBytes) -> Result<Cut, Refusal> {
    // The scheme is part of partition names, which are DNS labels.
    let scheme: VendorName = parse(format!("{path}.scheme"), &raw.scheme)?;
    let slices = number(format!("{path}.slices"), raw.slices, 1..=SLICES_MAX)?;
    if raw.uuid_prefix.len() > 16 || !raw.uuid_prefix.bytes().all(is_identity) {
        let rule = "use up to 16 letters, digits and `-`";
        return Err(refuse(format!("{path}.uuid_prefix"), &raw.uuid_prefix, rule));
    }
    let inherit_all = match raw.inherit.as_str() {
        "all" => true,
        "shared" => false,
        other => {
            let rule = "use all (nodes of the device) or shared (those without `{n}`)";
            return Err(refuse(format!("{path}.inherit"), other, rule));
        }
    };
    let nodes = templates(path, &raw.nodes, NODES_PER_PARTITION_MAX)?;
    if let Some(i) = nodes.iter().position(Template::is_shared) {
        let rule = "use `{n}`: each partition has nodes of its own";
        return Err(refuse(format!("{path}.nodes[{i}].path"), &raw.nodes[i].path, rule));
    }
    count(format!("{path}.profile"), raw.profile.len(), 1..=PARTITION_PROFILES_MAX)?;
    let mut profiles: Vec<PartitionProfile> = Vec::new();
    for (i, written) in raw.profile.iter().enumerate() {
        let path = format!("{path}.profile[{i}]");
        let profile = partition_profile(&path, written, raw.counted, slices, memory)?;
        if profiles.iter().any(|known| known.name == profile.name) {
            return Err(refuse(format!("{path}.name"), &written.name, "use each name once"));
        }
        profiles.push(profile);
    }
    let scheme = scheme.to_string();
    let mode = raw.mode.map(|on| PartitioningMode { on, switchable: true });
    let partitioning = Partitioning { scheme, slices, uniform: raw.uniform, profiles, mode };
    Ok(Cut { partitioning, uuid_prefix: raw.uuid_prefix.clone(), inherit_all, nodes })
}

fn is_identity(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

fn partition_profile(
    path: &str,
    raw: &raw::PartitionProfile,
    counted: bool,
    slices: u32,
    device_memory: MemoryBytes,
) -> Result<PartitionProfile, Refusal> {
    let size = number(format!("{path}.size"), raw.size, 1..=slices)?;
    let permille = number(format!("{path}.compute_permille"), raw.compute_permille, 1..=1000)?;
    let placements = match (&raw.starts, counted) {
        (None, true) => Placements::Counted,
        (Some(starts), false) => Placements::Fixed(fixed(path, starts, slices - size)?),
        (Some(_), true) => {
            let rule = "leave it out where slices are only counted";
            return Err(refuse(format!("{path}.starts"), "present", rule));
        }
        (None, false) => {
            let rule = "list the slices where a partition may begin, or set `counted`";
            return Err(refuse(format!("{path}.starts"), "absent", rule));
        }
    };
    Ok(PartitionProfile {
        name: parse(format!("{path}.name"), &raw.name)?,
        memory: memory(&format!("{path}.memory"), &raw.memory, device_memory)?,
        compute: parse(format!("{path}.compute_permille"), &permille.to_string())?,
        size,
        placements,
        instances_max: number(
            format!("{path}.instances_max"),
            raw.instances_max,
            1..=INSTANCES_MAX.min(slices / size),
        )?,
    })
}

fn fixed(path: &str, starts: &[i64], last: u32) -> Result<Vec<u32>, Refusal> {
    count(format!("{path}.starts"), starts.len(), 1..=64)?;
    let read = |(i, start): (usize, &i64)| number(format!("{path}.starts[{i}]"), *start, 0..=last);
    let starts = starts.iter().enumerate().map(read).collect::<Result<BTreeSet<u32>, _>>()?;
    Ok(starts.into_iter().collect())
}

fn memory(path: &str, text: &str, max: MemoryBytes) -> Result<MemoryBytes, Refusal> {
    let memory: MemoryBytes = parse(path, text)?;
    if memory == MemoryBytes::ZERO || memory > max {
        return Err(refuse(path, text, format!("use more than 0, at most {max}")));
    }
    Ok(memory)
}
