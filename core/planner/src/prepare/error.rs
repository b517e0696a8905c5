//! Why this node refuses a claim.

use accelpool_model::{
    Binding, ClaimId, ComputePermille, DeviceName, Enforcement, LeaseState, MemoryBytes, PoolName,
    ProfileName, Sharing,
};

/// Why this node cannot prepare a claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum PrepareError {
    #[error("device {0} is not on this node")]
    UnknownDevice(String),
    #[error("device {0} has left the bus")]
    LostDevice(DeviceName),
    #[error("device {device} has no partition profile {profile}")]
    UnknownProfile { device: DeviceName, profile: ProfileName },
    #[error("no device of this node that fits has partition profile {0}")]
    NoSuchProfile(ProfileName),
    #[error("partition {0} cannot be shared: ask for a share of a whole device")]
    ShareOfPartition(String),
    #[error(
        "device {0} is shared by MPS, and the claim has another share by MPS: ask for it in a \
         claim of its own, since a process can be a client of one"
    )]
    SecondMpsShare(DeviceName),
    #[error("device {0} belongs to no pool: the configuration offers it to nobody")]
    NoPool(DeviceName),
    #[error("device {device} cannot be had {portion}: pool {pool} allows sharing `{sharing}`")]
    NotAllowed { device: DeviceName, pool: PoolName, sharing: Sharing, portion: &'static str },
    #[error(
        "device {device} is in {scheme} mode and serves partitions only: ask for one, or allow \
         its pool to switch the mode (`switch_mode`)"
    )]
    ModeOn { device: DeviceName, scheme: String },
    #[error(
        "device {device} is not in {scheme} mode and serves no partitions: switch the mode, or \
         allow its pool to do so (`switch_mode`)"
    )]
    ModeOff { device: DeviceName, scheme: String },
    #[error("device {device} is held {portion} by claim {holder}")]
    Held { device: DeviceName, portion: String, holder: ClaimId },
    #[error("device {device} has {left} of memory left, {wanted} are asked for")]
    MemoryTaken { device: DeviceName, wanted: MemoryBytes, left: MemoryBytes },
    #[error("device {device} has {left} thousandths of compute left, {wanted} are asked for")]
    ComputeTaken { device: DeviceName, wanted: ComputePermille, left: u16 },
    #[error("memory of a share of device {device} must be 1 to {max}, not {wanted}")]
    MemoryOutOfRange { device: DeviceName, wanted: MemoryBytes, max: MemoryBytes },
    #[error("device {device} has no room for another partition of profile {profile}")]
    PartitionsTaken { device: DeviceName, profile: ProfileName },
    #[error(
        "device {device} has partition {profile} at {start}, which nobody here made: \
         claim it by name or remove it"
    )]
    CutByHand { device: DeviceName, profile: ProfileName, start: u32 },
    #[error("{what} of device {device} can be held by `{granted}`, `{demanded}` is demanded")]
    WeakerEnforcement {
        device: DeviceName,
        what: &'static str,
        demanded: Enforcement,
        granted: Enforcement,
    },
    #[error("no {wanted} of this node is free: {found} match, {asked} are asked for")]
    NoneFree { wanted: String, found: usize, asked: u32 },
    #[error("claim {0} exists with other requests: release it first or use another name")]
    Changed(ClaimId),
    #[error("claim {0} is {1}: try again")]
    Busy(ClaimId, LeaseState),
    #[error("claim {0} is not prepared, so nobody can be bound to it")]
    NotPrepared(ClaimId),
    #[error("claim {0} would be bound to more than {max} cgroups", max = Binding::MAX)]
    TooManyBindings(ClaimId),
    #[error("this node holds {0} leases, its limit: release some first")]
    TooManyLeases(usize),
}

impl PrepareError {
    /// True if no release of other claims would help: the request itself cannot be met.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::UnknownDevice(_)
            | Self::UnknownProfile { .. }
            | Self::NoSuchProfile(_)
            | Self::ShareOfPartition(_)
            | Self::NoPool(_)
            | Self::NotAllowed { .. }
            | Self::SecondMpsShare(_)
            | Self::ModeOn { .. }
            | Self::ModeOff { .. }
            | Self::MemoryOutOfRange { .. }
            | Self::WeakerEnforcement { .. }
            | Self::TooManyBindings(_)
            | Self::Changed(_) => true,
            Self::LostDevice(_)
            | Self::Held { .. }
            | Self::MemoryTaken { .. }
            | Self::ComputeTaken { .. }
            | Self::PartitionsTaken { .. }
            | Self::CutByHand { .. }
            | Self::NoneFree { .. }
            | Self::Busy(..)
            | Self::NotPrepared(_)
            | Self::TooManyLeases(_) => false,
        }
    }
}
