//! Claims, what was allocated to them, and the lease that records it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{
    Binding, BootId, ClaimId, ComputePermille, DeviceName, DeviceUuid, Enforcement, Enforcements,
    MemoryBytes, PartitionName, Placement, ProfileName, RequestName, Selector, ShareId, Weight,
};

/// What someone asks of this node, under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name; a second claim of the same name and content is the same claim.
    pub id: ClaimId,
    /// What it asks for, at least one.
    pub requests: Vec<Request>,
    /// Opaque words about the owner, for people: nothing here is decided by them.
    pub labels: BTreeMap<String, String>,
}

/// One request of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name, unique in the claim.
    pub name: RequestName,
    /// Which device or partition.
    pub wanted: Wanted,
    /// Present if a share is asked for instead of the whole device.
    pub share: Option<Share>,
    /// The least enforcement that is acceptable: more is fine, less is a refusal.
    pub demand: Enforcements,
    /// Tells apart several shares of one device within a request.
    pub share_id: Option<ShareId>,
    /// To look at a named device, held or not, instead of holding it (Kubernetes' admin access).
    pub admin: bool,
}

/// How a request says which device it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// This device or partition, by name: somebody else chose it (a scheduler, a person).
    Named(String),
    /// Any that fit: this node chooses.
    Any {
        /// What they must be.
        selector: Selector,
        /// The partition profile, if partitions are wanted.
        profile: Option<ProfileName>,
        /// How many, at least 1.
        count: u32,
    },
}

/// A software-separated part of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its memory; all of the device's where absent.
    pub memory: Option<MemoryBytes>,
    /// Its compute time; all of the device's where absent.
    pub compute: Option<ComputePermille>,
    /// What it is owed beside the others while the device is contended.
    pub weight: Weight,
    /// How urgent it is.
    pub class: ShareClass,
}

/// How urgent a share's work is beside the other shares of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ShareClass {
    /// Served first, within a budget.
    Realtime,
    /// Served by weight.
    #[default]
    Normal,
    /// Served when nobody else wants the device.
    Idle,
}

/// A text that names no [`ShareClass`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("share class `{0}` is not known: use realtime, normal or idle")]
pub struct UnknownShareClass(pub String);

impl ShareClass {
    /// The class in lower case, as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Normal => "normal",
            Self::Idle => "idle",
        }
    }
}

impl FromStr for ShareClass {
    type Err = UnknownShareClass;
    fn from_str(text: &str) -> Result<Self, UnknownShareClass> {
        match text {
            "realtime" => Ok(Self::Realtime),
            "normal" => Ok(Self::Normal),
            "idle" => Ok(Self::Idle),
            other => Err(UnknownShareClass(other.chars().take(32).collect())),
        }
    }
}

impl fmt::Display for ShareClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A request's answer: one device, and which part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The request it answers.
    pub request: RequestName,
    /// The device, by name.
    pub device: DeviceName,
    /// The device, by identity: a card swapped at the same address is another device.
    pub uuid: DeviceUuid,
    /// Which part of it.
    pub portion: Portion,
    /// Tells apart several shares of one device within a request.
    pub share_id: Option<ShareId>,
    /// What keeps the tenant inside the grant.
    pub enforcement: Enforcements,
}

/// A part of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Portion {
    /// All of it, alone.
    Whole,
    /// A partition.
    Partition {
        /// Its name.
        name: PartitionName,
        /// Its shape.
        profile: ProfileName,
        /// Where it lies.
        start: u32,
        /// Slices it takes.
        size: u32,
        /// The slices it takes, unless the vendor only counts them.
        placement: Option<Placement>,
        /// True if it existed before the claim: it is then left in place at release.
        adopted: bool,
    },
    /// A share.
    Share {
        /// Its memory.
        memory: MemoryBytes,
        /// Its compute time.
        compute: ComputePermille,
        /// What it is owed while the device is contended.
        weight: Weight,
        /// How urgent it is.
        class: ShareClass,
    },
    /// Nothing: access to look at a device, beside whoever holds it.
    Admin {
        /// The partition that was named, if one was; access is to its device.
        partition: Option<PartitionName>,
    },
}

impl Allocation {
    /// The name of what is held: the partition's, else the device's.
    #[must_use]
    pub fn target(&self) -> &str {
        match &self.portion {
            Portion::Partition { name, .. } | Portion::Admin { partition: Some(name) } => {
                name.as_str()
            }
            Portion::Whole | Portion::Share { .. } | Portion::Admin { partition: None } => {
                self.device.as_str()
            }
        }
    }

    /// True if it is a share that the arbiter and the library in its programs keep apart.
    #[must_use]
    pub fn takes_turns(&self) -> bool {
        let library = |class: Enforcement| class == Enforcement::Library;
        matches!(self.portion, Portion::Share { .. })
            && (library(self.enforcement.memory) || library(self.enforcement.compute))
    }

    /// The name of this allocation's CDI device, unique on the node.
    #[must_use]
    pub fn cdi_name(&self, claim: &ClaimId) -> String {
        let name = format!("{claim}-{}-{}", self.request, self.target());
        match &self.share_id {
            Some(share) => format!("{name}-{share}"),
            None => name,
        }
    }
}

/// The durable record that a claim holds an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The claim as it was asked.
    pub claim: Claim,
    /// What it holds.
    pub allocations: Vec<Allocation>,
    /// How far it is.
    pub state: LeaseState,
    /// When the claim was first accepted, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The boot in which it was last prepared.
    pub boot: BootId,
    /// Whose processes may use it, without duplicates.
    pub bindings: Vec<Binding>,
}

/// How far a lease is. `Preparing -> Prepared -> Releasing`, then it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Accepted; its steps may be half done.
    Preparing,
    /// Its containers may run.
    Prepared,
    /// Given back; its steps may be half undone.
    Releasing,
}

impl LeaseState {
    /// The state as it stands on wires and in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Releasing => "releasing",
        }
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a prepared claim gets back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The claim.
    pub claim: ClaimId,
    /// Its devices, in the order of its requests.
    pub devices: Vec<GrantedDevice>,
}

/// One device of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedDevice {
    /// What was allocated.
    pub allocation: Allocation,
    /// The id by which a container runtime injects it.
    pub cdi_id: String,
}

impl Lease {
    /// The CDI kind of every grant.
    pub const CDI_KIND: &'static str = "accelpool.dev/claim";

    /// Adds bindings that are new. False if that is more than a lease can have: then
    /// nothing is added.
    #[must_use]
    pub fn bind(&mut self, bindings: impl IntoIterator<Item = Binding>) -> bool {
        let mut all = self.bindings.clone();
        for binding in bindings {
            if !all.contains(&binding) {
                all.push(binding);
            }
        }
        if all.len() > Binding::MAX {
            return false;
        }
        self.bindings = all;
        true
    }

    /// True if a part of it takes turns.
    #[must_use]
    pub fn takes_turns(&self) -> bool {
        self.allocations.iter().any(Allocation::takes_turns)
    }

    /// The grant that this lease stands for.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let device = |allocation: &Allocation| GrantedDevice {
            allocation: allocation.clone(),
            cdi_id: format!("{}={}", Self::CDI_KIND, allocation.cdi_name(&self.claim.id)),
        };
        let devices = self.allocations.iter().map(device).collect();
        Grant { claim: self.claim.id.clone(), devices }
    }
}
