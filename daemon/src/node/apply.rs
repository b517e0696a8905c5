//! Runs the steps of a plan, and undoes them in reverse order when one fails.
//!
//! Knows nothing of leases beyond the one whose spec it writes; it reports what it changed
//! and the owner of the node's state records it.

use std::{collections::BTreeMap, sync::Arc};

use accelpool_model::{
    Allocation, DeviceUuid, Lease, ModeStep, MpsStep, Partition, PartitionStep, Plan, Portion, Step,
};

use accelpool_proto::{node::SpanKind, trace::Here};

use super::request::Applied;
use crate::{
    cdi::{Injections, SpecError, SpecFolder},
    fault_point::FaultPoints,
    gate::{GateStepError, Keeper, dmem::Shares},
    mps::{self, Mps, MpsError},
    turns::{self, Terms, TurnsStepError},
    worker::{Worker, WorkerError},
};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ApplyError {
    #[error("failed to {step}")]
    Vendor { step: String, source: WorkerError },
    #[error("failed to {step}")]
    Spec { step: String, source: SpecError },
    #[error("failed to {step}")]
    Gate { step: String, source: GateStepError },
    #[error("failed to {step}")]
    Turns { step: String, source: TurnsStepError },
    #[error("failed to {step}")]
    Mps { step: String, source: MpsError },
    #[error("failed to {step}: no vendor of this node has MPS")]
    NoMps { step: String },
    #[error("failed to {step}: no vendor answers for its device")]
    NoVendor { step: String },
}

impl ApplyError {
    /// True if the step failed because an operator has paused its vendor.
    pub(crate) fn is_paused(&self) -> bool {
        matches!(self, Self::Vendor { source: WorkerError::Paused { .. }, .. })
    }
}

impl ApplyError {
    /// True if the step failed because MPS does not work.
    pub(crate) fn is_mps(&self) -> bool {
        matches!(self, Self::Mps { .. } | Self::NoMps { .. })
    }
}

/// What steps are run with.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) specs: SpecFolder,
    pub(super) gate: Keeper,
    pub(super) turns: turns::Keeper,
    pub(super) mps: Option<Mps>,
    pub(super) faults: FaultPoints,
}

/// A plan to run for one lease.
pub(super) struct Job {
    pub(super) lease: Lease,
    pub(super) plan: Plan,
    /// The worker of each device that the plan touches.
    pub(super) workers: BTreeMap<DeviceUuid, Worker>,
    /// How to use each target that is known before the plan runs.
    pub(super) injections: Injections,
    /// The device memory that its shares may use.
    pub(super) shares: Shares,
    /// Destructions that cannot be done now, since their device is gone.
    pub(super) owed: Vec<PartitionStep>,
    /// What its shares are on.
    pub(super) terms: Terms,
    /// True if a failure is to be undone: the claim was never promised to anybody.
    pub(super) undo: bool,
    /// The span that it is done in.
    pub(super) here: Here,
}

/// Runs `job` to its end.
pub(super) async fn apply(tools: Tools, job: Job) -> Applied {
    let claim = job.lease.claim.id.clone();
    let undo = job.undo;
    let mut run = Run {
        here: job.here,
        tools,
        lease: job.lease,
        fresh: undo,
        workers: job.workers,
        injections: job.injections,
        shares: job.shares,
        switched: Vec::new(),
        terms: job.terms,
        created: Vec::new(),
        destroyed: Vec::new(),
        owed: job.owed,
        rewritten: false,
    };
    let mut begun = Vec::new();
    let mut result = Ok(());
    for step in job.plan.steps {
        begun.push(step.clone());
        result = run.step(&step).await.map_err(Arc::new);
        if result.is_err() {
            break;
        }
    }
    let undone = result.is_ok() || (undo && run.undo(begun).await);
    let Run { switched, created, destroyed, owed, rewritten, .. } = run;
    Applied { claim, result, undone, switched, created, destroyed, owed, rewritten }
}

struct Run {
    /// The span of the step that is being done, or of them all.
    here: Here,
    tools: Tools,
    lease: Lease,
    /// True if nobody was told of the claim yet, so that it has no spec.
    fresh: bool,
    workers: BTreeMap<DeviceUuid, Worker>,
    injections: Injections,
    shares: Shares,
    switched: Vec<ModeStep>,
    terms: Terms,
    created: Vec<Partition>,
    destroyed: Vec<PartitionStep>,
    owed: Vec<PartitionStep>,
    rewritten: bool,
}

impl Run {
    async fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        let point = match step {
            Step::SwitchMode(_) => "switch_mode",
            Step::StartMps(_) => "start_mps",
            Step::CreatePartition(_) => "create_partition",
            Step::DestroyPartition(_) => "destroy_partition",
            Step::ArmGate(_) => "arm_gate",
            Step::DisarmGate(_) => "disarm_gate",
            Step::ArmTurns(_) => "arm_turns",
            Step::DisarmTurns(_) => "disarm_turns",
            Step::WriteSpec(_) => "write_spec",
            Step::RemoveSpec(_) => "remove_spec",
        };
        let mut span = self.here.child(point, SpanKind::Internal);
        span.set_with("accelpool.step", || step);
        let above = std::mem::replace(&mut self.here, span.here().clone());
        let done = self.step_at(point, step).await;
        self.here = above;
        span.end(&done);
        done
    }

    async fn step_at(&mut self, point: &'static str, step: &Step) -> Result<(), ApplyError> {
        self.tools.faults.pass(&format!("{point}.before")).await;
        match step {
            Step::SwitchMode(mode) => self.switch_mode(step, mode).await?,
            Step::StartMps(mps) => self.start_mps(step, mps).await?,
            Step::CreatePartition(partition) => self.create(step, partition).await?,
            Step::DestroyPartition(partition) => self.destroy(step, partition).await?,
            Step::ArmGate(_) => {
                let Self { tools, lease, injections, shares, .. } = &*self;
                let armed = tools.gate.arm(lease, injections, shares);
                armed.map_err(|source| gate_error(step, source))?;
            }
            Step::DisarmGate(claim) => {
                let disarmed = self.tools.gate.disarm(claim);
                disarmed.map_err(|source| gate_error(step, source))?;
            }
            Step::ArmTurns(_) => {
                let mut injections = self.injections.clone();
                let armed = self.tools.turns.arm(&self.lease, self.terms, &mut injections);
                armed.map_err(|source| turns_error(step, source))?;
                self.injections = injections;
                self.tools.gate.give(&self.lease, &self.injections);
            }
            Step::DisarmTurns(claim) => {
                let disarmed = self.tools.turns.disarm(claim);
                disarmed.map_err(|source| turns_error(step, source))?;
            }
            Step::WriteSpec(_) => {
                let specs = &self.tools.specs;
                let written = if self.fresh {
                    specs.write(&self.lease, &self.injections).map(|()| true)
                } else {
                    specs.mend(&self.lease, &self.injections)
                };
                self.rewritten |= written.map_err(|source| spec_error(step, source))?;
            }
            Step::RemoveSpec(claim) => {
                let removed = self.tools.specs.remove(claim);
                removed.map_err(|source| spec_error(step, source))?;
            }
        }
        self.tools.faults.pass(&format!("{point}.after")).await;
        Ok(())
    }

    async fn switch_mode(&mut self, step: &Step, mode: &ModeStep) -> Result<(), ApplyError> {
        let worker = self.worker(step, &mode.uuid)?;
        let span = self.here.child("vendor worker switch_mode", SpanKind::Client);
        let switched = worker.switch_mode(mode).await;
        span.end(&switched);
        switched.map_err(|source| ApplyError::Vendor { step: step.to_string(), source })?;
        self.switched.push(mode.clone());
        Ok(())
    }

    async fn start_mps(&mut self, step: &Step, wanted: &MpsStep) -> Result<(), ApplyError> {
        let Some(mps) = &self.tools.mps else {
            return Err(ApplyError::NoMps { step: step.to_string() });
        };
        let started = mps.ensure(&wanted.device, &wanted.uuid).await;
        started.map_err(|source| ApplyError::Mps { step: step.to_string(), source })?;
        let of_device = |held: &&Allocation| held.device == wanted.device;
        for held in self.lease.allocations.iter().filter(of_device) {
            let Portion::Share { memory, compute, .. } = held.portion else { continue };
            if let Some(injection) = self.injections.get_mut(held.target()) {
                mps::edit(injection, &mps.folder(&wanted.device), memory, compute);
            }
        }
        Ok(())
    }

    async fn create(&mut self, step: &Step, wanted: &PartitionStep) -> Result<(), ApplyError> {
        let worker = self.worker(step, &wanted.uuid)?;
        let span = self.here.child("vendor worker create_partition", SpanKind::Client);
        let created = worker.create_partition(wanted).await;
        span.end(&created);
        let partition =
            created.map_err(|source| ApplyError::Vendor { step: step.to_string(), source })?;
        self.injections.insert(wanted.name.to_string(), partition.injection.clone());
        self.created.push(partition);
        Ok(())
    }

    async fn destroy(&mut self, step: &Step, unwanted: &PartitionStep) -> Result<(), ApplyError> {
        let worker = self.worker(step, &unwanted.uuid)?;
        let span = self.here.child("vendor worker destroy_partition", SpanKind::Client);
        let destroyed = worker.destroy_partition(unwanted).await;
        span.end(&destroyed);
        match destroyed {
            Ok(()) => {}
            // Its device left the bus; the partition may come back with it.
            Err(error) if error.is_unknown_device() => self.owed.push(unwanted.clone()),
            Err(source) => return Err(ApplyError::Vendor { step: step.to_string(), source }),
        }
        self.created.retain(|partition| {
            partition.profile != unwanted.profile || partition.start != unwanted.start
        });
        self.destroyed.push(unwanted.clone());
        Ok(())
    }

    fn worker(&self, step: &Step, device: &DeviceUuid) -> Result<Worker, ApplyError> {
        let worker = self.workers.get(device).cloned();
        worker.ok_or_else(|| ApplyError::NoVendor { step: step.to_string() })
    }

    /// Undoes the steps that were begun, last first; true if all of it was undone.
    async fn undo(&mut self, begun: Vec<Step>) -> bool {
        for step in begun.into_iter().rev() {
            let reverse = match step {
                // A creation that failed may have left half a partition.
                Step::CreatePartition(partition) => Step::DestroyPartition(partition),
                Step::WriteSpec(claim) => Step::RemoveSpec(claim),
                Step::ArmGate(claim) => Step::DisarmGate(claim),
                Step::ArmTurns(claim) => Step::DisarmTurns(claim),
                Step::SwitchMode(_)
                | Step::StartMps(_)
                | Step::DestroyPartition(_)
                | Step::RemoveSpec(_)
                | Step::DisarmGate(_)
                | Step::DisarmTurns(_) => continue,
            };
            if let Err(error) = self.step(&reverse).await {
                let (error, trace) = (crate::error::Chain(&error), self.here.trace_id());
                tracing::warn!(%error, trace, "undo failed, to be tried again");
                return false;
            }
        }
        true
    }
}

/// How to use each target of `lease`, as far as vendors have listed it.
pub(super) fn known_injections(
    lease: &Lease,
    inventory: &accelpool_model::Inventory,
) -> Injections {
    let mut injections = Injections::new();
    for allocation in &lease.allocations {
        let injection = match &allocation.portion {
            Portion::Whole | Portion::Share { .. } | Portion::Admin { .. } => inventory
                .device(&allocation.device)
                .filter(|device| device.uuid == allocation.uuid)
                .map(|device| device.injection.clone()),
            Portion::Partition { profile, start, .. } => inventory
                .partition_at(&allocation.uuid, profile, *start)
                .filter(|partition| partition.complete)
                .map(|partition| partition.injection.clone()),
        };
        if let Some(injection) = injection {
            injections.insert(allocation.target().to_owned(), injection);
        }
    }
    injections
}

fn gate_error(step: &Step, source: GateStepError) -> ApplyError {
    ApplyError::Gate { step: step.to_string(), source }
}

fn turns_error(step: &Step, source: TurnsStepError) -> ApplyError {
    ApplyError::Turns { step: step.to_string(), source }
}

fn spec_error(step: &Step, source: SpecError) -> ApplyError {
    ApplyError::Spec { step: step.to_string(), source }
}
