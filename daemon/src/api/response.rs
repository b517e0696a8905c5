//! Model types to wire responses.

use std::collections::BTreeSet;

use accelpool_model::{
    Allocation, Binding, Device, DeviceName, DeviceTraits, Enforcements, Lease, Link, MemoryBytes,
    NumaNode, Partition, PartitionProfile, Partitioning, PcieNode, Peer, Placements, Pool, Portion,
    Settings, Taint, Target,
};
use accelpool_planner::NodeView;
use accelpool_proto::node as wire;

use crate::{
    gate::{
        CgroupVerification, ClaimVerification, Denial, GateStatus, Holder, Holders, NodeAnswer,
        Verification,
    },
    node::{Event, State},
    usage::cgroup::pod_uid,
};

/// `state` as decisions want it.
pub(super) fn view(state: &State) -> NodeView<'_> {
    NodeView { inventory: &state.inventory, leases: &state.leases, pools: &state.pools }
}

pub(super) fn devices(state: &State) -> Vec<wire::Device> {
    let view = view(state);
    state.inventory.devices().map(|found| device(view, found)).collect()
}

fn device(view: NodeView<'_>, device: &Device) -> wire::Device {
    let inventory = view.inventory;
    let taints = inventory.taints.get(&device.name).map_or(&[][..], Vec::as_slice);
    wire::Device {
        name: device.name.to_string(),
        uuid: device.uuid.to_string(),
        vendor: device.vendor.to_string(),
        kind: device.kind.to_string(),
        model: device.model.clone(),
        architecture: device.architecture.clone(),
        pci_address: device.pci.to_string(),
        driver_version: device.driver_version.clone(),
        memory_bytes: device.memory.bytes(),
        numa_node: device.numa_node,
        pcie_root: device.pcie_root.clone(),
        fabric_clique: device.fabric_clique.clone(),
        partitioning: device
            .partitioning
            .as_ref()
            .filter(|_| device.serves_parts(view.switches_mode(device)))
            .map(partitioning),
        parts_only: !device.serves_whole(view.switches_mode(device)),
        partitioning_mode: device
            .mode()
            .map(|mode| if mode.on { "on" } else { "off" }.to_owned())
            .unwrap_or_default(),
        share_enforcement: Some(enforcements(device.share_enforcement)),
        pool: view.pool(device).map(|pool| pool.name.to_string()).unwrap_or_default(),
        present: !inventory.lost.contains(&device.name),
        taints: taints.iter().map(taint).collect(),
        usage: Some(usage(view, device)),
        traits: Some(traits(&device.traits)),
    }
}

fn traits(traits: &DeviceTraits) -> wire::DeviceTraits {
    let peer = |peer: &Peer| wire::Peer {
        device: peer.device.to_string(),
        path: peer.path.map(|path| path.as_str().to_owned()).unwrap_or_default(),
        status: peer.status.clone(),
    };
    let Settings { compute_mode, persistence, accounting } = traits.settings;
    wire::DeviceTraits {
        compute_capability: traits.compute_capability.clone(),
        runtime_version: traits.runtime_version.clone(),
        peers: traits.peers.iter().map(peer).collect(),
        settings: Some(wire::DriverSettings {
            compute_mode: compute_mode.map(|mode| mode.to_string()),
            persistence,
            accounting,
        }),
    }
}

fn usage(view: NodeView<'_>, device: &Device) -> wire::Usage {
    let mut usage = wire::Usage { mode: "free".to_owned(), ..wire::Usage::default() };
    if view.foreign_partitions(device).next().is_some() {
        "foreign".clone_into(&mut usage.mode);
    }
    for lease in view.leases.values() {
        for allocation in lease.allocations.iter().filter(|held| held.device == device.name) {
            let (mode, memory, compute) = match &allocation.portion {
                // Who only looks holds nothing.
                Portion::Admin { .. } => continue,
                Portion::Whole => ("whole", device.memory.bytes(), 1000),
                Portion::Share { memory, compute, .. } => {
                    ("shared", memory.bytes(), compute.permille().into())
                }
                Portion::Partition { profile, .. } => {
                    let profile = device.profile(profile);
                    let memory = profile.map_or(0, |profile| profile.memory.bytes());
                    let compute = profile.map_or(0, |profile| profile.compute.permille());
                    ("partitioned", memory, compute.into())
                }
            };
            mode.clone_into(&mut usage.mode);
            usage.memory_bytes = usage.memory_bytes.saturating_add(memory);
            usage.compute_permille = usage.compute_permille.saturating_add(compute);
            let claim = lease.claim.id.to_string();
            if usage.claims.last() != Some(&claim) {
                usage.claims.push(claim);
            }
        }
    }
    usage
}

fn partitioning(partitioning: &Partitioning) -> wire::Partitioning {
    let profile = |profile: &PartitionProfile| wire::Profile {
        name: profile.name.to_string(),
        memory_bytes: profile.memory.bytes(),
        compute_permille: profile.compute.permille().into(),
        size: profile.size,
        starts: profile.starts(),
        counted: matches!(profile.placements, Placements::Counted),
        instances_max: profile.instances_max,
    };
    wire::Partitioning {
        scheme: partitioning.scheme.clone(),
        slices: partitioning.slices,
        uniform: partitioning.uniform,
        profiles: partitioning.profiles.iter().map(profile).collect(),
    }
}

pub(super) fn taint(taint: &Taint) -> wire::Taint {
    wire::Taint {
        key: taint.key.clone(),
        effect: taint.effect.to_string(),
        reason: taint.reason.clone(),
        since_unix_ms: taint.since_ms,
    }
}

fn enforcements(enforcements: Enforcements) -> wire::Enforcements {
    wire::Enforcements {
        memory: enforcements.memory.to_string(),
        compute: enforcements.compute.to_string(),
        access: String::new(),
    }
}

/// The partitions that exist, and if `possible` every one that could.
pub(super) fn partitions(state: &State, only: &str, possible: bool) -> Vec<wire::Partition> {
    let view = view(state);
    let inventory = &state.inventory;
    let mut found = Vec::new();
    for (name, target) in inventory.possible_partitions() {
        let Target::Partition { device, profile, start } = target else { continue };
        let Some(device) = inventory.device(device) else { continue };
        let Some(shape) = device.profile(profile) else { continue };
        if !only.is_empty() && device.name.as_str() != only {
            continue;
        }
        let there = inventory.partition_at(&device.uuid, profile, *start);
        let served = possible && device.serves_parts(view.switches_mode(device));
        if there.is_none() && !served {
            continue;
        }
        let holder = state.leases.values().find(|lease| {
            let holds = |allocation: &Allocation| {
                matches!(&allocation.portion, Portion::Partition { name: held, .. } if held == name)
            };
            lease.allocations.iter().any(holds)
        });
        let (partition_state, reason) = match there {
            Some(partition) => (existing(partition), String::new()),
            None => match accelpool_planner::check_possible(view, device, profile, *start) {
                Ok(()) => ("free", String::new()),
                Err(error) => ("blocked", error.to_string()),
            },
        };
        found.push(wire::Partition {
            name: name.to_string(),
            device: device.name.to_string(),
            profile: profile.to_string(),
            start: *start,
            size: shape.size,
            memory_bytes: shape.memory.bytes(),
            compute_permille: shape.compute.permille().into(),
            state: partition_state.to_owned(),
            uuid: there.map(|partition| partition.uuid.to_string()).unwrap_or_default(),
            claim: holder.map(|lease| lease.claim.id.to_string()).unwrap_or_default(),
            reason,
        });
    }
    found
}

fn existing(partition: &Partition) -> &'static str {
    if partition.complete { "exists" } else { "half-created" }
}

pub(super) fn pools(state: &State) -> Vec<wire::Pool> {
    let view = view(state);
    let of = |pool: &Pool| wire::Pool {
        name: pool.name.to_string(),
        exposure: pool.exposure.to_string(),
        sharing: pool.sharing.to_string(),
        gate: pool.gate.to_string(),
        on_stale_holder: pool.on_stale_holder.to_string(),
        devices: state
            .inventory
            .devices()
            .filter(|device| view.pool(device).is_some_and(|own| own.name == pool.name))
            .map(|device| device.name.to_string())
            .collect(),
        align_cpus: pool.align_cpus,
        compute: pool.compute.to_string(),
        on_violation: pool.on_violation.to_string(),
        mps: pool.mps,
        host_memory_bytes: pool.host_memory.map(MemoryBytes::bytes),
    };
    state.pools.iter().map(of).collect()
}

pub(super) fn leases(state: &State) -> Vec<wire::Lease> {
    let gated = gated_devices(state);
    state.leases.values().map(|held| lease_among(state, &gated, held)).collect()
}

/// A lease of `state`, or one that has just been made.
pub(super) fn lease(state: &State, lease: &Lease) -> wire::Lease {
    lease_among(state, &gated_devices(state), lease)
}

/// The devices that the gate keeps everybody off who was not granted them.
pub(super) fn gated_devices(state: &State) -> BTreeSet<&DeviceName> {
    let view = view(state);
    let enforced = |device: &&Device| {
        view.pool(device).is_some_and(|pool| pool.gate == accelpool_model::GateMode::Enforce)
    };
    let devices = state.inventory.devices().filter(|_| state.gate.up);
    devices.filter(enforced).map(|device| &device.name).collect()
}

fn lease_among(state: &State, gated: &BTreeSet<&DeviceName>, lease: &Lease) -> wire::Lease {
    let granted = lease.grant().devices;
    let trouble = state.troubles.get(&lease.claim.id).cloned().unwrap_or_default();
    wire::Lease {
        claim: lease.claim.id.to_string(),
        state: lease.state.to_string(),
        since_unix_ms: lease.since_ms,
        allocations: granted
            .into_iter()
            .map(|device| {
                let access =
                    if gated.contains(&device.allocation.device) { "kernel" } else { "none" };
                allocation(&device.allocation, device.cdi_id, access)
            })
            .collect(),
        labels: lease.claim.labels.clone().into_iter().collect(),
        trouble,
        boot_id: lease.boot.to_string(),
        bindings: lease.bindings.iter().map(|it| binding(state, lease, it)).collect(),
        verification: state.gate.verification(&lease.claim.id).map(verification),
    }
}

fn binding(state: &State, lease: &Lease, binding: &Binding) -> wire::Binding {
    let found = state.gate.binding(lease, binding);
    wire::Binding {
        subject: Some(match binding {
            Binding::Workload(id) => wire::binding::Subject::Workload(id.to_string()),
            Binding::Cgroup { path, .. } => wire::binding::Subject::Cgroup(path.clone()),
        }),
        state: found.word.to_owned(),
        cgroup_path: found.path,
    }
}

fn allocation(allocation: &Allocation, cdi_id: String, access: &str) -> wire::Allocation {
    use wire::allocation::Portion as Wire;
    let portion = match &allocation.portion {
        Portion::Whole => Wire::Whole(wire::Whole {}),
        Portion::Admin { .. } => Wire::Admin(wire::AdminPortion {}),
        Portion::Partition { name, profile, start, adopted, .. } => {
            Wire::Partition(wire::PartitionPortion {
                name: name.to_string(),
                profile: profile.to_string(),
                start: *start,
                adopted: *adopted,
            })
        }
        Portion::Share { memory, compute, weight, class } => Wire::Share(wire::SharePortion {
            memory_bytes: memory.bytes(),
            compute_permille: compute.permille().into(),
            weight: weight.value().into(),
            class: class.to_string(),
        }),
    };
    wire::Allocation {
        request: allocation.request.to_string(),
        device: allocation.device.to_string(),
        device_uuid: allocation.uuid.to_string(),
        share_id: allocation.share_id.as_ref().map(ToString::to_string),
        enforcement: Some(wire::Enforcements {
            access: access.to_owned(),
            ..enforcements(allocation.enforcement)
        }),
        cdi_id,
        portion: Some(portion),
    }
}

pub(super) fn gate(status: GateStatus) -> wire::GetGateResponse {
    let counts = |(device, number, counts): (String, String, accelpool_gate::Counts)| {
        let accelpool_gate::Counts { audited, denied, unreported } = counts;
        wire::GateCounts { device, number, audited, denied, unreported }
    };
    let guarded = |(numbers, mode, devices): (String, accelpool_model::GateMode, Vec<String>)| {
        wire::GuardedDevices { numbers, mode: mode.to_string(), devices }
    };
    wire::GetGateResponse {
        state: status.state.to_owned(),
        reason: status.reason,
        root: status.root,
        guarded: status.guarded.into_iter().map(guarded).collect(),
        exempt: status.exempt,
        grants: count(status.grants),
        grants_max: accelpool_gate::Gate::GRANTS_MAX,
        counts: status.counts.into_iter().map(counts).collect(),
        repairs: status.repairs,
        defects: status.defects,
        recent: status.recent.iter().map(denial).collect(),
        stale_holders: count(status.stale_holders),
        stale_holders_killed: status.stale_holders_killed,
        drifted_claims: count(status.drifted_claims),
    }
}

/// A number of things on a node.
fn count(things: usize) -> u32 {
    u32::try_from(things).unwrap_or(u32::MAX)
}

/// Who has devices open; only `device`, if one is named.
pub(super) fn holders(found: Holders, device: &str) -> wire::ListHoldersResponse {
    let meant =
        |holder: &Holder| device.is_empty() || holder.devices.iter().any(|own| own == device);
    let holder = |holder: Holder| wire::Holder {
        devices: holder.devices,
        number: holder.number.to_string(),
        pid: holder.process,
        command: holder.command,
        cgroup: holder.cgroup,
        claims: holder.claims.iter().map(ToString::to_string).collect(),
        standing: holder.right.as_str().to_owned(),
    };
    let Holders { holders, processes, partial } = found;
    let holders = holders.into_iter().filter(meant).map(holder).collect();
    wire::ListHoldersResponse { holders, processes: count(processes), partial }
}

pub(super) fn verification_of_claim(found: ClaimVerification) -> wire::ClaimVerification {
    let node = |(number, (path, granted, answer)): (String, (String, bool, NodeAnswer))| {
        wire::NodeVerification { number, path, granted, answer: answer.as_str().to_owned() }
    };
    let cgroup = |found: CgroupVerification| wire::CgroupVerification {
        cgroup: found.cgroup,
        processes: count(found.processes),
        uses: found.uses,
        nodes: found.nodes.into_iter().map(node).collect(),
    };
    wire::ClaimVerification {
        claim: found.claim.to_string(),
        found: Some(verification(&found.found)),
        cgroups: found.cgroups.into_iter().map(cgroup).collect(),
    }
}

fn verification(found: &Verification) -> wire::Verification {
    wire::Verification {
        state: found.state.to_owned(),
        deviations: found.deviations.clone(),
        unix_ms: found.unix_ms,
    }
}

pub(super) fn denial(denial: &Denial) -> wire::Denial {
    wire::Denial {
        unix_ms: denial.unix_ms,
        denied: denial.denied,
        pid: denial.process,
        command: denial.command.clone(),
        cgroup: denial.cgroup.clone(),
        cgroup_id: denial.cgroup_id.0,
        device: denial.device.clone(),
        number: denial.number.clone(),
        access: denial.access.clone(),
        claims: denial.claims.iter().map(ToString::to_string).collect(),
        workload: pod_uid(&denial.cgroup).unwrap_or_default(),
    }
}

pub(super) fn event(event: &Event) -> wire::Event {
    wire::Event {
        unix_ms: event.unix_ms,
        kind: event.kind.as_str().to_owned(),
        message: event.message.clone(),
        error_code: event.error_code.to_owned(),
    }
}

pub(super) fn topology(state: &State) -> wire::GetTopologyResponse {
    let numa = |node: &NumaNode| wire::NumaNode {
        id: node.id,
        cpus: node.cpus.clone(),
        memory_bytes: node.memory_bytes,
        distances: node.distances.iter().map(|(to, distance)| (*to, *distance)).collect(),
    };
    let pcie = |node: &PcieNode| wire::PcieNode {
        pci_address: node.pci.map(|pci| pci.to_string()).unwrap_or_default(),
        label: node.label.clone(),
        parent: node.parent.and_then(|parent| u32::try_from(parent).ok()),
        numa_node: node.numa_node,
    };
    let link = |link: &Link| wire::Link {
        a: link.ends.0.to_string(),
        b: link.ends.1.to_string(),
        kind: link.kind.to_string(),
        bandwidth_bytes_per_second: link.bandwidth.bytes_per_second(),
        strands: link.strands,
        switched: link.route.is_switched(),
        switches: link.route.switches().map(|it| it.to_string()).collect(),
    };
    wire::GetTopologyResponse {
        source: state.topology.source.clone(),
        numa_nodes: state.topology.numa.iter().map(numa).collect(),
        pcie_nodes: state.topology.pcie.iter().map(pcie).collect(),
        devices: devices(state),
        links: state.topology.links.iter().map(link).collect(),
    }
}
