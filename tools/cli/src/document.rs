//! What the program prints as JSON and YAML: a stable format.
//!
//! Names and units are those of `accelpool.node.v1`. Every field is always there: a text
//! that is not known is empty, a number that is not known is null. Fields may be added;
//! none is renamed, removed or given another meaning.

use std::collections::{BTreeMap, HashMap};

use accelpool_proto::node;
use serde::Serialize;

/// Made from what came over the wire.
trait FromWire<T> {
    fn from_wire(wire: T) -> Self;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl FromWire<$type> for $type {
            fn from_wire(wire: $type) -> Self {
                wire
            }
        })*
    };
}

plain!(String, bool, u32, u64, i32);

impl<A, B: FromWire<A>> FromWire<Vec<A>> for Vec<B> {
    fn from_wire(wire: Vec<A>) -> Self {
        wire.into_iter().map(B::from_wire).collect()
    }
}

impl<A, B: FromWire<A>> FromWire<Option<A>> for Option<B> {
    fn from_wire(wire: Option<A>) -> Self {
        wire.map(B::from_wire)
    }
}

impl<K: Ord, A, B: FromWire<A>> FromWire<HashMap<K, A>> for BTreeMap<K, B> {
    fn from_wire(wire: HashMap<K, A>) -> Self {
        wire.into_iter().map(|(key, value)| (key, B::from_wire(value))).collect()
    }
}

/// Nouns with the fields of the wire message of the same name, in this order. A message
/// that the wire leaves out stands for its default.
macro_rules! nouns {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize)]
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)*
            }

            impl From<node::$name> for $name {
                fn from(wire: node::$name) -> Self {
                    Self { $($field: FromWire::from_wire(wire.$field),)* }
                }
            }

            impl FromWire<node::$name> for $name {
                fn from_wire(wire: node::$name) -> Self {
                    wire.into()
                }
            }

            impl FromWire<Option<node::$name>> for $name {
                fn from_wire(wire: Option<node::$name>) -> Self {
                    wire.unwrap_or_default().into()
                }
            }
        )*
    };
}

nouns! {
    /// A device, with what holds it.
    Device {
        name: String,
        uuid: String,
        vendor: String,
        kind: String,
        model: String,
        architecture: String,
        pci_address: String,
        driver_version: String,
        memory_bytes: u64,
        numa_node: Option<u32>,
        pcie_root: Option<String>,
        fabric_clique: Option<String>,
        partitioning: Option<Partitioning>,
        share_enforcement: Enforcements,
        pool: String,
        present: bool,
        taints: Vec<Taint>,
        usage: Usage,
        parts_only: bool,
        partitioning_mode: String,
        traits: DeviceTraits,
    }

    /// What a vendor tells of a device beyond what every device has.
    DeviceTraits {
        compute_capability: Option<String>,
        runtime_version: Option<String>,
        peers: Vec<Peer>,
        settings: DriverSettings,
    }

    /// How another device and this one reach each other's memory.
    Peer { device: String, path: String, status: String }

    /// How the driver is set for a device.
    DriverSettings {
        compute_mode: Option<String>,
        persistence: Option<bool>,
        accounting: Option<bool>,
    }

    /// What the leases of a device hold of it.
    Usage { mode: String, memory_bytes: u64, compute_permille: u32, claims: Vec<String> }

    /// How a device can be cut.
    Partitioning { scheme: String, slices: u32, uniform: bool, profiles: Vec<Profile> }

    /// One shape of partition.
    Profile {
        name: String,
        memory_bytes: u64,
        compute_permille: u32,
        size: u32,
        starts: Vec<u32>,
        counted: bool,
        instances_max: u32,
    }

    /// A partition that exists or could.
    Partition {
        name: String,
        device: String,
        profile: String,
        start: u32,
        size: u32,
        memory_bytes: u64,
        compute_permille: u32,
        state: String,
        uuid: String,
        claim: String,
        reason: String,
    }

    /// A pool of the configuration.
    Pool {
        name: String,
        exposure: String,
        sharing: String,
        devices: Vec<String>,
        gate: String,
        on_stale_holder: String,
        align_cpus: bool,
        compute: String,
        on_violation: String,
        mps: bool,
        host_memory_bytes: Option<u64>,
    }

    /// How the device gate stands, and what it counted.
    GetGateResponse {
        state: String,
        reason: String,
        root: String,
        guarded: Vec<GuardedDevices>,
        exempt: Vec<String>,
        grants: u32,
        grants_max: u32,
        counts: Vec<GateCounts>,
        repairs: u64,
        defects: Vec<String>,
        recent: Vec<Denial>,
        stale_holders: u32,
        stale_holders_killed: u64,
        drifted_claims: u32,
    }

    /// Device numbers that are guarded.
    GuardedDevices { numbers: String, mode: String, devices: Vec<String> }

    /// How often a device was refused.
    GateCounts { device: String, number: String, audited: u64, denied: u64, unreported: u64 }

    /// One open that no grant admitted.
    Denial {
        unix_ms: u64,
        denied: bool,
        pid: u32,
        command: String,
        cgroup: String,
        cgroup_id: u64,
        device: String,
        number: String,
        access: String,
        claims: Vec<String>,
    }

    /// Who has devices open.
    ListHoldersResponse { holders: Vec<Holder>, processes: u32, partial: bool }

    /// A process that has a device open.
    Holder {
        devices: Vec<String>,
        number: String,
        pid: u32,
        command: String,
        cgroup: String,
        claims: Vec<String>,
        standing: String,
    }

    /// What the containers of a claim can do.
    ClaimVerification { claim: String, found: Verification, cgroups: Vec<CgroupVerification> }

    /// What was found, in a word and in sentences.
    Verification { state: String, deviations: Vec<String>, unix_ms: u64 }

    /// What the processes of one cgroup can do.
    CgroupVerification { cgroup: String, processes: u32, uses: bool, nodes: Vec<NodeVerification> }

    /// What becomes of an open of one device node.
    NodeVerification { number: String, path: String, granted: bool, answer: String }

    /// A mark on a device that keeps new work off it.
    Taint { key: String, effect: String, reason: String, since_unix_ms: u64 }

    /// What keeps a tenant inside its grant.
    Enforcements { memory: String, compute: String, access: String }

    /// One device of a lease, or a part of it.
    Allocation {
        request: String,
        device: String,
        device_uuid: String,
        portion: Portion,
        share_id: Option<String>,
        enforcement: Enforcements,
        cdi_id: String,
    }

    /// What a claim holds, and since when.
    Lease {
        claim: String,
        state: String,
        since_unix_ms: u64,
        allocations: Vec<Allocation>,
        labels: BTreeMap<String, String>,
        trouble: String,
        boot_id: String,
        bindings: Vec<Binding>,
        verification: Option<Verification>,
    }

    /// Something that happened to a claim.
    Event { unix_ms: u64, kind: String, message: String, error_code: String }

    /// One vendor's worker.
    VendorStatus {
        name: String,
        state: String,
        restarts: u32,
        last_error: String,
        devices: u32,
        paused_until_unix_ms: u64,
    }

    /// The daemon.
    GetNodeResponse {
        version: String,
        boot_id: String,
        state: String,
        started_unix_ms: u64,
        ledger_schema: u32,
        vendors: Vec<VendorStatus>,
        revision: u64,
    }

    /// NUMA nodes, the PCIe tree, devices and links.
    GetTopologyResponse {
        source: String,
        numa_nodes: Vec<NumaNode>,
        pcie_nodes: Vec<PcieNode>,
        devices: Vec<Device>,
        links: Vec<Link>,
    }

    /// A NUMA node of the host.
    NumaNode { id: u32, cpus: Vec<u32>, memory_bytes: u64, distances: BTreeMap<u32, u64> }

    /// A root complex, bridge, switch port or device of the PCIe tree.
    PcieNode { pci_address: String, label: String, parent: Option<u32>, numa_node: Option<u32> }

    /// A link between two devices.
    Link {
        a: String,
        b: String,
        kind: String,
        bandwidth_bytes_per_second: u64,
        strands: u32,
        switched: bool,
        switches: Vec<String>,
    }

    /// Which devices are shared by turns, and by whom.
    GetTurnsResponse { devices: Vec<DeviceTurns>, shim: String, folder: String }

    /// A device that is shared by turns.
    DeviceTurns {
        device: String,
        uuid: String,
        mode: String,
        hand_over_ns: u64,
        claims: Vec<ClaimTurns>,
    }

    /// What one claim has of it, and used.
    ClaimTurns {
        claim: String,
        class: String,
        state: String,
        granted_permille: u32,
        measured_permille: Option<u32>,
        used_ns: u64,
        throttled_ns: u64,
        turns: u64,
        stuck: u64,
        memory_quota_bytes: u64,
        memory_used_bytes: u64,
        memory_peak_bytes: u64,
        memory_denied: u64,
        pids: Vec<i32>,
        unclassified: u64,
    }

    /// What became of a configuration that was read again.
    ReloadConfigResponse { changes: Vec<String>, restart_needed: bool }

    /// Something that was looked at, and how it is.
    Finding { severity: String, check: String, message: String, remedy: String }

    /// The story of one claim.
    ExplainClaimResponse { lease: Option<Lease>, events: Vec<Event>, devices: Vec<Device> }
}

/// Processes of this host that may use what a claim holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Binding {
    /// workload or cgroup; empty if this program is too old to know
    pub(crate) kind: String,
    /// The workload's id, or the cgroup's path.
    pub(crate) subject: String,
    /// armed, waiting, gone, outside or ungated
    pub(crate) state: String,
    /// Where the cgroup is, once it is found.
    pub(crate) cgroup_path: String,
}

impl FromWire<node::Binding> for Binding {
    fn from_wire(wire: node::Binding) -> Self {
        let node::Binding { subject, state, cgroup_path } = wire;
        let (kind, subject) = match subject {
            Some(node::binding::Subject::Workload(id)) => ("workload", id),
            Some(node::binding::Subject::Cgroup(path)) => ("cgroup", path),
            Some(node::binding::Subject::Process(id)) => ("process", id.to_string()),
            None => ("", String::new()),
        };
        Self { kind: kind.to_owned(), subject, state, cgroup_path }
    }
}

/// Which part of a device an allocation is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Portion {
    /// The daemon names a part that this program is too old to know.
    #[default]
    Unknown,
    /// All of it, alone.
    Whole,
    /// Access to look, beside whoever holds the device.
    Admin,
    /// A partition.
    Partition { name: String, profile: String, start: u32, adopted: bool },
    /// A share.
    Share { memory_bytes: u64, compute_permille: u32, weight: u32, class: String },
}

impl FromWire<Option<node::allocation::Portion>> for Portion {
    fn from_wire(wire: Option<node::allocation::Portion>) -> Self {
        match wire {
            None => Self::Unknown,
            Some(node::allocation::Portion::Whole(node::Whole {})) => Self::Whole,
            Some(node::allocation::Portion::Admin(node::AdminPortion {})) => Self::Admin,
            Some(node::allocation::Portion::Partition(part)) => Self::Partition {
                name: part.name,
                profile: part.profile,
                start: part.start,
                adopted: part.adopted,
            },
            Some(node::allocation::Portion::Share(share)) => Self::Share {
                memory_bytes: share.memory_bytes,
                compute_permille: share.compute_permille,
                weight: share.weight,
                class: share.class,
            },
        }
    }
}
