//! The node's state in memory: what was observed, promised and is in hand.
//!
//! Derived, all of it: leases and taints from the ledger, the inventory from the vendors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use accelpool_ledger::Write;
use accelpool_model::{
    ClaimId, ComputeRule, DeviceUuid, Inventory, Lease, ModeStep, OwedPartition, Partition,
    PartitionName, PartitionStep, Pool, Taint, VendorName,
};
use accelpool_planner::{Convalescence, NodeView, Outcome, PrepareError};
use tokio::sync::oneshot;

use super::{Owner, WAITING_MAX, round::Round};
use crate::{
    audit::Asker,
    node::{
        history::{EventKind, History},
        request::{NodeError, Reply, Request},
    },
    turns::Terms,
    worker::{Discovery, Worker},
};

pub(super) struct Memory {
    /// Both are handed out to readers as they are, and copied when they change meanwhile.
    pub(super) inventory: Arc<Inventory>,
    pub(super) leases: Arc<BTreeMap<ClaimId, Lease>>,
    /// By identity: a taint outlives the device's absence.
    pub(super) taints: BTreeMap<DeviceUuid, Vec<Taint>>,
    /// Why leases cannot be used.
    pub(super) troubles: BTreeMap<ClaimId, String>,
    /// Claims whose steps are being run.
    pub(super) in_flight: BTreeMap<ClaimId, InFlight>,
    /// What each adapter listed last.
    pub(super) discoveries: BTreeMap<VendorName, Discovery>,
    pub(super) vendor_troubles: BTreeMap<VendorName, Vec<String>>,
    /// Adapters that have answered since the start.
    pub(super) answered: BTreeSet<VendorName>,
    /// Adapters whose last list of partitions was out of date.
    pub(super) outdated: BTreeSet<VendorName>,
    /// Partitions whose destruction waits for their device's return, by device.
    pub(super) owed: BTreeMap<DeviceUuid, Vec<OwedPartition>>,
    /// Those that are being destroyed.
    pub(super) settling: BTreeSet<PartitionName>,
    /// Devices that are being probed.
    pub(super) probing: BTreeSet<DeviceUuid>,
    /// Devices whose driver is being set.
    pub(super) configuring: BTreeSet<DeviceUuid>,
    /// Why the driver could not be set as a pool wants it.
    pub(super) setting_troubles: BTreeMap<DeviceUuid, String>,
    /// How far tainted devices have come on their way back.
    pub(super) convalescent: BTreeMap<DeviceUuid, Convalescence>,
    pub(super) history: History,
    pub(super) started: bool,
    pub(super) draining: bool,
    /// Who waits for the steps in hand to end.
    pub(super) drained: Vec<oneshot::Sender<()>>,
}

/// A claim whose steps are being run.
pub(super) struct InFlight {
    pub(super) purpose: Purpose,
    /// Requests for the same claim that arrived meanwhile, in order.
    pub(super) waiting: Vec<Request>,
    /// Who asked for them.
    pub(super) by: Asker,
}

/// Why the steps are run.
pub(super) enum Purpose {
    Prepare(Reply<Lease>),
    /// The claim was prepared before and is asked for again.
    Repeat(Reply<Lease>),
    Release(Reply<bool>),
    Reconcile(Outcome),
}

impl InFlight {
    /// Lets `request` wait until the steps have ended, if not too many wait already.
    pub(super) fn wait(&mut self, request: Request, round: &mut Round) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(request);
            return;
        }
        let busy = |claim, state| NodeError::Refused(PrepareError::Busy(claim, state));
        let state = accelpool_model::LeaseState::Preparing;
        match request {
            Request::Prepare { claim, reply, .. } => {
                round.answer(reply, Err(busy(claim.id, state)));
            }
            Request::Bind { claim, reply, .. } => round.answer(reply, Err(busy(claim, state))),
            Request::Release { claim, reply, .. } => round.answer(reply, Err(busy(claim, state))),
            Request::Taint { .. }
            | Request::Untaint { .. }
            | Request::RefuseBinding { .. }
            | Request::Read { .. }
            | Request::Gate { .. }
            | Request::Pools { .. }
            | Request::Violated { .. }
            | Request::Gone { .. }
            | Request::Drain { .. } => {}
        }
    }
}

impl Memory {
    pub(super) fn new(
        leases: Vec<Lease>,
        taints: Vec<(DeviceUuid, Vec<Taint>)>,
        owed: Vec<(DeviceUuid, Vec<OwedPartition>)>,
    ) -> Self {
        Self {
            inventory: Arc::default(),
            leases: Arc::new(
                leases.into_iter().map(|lease| (lease.claim.id.clone(), lease)).collect(),
            ),
            taints: taints.into_iter().collect(),
            troubles: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            discoveries: BTreeMap::new(),
            vendor_troubles: BTreeMap::new(),
            answered: BTreeSet::new(),
            outdated: BTreeSet::new(),
            owed: owed.into_iter().collect(),
            settling: BTreeSet::new(),
            probing: BTreeSet::new(),
            configuring: BTreeSet::new(),
            setting_troubles: BTreeMap::new(),
            convalescent: BTreeMap::new(),
            history: History::default(),
            started: false,
            draining: false,
            drained: Vec::new(),
        }
    }

    /// What vendors could not say, and what could not be set, by adapter.
    pub(super) fn vendor_troubles(&self) -> BTreeMap<VendorName, Vec<String>> {
        let mut troubles = self.vendor_troubles.clone();
        let adapters = self.adapters();
        for (device, words) in &self.setting_troubles {
            if let Some(adapter) = adapters.get(device) {
                troubles.entry(adapter.clone()).or_default().push(words.clone());
            }
        }
        troubles
    }

    pub(super) fn view<'a>(&'a self, pools: &'a [Pool]) -> NodeView<'a> {
        NodeView { inventory: &self.inventory, leases: &self.leases, pools }
    }

    /// True if a vendor listed the device when it was asked last.
    pub(super) fn is_listed(&self, uuid: &DeviceUuid) -> bool {
        self.adapter_of(uuid).is_some()
    }

    pub(super) fn adapter_of(&self, uuid: &DeviceUuid) -> Option<&VendorName> {
        let lists = |found: &Discovery| found.devices.iter().any(|device| device.uuid == *uuid);
        self.discoveries.iter().find(|(_, found)| lists(found)).map(|(adapter, _)| adapter)
    }

    /// What the shares of `lease` are on: the strictest of what their pools say.
    pub(super) fn share_terms(&self, lease: &Lease, pools: &[Pool]) -> Terms {
        let view = self.view(pools);
        let shares = lease.allocations.iter().filter(|allocation| allocation.takes_turns());
        let devices = shares.filter_map(|share| self.inventory.device(&share.device));
        let mut terms = Terms::default();
        for pool in devices.filter_map(|device| view.pool(device)) {
            terms.compute = match (terms.compute, pool.compute) {
                (ComputeRule::Guarantee, ComputeRule::Guarantee) => ComputeRule::Guarantee,
                (ComputeRule::Cap, _) | (_, ComputeRule::Cap) => ComputeRule::Cap,
            };
            let limits = [terms.host_memory, pool.host_memory].into_iter().flatten();
            terms.host_memory = limits.min();
        }
        terms
    }

    /// The adapter that lists each device.
    pub(super) fn adapters(&self) -> BTreeMap<DeviceUuid, VendorName> {
        let of = |(adapter, found): (&VendorName, &Discovery)| {
            let devices = found.devices.iter().map(|device| device.uuid.clone());
            devices.map(|uuid| (uuid, adapter.clone())).collect::<Vec<_>>()
        };
        self.discoveries.iter().flat_map(of).collect()
    }

    /// The worker of each device that `lease` holds.
    pub(super) fn routes(
        &self,
        lease: &Lease,
        workers: &BTreeMap<VendorName, Worker>,
    ) -> BTreeMap<DeviceUuid, Worker> {
        let worker_of = |uuid: &DeviceUuid| workers.get(self.adapter_of(uuid)?).cloned();
        let devices = lease.allocations.iter().map(|allocation| &allocation.uuid);
        devices.filter_map(|uuid| Some((uuid.clone(), worker_of(uuid)?))).collect()
    }

    /// Takes into the inventory which modes the steps have switched.
    pub(super) fn note_modes(&mut self, switched: &[ModeStep]) {
        for step in switched {
            let Some(mut device) = self.inventory.device_by_uuid(&step.uuid).cloned() else {
                continue;
            };
            let mode = device.partitioning.as_mut().and_then(|it| it.mode.as_mut());
            let Some(mode) = mode.filter(|mode| mode.on != step.on) else { continue };
            mode.on = step.on;
            Arc::make_mut(&mut self.inventory).replace(device);
        }
    }

    /// Takes into the inventory what the steps have changed.
    pub(super) fn note_partitions(&mut self, created: Vec<Partition>, destroyed: &[PartitionStep]) {
        let same = |partition: &Partition, step: &PartitionStep| {
            partition.device == step.uuid
                && partition.profile == step.profile
                && partition.start == step.start
        };
        let partitions = &mut Arc::make_mut(&mut self.inventory).partitions;
        partitions.retain(|partition| !destroyed.iter().any(|step| same(partition, step)));
        for partition in created {
            partitions.retain(|other| {
                (&other.device, &other.profile, other.start)
                    != (&partition.device, &partition.profile, partition.start)
            });
            partitions.push(partition);
        }
    }
}

impl Owner {
    /// Records `lease`, on disk with the round.
    pub(super) fn put(&mut self, lease: Lease, round: &mut Round) {
        round.changed = true;
        round.writes.push(Write::PutLease(lease.clone()));
        Arc::make_mut(&mut self.memory.leases).insert(lease.claim.id.clone(), lease);
    }

    /// Forgets the lease of `claim`, on disk with the round.
    pub(super) fn remove(&mut self, claim: &ClaimId, round: &mut Round) {
        round.changed = true;
        round.writes.push(Write::RemoveLease(claim.clone()));
        Arc::make_mut(&mut self.memory.leases).remove(claim);
        self.memory.troubles.remove(claim);
    }

    pub(super) fn trouble(&mut self, claim: &ClaimId, reason: String, round: &mut Round) {
        if self.memory.troubles.get(claim) != Some(&reason) {
            tracing::warn!(%claim, reason, "lease cannot be used");
            self.note(claim, EventKind::Failed, reason.clone(), "");
            self.memory.troubles.insert(claim.clone(), reason);
            round.changed = true;
        }
    }

    /// Adds to the story of `claim`; true if it is news.
    pub(super) fn note(
        &mut self,
        claim: &ClaimId,
        kind: EventKind,
        message: String,
        error_code: &'static str,
    ) -> bool {
        self.note_by(claim, kind, message, error_code, Asker::default())
    }
}
