//! A plan: the steps that change the node, in order, as data.

use std::fmt;

use crate::{ClaimId, DeviceName, DeviceUuid, PartitionName, ProfileName};

/// What is to be done, in order. Undone in reverse order when a step fails.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One change to the node. Each can be done twice without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Brings an idle device into its partitioning mode, or out of it. One that is as it should
    /// be stays so. Not undone: the next claim switches it as it needs it.
    SwitchMode(ModeStep),
    /// Has NVIDIA's MPS answer on a device that is shared. Not undone: it is stopped once nobody
    /// shares the device.
    StartMps(MpsStep),
    /// Makes a partition exist. One that is there and complete counts as made.
    CreatePartition(PartitionStep),
    /// Makes a partition, whole or half-created, not exist. One that is gone counts as destroyed.
    DestroyPartition(PartitionStep),
    /// Lets the cgroups that a claim's lease is bound to open its devices.
    ArmGate(ClaimId),
    /// Takes back what was let.
    DisarmGate(ClaimId),
    /// Lets a claim take turns on the devices that it shares.
    ArmTurns(ClaimId),
    /// Ends a claim's turns.
    DisarmTurns(ClaimId),
    /// Writes the CDI spec of a claim's lease.
    WriteSpec(ClaimId),
    /// Removes the CDI spec of a claim.
    RemoveSpec(ClaimId),
}

/// The partition that a step makes or unmakes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStep {
    /// Its name, for people.
    pub name: PartitionName,
    /// Its device's name, for people.
    pub device: DeviceName,
    /// Its device's identity.
    pub uuid: DeviceUuid,
    /// Its shape.
    pub profile: ProfileName,
    /// Where it lies.
    pub start: u32,
}

/// The device that a step has served by MPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MpsStep {
    /// The device's name.
    pub device: DeviceName,
    /// The device's identity.
    pub uuid: DeviceUuid,
}

/// The mode that a step switches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeStep {
    /// The device's name, for people.
    pub device: DeviceName,
    /// The device's identity.
    pub uuid: DeviceUuid,
    /// Whether it is to serve parts.
    pub on: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchMode(ModeStep { device, on, .. }) => {
                write!(f, "switch partitioning of {device} {}", if *on { "on" } else { "off" })
            }
            Self::StartMps(step) => write!(f, "start MPS on {}", step.device),
            Self::CreatePartition(step) => write!(f, "create partition {}", step.name),
            Self::DestroyPartition(step) => write!(f, "destroy partition {}", step.name),
            Self::ArmGate(claim) => write!(f, "arm the gate for {claim}"),
            Self::DisarmGate(claim) => write!(f, "disarm the gate for {claim}"),
            Self::ArmTurns(claim) => write!(f, "arm the turns of {claim}"),
            Self::DisarmTurns(claim) => write!(f, "disarm the turns of {claim}"),
            Self::WriteSpec(claim) => write!(f, "write CDI spec of {claim}"),
            Self::RemoveSpec(claim) => write!(f, "remove CDI spec of {claim}"),
        }
    }
}

impl fmt::Display for Plan {
    /// One step a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{step}")?;
        }
        Ok(())
    }
}
