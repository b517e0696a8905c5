//! Each test reads: leases on disk, what the hardware has, what becomes of them.

use std::collections::BTreeMap;

use accelpool_model::{Inventory, Partition, PartitioningMode};

use super::*;
use crate::testing::{device, lease, partition, partition_lease, pools};

struct Found {
    partitions: Vec<Partition>,
    devices: bool,
    complete: bool,
}

const NOTHING: Found = Found { partitions: Vec::new(), devices: true, complete: true };

#[track_caller]
fn check(held: Lease, found: Found, expected: &[&str]) {
    let mut inventory = Inventory::default();
    if found.devices {
        inventory.insert(device("0000:1b:00.0"));
    }
    inventory.partitions = found.partitions;
    let leases = BTreeMap::from([(held.claim.id.clone(), held)]);
    let view = NodeView { inventory: &inventory, leases: &leases, pools: &pools() };
    let (repairs, _) = plan_reconcile(view, &BTreeSet::new(), found.complete);
    let [repair] = repairs.as_slice() else { panic!("one lease gives one repair") };
    let outcome = match &repair.outcome {
        Outcome::Restored => "restored".to_owned(),
        Outcome::Forgotten => "forgotten".to_owned(),
        Outcome::Troubled(reason) => format!("troubled: {reason}"),
    };
    let plan = repair.plan.to_string();
    let actual: Vec<&str> = plan.lines().chain([outcome.as_str()]).collect();
    assert_eq!(actual, expected);
}

fn cut(state: LeaseState) -> Lease {
    Lease { state, ..partition_lease("a", &[("1g.10gb", 0)], false) }
}

const DISARM: &str = "disarm the gate for a";
const CREATE: &str = "create partition gpu-0000-1b-00-0-mig-1g-10gb-0";
const DESTROY: &str = "destroy partition gpu-0000-1b-00-0-mig-1g-10gb-0";

#[test]
fn a_half_prepared_lease_was_promised_to_nobody() {
    check(
        cut(LeaseState::Preparing),
        NOTHING,
        &["remove CDI spec of a", DISARM, DESTROY, "forgotten"],
    );
}

#[test]
fn a_half_released_lease_is_finished() {
    check(
        cut(LeaseState::Releasing),
        NOTHING,
        &["remove CDI spec of a", DISARM, DESTROY, "forgotten"],
    );
}

#[test]
fn partitions_of_a_silent_vendor_are_not_forgotten() {
    let silent = Found { devices: false, complete: false, ..NOTHING };
    let trouble = "troubled: device gpu-0000-1b-00-0 does not answer";
    check(cut(LeaseState::Releasing), silent, &["remove CDI spec of a", DISARM, trouble]);
    let gone = Found { devices: false, ..NOTHING };
    check(
        cut(LeaseState::Releasing),
        gone,
        &["remove CDI spec of a", DISARM, DESTROY, "forgotten"],
    );
}

#[test]
fn a_prepared_lease_is_made_true_again() {
    let (arm, spec) = ("arm the gate for a", "write CDI spec of a");
    check(lease("a"), NOTHING, &[arm, spec, "restored"]);
    let there = Found { partitions: vec![partition("1g.10gb", 0, true)], ..NOTHING };
    check(cut(LeaseState::Prepared), there, &[arm, spec, "restored"]);
    check(cut(LeaseState::Prepared), NOTHING, &[CREATE, arm, spec, "restored"]);
    let half = Found { partitions: vec![partition("1g.10gb", 0, false)], ..NOTHING };
    check(cut(LeaseState::Prepared), half, &[DESTROY, CREATE, arm, spec, "restored"]);
}

#[test]
fn what_cannot_be_made_true_stays_on_record() {
    let gone = Found { devices: false, ..NOTHING };
    check(lease("a"), gone, &["troubled: device gpu-0000-1b-00-0 is not on this node"]);
    let mut swapped = lease("a");
    swapped.allocations[0].uuid = "GPU-other".parse().unwrap();
    check(
        swapped,
        NOTHING,
        &["troubled: device gpu-0000-1b-00-0 is now GPU-0000-1b-00-0, another card than GPU-other"],
    );
    check(
        partition_lease("a", &[("1g.10gb", 0)], true),
        NOTHING,
        &["troubled: partition gpu-0000-1b-00-0-mig-1g-10gb-0, made by an operator, is gone"],
    );
}

#[test]
fn specs_without_a_lease_are_removed() {
    let inventory = Inventory::default();
    let leases = BTreeMap::new();
    let view = NodeView { inventory: &inventory, leases: &leases, pools: &pools() };
    let specs = BTreeSet::from(["old".parse().unwrap()]);
    let (repairs, cleanup) = plan_reconcile(view, &specs, true);
    assert_eq!((repairs.len(), cleanup.to_string()), (0, "remove CDI spec of old".to_owned()));
}

#[track_caller]
fn check_mode(held: Lease, on: bool, switch_mode: bool, expected: &[&str]) {
    let mut moded = device("0000:1b:00.0");
    let mode = PartitioningMode { on, switchable: true };
    moded.partitioning.as_mut().unwrap().mode = Some(mode);
    let inventory = Inventory::new([moded]);
    let leases = BTreeMap::from([(held.claim.id.clone(), held)]);
    let mut pools = pools();
    pools[0].switch_mode = switch_mode;
    let view = NodeView { inventory: &inventory, leases: &leases, pools: &pools };
    let (repairs, _) = plan_reconcile(view, &BTreeSet::new(), true);
    let outcome = format!("{:?}", repairs[0].outcome);
    let plan = repairs[0].plan.to_string();
    assert_eq!(plan.lines().chain([outcome.as_str()]).collect::<Vec<_>>(), expected);
}

#[test]
fn a_mode_that_a_boot_took_away_is_switched_again_where_the_pool_allows_it() {
    let create = "create partition gpu-0000-1b-00-0-mig-1g-10gb-0";
    let (arm, spec) = ("arm the gate for a", "write CDI spec of a");
    let on = "switch partitioning of gpu-0000-1b-00-0 on";
    check_mode(cut(LeaseState::Prepared), false, true, &[on, create, arm, spec, "Restored"]);
    check_mode(cut(LeaseState::Prepared), true, false, &[create, arm, spec, "Restored"]);
    let gone = "Troubled(\"device gpu-0000-1b-00-0 is not in mig mode any more\")";
    check_mode(cut(LeaseState::Prepared), false, false, &[gone]);
    // Whoever holds all of it may be at work: nobody switches it back under them.
    let switched = "Troubled(\"device gpu-0000-1b-00-0 was switched to mig mode\")";
    check_mode(lease("a"), true, true, &[switched]);
    check_mode(lease("a"), false, true, &[arm, spec, "Restored"]);
}
