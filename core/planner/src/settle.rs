//! Settles what is owed: partitions that were released while their device was off the bus.

use accelpool_model::{BootId, DeviceUuid, OwedPartition, PartitionStep, Portion};

use crate::NodeView;

/// What is to be done about a partition whose destruction is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Its device is back, and the partition with it.
    Destroy(PartitionStep),
    /// Nothing is owed any more.
    Forget(PartitionStep),
}

/// Plans what becomes of `owed`. What is not in the answer waits.
///
/// `listed` says that the list of a device's partitions is of now.
#[must_use]
pub fn plan_settle(
    view: NodeView<'_>,
    owed: &[OwedPartition],
    boot: &BootId,
    listed: impl Fn(&DeviceUuid) -> bool,
) -> Vec<Settlement> {
    let settle = |owed: &OwedPartition| {
        let step = &owed.step;
        let device = view.inventory.device_by_uuid(&step.uuid);
        let held = view.leases.values().flat_map(|lease| &lease.allocations).any(|held| {
            held.uuid == step.uuid
                && matches!(
                    &held.portion,
                    Portion::Partition { profile, start, .. }
                        if *profile == step.profile && *start == step.start
                )
        });
        if held || owed.boot != *boot {
            return Some(Settlement::Forget(step.clone()));
        }
        let present = device.is_some_and(|it| !view.inventory.lost.contains(&it.name));
        if !present || !listed(&step.uuid) {
            return None;
        }
        let there = view.inventory.partition_at(&step.uuid, &step.profile, step.start).is_some();
        let settle = if there { Settlement::Destroy } else { Settlement::Forget };
        Some(settle(step.clone()))
    };
    owed.iter().filter_map(settle).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use accelpool_model::{Inventory, Lease};

    use super::*;
    use crate::{
        prepare::owned_partitions,
        testing::{boot, device, partition, partition_lease, pools},
    };

    struct Found {
        inventory: Inventory,
        lease: Option<Lease>,
        listed: bool,
        boot: BootId,
    }

    fn back() -> Found {
        let mut inventory = Inventory::new([device("0000:1b:00.0")]);
        inventory.partitions = vec![partition("1g.10gb", 3, true)];
        Found { inventory, lease: None, listed: true, boot: boot() }
    }

    #[track_caller]
    fn check(found: Found, expected: &str) {
        let past = partition_lease("a", &[("1g.10gb", 3)], false);
        let step = owned_partitions(&past).next().unwrap();
        let owed = [OwedPartition { step, boot: boot() }];
        let leases: BTreeMap<_, _> =
            found.lease.into_iter().map(|lease| (lease.claim.id.clone(), lease)).collect();
        let view = NodeView { inventory: &found.inventory, leases: &leases, pools: &pools() };
        let settled = plan_settle(view, &owed, &found.boot, |_| found.listed);
        let words: Vec<&str> = settled
            .iter()
            .map(|settled| match settled {
                Settlement::Destroy(_) => "destroy",
                Settlement::Forget(_) => "forget",
            })
            .collect();
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn a_partition_that_came_back_is_destroyed() {
        check(back(), "destroy");
    }

    #[test]
    fn what_cannot_be_known_yet_waits() {
        check(Found { listed: false, ..back() }, "");
        check(Found { inventory: Inventory::default(), ..back() }, "");
        let mut lost = back();
        lost.inventory.lost.insert("gpu-0000-1b-00-0".parse().unwrap());
        check(lost, "");
    }

    #[test]
    fn what_is_gone_or_anothers_is_owed_no_more() {
        let mut gone = back();
        gone.inventory.partitions.clear();
        check(gone, "forget");
        check(Found { boot: "boot-2".parse().unwrap(), ..back() }, "forget");
        let lease = partition_lease("b", &[("1g.10gb", 3)], true);
        check(Found { lease: Some(lease), ..back() }, "forget");
        let other = partition_lease("b", &[("1g.10gb", 4)], true);
        check(Found { lease: Some(other), ..back() }, "destroy");
    }
}
