//! What vendors see, faults and taints: how they change the node's state.

use std::sync::Arc;

use accelpool_ledger::Write;
use accelpool_model::{
    Device, DeviceName, DeviceUuid, Fault, Inventory, RecoveryAction, Taint, TaintEffect,
    VendorName,
};
use accelpool_planner::{Convalescence, taint_for, taint_for_loss};
use tracing::{debug, info, warn};

use super::{Owner, now_ms, round::Round};
use crate::{
    audit::Asker,
    error::Chain,
    node::{observe, request::NodeError},
    worker::{Discovery, WorkerError},
};

impl Owner {
    pub(super) fn on_observed(
        &mut self,
        adapter: &VendorName,
        epoch: u64,
        answer: Result<Discovery, WorkerError>,
        round: &mut Round,
    ) {
        let discovery = match answer {
            Ok(discovery) => discovery,
            Err(error) => {
                // What was seen last stands: a library that is away is no device that is gone.
                let words = vec![Chain(&error).to_string()];
                if self.memory.vendor_troubles.get(adapter) != Some(&words) {
                    warn!(vendor = %adapter, error = %Chain(&error), "vendor cannot be observed");
                    self.memory.vendor_troubles.insert(adapter.clone(), words);
                    round.changed = true;
                }
                return;
            }
        };
        if self.memory.vendor_troubles.get(adapter) != Some(&discovery.troubles) {
            for trouble in &discovery.troubles {
                warn!(vendor = %adapter, trouble, "vendor answered in part");
            }
            self.memory.vendor_troubles.insert(adapter.clone(), discovery.troubles.clone());
        }
        self.memory.answered.insert(adapter.clone());
        // A list of partitions that was begun before our own last change, or while one is
        // being made, is out of date: it is asked for again when nothing is in hand.
        let current = epoch == *self.parts.epoch.borrow() && self.memory.in_flight.is_empty();
        let partitions = current.then(|| discovery.partitions.clone());
        if current {
            self.memory.outdated.remove(adapter);
        } else {
            self.memory.outdated.insert(adapter.clone());
        }
        self.memory.discoveries.insert(adapter.clone(), discovery);
        self.rebuild(adapter, partitions, round);
        self.probe_tainted(adapter);
        if self.memory.started {
            self.configure(adapter);
        }
    }

    /// Asks the vendors again whose last list of partitions was out of date.
    pub(super) fn list_again(&mut self) {
        for adapter in std::mem::take(&mut self.memory.outdated) {
            let Some(worker) = self.parts.workers.get(&adapter).cloned() else { continue };
            let (epoch, notify) = (*self.parts.epoch.borrow(), self.parts.notify.clone());
            self.jobs.spawn(observe::list(worker, epoch, notify));
        }
    }

    /// Makes the inventory anew from what every adapter listed last.
    fn rebuild(
        &mut self,
        adapter: &VendorName,
        partitions: Option<Vec<accelpool_model::Partition>>,
        round: &mut Round,
    ) {
        let before = std::mem::take(&mut self.memory.inventory);
        let mut devices: Vec<Device> = Vec::new();
        let mut links = Vec::new();
        for (adapter, found) in &self.memory.discoveries {
            for device in &found.devices {
                // Two adapters may see one card; the first by name drives it.
                let twin = |other: &Device| other.uuid == device.uuid || other.name == device.name;
                if !devices.iter().any(twin) {
                    let mut device = device.clone();
                    self.parts.tools.turns.classify(adapter, &mut device);
                    devices.push(device);
                }
            }
            links.extend(found.links.iter().cloned());
        }
        // The tree stays as it was read; only the vendors' links in it are made anew.
        let topology = Arc::make_mut(&mut self.parts.topology);
        accelpool_topology::merge(topology, &mut devices, &links);
        let links = topology.links.clone();
        let mut inventory = Inventory::new(devices);
        inventory.links = links;
        inventory.partitions.clone_from(&before.partitions);
        if let Some(partitions) = partitions {
            let own = self.memory.discoveries.get(adapter);
            let is_own = |uuid: &DeviceUuid| {
                own.is_some_and(|found| found.devices.iter().any(|device| device.uuid == *uuid))
            };
            inventory.partitions.retain(|partition| !is_own(&partition.device));
            inventory.partitions.extend(partitions);
        }
        self.keep_lost(&before, &mut inventory, round);
        let known: Vec<DeviceUuid> =
            inventory.devices().map(|device| device.uuid.clone()).collect();
        inventory.partitions.retain(|partition| known.contains(&partition.device));
        self.memory.inventory = Arc::new(inventory);
        self.refresh_taints();
        round.changed |= self.memory.inventory != before;
    }

    /// Keeps devices that are gone but leased or tainted by hand, marked as lost.
    fn keep_lost(&mut self, before: &Inventory, inventory: &mut Inventory, round: &mut Round) {
        for device in before.devices() {
            if inventory.device(&device.name).is_some() {
                continue;
            }
            let leased = self.memory.leases.values().any(|lease| {
                lease.allocations.iter().any(|allocation| allocation.uuid == device.uuid)
            });
            let tainted = self.memory.taints.contains_key(&device.uuid);
            if !leased && !tainted {
                info!(device = %device.name, "device left");
                continue;
            }
            if !before.lost.contains(&device.name) {
                warn!(device = %device.name, "device left the bus while it is in use");
                let taint = taint_for_loss(now_ms());
                let told = self.memory.taints.get(&device.uuid);
                // The fault that told of it before says why, which this does not.
                if told.is_none_or(|told| told.iter().all(|other| other.key != taint.key)) {
                    self.set_taint(&device.uuid, taint, round);
                }
            }
            inventory.insert(device.clone());
            inventory.lost.insert(device.name.clone());
        }
    }

    pub(super) fn on_fault(&mut self, adapter: &VendorName, fault: &Fault, round: &mut Round) {
        let Some(device) = self.memory.inventory.device_by_uuid(&fault.device) else {
            debug!(vendor = %adapter, device = %fault.device, "fault of an unknown device");
            return;
        };
        let (name, incarnation) = (device.name.clone(), device.traits.incarnation.clone());
        let Some(taint) = taint_for(fault, incarnation, now_ms()) else {
            debug!(device = %name, code = fault.code, "a workload's own error");
            return;
        };
        // Whatever was sound before this fault proves nothing about what comes after it.
        let begun = Convalescence::after_fault(now_ms());
        self.memory.convalescent.insert(fault.device.clone(), begun);
        let known = self.memory.taints.get(&fault.device).is_some_and(|taints| {
            taints.iter().any(|old| Taint { since_ms: old.since_ms, ..taint.clone() } == *old)
        });
        // A faulty device can repeat itself thousands of times a second: it is told once.
        if !known {
            let mut span = self.parts.spans.of_own("fault");
            let (reason, effect, trace) = (&taint.reason, taint.effect, span.here().trace_id());
            warn!(device = %name, reason, %effect, trace, "device tainted");
            span.set_with("accelpool.device", || &name);
            span.set("accelpool.fault.code", &fault.code);
            span.set("accelpool.taint.reason", &taint.reason);
            span.fail(&taint.reason);
            let here = span.here().clone();
            round.trace(&here);
            round.spans.push(span);
            let words = format!("{}:{} {}", taint.key, taint.effect, taint.reason);
            let by = Asker { here, ..Asker::default() };
            self.record_device("tainted", name.to_string(), words, by);
            self.set_taint(&fault.device, taint, round);
        }
    }

    pub(super) fn on_probed(
        &mut self,
        uuid: &DeviceUuid,
        advice: Option<RecoveryAction>,
        probed: bool,
        round: &mut Round,
    ) {
        self.memory.probing.remove(uuid);
        let Some(taints) = self.memory.taints.get(uuid) else { return };
        let device = self.memory.inventory.device_by_uuid(uuid);
        let incarnation = device.and_then(|device| device.traits.incarnation.as_deref());
        let progress = self.memory.convalescent.entry(uuid.clone()).or_default();
        *progress = progress.looked(advice, probed);
        debug!(device = %uuid, ?advice, probed, sound = progress.sound(), "tainted device looked at");
        let frees = |taint: &Taint| progress.frees_of(taint, incarnation, now_ms());
        let (gone, kept): (Vec<Taint>, Vec<Taint>) = taints.clone().into_iter().partition(frees);
        if !gone.is_empty() {
            info!(device = %uuid, "device recovered, taint taken away");
            let name = device.map_or_else(|| uuid.to_string(), |device| device.name.to_string());
            for taint in &gone {
                let words = format!("{}:{} recovered: {}", taint.key, taint.effect, taint.reason);
                self.record_device("untainted", name.clone(), words, Asker::default());
            }
            self.put_taints(uuid.clone(), kept, round);
        }
    }

    pub(super) fn on_taint(
        &mut self,
        device: &str,
        effect: TaintEffect,
        reason: String,
        round: &mut Round,
    ) -> Result<(), NodeError> {
        let uuid = self.device_named(device)?.uuid.clone();
        let key = Taint::OPERATOR.to_owned();
        let taint = Taint { key, effect, reason, since_ms: now_ms(), incarnation: None };
        self.set_taint(&uuid, taint, round);
        Ok(())
    }

    pub(super) fn on_untaint(
        &mut self,
        device: &str,
        key: String,
        round: &mut Round,
    ) -> Result<(), NodeError> {
        let device = self.device_named(device)?;
        let (name, uuid) = (device.name.clone(), device.uuid.clone());
        let mut taints = self.memory.taints.get(&uuid).cloned().unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| taint.key != key);
        if taints.len() == before {
            return Err(NodeError::UnknownTaint { device: name, key });
        }
        self.put_taints(uuid, taints, round);
        Ok(())
    }

    fn device_named(&self, name: &str) -> Result<&Device, NodeError> {
        let unknown = || NodeError::UnknownDevice(name.chars().take(80).collect());
        let parsed: DeviceName = name.parse().map_err(|_| unknown())?;
        self.memory.inventory.device(&parsed).ok_or_else(unknown)
    }

    /// Puts a taint on a device, in place of one with the same key.
    fn set_taint(&mut self, uuid: &DeviceUuid, taint: Taint, round: &mut Round) {
        let mut taints = self.memory.taints.get(uuid).cloned().unwrap_or_default();
        taints.retain(|other| other.key != taint.key);
        taints.push(taint);
        self.put_taints(uuid.clone(), taints, round);
    }

    fn put_taints(&mut self, uuid: DeviceUuid, taints: Vec<Taint>, round: &mut Round) {
        round.changed = true;
        round.writes.push(Write::PutTaints(uuid.clone(), taints.clone()));
        if taints.is_empty() {
            self.memory.taints.remove(&uuid);
            self.memory.convalescent.remove(&uuid);
        } else {
            self.memory.taints.insert(uuid, taints);
        }
        self.refresh_taints();
    }

    /// Shows the taints, which are kept by identity, under the devices' names.
    fn refresh_taints(&mut self) {
        let by_name = self.memory.inventory.devices().filter_map(|device| {
            let taints = self.memory.taints.get(&device.uuid)?;
            Some((device.name.clone(), taints.clone()))
        });
        let taints = by_name.collect();
        Arc::make_mut(&mut self.memory.inventory).taints = taints;
    }

    /// Looks at the adapter's devices that carry a fault's taint, each once at a time.
    fn probe_tainted(&mut self, adapter: &VendorName) {
        let Some(worker) = self.parts.workers.get(adapter).cloned() else { return };
        let Some(found) = self.memory.discoveries.get(adapter) else { return };
        let faulty = |device: &&Device| {
            let taints = self.memory.taints.get(&device.uuid);
            taints.is_some_and(|taints| taints.iter().any(|taint| taint.key != Taint::OPERATOR))
        };
        let devices: Vec<DeviceUuid> =
            found.devices.iter().filter(faulty).map(|device| device.uuid.clone()).collect();
        for device in devices {
            if self.memory.probing.insert(device.clone()) {
                let (worker, notify) = (worker.clone(), self.parts.notify.clone());
                self.jobs.spawn(observe::probe(worker, device, notify));
            }
        }
    }
}
