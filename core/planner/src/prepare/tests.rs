//! Each test reads: leases on the node, what is asked, the plan or the refusal.

use std::collections::BTreeMap;

use accelpool_model::{
    ClaimId, Enforcement, Inventory, Partition, PartitioningMode, Pool, Selector, Share,
    ShareClass, Sharing, Taint, TaintEffect, Weight,
};

use super::*;
use crate::testing::{
    GPU, boot, claim, device, lease, partition, partition_lease, pools, request, share_lease,
};

const OTHER: &str = "gpu-0000-43-00-0";

struct Node {
    inventory: Inventory,
    leases: Vec<Lease>,
    pools: Vec<Pool>,
}

fn node(leases: &[Lease]) -> Node {
    let inventory = Inventory::new([device("0000:1b:00.0"), device("0000:43:00.0")]);
    Node { inventory, leases: leases.to_vec(), pools: pools() }
}

impl Node {
    fn plan(&self, claim: &Claim) -> Result<Prepare, PrepareError> {
        let leases: BTreeMap<ClaimId, Lease> =
            self.leases.iter().map(|lease| (lease.claim.id.clone(), lease.clone())).collect();
        let view = NodeView { inventory: &self.inventory, leases: &leases, pools: &self.pools };
        plan_prepare(view, claim, &[], &boot(), 5)
    }

    #[track_caller]
    fn check(&self, requests: Vec<Request>, expected: &[&str]) {
        let actual = match self.plan(&claim("b", requests)) {
            Ok(prepare) => prepare.plan.to_string(),
            Err(error) => format!("refused: {error}"),
        };
        assert_eq!(actual.lines().collect::<Vec<_>>(), expected);
    }
}

#[track_caller]
fn check(leases: &[Lease], wanted: Request, expected: &[&str]) {
    node(leases).check(vec![wanted], expected);
}

fn named(name: &str) -> Request {
    request("r0", Wanted::Named(name.to_owned()))
}

fn share(name: &str, gib: u32, permille: u64) -> Request {
    Request { share: Some(quota(gib, permille)), ..named(name) }
}

fn quota(gib: u32, permille: u64) -> Share {
    Share {
        memory: Some(accelpool_model::MemoryBytes::from_gib(gib)),
        compute: Some(permille.try_into().unwrap()),
        weight: Weight::DEFAULT,
        class: ShareClass::Normal,
    }
}

fn mig(profile: &str, start: u32) -> Request {
    let profile = profile.parse().unwrap();
    let device = GPU.parse().unwrap();
    named(Partition::name_at(&device, "mig", &profile, start).unwrap().as_str())
}

fn any(profile: Option<&str>, count: u32) -> Request {
    let profile = profile.map(|profile| profile.parse().unwrap());
    request("r0", Wanted::Any { selector: Selector::default(), profile, count })
}

const SPEC: &str = "write CDI spec of b";
const ARM: &str = "arm the gate for b";
const TURNS: &str = "arm the turns of b";

#[test]
fn fresh_claims_are_prepared() {
    check(&[], named(GPU), &[ARM, SPEC]);
    check(&[], share(GPU, 10, 250), &[ARM, TURNS, SPEC]);
    check(&[], mig("3g.40gb", 4), &["create partition gpu-0000-1b-00-0-mig-3g-40gb-4", ARM, SPEC]);
}

#[test]
fn a_whole_device_excludes_everything() {
    let held = ["refused: device gpu-0000-1b-00-0 is held whole by claim a"];
    check(&[lease("a")], named(GPU), &held);
    check(&[lease("a")], share(GPU, 1, 1), &held);
    check(&[lease("a")], mig("1g.10gb", 0), &held);
    check(&[lease("a")], named(OTHER), &[ARM, SPEC]);
}

#[test]
fn shares_lie_beside_shares_while_they_last() {
    let leases = [share_lease("a", 50, 500), share_lease("c", 20, 250)];
    check(&leases, share(GPU, 10, 250), &[ARM, TURNS, SPEC]);
    check(
        &leases,
        share(GPU, 11, 250),
        &["refused: device gpu-0000-1b-00-0 has 10Gi of memory left, 11Gi are asked for"],
    );
    check(
        &leases,
        share(GPU, 10, 251),
        &["refused: device gpu-0000-1b-00-0 has 250 thousandths of compute left, \
           251 are asked for"],
    );
    let held = ["refused: device gpu-0000-1b-00-0 is held as a share by claim a"];
    check(&leases, named(GPU), &held);
    check(&leases, mig("1g.10gb", 0), &held);
}

#[test]
fn a_share_is_no_larger_than_its_device() {
    let range = "refused: memory of a share of device gpu-0000-1b-00-0 must be 1 to 80Gi, not";
    check(&[], share(GPU, 81, 1), &[&format!("{range} 81Gi")]);
    check(&[], share(GPU, 0, 1), &[&format!("{range} 0")]);
    let everything = Share { memory: None, compute: None, ..quota(1, 1) };
    check(&[], Request { share: Some(everything), ..named(GPU) }, &[ARM, TURNS, SPEC]);
    let beside = Share { compute: None, ..quota(1, 1) };
    check(
        &[share_lease("a", 1, 1)],
        Request { share: Some(beside), ..named(GPU) },
        &["refused: device gpu-0000-1b-00-0 has 999 thousandths of compute left, \
           1000 are asked for"],
    );
}

#[test]
fn partitions_lie_beside_partitions_they_do_not_touch() {
    let leases = [partition_lease("a", &[("3g.40gb", 0)], false)];
    let held = "refused: device gpu-0000-1b-00-0 is held as partition \
                gpu-0000-1b-00-0-mig-3g-40gb-0 by claim a";
    check(
        &leases,
        mig("1g.10gb", 4),
        &["create partition gpu-0000-1b-00-0-mig-1g-10gb-4", ARM, SPEC],
    );
    check(&leases, mig("1g.10gb", 3), &[held]);
    check(&leases, mig("3g.40gb", 0), &[held]);
    check(&leases, named(GPU), &[held]);
    check(&leases, share(GPU, 1, 1), &[held]);
}

#[test]
fn a_profile_has_its_own_limit() {
    let leases = [partition_lease("a", &[("1g.10gb+me", 0)], false)];
    let none = "refused: device gpu-0000-1b-00-0 has no room for another partition of profile \
                1g.10gb+me";
    check(&leases, mig("1g.10gb+me", 5), &[none]);
    check(
        &leases,
        mig("1g.10gb", 5),
        &["create partition gpu-0000-1b-00-0-mig-1g-10gb-5", ARM, SPEC],
    );
}

#[test]
fn one_claim_does_not_overlap_itself() {
    let second = Request { name: "r1".parse().unwrap(), ..named(GPU) };
    let held = ["refused: device gpu-0000-1b-00-0 is held whole by claim b"];
    node(&[]).check(vec![named(GPU), second], &held);
}

#[test]
fn what_an_operator_cut_is_adopted_or_respected() {
    let mut node = node(&[]);
    node.inventory.partitions = vec![partition("1g.10gb", 2, true)];
    let by_hand = "refused: device gpu-0000-1b-00-0 has partition 1g.10gb at 2, which nobody here \
                   made: claim it by name or remove it";
    node.check(vec![mig("1g.10gb", 2)], &[ARM, SPEC]);
    node.check(vec![named(GPU)], &[by_hand]);
    node.check(vec![share(GPU, 1, 1)], &[by_hand]);
    node.check(vec![mig("3g.40gb", 0)], &[by_hand]);
    node.inventory.partitions = vec![partition("1g.10gb", 2, false)];
    node.check(vec![mig("1g.10gb", 2)], &[by_hand]);
}

#[test]
fn unknown_and_lost_devices_are_refused() {
    check(&[], named("gpu-9"), &["refused: device gpu-9 is not on this node"]);
    check(&[], named("x\u{1b}[31m"), &["refused: device x\\u{1b}[31m is not on this node"]);
    check(
        &[],
        named("gpu-0000-1b-00-0-mig-9g-90gb-0"),
        &["refused: device gpu-0000-1b-00-0-mig-9g-90gb-0 is not on this node"],
    );
    let mut node = node(&[]);
    node.inventory.lost.insert(GPU.parse().unwrap());
    node.check(vec![named(GPU)], &["refused: device gpu-0000-1b-00-0 has left the bus"]);
}

#[test]
fn pools_say_what_is_allowed() {
    let mut node = node(&[]);
    node.pools[0].sharing = Sharing::Exclusive;
    let refused = "refused: device gpu-0000-1b-00-0 cannot be had as a share: pool default allows \
                   sharing `exclusive`";
    node.check(vec![share(GPU, 1, 1)], &[refused]);
    node.check(vec![named(GPU)], &[ARM, SPEC]);
    node.pools[0].selector.names = vec![OTHER.parse().unwrap()];
    let nobody = "refused: device gpu-0000-1b-00-0 belongs to no pool: the configuration offers it \
                  to nobody";
    node.check(vec![named(GPU)], &[nobody]);
}

#[test]
fn weaker_enforcement_than_demanded_is_refused() {
    let demand = Enforcements { memory: Enforcement::Kernel, compute: Enforcement::None };
    check(
        &[],
        Request { demand, ..share(GPU, 1, 1) },
        &["refused: memory of device gpu-0000-1b-00-0 can be held by `library`, \
           `kernel` is demanded"],
    );
    check(&[], Request { demand, ..named(GPU) }, &[ARM, SPEC]);
}

#[test]
fn who_only_looks_is_in_nobodys_way() {
    let look = |name: &str| Request { admin: true, ..named(name) };
    check(&[lease("a")], look(GPU), &[ARM, SPEC]);
    check(&[], look("gpu-0000-1b-00-0-mig-1g-10gb-0"), &[ARM, SPEC]);
    let mut watcher = lease("w");
    watcher.allocations[0].portion = Portion::Admin { partition: None };
    check(&[watcher.clone()], named(GPU), &[ARM, SPEC]);
    check(
        &[watcher],
        mig("7g.80gb", 0),
        &["create partition gpu-0000-1b-00-0-mig-7g-80gb-0", ARM, SPEC],
    );
}

#[test]
fn a_repeated_claim_gets_the_same_lease() {
    let held = partition_lease("b", &[("1g.10gb", 0)], false);
    let again = node(std::slice::from_ref(&held)).plan(&held.claim).unwrap();
    assert!(again.repeated);
    assert_eq!(again.lease, held);
    assert_eq!(
        again.plan.to_string(),
        format!("create partition gpu-0000-1b-00-0-mig-1g-10gb-0\n{ARM}\n{SPEC}")
    );
    let changed = "refused: claim b exists with other requests: release it first or use another \
                   name";
    check(&[lease("b")], share(GPU, 1, 1), &[changed]);
}

#[test]
fn an_unfinished_lease_is_busy() {
    let held = Lease { state: LeaseState::Releasing, ..lease("b") };
    check(&[held], named(GPU), &["refused: claim b is releasing: try again"]);
}

#[test]
fn this_node_chooses_where_a_claim_does_not() {
    node(&[lease("a")]).check(vec![any(None, 1)], &[ARM, SPEC]);
    check(
        &[lease("a")],
        any(None, 2),
        &["refused: no whole device of this node is free: 1 match, 2 are asked for"],
    );
    let chosen = |leases: &[Lease], request| {
        let lease = node(leases).plan(&claim("b", vec![request])).unwrap().lease;
        lease.allocations.iter().map(|one| one.target().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[lease("a")], any(None, 1)), [OTHER]);
    // A second share joins the first, so that a whole device stays free.
    let shared = Request { share: Some(quota(1, 1)), ..any(None, 1) };
    assert_eq!(chosen(&[share_lease("a", 1, 1)], shared), [GPU]);
    // A small partition joins the half that is cut already.
    let cut = [partition_lease("a", &[("1g.10gb", 4)], false)];
    assert_eq!(
        chosen(&cut, any(Some("1g.10gb"), 2)),
        ["gpu-0000-1b-00-0-mig-1g-10gb-5", "gpu-0000-1b-00-0-mig-1g-10gb-6",]
    );
}

#[test]
fn a_lasting_reason_is_told_instead_of_a_count() {
    let demand = Enforcements { memory: Enforcement::Hardware, compute: Enforcement::None };
    let shared = Request { share: Some(quota(1, 1)), demand, ..any(None, 1) };
    check(
        &[],
        shared,
        &["refused: memory of device gpu-0000-1b-00-0 can be held by `library`, \
           `hardware` is demanded"],
    );
    check(
        &[],
        any(Some("9g.90gb"), 1),
        &["refused: no device of this node that fits has partition profile 9g.90gb"],
    );
}

#[test]
fn a_tainted_device_is_not_chosen_but_can_be_named() {
    let mut node = node(&[]);
    let taint = |effect| Taint {
        key: "operator".into(),
        effect,
        reason: "fan".into(),
        since_ms: 1,
        incarnation: None,
    };
    let gpu = |name: &str| name.parse().unwrap();
    node.inventory.taints.insert(gpu(GPU), vec![taint(TaintEffect::NoSchedule)]);
    node.inventory.taints.insert(gpu(OTHER), vec![taint(TaintEffect::None)]);
    let chosen = node.plan(&claim("b", vec![any(None, 1)])).unwrap().lease;
    assert_eq!(chosen.allocations[0].device.as_str(), OTHER);
    node.check(vec![named(GPU)], &[ARM, SPEC]);
}

#[test]
fn the_node_has_a_limit() {
    let leases: Vec<Lease> = (0..LEASES_MAX).map(|n| share_lease(&format!("c{n}"), 1, 1)).collect();
    check(
        &leases,
        named(GPU),
        &["refused: this node holds 4096 leases, its limit: release some first"],
    );
}

/// A node whose first device has a mode, and whether its pool may switch it.
fn moded(on: bool, switchable: bool, switch_mode: bool, leases: &[Lease]) -> Node {
    let mut node = node(leases);
    let mut first = device("0000:1b:00.0");
    let partitioning = first.partitioning.as_mut().unwrap();
    partitioning.mode = Some(PartitioningMode { on, switchable });
    node.inventory.insert(first);
    node.pools[0].switch_mode = switch_mode;
    node
}

const MODE_ON: &str = "refused: device gpu-0000-1b-00-0 is in mig mode and serves partitions \
    only: ask for one, or allow its pool to switch the mode (`switch_mode`)";
const MODE_OFF: &str = "refused: device gpu-0000-1b-00-0 is not in mig mode and serves no \
    partitions: switch the mode, or allow its pool to do so (`switch_mode`)";
const SWITCH_ON: &str = "switch partitioning of gpu-0000-1b-00-0 on";
const SWITCH_OFF: &str = "switch partitioning of gpu-0000-1b-00-0 off";
const CREATE: &str = "create partition gpu-0000-1b-00-0-mig-1g-10gb-0";

#[test]
fn a_mode_that_is_the_operators_is_obeyed() {
    let small = || vec![mig("1g.10gb", 0)];
    for switchable in [true, false] {
        moded(true, switchable, false, &[]).check(small(), &[CREATE, ARM, SPEC]);
        moded(true, switchable, false, &[]).check(vec![named(GPU)], &[MODE_ON]);
        moded(true, switchable, false, &[]).check(vec![share(GPU, 10, 250)], &[MODE_ON]);
        moded(false, switchable, false, &[]).check(small(), &[MODE_OFF]);
        moded(false, switchable, false, &[]).check(vec![named(GPU)], &[ARM, SPEC]);
    }
    // What a reset would take is not switched, whatever the pool says.
    moded(true, false, true, &[]).check(vec![named(GPU)], &[MODE_ON]);
    moded(false, false, true, &[]).check(small(), &[MODE_OFF]);
}

#[test]
fn a_mode_is_switched_where_the_pool_allows_it_and_nobody_holds_the_device() {
    let small = || vec![mig("1g.10gb", 0)];
    moded(true, true, true, &[]).check(vec![named(GPU)], &[SWITCH_OFF, ARM, SPEC]);
    moded(false, true, true, &[]).check(small(), &[SWITCH_ON, CREATE, ARM, SPEC]);
    // What was observed may be older than the last switch.
    moded(false, true, true, &[]).check(vec![named(GPU)], &[SWITCH_OFF, ARM, SPEC]);
    let both =
        vec![mig("1g.10gb", 0), Request { name: "r1".parse().unwrap(), ..mig("1g.10gb", 1) }];
    let second = "create partition gpu-0000-1b-00-0-mig-1g-10gb-1";
    moded(false, true, true, &[]).check(both, &[SWITCH_ON, CREATE, second, ARM, SPEC]);
    let held = "refused: device gpu-0000-1b-00-0 is held whole by claim a";
    moded(false, true, true, &[lease("a")]).check(small(), &[held]);
    let cut = partition_lease("a", &[("1g.10gb", 1)], false);
    let held = "refused: device gpu-0000-1b-00-0 is held as partition \
        gpu-0000-1b-00-0-mig-1g-10gb-1 by claim a";
    moded(true, true, true, &[cut]).check(vec![named(GPU)], &[held]);
}

#[test]
fn a_choice_passes_over_devices_in_the_other_mode() {
    let plan = |node: Node, request| {
        let lease = node.plan(&claim("b", vec![request])).unwrap().lease;
        lease.allocations.into_iter().map(|held| held.device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(plan(moded(true, true, false, &[]), any(None, 1)), [OTHER]);
    assert_eq!(plan(moded(false, true, false, &[]), any(Some("1g.10gb"), 1)), [OTHER]);
}

#[test]
fn shares_by_mps_have_it_started_and_promise_no_enforcement() {
    let mut node = node(&[]);
    node.pools[0].mps = true;
    let start = "start MPS on gpu-0000-1b-00-0";
    node.check(vec![share(GPU, 10, 250)], &[start, ARM, SPEC]);
    node.check(vec![named(GPU)], &[ARM, SPEC]);
    let create = "create partition gpu-0000-1b-00-0-mig-1g-10gb-0";
    node.check(vec![mig("1g.10gb", 0)], &[create, ARM, SPEC]);
    let demand = Enforcements { memory: Enforcement::Library, compute: Enforcement::None };
    node.check(
        vec![Request { demand, ..share(GPU, 10, 250) }],
        &["refused: memory of device gpu-0000-1b-00-0 can be held by `none`, `library` is demanded"],
    );
    let second = Request { name: "r1".parse().unwrap(), ..share(OTHER, 10, 250) };
    node.check(
        vec![share(GPU, 10, 250), second],
        &["refused: device gpu-0000-43-00-0 is shared by MPS, and the claim has another share by \
           MPS: ask for it in a claim of its own, since a process can be a client of one"],
    );
}
