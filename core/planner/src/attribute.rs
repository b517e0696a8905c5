//! Who used what of one device: divides what was measured among those who hold it.
//!
//! A process is billed to the claim whose containers it runs in. One of which nothing is known
//! is billed to the only holder that it could belong to, unless that holder's containers are
//! known, and it is in none of them. One that ended before anybody looked at it is billed to who had
//! the device, or its part, alone: nobody else was let in. What fits nobody is unattributed and never dropped:
//! holders and unattributed together are always the device.

#[cfg(test)]
mod tests;

use std::time::Duration;

use accelpool_model::{ClaimId, DeviceUuid, MemoryBytes};

/// An allocation on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Who holds it.
    pub claim: ClaimId,
    /// Which part of the device.
    pub part: Part,
    /// True if the claim's containers are known: a process outside them is not its.
    pub bound: bool,
}

/// A part of a device, as far as it tells whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// This partition; none while the vendor does not list it.
    Partition(Option<DeviceUuid>),
    /// A share, beside others.
    Share,
}

/// Whom a process belongs to, as far as the node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The containers of these claims, in the order of their names.
    Claims(Vec<ClaimId>),
    /// A workload that holds nothing on this node.
    Stranger,
    /// A process of the host.
    Unknown,
    /// It ended before it was looked at.
    Ended,
}

/// What one process used since the device was sampled before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUse {
    /// Whose it is.
    pub owner: Owner,
    /// The partition it runs in.
    pub partition: Option<DeviceUuid>,
    /// What it used.
    pub amount: Amount,
}

/// A part of what a device was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Memory held at the moment.
    pub memory: MemoryBytes,
    /// Compute time since the device was sampled before.
    pub busy: Duration,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.memory = self.memory.saturating_add(other.memory);
        self.busy = self.busy.saturating_add(other.busy);
    }

    fn less(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(other.memory),
            busy: self.busy.saturating_sub(other.busy),
        }
    }
}

/// What a device was used, divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// All of it: at least what the processes used together.
    pub device: Amount,
    /// By holding, in the order given.
    pub holdings: Vec<Amount>,
    /// The rest.
    pub unattributed: Amount,
    /// By process, in the order given: the holding that it is billed to.
    pub processes: Vec<Option<usize>>,
    /// The holding that has the device alone, and with it what no process accounts for.
    pub sole: Option<usize>,
}

/// Divides what was measured of one device.
///
/// `measured` is the vendor's own word on the device as a whole. What it says beyond the
/// processes (contexts of the driver, work that ended) belongs to who has the device alone.
#[must_use]
pub fn attribute(holdings: &[Holding], uses: &[ProcessUse], measured: Amount) -> Attribution {
    let mut amounts = vec![Amount::default(); holdings.len()];
    let mut unattributed = Amount::default();
    let mut told = Amount::default();
    let mut processes = Vec::with_capacity(uses.len());
    for used in uses {
        let billed = holder_of(holdings, used);
        match billed.and_then(|index| amounts.get_mut(index)) {
            Some(amount) => amount.add(used.amount),
            None => unattributed.add(used.amount),
        }
        told.add(used.amount);
        processes.push(billed);
    }
    let rest = measured.less(told);
    let sole = holdings.iter().position(|holding| holding.part == Part::Whole);
    match sole.and_then(|index| amounts.get_mut(index)) {
        Some(amount) => amount.add(rest),
        None => unattributed.add(rest),
    }
    told.add(rest);
    Attribution { device: told, holdings: amounts, unattributed, processes, sole }
}

/// The holding that a process is billed to.
fn holder_of(holdings: &[Holding], used: &ProcessUse) -> Option<usize> {
    let could = |holding: &Holding| match (&holding.part, &used.partition) {
        (Part::Partition(Some(own)), Some(used)) => own == used,
        (Part::Partition(_), _) | (Part::Whole | Part::Share, Some(_)) => false,
        (Part::Whole | Part::Share, None) => true,
    };
    let mut possible = holdings.iter().enumerate().filter(|(_, holding)| could(holding));
    match &used.owner {
        Owner::Claims(claims) => {
            possible.find(|(_, holding)| claims.contains(&holding.claim)).map(|(index, _)| index)
        }
        Owner::Stranger => None,
        Owner::Unknown => match (possible.next(), possible.next()) {
            (Some((index, only)), None) if !only.bound => Some(index),
            _ => None,
        },
        Owner::Ended => match (possible.next(), possible.next()) {
            (Some((index, only)), None) if !only.bound || only.part != Part::Share => Some(index),
            _ => None,
        },
    }
}

/// Divides energy by compute time, in the order of the holdings; the last entry is what stays
/// unattributed. An idle device's energy is that of who has it alone, else nobody's.
#[must_use]
pub fn divide_energy(attribution: &Attribution, millijoules: u64) -> Vec<u64> {
    let mut parts: Vec<u64> = Vec::with_capacity(attribution.holdings.len() + 1);
    let whole = attribution.device.busy.as_nanos();
    for (index, amount) in attribution.holdings.iter().enumerate() {
        let part = match whole {
            0 if attribution.sole == Some(index) => millijoules,
            0 => 0,
            _ => {
                let part = u128::from(millijoules).saturating_mul(amount.busy.as_nanos()) / whole;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        };
        parts.push(part);
    }
    let told = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(*part));
    parts.push(millijoules.saturating_sub(told));
    parts
}
