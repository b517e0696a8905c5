//! The node's state as the publisher needs it: the daemon's words, taken apart and checked.
//!
//! What cannot be understood is left out and named, so that one odd device does not keep
//! the others from being published.

use std::{fmt::Display, str::FromStr};

use accelpool_model::{
    ComputePermille, DeviceKind, DeviceName, Enforcements, Exposure, MemoryBytes, PartitionProfile,
    Partitioning, PciAddress, Placements, PoolName, ProfileName, Sharing, Taint, VendorName,
};
use accelpool_proto::node as wire;

/// The label of a lease that says through which door the claim came.
pub const SURFACE_LABEL: &str = "accelpool.dev/surface";
/// The value of [`SURFACE_LABEL`] for claims that the scheduler placed by `ResourceSlices`.
pub const SURFACE_DRA: &str = "dra";

/// What the daemon says of its node, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeState {
    /// Grows with each change; starts anew with the daemon.
    pub revision: u64,
    /// The devices, by name.
    pub devices: Vec<NodeDevice>,
    /// What could not be understood, in words.
    pub refused: Vec<String>,
}

/// A device with all that decides how it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `accelpool_model::Device`")]
pub struct NodeDevice {
    pub name: DeviceName,
    pub uuid: String,
    pub vendor: VendorName,
    pub kind: DeviceKind,
    pub model: String,
    pub architecture: String,
    pub pci: Option<PciAddress>,
    pub driver_version: String,
    /// Version of what programs are compiled for; empty if not known.
    pub compute_capability: String,
    /// Newest version of the vendor's programming interface that the driver serves.
    pub runtime_version: String,
    pub memory: MemoryBytes,
    pub numa_node: Option<u32>,
    pub pcie_root: Option<String>,
    pub fabric_clique: Option<String>,
    pub partitioning: Option<Partitioning>,
    /// True if it can be had neither whole nor as a share.
    pub parts_only: bool,
    pub share_enforcement: Enforcements,
    /// How its pool is offered; a device without a pool is not offered.
    pub offer: Option<Offer>,
    /// False once it is gone from the bus.
    pub present: bool,
    pub taints: Vec<Taint>,
    /// The partitions that exist now.
    pub existing: Vec<ExistingPartition>,
    /// What claims hold of it.
    pub holdings: Vec<Holding>,
}

/// The pool of a device and what it decides.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Offer {
    pub pool: PoolName,
    pub exposure: Exposure,
    pub sharing: Sharing,
    /// Whether containers with its devices run on the CPUs that are near to them.
    pub align_cpus: bool,
    /// Whether the device gate refuses its devices to who has no grant.
    pub enforced: bool,
}

/// A partition that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingPartition {
    /// Its shape.
    pub profile: ProfileName,
    /// Where it lies, as in [`PartitionProfile::starts`].
    pub start: u32,
    /// False if a creation stopped half-way.
    pub complete: bool,
    /// True if a claim holds it; else somebody made it by hand.
    pub claimed: bool,
}

/// A part of a device that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The claim, as the daemon knows it.
    pub claim: String,
    /// The part held.
    pub portion: HeldPortion,
    /// True if the scheduler knows of it, because it placed the claim itself.
    pub placed_by_scheduler: bool,
}

/// Which part of a device is held.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum HeldPortion {
    Whole,
    Share,
    Partition { profile: ProfileName, start: u32 },
}

/// More placements of one profile than any device has.
const PLACEMENTS_MAX: usize = 256;

impl NodeState {
    /// Takes apart what the daemon sent.
    #[must_use]
    pub fn from_wire(state: &wire::WatchNodeResponse) -> Self {
        let mut refused = Vec::new();
        let mut devices = Vec::new();
        for device in &state.devices {
            match node_device(device, state, &mut refused) {
                Ok(device) => devices.push(device),
                Err(reason) => {
                    refused.push(format!("device `{}`: {reason}", shorten(&device.name)));
                }
            }
        }
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Self { revision: state.revision, devices, refused }
    }
}

fn node_device(
    device: &wire::Device,
    state: &wire::WatchNodeResponse,
    refused: &mut Vec<String>,
) -> Result<NodeDevice, String> {
    let enforcement = device.share_enforcement.clone().unwrap_or_default();
    let none_if_empty =
        |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let name: DeviceName = parse(&device.name)?;
    let offer = state.pools.iter().find(|pool| pool.name == device.pool).map(offer).transpose()?;
    let partitioning = device.partitioning.as_ref().map(partitioning).transpose()?;
    let taints = device.taints.iter().map(taint).collect::<Result<_, _>>()?;
    let pci = Some(&device.pci_address).filter(|address| !address.is_empty());
    let traits = device.traits.clone().unwrap_or_default();
    let existing = existing_partitions(&device.name, state, refused);
    Ok(NodeDevice {
        name,
        uuid: device.uuid.clone(),
        vendor: parse(&device.vendor)?,
        kind: parse(&device.kind)?,
        model: device.model.clone(),
        architecture: device.architecture.clone(),
        pci: pci.map(|address| parse(address)).transpose()?,
        driver_version: device.driver_version.clone(),
        compute_capability: traits.compute_capability.unwrap_or_default(),
        runtime_version: traits.runtime_version.unwrap_or_default(),
        memory: MemoryBytes::new(device.memory_bytes),
        numa_node: device.numa_node,
        pcie_root: device.pcie_root.clone(),
        fabric_clique: device.fabric_clique.clone(),
        partitioning,
        parts_only: device.parts_only,
        share_enforcement: Enforcements {
            memory: parse(&none_if_empty(&enforcement.memory))?,
            compute: parse(&none_if_empty(&enforcement.compute))?,
        },
        offer,
        present: device.present,
        taints,
        existing,
        holdings: holdings(&device.name, state, refused),
    })
}

fn offer(pool: &wire::Pool) -> Result<Offer, String> {
    Ok(Offer {
        pool: parse(&pool.name)?,
        exposure: parse(&pool.exposure)?,
        sharing: parse(&pool.sharing)?,
        align_cpus: pool.align_cpus,
        enforced: pool.gate == "enforce",
    })
}

fn partitioning(cut: &wire::Partitioning) -> Result<Partitioning, String> {
    let profiles = cut.profiles.iter().map(profile).collect::<Result<_, _>>()?;
    let wire::Partitioning { scheme, slices, uniform, .. } = cut;
    Ok(Partitioning {
        scheme: scheme.clone(),
        slices: *slices,
        uniform: *uniform,
        profiles,
        // The daemon has decided by it what is offered.
        mode: None,
    })
}

fn profile(profile: &wire::Profile) -> Result<PartitionProfile, String> {
    let compute = ComputePermille::try_from(u64::from(profile.compute_permille));
    let ordinals = if profile.counted { profile.instances_max as usize } else { 0 };
    let placements = profile.starts.len().max(ordinals);
    if placements > PLACEMENTS_MAX {
        let name = shorten(&profile.name);
        return Err(format!(
            "profile `{name}` has {placements} placements: {PLACEMENTS_MAX} at most"
        ));
    }
    Ok(PartitionProfile {
        name: parse(&profile.name)?,
        memory: MemoryBytes::new(profile.memory_bytes),
        compute: compute.map_err(|error| error.to_string())?,
        size: profile.size,
        placements: if profile.counted {
            Placements::Counted
        } else {
            Placements::Fixed(profile.starts.clone())
        },
        instances_max: profile.instances_max,
    })
}

fn taint(taint: &wire::Taint) -> Result<Taint, String> {
    Ok(Taint {
        key: taint.key.clone(),
        effect: parse(&taint.effect)?,
        reason: taint.reason.clone(),
        since_ms: taint.since_unix_ms,
        incarnation: None,
    })
}

fn existing_partitions(
    device: &str,
    state: &wire::WatchNodeResponse,
    refused: &mut Vec<String>,
) -> Vec<ExistingPartition> {
    let mut existing = Vec::new();
    for partition in state.partitions.iter().filter(|partition| partition.device == device) {
        let complete = match partition.state.as_str() {
            "exists" => true,
            "half-created" => false,
            _ => continue, // free or blocked: it only could exist
        };
        match partition.profile.parse() {
            Ok(profile) => existing.push(ExistingPartition {
                profile,
                start: partition.start,
                complete,
                claimed: !partition.claim.is_empty(),
            }),
            Err(error) => {
                refused.push(format!("partition `{}`: {error}", shorten(&partition.name)));
            }
        }
    }
    existing
}

fn holdings(
    device: &str,
    state: &wire::WatchNodeResponse,
    refused: &mut Vec<String>,
) -> Vec<Holding> {
    let mut holdings = Vec::new();
    for lease in &state.leases {
        let surface = lease.labels.get(SURFACE_LABEL).map(String::as_str);
        for allocation in lease.allocations.iter().filter(|allocation| allocation.device == device)
        {
            let Some(portion) = held_portion(lease, allocation, refused) else { continue };
            holdings.push(Holding {
                claim: lease.claim.clone(),
                portion,
                placed_by_scheduler: surface == Some(SURFACE_DRA),
            });
        }
    }
    holdings
}

/// What an allocation holds; nothing if it only looks.
fn held_portion(
    lease: &wire::Lease,
    allocation: &wire::Allocation,
    refused: &mut Vec<String>,
) -> Option<HeldPortion> {
    match &allocation.portion {
        Some(wire::allocation::Portion::Admin(_)) => None,
        Some(wire::allocation::Portion::Whole(_)) | None => Some(HeldPortion::Whole),
        Some(wire::allocation::Portion::Share(_)) => Some(HeldPortion::Share),
        Some(wire::allocation::Portion::Partition(partition)) => match partition.profile.parse() {
            Ok(profile) => Some(HeldPortion::Partition { profile, start: partition.start }),
            Err(error) => {
                refused.push(format!("lease `{}`: {error}", shorten(&lease.claim)));
                Some(HeldPortion::Whole) // the safe reading: nothing else fits beside it
            }
        },
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn shorten(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
