//! Everything that can reach the owner of the node's state, as one closed enum.

use std::{collections::BTreeMap, sync::Arc};

use accelpool_model::{
    Binding, Claim, ClaimId, DeviceName, DeviceUuid, Fault, Inventory, Lease, Partition, Pool,
    RecoveryAction, Settings, TaintEffect, Topology, VendorName,
};
use accelpool_planner::PrepareError;
use tokio::sync::oneshot;

use super::{
    apply::ApplyError,
    history::{Event, EventKind},
};
use crate::{
    audit::Asker,
    gate::{CgroupError, GateView},
    worker::{Discovery, WorkerError},
};

/// Why the node did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum NodeError {
    #[error(transparent)]
    Refused(#[from] PrepareError),
    #[error(transparent)]
    Failed(#[from] Arc<ApplyError>),
    #[error("device {0} is not on this node")]
    UnknownDevice(String),
    #[error("device {device} has no taint `{key}`")]
    UnknownTaint { device: DeviceName, key: String },
    #[error("claim {0} is neither on record nor remembered")]
    UnknownClaim(ClaimId),
    #[error(transparent)]
    UnknownCgroup(#[from] Arc<CgroupError>),
    #[error("vendor {0} is not driven by this daemon")]
    UnknownVendor(String),
    #[error(
        "vendor {vendor} has not answered since the daemon started, so this may be there: {source}"
    )]
    NotObserved { vendor: VendorName, source: PrepareError },
    #[error(
        "vendor {vendor} is paused for maintenance: its devices are not given out until it ends"
    )]
    Paused { vendor: VendorName },
    #[error("partition {0} is being cleared away: try again in a moment")]
    Settling(accelpool_model::PartitionName),
    #[error("the daemon is shutting down: try again in a moment")]
    Draining,
    #[error("the ledger cannot be written, so nothing was promised: the daemon stops")]
    Ledger,
}

/// What the owner is asked.
pub(super) enum Request {
    Prepare {
        claim: Claim,
        bindings: Vec<Binding>,
        by: Asker,
        reply: Reply<Lease>,
    },
    Bind {
        claim: ClaimId,
        bindings: Vec<Binding>,
        by: Asker,
        reply: Reply<Lease>,
    },
    /// A binding that came to nothing before it could be asked for.
    RefuseBinding {
        claim: ClaimId,
        error: NodeError,
        by: Asker,
        reply: Reply<()>,
    },
    Release {
        claim: ClaimId,
        by: Asker,
        reply: Reply<bool>,
    },
    Taint {
        device: String,
        effect: TaintEffect,
        reason: String,
        by: Asker,
        reply: Reply<()>,
    },
    Untaint {
        device: String,
        key: String,
        by: Asker,
        reply: Reply<()>,
    },
    Read {
        claim: Option<ClaimId>,
        reply: oneshot::Sender<State>,
    },
    /// The gate came or went, or something was found about a claim's processes.
    Gate {
        told: Option<(ClaimId, EventKind, String)>,
    },
    /// The cgroups of these bindings are gone for good.
    Gone {
        claim: ClaimId,
        bindings: Vec<Binding>,
    },
    /// The configuration was read again: the pools as they are now.
    Pools {
        pools: Arc<[Pool]>,
        reply: oneshot::Sender<()>,
    },
    /// A claim's processes took more of a shared device than they may.
    Violated {
        claim: ClaimId,
        message: String,
    },
    Drain {
        reply: oneshot::Sender<()>,
    },
}

/// An answer, sent once it is on disk.
pub(super) type Reply<T> = oneshot::Sender<Result<T, NodeError>>;

/// What reaches the owner from the tasks it started.
pub(super) enum Notice {
    /// The steps for a claim have been run.
    Applied(Applied),
    /// A vendor has listed what it sees, or failed to.
    Observed { adapter: VendorName, epoch: u64, answer: Result<Discovery, WorkerError> },
    /// A vendor has reported a fault. Who reports it asks for the next one, and so takes it
    /// off the vendor's hands, only when its taint is on disk.
    Faulted { adapter: VendorName, fault: Fault, recorded: oneshot::Sender<()> },
    /// Something happened to the MPS of a device.
    Mps(crate::mps::MpsEvent),
    /// A destruction that was owed has been tried.
    Settled { step: accelpool_model::PartitionStep, result: Result<(), WorkerError> },
    /// The driver was set for a device as its pool wants it, or was not.
    Configured { device: DeviceUuid, settings: Settings, result: Result<(), WorkerError> },
    /// A device with a fault's taint has been looked at; `advice` is what the vendor says that it
    /// takes, if it can tell.
    Probed { device: DeviceUuid, advice: Option<RecoveryAction>, probed: bool },
}

/// How the steps for a claim went.
pub(super) struct Applied {
    pub(super) claim: ClaimId,
    pub(super) result: Result<(), Arc<ApplyError>>,
    /// After a failure: true if everything was undone.
    pub(super) undone: bool,
    /// Modes that were switched, in order.
    pub(super) switched: Vec<accelpool_model::ModeStep>,
    /// Partitions that exist now and did not before.
    pub(super) created: Vec<Partition>,
    /// Partitions that are gone, by device, profile and start.
    pub(super) destroyed: Vec<accelpool_model::PartitionStep>,
    /// Destructions that wait for the return of their device.
    pub(super) owed: Vec<accelpool_model::PartitionStep>,
    /// True if a CDI spec was missing or different.
    pub(super) rewritten: bool,
}

/// The node's state, as of one moment.
#[derive(Debug, Clone)]
pub struct State {
    /// Grows with each change.
    pub revision: u64,
    /// What is there.
    pub inventory: Arc<Inventory>,
    /// What was promised.
    pub leases: Arc<BTreeMap<ClaimId, Lease>>,
    /// Why leases cannot be used, by claim.
    pub troubles: BTreeMap<ClaimId, String>,
    /// The pools.
    pub pools: Arc<[Pool]>,
    /// The host.
    pub topology: Arc<Topology>,
    /// What happened to the claim that was asked about.
    pub events: Vec<Event>,
    /// What vendors could not say, in words, by adapter.
    pub vendor_troubles: BTreeMap<VendorName, Vec<String>>,
    /// The device gate.
    pub gate: Arc<GateView>,
    /// Every vendor was heard and no steps are in hand.
    pub settled: bool,
    /// The adapter that lists each device.
    pub adapter_of: BTreeMap<DeviceUuid, VendorName>,
    /// How often each kind of thing happened to a claim since the daemon started.
    pub event_counts: BTreeMap<EventKind, u64>,
    /// True once every vendor has answered: what is not listed is not there.
    pub complete: bool,
    /// True once the daemon takes no more claims.
    pub draining: bool,
}
