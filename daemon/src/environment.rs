//! What a process of the host needs in its environment to use a grant without a container.
//!
//! In a container the runtime makes only the granted devices visible. On the host all of them
//! are there, so each vendor's own variable says which to use. It asks and cannot force: what
//! keeps others off is the gate. A share's library comes in by `LD_PRELOAD`, where a container has
//! it from a file of its own.

use std::{collections::BTreeMap, path::Path};

use accelpool_model::{Inventory, Lease, Portion};

/// The variables by which vendors' libraries are told which devices to use, by identity.
const VISIBLE: [(&str, &str); 2] =
    [("nvidia", "CUDA_VISIBLE_DEVICES"), ("amd", "ROCR_VISIBLE_DEVICES")];

/// Variables for a process that is to use what `lease` holds; `turns` is where the shim and the
/// claims' folders are.
#[must_use]
pub fn of_host(
    lease: &Lease,
    inventory: &Inventory,
    turns: Option<(&Path, &Path)>,
) -> BTreeMap<String, String> {
    let mut visible: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for allocation in &lease.allocations {
        let Some(device) = inventory.device_by_uuid(&allocation.uuid) else { continue };
        let known = VISIBLE.iter().find(|(vendor, _)| *vendor == device.vendor.as_str());
        let Some((_, variable)) = known else { continue };
        let identity = match &allocation.portion {
            Portion::Partition { profile, start, .. } => inventory
                .partition_at(&allocation.uuid, profile, *start)
                .map_or(&allocation.uuid, |partition| &partition.uuid),
            Portion::Whole | Portion::Share { .. } | Portion::Admin { .. } => &allocation.uuid,
        };
        visible.entry(variable).or_default().push(identity.to_string());
    }
    let mut environment: BTreeMap<String, String> =
        visible.into_iter().map(|(name, all)| (name.to_owned(), all.join(","))).collect();
    let takes_turns = lease.allocations.iter().any(accelpool_model::Allocation::takes_turns);
    if let Some((shim, folder)) = turns.filter(|_| takes_turns) {
        let own = folder.join(lease.claim.id.as_str());
        environment.insert("LD_PRELOAD".to_owned(), shim.display().to_string());
        environment.insert("ACCELPOOL_TURNS".to_owned(), own.display().to_string());
    }
    environment
}
