//! What must hold of a node at rest, whatever happened to it; worked out here anew from what
//! the daemon lists, from the simulated hardware's own file and from the CDI folder.
//!
//! None of it uses the planner's code: a mistake there must not hide itself.

mod overlap;
mod specs;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use accelpool_proto::node::{Device, Lease, Partition, allocation::Portion};
use serde_json::Value;

use crate::{Client, Home};

pub use self::overlap::overlaps;

/// A node as it can be seen from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The devices, as listed.
    pub devices: Vec<Device>,
    /// The leases, as listed.
    pub leases: Vec<Lease>,
    /// The partitions that exist, as listed.
    pub partitions: Vec<Partition>,
    /// The partitions that the hardware has.
    pub hardware: Vec<Place>,
    /// The claims that have a folder for their turns.
    pub turns: BTreeSet<String>,
    /// The files of the CDI folder, with their text.
    pub specs: BTreeMap<String, String>,
}

/// A partition of the hardware.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Place {
    pub device_uuid: String,
    pub profile: String,
    pub start: u64,
    pub complete: bool,
}

impl Picture {
    /// Looks at the node that `client` is connected to and that lives in `home`.
    ///
    /// # Panics
    ///
    /// If the daemon does not answer, or the hardware's file cannot be read.
    #[must_use]
    pub fn take(home: &Home, client: &Client) -> Self {
        Self {
            devices: client.devices().expect("the daemon lists devices"),
            leases: client.claims().expect("the daemon lists claims"),
            partitions: client.partitions().expect("the daemon lists partitions"),
            hardware: hardware(home),
            turns: turns(home),
            specs: specs::read(home),
        }
    }

    /// The lease of `claim`.
    #[must_use]
    pub fn lease(&self, claim: &str) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.claim == claim)
    }

    /// Everything that is wrong with a node at rest.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = overlaps(&self.devices, &self.leases);
        for lease in &self.leases {
            if lease.state != "prepared" {
                faults.push(format!("claim {} is {} at rest", lease.claim, lease.state));
            }
            if !lease.trouble.is_empty() {
                faults.push(format!("claim {} is in trouble: {}", lease.claim, lease.trouble));
            }
        }
        faults.extend(self.partition_faults());
        faults.extend(self.turns_faults());
        faults.extend(specs::faults(&self.specs, &self.leases));
        faults
    }

    /// Shares that a library keeps apart, and folders where it finds its daemon.
    fn turns_faults(&self) -> Vec<String> {
        let takes_turns = |lease: &&Lease| {
            lease.allocations.iter().any(|one| {
                let classes = one.enforcement.clone().unwrap_or_default();
                matches!(one.portion, Some(Portion::Share(_)))
                    && [classes.memory, classes.compute].contains(&"library".to_owned())
            })
        };
        let sharing = self.leases.iter().filter(takes_turns).map(|lease| lease.claim.clone());
        let sharing: BTreeSet<String> = sharing.collect();
        let wrong = sharing.symmetric_difference(&self.turns);
        wrong.map(|claim| format!("claim {claim}: a share and no folder, or the reverse")).collect()
    }

    /// Partitions without a lease, leases without their partition.
    fn partition_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut promised = BTreeMap::new();
        for lease in &self.leases {
            for allocation in &lease.allocations {
                if let Some(Portion::Partition(partition)) = &allocation.portion {
                    let key = (
                        allocation.device_uuid.clone(),
                        partition.profile.clone(),
                        u64::from(partition.start),
                    );
                    promised.insert(key, lease.claim.clone());
                }
            }
        }
        for place in &self.hardware {
            let key = (place.device_uuid.clone(), place.profile.clone(), place.start);
            if promised.remove(&key).is_none() {
                faults.push(format!("{place:?} exists and belongs to no lease"));
            } else if !place.complete {
                faults.push(format!("{place:?} is half-created at rest"));
            }
        }
        let missing = promised.into_iter();
        faults.extend(missing.map(|(key, claim)| format!("{key:?} of claim {claim} is not there")));
        let listed = self.partitions.iter().filter(|partition| partition.state == "exists").count();
        if listed != self.hardware.len() {
            let there = self.hardware.len();
            faults.push(format!("{listed} partitions are listed, the hardware has {there}"));
        }
        faults
    }
}

fn turns(home: &Home) -> BTreeSet<String> {
    // Where nothing is shared by turns there is no folder.
    let entries = fs::read_dir(home.turns()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The partitions of the simulated hardware, in order.
///
/// # Panics
///
/// If its file is not what the simulated node writes.
#[must_use]
pub fn hardware(home: &Home) -> Vec<Place> {
    let text = fs::read_to_string(home.sim().join("state.json")).expect("the hardware has a state");
    let state: Value = serde_json::from_str(&text).expect("the state is JSON");
    let records = state["partitions"].as_array().expect("the state lists partitions");
    let place = |record: &Value| Place {
        device_uuid: record["device"].as_str().expect("a record has a device").to_owned(),
        profile: record["profile"].as_str().expect("a record has a profile").to_owned(),
        start: record["start"].as_u64().expect("a record has a start"),
        complete: record["complete"].as_bool().expect("a record is complete or not"),
    };
    let mut places: Vec<_> = records.iter().map(place).collect();
    places.sort();
    places
}
