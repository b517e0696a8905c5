//! `GetMetrics` and `GetUsage`: what is measured, joined with what is promised.
//!
//! Only leases on record are listed, so a released one takes its figures along. Nothing here
//! asks a vendor.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use accelpool_arbiter::Report;
use accelpool_model::{
    Allocation, ClaimId, Device, DeviceUuid, Engine, Lease, LeaseState, Portion, Taint,
};
use accelpool_proto::node as wire;

use super::{Service, gate, readings::readings};
use crate::{
    api::response,
    node::{EventKind, State, now_ms},
    timing::{BOUNDS_S, Histogram, SCHEMA, Timings, Traced},
    usage::{
        Agent,
        history::{Bucket, Who},
        meter::{DeviceTotals, Totals},
    },
};

type ByDevice = BTreeMap<DeviceUuid, DeviceTotals>;

impl Service {
    pub(super) async fn metrics(&self, state: &State) -> wire::GetMetricsResponse {
        let mut vendors = Vec::new();
        for (name, worker) in self.node.workers() {
            let status = worker.status().await;
            vendors.push(wire::VendorMetrics {
                vendor: name.to_string(),
                running: status.running,
                restarts_by_reason: counts(status.failures_by_reason),
                calls: timings(worker.timings()),
                handles_open: worker.handles_open().await,
            });
        }
        let report = self.turns.report();
        let (mut devices, mut allocations, agents) = self.meter.read(|totals| {
            (devices(state, totals), allocations(state, totals), agents(state, totals))
        });
        add_turns(state, &report, &mut devices, &mut allocations);
        let drifts = state.event_counts.get(&EventKind::Repaired).copied().unwrap_or(0);
        let daemon = wire::DaemonMetrics {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: self.about.started_ms,
            revision: state.revision,
            leases: leases(&state.leases),
            prepares: timings(&self.timings.prepares),
            releases: timings(&self.timings.releases),
            drifts: counts([("cdi", drifts)]),
            resident_bytes: resident_bytes(),
        };
        let gate = gate::metrics(&self.gate, &state.leases).await;
        wire::GetMetricsResponse {
            unix_ms: now_ms(),
            gate,
            devices,
            allocations,
            agents,
            vendors,
            daemon: Some(daemon),
        }
    }

    pub(super) fn usage(&self, state: &State, since_unix_ms: u64) -> wire::GetUsageResponse {
        let now = now_ms();
        let (bucket_ms, buckets, agents) =
            self.meter.history(|history| history.since(since_unix_ms, now));
        // Numbers that were given once, as places in this answer's list.
        let places: BTreeMap<u32, u32> = agents.keys().copied().zip(0..).collect();
        wire::GetUsageResponse {
            unix_ms: now,
            since_unix_ms: self.about.started_ms,
            bucket_ms,
            devices: u32::try_from(state.inventory.devices().count()).unwrap_or(u32::MAX),
            agents: agents.values().map(agent).collect(),
            buckets: buckets.into_iter().map(|found| bucket(found, &places)).collect(),
        }
    }
}

fn bucket(bucket: Bucket, places: &BTreeMap<u32, u32>) -> wire::UsageBucket {
    use wire::usage_entry::Who as Wire;
    let entries = bucket.entries.into_iter().filter_map(|(who, entry)| {
        let who = match who {
            Who::Agent(number) => Wire::Agent(*places.get(&number)?),
            Who::Others => Wire::Others(true),
            Who::Unattributed => Wire::Unattributed(true),
        };
        Some(wire::UsageEntry {
            who: Some(who),
            busy_ms: u64::try_from(entry.busy.as_millis()).unwrap_or(u64::MAX),
            memory_bytes: entry.memory_bytes,
            energy_mj: entry.energy_mj,
        })
    });
    wire::UsageBucket { start_unix_ms: bucket.start_ms, entries: entries.collect() }
}

fn devices(state: &State, totals: &ByDevice) -> Vec<wire::DeviceMetrics> {
    let view = response::view(state);
    let of = |device: &Device| {
        let taints = state.inventory.taints.get(&device.name).map_or(&[][..], Vec::as_slice);
        let known = totals.get(&device.uuid);
        let ended = ended(state, known);
        let busy = |part: fn(&DeviceTotals) -> &Totals| {
            known.and_then(|known| part(known).measured_busy()).map(nanoseconds)
        };
        let energy = |part: fn(&DeviceTotals) -> &Totals| {
            // Nobody released anything, or nothing is unattributed: that is none, if measured.
            known
                .filter(|known| known.device.energy_mj.is_some())
                .map(|known| part(known).energy_mj.unwrap_or(0))
        };
        wire::DeviceMetrics {
            device: device.name.to_string(),
            uuid: device.uuid.to_string(),
            vendor: device.vendor.to_string(),
            kind: device.kind.to_string(),
            model: device.model.clone(),
            driver_version: device.driver_version.clone(),
            pci_address: device.pci.to_string(),
            numa_node: device.numa_node,
            pcie_root: device.pcie_root.clone(),
            pool: view.pool(device).map(|pool| pool.name.to_string()).unwrap_or_default(),
            present: !state.inventory.lost.contains(&device.name),
            taints: taints.iter().map(taint).collect(),
            memory_bytes: device.memory.bytes(),
            sampled_unix_ms: known.map(|known| known.sampled_ms),
            since_unix_ms: known.map_or(0, |known| known.device.since_ms),
            memory_used_bytes: known.map(|known| known.device.memory_bytes),
            memory_unattributed_bytes: known.map(|known| {
                let bytes = ended.iter().map(|totals| totals.memory_bytes);
                bytes.fold(known.unattributed.memory_bytes, u64::saturating_add)
            }),
            busy_ns: busy(|known| &known.device),
            busy_unattributed_ns: busy(|known| &known.unattributed),
            busy_released_ns: busy(|known| &known.released).map(|released| {
                let busy = ended.iter().filter_map(|totals| totals.measured_busy());
                busy.map(nanoseconds).fold(released, u64::saturating_add)
            }),
            energy_mj: energy(|known| &known.device),
            energy_unattributed_mj: energy(|known| &known.unattributed),
            energy_released_mj: energy(|known| &known.released).map(|released| {
                ended
                    .iter()
                    .filter_map(|totals| totals.energy_mj)
                    .fold(released, u64::saturating_add)
            }),
            compute_ratio: known.and_then(|known| known.device.ratio()),
            readings: known.and_then(|known| known.counters.as_ref()).map(readings),
            turns_mode: None,
            hand_over_ns: None,
            engine_busy_ns: known.map(|known| engines(&known.device)).unwrap_or_default(),
            engine_unattributed_ns: known
                .map(|known| engines(&known.unattributed))
                .unwrap_or_default(),
            engine_released_ns: known
                .map(|known| released_engines(known, &ended))
                .unwrap_or_default(),
        }
    };
    state.inventory.devices().map(of).collect()
}

/// What leases used that have ended since the device was read last: they have no rows any more,
/// and are not among what is released yet. Their processes' memory is nobody's now.
fn ended<'a>(state: &State, known: Option<&'a DeviceTotals>) -> Vec<&'a Totals> {
    let allocations = known.into_iter().flat_map(|known| &known.allocations);
    let gone = allocations.filter(|(key, _)| !state.leases.contains_key(&key.claim));
    gone.map(|(_, totals)| totals).collect()
}

fn released_engines(known: &DeviceTotals, ended: &[&Totals]) -> HashMap<String, u64> {
    let mut released = engines(&known.released);
    for (engine, busy) in ended.iter().flat_map(|totals| engines(totals)) {
        let sum = released.entry(engine).or_default();
        *sum = sum.saturating_add(busy);
    }
    released
}

/// Adds what the arbiter says. It knows a claim's part of a device, which is told of the claim's
/// first allocation there.
fn add_turns(
    state: &State,
    report: &Report,
    devices: &mut [wire::DeviceMetrics],
    allocations: &mut [wire::AllocationMetrics],
) {
    for shared in &report.devices {
        let uuid = shared.uuid.as_str();
        if let Some(device) = devices.iter_mut().find(|device| device.uuid == uuid) {
            device.turns_mode = Some(shared.mode.to_owned());
            device.hand_over_ns = Some(shared.hand_over_ns).filter(|cost| *cost > 0);
        }
    }
    for claim in &report.claims {
        let Some(device) = state.inventory.device_by_uuid(&claim.device) else { continue };
        let row = allocations
            .iter_mut()
            .find(|row| row.claim == claim.claim.as_str() && row.device == device.name.as_str());
        let Some(row) = row else { continue };
        row.turns = Some(wire::TurnsMetrics {
            granted_permille: claim.granted_permille,
            measured_permille: claim.measured_permille,
            throttled_ns: claim.throttled_ns,
            turns: claim.turns,
            memory_denied: claim.memory_denied,
            memory_peak_bytes: claim.memory_peak.bytes(),
        });
    }
}

fn taint(taint: &Taint) -> wire::DeviceTaint {
    let (key, reason) = (taint.key.clone(), taint.reason.clone());
    wire::DeviceTaint { key, effect: taint.effect.to_string(), reason }
}

fn allocations(state: &State, totals: &ByDevice) -> Vec<wire::AllocationMetrics> {
    let mut rows = Vec::new();
    for lease in state.leases.values() {
        for (index, allocation) in lease.allocations.iter().enumerate() {
            if matches!(allocation.portion, Portion::Admin { .. }) {
                continue; // who only looks holds nothing
            }
            let row = allocation_row(state, lease, allocation);
            let known = totals.get(&allocation.uuid).map(|known| &known.allocations);
            let own = known
                .into_iter()
                .flatten()
                .filter(|(key, _)| key.claim == lease.claim.id && key.index == index);
            let before = rows.len();
            rows.extend(own.map(|(key, totals)| measured(row.clone(), &key.agent, totals)));
            if rows.len() == before {
                rows.push(row);
            }
        }
    }
    rows
}

/// An allocation of which nothing was measured yet.
fn allocation_row(
    state: &State,
    lease: &Lease,
    allocation: &Allocation,
) -> wire::AllocationMetrics {
    let device = state.inventory.device(&allocation.device);
    let (portion, memory, compute) = match &allocation.portion {
        Portion::Whole => ("whole", device.map_or(0, |device| device.memory.bytes()), 1000),
        Portion::Share { memory, compute, .. } => ("share", memory.bytes(), compute.permille()),
        Portion::Partition { profile, .. } => {
            let shape = device.and_then(|device| device.profile(profile));
            let memory = shape.map_or(0, |shape| shape.memory.bytes());
            ("partition", memory, shape.map_or(0, |shape| shape.compute.permille()))
        }
        Portion::Admin { .. } => ("admin", 0, 0),
    };
    let partition = match &allocation.portion {
        Portion::Partition { name, .. } => name.to_string(),
        Portion::Whole | Portion::Share { .. } | Portion::Admin { .. } => String::new(),
    };
    wire::AllocationMetrics {
        claim: lease.claim.id.to_string(),
        request: allocation.request.to_string(),
        share_id: allocation.share_id.as_ref().map(ToString::to_string),
        device: allocation.device.to_string(),
        partition,
        portion: portion.to_owned(),
        memory_enforcement: allocation.enforcement.memory.to_string(),
        compute_enforcement: allocation.enforcement.compute.to_string(),
        labels: lease.claim.labels.clone().into_iter().collect(),
        agent: Some(agent(&Agent::of(&lease.claim))),
        since_unix_ms: lease.since_ms,
        memory_limit_bytes: memory,
        compute_permille: compute.into(),
        ..wire::AllocationMetrics::default()
    }
}

fn measured(
    row: wire::AllocationMetrics,
    billed: &Agent,
    totals: &Totals,
) -> wire::AllocationMetrics {
    wire::AllocationMetrics {
        agent: Some(agent(billed)),
        since_unix_ms: totals.since_ms,
        memory_used_bytes: Some(totals.memory_bytes),
        busy_ns: totals.measured_busy().map(nanoseconds),
        compute_ratio: totals.ratio(),
        energy_mj: totals.energy_mj,
        processes: Some(totals.processes),
        source: totals.source.as_str().to_owned(),
        engine_busy_ns: engines(totals),
        ..row
    }
}

fn agents(state: &State, totals: &ByDevice) -> Vec<wire::AgentMetrics> {
    let mut rows = Vec::new();
    for device in state.inventory.devices() {
        let Some(known) = totals.get(&device.uuid) else { continue };
        for (billed, totals) in &known.agents {
            // Between two readings a lease may have ended; its agent may have others.
            let limits: Vec<u64> = state
                .leases
                .values()
                .filter(|lease| {
                    known
                        .allocations
                        .keys()
                        .any(|key| key.claim == lease.claim.id && key.agent == *billed)
                })
                .flat_map(|lease| {
                    lease.allocations.iter().map(move |allocation| (lease, allocation))
                })
                .filter(|(_, allocation)| allocation.uuid == device.uuid)
                .map(|(lease, allocation)| {
                    allocation_row(state, lease, allocation).memory_limit_bytes
                })
                .collect();
            if limits.is_empty() {
                continue;
            }
            rows.push(wire::AgentMetrics {
                agent: Some(agent(billed)),
                device: device.name.to_string(),
                since_unix_ms: totals.since_ms,
                memory_used_bytes: Some(totals.memory_bytes),
                busy_ns: totals.measured_busy().map(nanoseconds),
                energy_mj: totals.energy_mj,
                engine_busy_ns: engines(totals),
                memory_limit_bytes: limits.iter().fold(0, |sum, limit| sum.saturating_add(*limit)),
            });
        }
    }
    rows
}

fn agent(agent: &Agent) -> wire::Agent {
    wire::Agent { name: agent.name.clone(), namespace: agent.namespace.clone() }
}

/// How many leases are in each state; those that nobody is in count as none.
fn leases(leases: &BTreeMap<ClaimId, Lease>) -> Vec<wire::CountByWord> {
    let states = [LeaseState::Preparing, LeaseState::Prepared, LeaseState::Releasing];
    let number = |state| leases.values().filter(|lease| lease.state == state).count();
    counts(states.map(|state| (state.as_str(), u64::try_from(number(state)).unwrap_or(u64::MAX))))
}

pub(super) fn counts(
    counts: impl IntoIterator<Item = (&'static str, u64)>,
) -> Vec<wire::CountByWord> {
    counts
        .into_iter()
        .map(|(word, count)| wire::CountByWord { word: word.to_owned(), count })
        .collect()
}

fn timings(timings: &Timings) -> Vec<wire::TimingByWord> {
    let of = |(word, timing): (&str, Histogram)| wire::TimingByWord {
        word: word.to_owned(),
        timing: Some(histogram(&timing)),
    };
    timings.all().into_iter().map(of).collect()
}

fn histogram(histogram: &Histogram) -> wire::Histogram {
    let exemplar = |(bucket, traced): (&usize, &Traced)| wire::Exemplar {
        bucket: u32::try_from(*bucket).unwrap_or(u32::MAX),
        trace_id: traced.context.trace_id.to_be_bytes().into(),
        span_id: traced.context.span_id.to_be_bytes().into(),
        value_s: traced.took.as_secs_f64(),
        unix_ms: traced.unix_ms,
    };
    wire::Histogram {
        sum_s: histogram.sum.as_secs_f64(),
        count: histogram.count,
        bounds_s: BOUNDS_S.to_vec(),
        counts: histogram.counts.to_vec(),
        schema: SCHEMA,
        indexes: histogram.exponential.keys().copied().collect(),
        index_counts: histogram.exponential.values().copied().collect(),
        exemplars: histogram.traced.iter().map(exemplar).collect(),
    }
}

/// Time by engine, as it stands on the wire.
fn engines(totals: &Totals) -> HashMap<String, u64> {
    let of = |(engine, busy): (&Engine, &Duration)| (engine.to_string(), nanoseconds(*busy));
    totals.engines.iter().map(of).collect()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The memory that this process holds, as the kernel says it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
