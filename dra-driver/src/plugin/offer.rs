//! What is offered as extended resources, and which of it can be had. Pure.
//!
//! A resource stands for a shape: whole devices of a kind, partitions of a profile, shares
//! of a kind. What another way of asking holds is withdrawn here by being called unhealthy,
//! so that ids stay stable; what the id's own claim holds stays healthy.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use accelpool_cluster::{DRIVER_NAME, HeldPortion, NodeDevice};
use accelpool_model::{ComputePermille, Exposure, MemoryBytes, PoolName, TaintEffect};
use accelpool_proto::node::{Partition, allocation::Portion};

use crate::node::Snapshot;

/// The kubelet's limit on a device id, less what a claim's name puts in front of it.
const ID_LEN_MAX: usize = 63 - CLAIM_PREFIX.len();

/// What the claims that stand for extended resources begin with.
const CLAIM_PREFIX: &str = "dp-";

/// A device as the kubelet counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offered {
    /// Stable, and unique in its resource.
    pub(super) id: String,
    /// Whether a pod may be given it, or may keep it.
    pub(super) healthy: bool,
    /// Where it sits, if the platform says.
    pub(super) numa_node: Option<u32>,
    /// Whether the device gate refuses it to who has no grant.
    pub(super) enforced: bool,
    /// In how many ways its device can be had: what is taken in one is lost to the others.
    pub(super) ways: usize,
    /// What the daemon is asked for.
    pub(super) wanted: Wanted,
}

/// What an id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Device { name: String },
    Partition { name: String },
    Share { device: String, memory: MemoryBytes, compute: ComputePermille },
}

/// Devices by extended resource.
pub(super) type Offers = BTreeMap<String, Vec<Offered>>;

/// The claim that holds the device with that id.
#[must_use]
pub(super) fn claim_of(id: &str) -> String {
    format!("{CLAIM_PREFIX}{id}")
}

/// Everything that pools offer to the device plugin API, in a stable order. The pools named
/// in `replicas` also offer each device as so many shares.
#[must_use]
pub(super) fn offers(snapshot: &Snapshot, replicas: &BTreeMap<PoolName, u32>) -> Offers {
    let mut offers = Offers::new();
    for device in &snapshot.state.devices {
        let Some(pool) = &device.offer else { continue };
        match pool.exposure {
            Exposure::Dra => continue,
            Exposure::DevicePlugin | Exposure::Both => {}
        }
        let shared = !device.parts_only && pool.sharing.allows_shares();
        let replicas = replicas.get(&pool.pool).copied().filter(|_| shared);
        let scheme = device.partitioning.as_ref().map(|cut| cut.scheme.as_str());
        let scheme = scheme.filter(|_| pool.sharing.allows_partitions());
        let also_by_claims = pool.exposure == Exposure::Both;
        let ways = [!device.parts_only, replicas.is_some(), scheme.is_some(), also_by_claims];
        let ways = ways.into_iter().filter(|way| *way).count();
        let in_ways = |offered: Offered| Offered { ways, enforced: pool.enforced, ..offered };
        if !device.parts_only {
            add(&mut offers, device.kind.as_str(), [in_ways(whole(device))]);
        }
        if let Some(count) = replicas {
            let resource = format!("{}-share", device.kind);
            add(&mut offers, &resource, shares(device, snapshot, count).into_iter().map(in_ways));
        }
        if let Some(scheme) = scheme {
            for partition in snapshot.partitions.iter().filter(|p| p.device == device.name.as_str())
            {
                let resource = format!("{scheme}-{}", partition.profile);
                add(&mut offers, &resource, [in_ways(of_partition(device, partition))]);
            }
        }
    }
    offers
}

/// Adds devices to the resource of that name, unless a name does not fit the kubelet.
fn add(offers: &mut Offers, name: &str, devices: impl IntoIterator<Item = Offered>) {
    let Some(resource) = resource_name(name) else { return };
    let devices = devices.into_iter().filter(|device| device.id.len() <= ID_LEN_MAX);
    offers.entry(resource).or_default().extend(devices);
}

/// The extended resource for a word of ours or of a vendor's; none if it makes no name.
fn resource_name(word: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let word: String =
        word.to_ascii_lowercase().chars().map(|c| if plain(c) { c } else { '.' }).collect();
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let valid = word.len() <= 63 && ends(word.chars().next()) && ends(word.chars().next_back());
    valid.then(|| format!("{DRIVER_NAME}/{word}"))
}

fn whole(device: &NodeDevice) -> Offered {
    let id = device.name.to_string();
    let own = claim_of(&id);
    let free = device.holdings.iter().all(|held| held.claim == own)
        && device.existing.iter().all(|partition| partition.claimed);
    Offered {
        healthy: accepts_work(device) && free,
        numa_node: device.numa_node,
        enforced: false,
        ways: 1,
        wanted: Wanted::Device { name: id.clone() },
        id,
    }
}

fn of_partition(device: &NodeDevice, partition: &Partition) -> Offered {
    let id = partition.name.clone();
    let own = partition.claim == claim_of(&id);
    let free = partition.claim.is_empty() && matches!(partition.state.as_str(), "free" | "exists");
    Offered {
        healthy: accepts_work(device) && (own || free),
        numa_node: device.numa_node,
        enforced: false,
        ways: 1,
        wanted: Wanted::Partition { name: id.clone() },
        id,
    }
}

/// The equal shares of a device. As many are healthy as still fit beside what is held.
fn shares(device: &NodeDevice, snapshot: &Snapshot, count: u32) -> Vec<Offered> {
    let memory = MemoryBytes::new(device.memory.bytes() / u64::from(count));
    let Ok(compute) = ComputePermille::try_from(u64::from(1000 / count)) else { return vec![] };
    let cut = device.existing.iter().any(|partition| !partition.claimed);
    let shareable = accepts_work(device)
        && !cut
        && device.holdings.iter().all(|held| match held.portion {
            HeldPortion::Share => true,
            HeldPortion::Whole | HeldPortion::Partition { .. } => false,
        });
    let holders: BTreeSet<&str> = device.holdings.iter().map(|held| held.claim.as_str()).collect();
    let (mut memory_left, mut compute_left) = left(device, snapshot);
    let mut offered = Vec::new();
    for index in 0..count {
        let id = format!("{}-share-{index}", device.name);
        let own = holders.contains(claim_of(&id).as_str());
        let fits = memory_left >= memory.bytes() && compute_left >= u32::from(compute.permille());
        if fits && !own {
            memory_left -= memory.bytes();
            compute_left -= u32::from(compute.permille());
        }
        let wanted = Wanted::Share { device: device.name.to_string(), memory, compute };
        let healthy = shareable && (own || fits);
        let numa_node = device.numa_node;
        offered.push(Offered { id, healthy, numa_node, enforced: false, ways: 1, wanted });
    }
    offered
}

/// Memory and compute of a device that no share holds.
fn left(device: &NodeDevice, snapshot: &Snapshot) -> (u64, u32) {
    let allocations = snapshot.leases.iter().flat_map(|lease| &lease.allocations);
    let held = allocations.filter(|allocation| allocation.device == device.name.as_str());
    let shares = held.filter_map(|allocation| match &allocation.portion {
        Some(Portion::Share(share)) => Some((share.memory_bytes, share.compute_permille)),
        Some(Portion::Whole(_) | Portion::Partition(_) | Portion::Admin(_)) | None => None,
    });
    let whole = (device.memory.bytes(), u32::from(ComputePermille::WHOLE.permille()));
    shares.fold(whole, |left, held| (left.0.saturating_sub(held.0), left.1.saturating_sub(held.1)))
}

fn accepts_work(device: &NodeDevice) -> bool {
    device.present
        && device.taints.iter().all(|taint| match taint.effect {
            TaintEffect::None => true,
            TaintEffect::NoSchedule | TaintEffect::NoExecute => false,
        })
}
