//! Which writes bring the API server's slices to the pages wanted. Pure.
//!
//! Readers use the highest generation of a pool and only if it is complete. So one page may
//! change in place, and missing pages may come back as they were; anything more gets a new
//! generation on every page, and no reader ever sees a mixture.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{Device, DeviceTaint, ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use crate::Page;

/// Whose slices they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    pub(super) driver: String,
    pub(super) node: String,
    pub(super) pool: String,
    /// The node's UID: slices go when the node goes.
    pub(super) node_uid: String,
}

/// A slice as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) metadata: ObjectMeta,
    pub(super) pool: ResourcePool,
    pub(super) page: Page,
}

/// Slices by name.
pub(super) type Slices = BTreeMap<String, Stored>;

/// One change to the API server's slices.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    Delete { name: String },
    Update { name: String, slice: Box<ResourceSlice> },
    Create { name: String, slice: Box<ResourceSlice> },
}

/// The writes in their order, and the generation that the pool then has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) generation: i64,
    pub(super) writes: Vec<Write>,
}

impl Stored {
    /// What of a slice matters; `None` if it has no name.
    pub(super) fn of(slice: ResourceSlice) -> Option<(String, Self)> {
        let ResourceSlice { mut metadata, spec } = slice;
        metadata.managed_fields = None; // large, and of no use to a writer of whole objects
        let name = metadata.name.clone()?;
        let ResourceSliceSpec { pool, devices, shared_counters, .. } = spec;
        let page = Page {
            devices: devices.unwrap_or_default(),
            counters: shared_counters.unwrap_or_default(),
        };
        Some((name, Self { metadata, pool, page }))
    }

    fn is_owned_by(&self, identity: &Identity) -> bool {
        self.metadata.owner_references.as_deref() == Some(&[owner(identity)])
    }
}

/// Plans the writes that make `stored` into `wanted`, beyond generation `seen`.
pub(super) fn plan(stored: &Slices, wanted: &[&Page], identity: &Identity, seen: i64) -> Plan {
    let names: Vec<String> = (0..wanted.len()).map(|index| slice_name(index, identity)).collect();
    let belongs =
        |name: &String, slice: &Stored| names.contains(name) && slice.pool.name == identity.pool;
    let (kept, obsolete): (Vec<_>, Vec<_>) =
        stored.iter().partition(|(name, slice)| belongs(name, slice));
    let kept: BTreeMap<&String, &Stored> = kept.into_iter().collect();
    let generation = generation(&kept, wanted, &names, identity, seen);

    let count = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
    let pool =
        ResourcePool { name: identity.pool.clone(), generation, resource_slice_count: count };
    // Old ones first: what is obsolete must not complete or contradict the new generation.
    let mut writes: Vec<Write> =
        obsolete.into_iter().map(|(name, _)| Write::Delete { name: name.clone() }).collect();
    let mut creates = Vec::new();
    for (name, page) in names.iter().zip(wanted) {
        match kept.get(name) {
            Some(slice) if slice.pool == pool && is_current(slice, page, identity) => {}
            Some(slice) => {
                let metadata = slice.metadata.clone();
                let slice = Box::new(resource_slice(metadata, &pool, page, identity));
                writes.push(Write::Update { name: name.clone(), slice });
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let slice = Box::new(resource_slice(metadata, &pool, page, identity));
                creates.push(Write::Create { name: name.clone(), slice });
            }
        }
    }
    writes.extend(creates);
    Plan { generation, writes }
}

fn generation(
    kept: &BTreeMap<&String, &Stored>,
    wanted: &[&Page],
    names: &[String],
    identity: &Identity,
    seen: i64,
) -> i64 {
    let highest = kept.values().map(|slice| slice.pool.generation).max();
    let next = highest.unwrap_or(0).max(seen).saturating_add(1);
    let Some(highest) = highest else { return next };
    let count = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
    let even = kept
        .values()
        .all(|slice| slice.pool.generation == highest && slice.pool.resource_slice_count == count);
    let pages = names.iter().zip(wanted);
    let stored = pages.filter_map(|(name, page)| Some((kept.get(name)?, page)));
    let changed = stored.filter(|(slice, page)| !is_current(slice, page, identity)).count();
    let missing = names.len() - kept.len();
    if even && (changed == 0 || changed == 1 && missing == 0) { highest } else { next }
}

fn is_current(slice: &Stored, page: &Page, identity: &Identity) -> bool {
    slice.is_owned_by(identity) && is_same_page(page, &slice.page)
}

/// True if `stored` is what the API server makes of `wanted`.
pub(super) fn is_same_page(wanted: &Page, stored: &Page) -> bool {
    wanted.counters == stored.counters
        && wanted.devices.len() == stored.devices.len()
        && wanted.devices.iter().zip(&stored.devices).all(|(a, b)| is_same_device(a, b))
}

fn is_same_device(wanted: &Device, stored: &Device) -> bool {
    if wanted == stored {
        return true;
    }
    let (Some(wanted_taints), Some(stored_taints)) = (&wanted.taints, &stored.taints) else {
        return false;
    };
    // The API server fills in the time of a taint that was sent without one.
    let is_same_taint = |(a, b): (&DeviceTaint, &DeviceTaint)| {
        let time_added = a.time_added.clone().or_else(|| b.time_added.clone());
        DeviceTaint { time_added, ..a.clone() } == *b
    };
    wanted_taints.len() == stored_taints.len()
        && wanted_taints.iter().zip(stored_taints).all(is_same_taint)
        && Device { taints: None, ..wanted.clone() } == Device { taints: None, ..stored.clone() }
}

fn resource_slice(
    metadata: ObjectMeta,
    pool: &ResourcePool,
    page: &Page,
    identity: &Identity,
) -> ResourceSlice {
    let metadata = ObjectMeta { owner_references: Some(vec![owner(identity)]), ..metadata };
    let some = |empty: bool| (!empty).then_some(());
    let spec = ResourceSliceSpec {
        driver: identity.driver.clone(),
        node_name: Some(identity.node.clone()),
        pool: pool.clone(),
        // An empty list beside counters is refused, so it is left out.
        devices: some(page.devices.is_empty()).map(|()| page.devices.clone()),
        shared_counters: some(page.counters.is_empty()).map(|()| page.counters.clone()),
        ..ResourceSliceSpec::default()
    };
    ResourceSlice { metadata, spec }
}

fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: identity.node.clone(),
        uid: identity.node_uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// The name of the slice at `index`. The scheduler looks at slices in the order of their
/// names; and two drivers that follow one another on a node mean the same object by it.
pub(super) fn slice_name(index: usize, identity: &Identity) -> String {
    const LEN_MAX: usize = 253;
    let name = format!("{index:05x}-{}-{}", identity.driver, identity.node);
    if name.len() <= LEN_MAX {
        return name;
    }
    // A node's name alone may be as long: its beginning and a hash stand for it.
    let hash = format!("-{:016x}", fnv1a(&name));
    let kept = name[..LEN_MAX - hash.len()].trim_end_matches(['-', '.']);
    format!("{kept}{hash}")
}

/// FNV-1a: the same on every machine and in every version, unlike the standard hasher.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
