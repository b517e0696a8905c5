//! Partitions that were released while their device was off the bus: destroyed when it is back.

use accelpool_ledger::Write;
use accelpool_model::{DeviceUuid, OwedPartition, PartitionStep, ProfileName};
use accelpool_planner::{Settlement, plan_settle};
use tracing::{info, warn};

use super::{Owner, memory::Memory, round::Round};
use crate::{error::Chain, node::observe, worker::WorkerError};

/// Far more than devices have partitions between two boots; what is beyond is left as it is found,
/// as if it had been made by hand.
const OWED_MAX: usize = 1024;

impl Memory {
    /// True if the partition at that place is to be destroyed as soon as it is seen.
    pub(super) fn is_owed(&self, uuid: &DeviceUuid, profile: &ProfileName, start: u32) -> bool {
        let owed = self.owed.get(uuid).into_iter().flatten();
        owed.into_iter().any(|owed| owed.step.profile == *profile && owed.step.start == start)
    }
}

impl Owner {
    /// Records that these partitions are to be destroyed once their device is back.
    pub(super) fn owe(&mut self, steps: Vec<PartitionStep>, round: &mut Round) {
        for step in steps {
            let count: usize = self.memory.owed.values().map(Vec::len).sum();
            if self.memory.is_owed(&step.uuid, &step.profile, step.start) {
                continue;
            }
            if count >= OWED_MAX {
                warn!(partition = %step.name, "too much is owed: the partition stays if it returns");
                continue;
            }
            info!(partition = %step.name, "to be destroyed when its device is back");
            let owed = self.memory.owed.entry(step.uuid.clone()).or_default();
            let uuid = step.uuid.clone();
            owed.push(OwedPartition { step, boot: self.parts.boot.clone() });
            round.writes.push(Write::PutOwed(uuid, owed.clone()));
        }
    }

    /// Starts the destruction of what is back, and forgets what is owed no more.
    pub(super) fn settle_owed(&mut self, round: &mut Round) {
        if self.memory.owed.is_empty() || self.memory.draining {
            return;
        }
        let owed: Vec<OwedPartition> = self.memory.owed.values().flatten().cloned().collect();
        let listed = |uuid: &DeviceUuid| {
            let adapter = self.memory.adapter_of(uuid);
            adapter.is_some_and(|adapter| !self.memory.outdated.contains(adapter))
        };
        let view = self.memory.view(&self.parts.pools);
        for settlement in plan_settle(view, &owed, &self.parts.boot, listed) {
            match settlement {
                Settlement::Forget(step) => self.forget_owed(&step, round),
                Settlement::Destroy(step) => {
                    let worker = self.memory.adapter_of(&step.uuid);
                    let worker = worker.and_then(|adapter| self.parts.workers.get(adapter));
                    let Some(worker) = worker.cloned() else { continue };
                    if self.memory.settling.insert(step.name.clone()) {
                        let (tools, notify) = (self.parts.tools.clone(), self.parts.notify.clone());
                        self.jobs.spawn(observe::settle(worker, step, tools.faults, notify));
                    }
                }
            }
        }
    }

    pub(super) fn on_settled(
        &mut self,
        step: &PartitionStep,
        result: Result<(), WorkerError>,
        round: &mut Round,
    ) {
        self.memory.settling.remove(&step.name);
        match result {
            Ok(()) => {
                info!(partition = %step.name, "left behind by a claim that is gone, destroyed");
                self.memory.note_partitions(Vec::new(), std::slice::from_ref(step));
                self.parts.epoch.send_modify(|epoch| *epoch += 1);
                self.forget_owed(step, round);
                round.changed = true;
            }
            // It is gone again.
            Err(error) if error.is_unknown_device() => {}
            Err(error) => {
                let error = Chain(&error).to_string();
                warn!(partition = %step.name, error, "left behind, and not to be destroyed yet");
            }
        }
    }

    fn forget_owed(&mut self, step: &PartitionStep, round: &mut Round) {
        let Some(owed) = self.memory.owed.get_mut(&step.uuid) else { return };
        owed.retain(|owed| owed.step.profile != step.profile || owed.step.start != step.start);
        round.writes.push(Write::PutOwed(step.uuid.clone(), owed.clone()));
        if owed.is_empty() {
            self.memory.owed.remove(&step.uuid);
        }
    }
}
