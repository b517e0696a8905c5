//! Attribution as data, and the law that nothing is lost.

use proptest::{collection::vec, option, prelude::*};

use super::*;

fn claim(name: &str) -> ClaimId {
    name.parse().unwrap()
}

fn holding(name: &str, part: Part, bound: bool) -> Holding {
    Holding { claim: claim(name), part, bound }
}

fn partition(uuid: &str) -> Part {
    Part::Partition(Some(uuid.parse().unwrap()))
}

fn amount(memory: u64, busy_ms: u64) -> Amount {
    Amount { memory: MemoryBytes::new(memory), busy: Duration::from_millis(busy_ms) }
}

fn used(owner: Owner, partition: Option<&str>, memory: u64, busy_ms: u64) -> ProcessUse {
    let partition = partition.map(|uuid| uuid.parse().unwrap());
    ProcessUse { owner, partition, amount: amount(memory, busy_ms) }
}

fn of(names: &[&str]) -> Owner {
    Owner::Claims(names.iter().map(|name| claim(name)).collect())
}

/// Amounts as memory and milliseconds: the holdings', then what is unattributed.
#[track_caller]
fn check(holdings: &[Holding], uses: &[ProcessUse], measured: Amount, expected: &[(u64, u64)]) {
    let found = attribute(holdings, uses, measured);
    let numbers =
        |amount: &Amount| (amount.memory.bytes(), u64::try_from(amount.busy.as_millis()).unwrap());
    let amounts: Vec<_> = found.holdings.iter().chain([&found.unattributed]).map(numbers).collect();
    assert_eq!(amounts, expected);
}

#[test]
fn sharers_are_told_apart_by_their_processes() {
    let holdings = [holding("a", Part::Share, true), holding("b", Part::Share, true)];
    let uses = [
        used(of(&["a"]), None, 10, 100),
        used(of(&["b"]), None, 20, 300),
        used(of(&["b"]), None, 5, 50),
        used(Owner::Stranger, None, 7, 70),
        used(Owner::Unknown, None, 1, 1),
    ];
    check(&holdings, &uses, amount(50, 600), &[(10, 100), (25, 350), (15, 150)]);
}

#[test]
fn a_partition_is_its_holders() {
    let holdings =
        [holding("a", partition("MIG-1"), false), holding("b", partition("MIG-2"), true)];
    let uses = [
        used(Owner::Unknown, Some("MIG-1"), 10, 1),
        used(of(&["b"]), Some("MIG-2"), 20, 2),
        // Known containers: a process of the host in there is not theirs.
        used(Owner::Unknown, Some("MIG-2"), 40, 4),
        used(of(&["a"]), Some("MIG-2"), 80, 8),
        used(Owner::Unknown, None, 160, 16),
    ];
    check(&holdings, &uses, Amount::default(), &[(10, 1), (20, 2), (280, 28)]);
}

#[test]
fn a_partition_that_nobody_lists_bills_nobody() {
    let holdings = [holding("a", Part::Partition(None), false)];
    check(&holdings, &[used(of(&["a"]), Some("MIG-1"), 1, 1)], amount(1, 1), &[(0, 0), (1, 1)]);
}

#[test]
fn who_has_the_device_alone_has_what_no_process_accounts_for() {
    let holdings = [holding("a", Part::Whole, true)];
    let uses = [used(of(&["a"]), None, 10, 100), used(Owner::Stranger, None, 5, 50)];
    check(&holdings, &uses, amount(40, 400), &[(35, 350), (5, 50)]);
    check(&[], &uses, amount(40, 400), &[(40, 400)]);
}

#[test]
fn an_unknown_process_goes_to_the_only_one_it_can_belong_to() {
    let alone = [holding("a", Part::Share, false)];
    let two = [holding("a", Part::Share, false), holding("b", Part::Share, false)];
    let uses = [used(Owner::Unknown, None, 10, 100)];
    check(&alone, &uses, Amount::default(), &[(10, 100), (0, 0)]);
    check(&two, &uses, Amount::default(), &[(0, 0), (0, 0), (10, 100)]);
}

#[test]
fn a_process_that_nobody_saw_goes_to_who_had_the_part_alone() {
    let uses = [used(Owner::Ended, None, 0, 100), used(Owner::Unknown, None, 0, 7)];
    let whole = [holding("a", Part::Whole, true)];
    check(&whole, &uses, Amount::default(), &[(0, 100), (0, 7)]);
    // Beside a share there may be others, and one who was not let in.
    let share = [holding("a", Part::Share, true)];
    check(&share, &uses, Amount::default(), &[(0, 0), (0, 107)]);
    let two = [holding("a", Part::Whole, true), holding("b", Part::Share, false)];
    check(&two, &uses, Amount::default(), &[(0, 0), (0, 0), (0, 107)]);
    let part = [holding("a", partition("MIG-1"), true)];
    let uses = [used(Owner::Ended, Some("MIG-1"), 0, 5), used(Owner::Ended, None, 0, 3)];
    check(&part, &uses, Amount::default(), &[(0, 5), (0, 3)]);
}

#[test]
fn a_pod_with_two_claims_is_billed_where_it_holds_something() {
    let holdings = [holding("b", Part::Share, true)];
    check(&holdings, &[used(of(&["a", "b"]), None, 1, 1)], amount(0, 0), &[(1, 1), (0, 0)]);
}

#[test]
fn energy_follows_compute_time() {
    let holdings = [holding("a", Part::Share, true), holding("b", Part::Share, true)];
    let uses = [used(of(&["a"]), None, 0, 100), used(of(&["b"]), None, 0, 200)];
    let divided = attribute(&holdings, &uses, amount(0, 400));
    assert_eq!(divide_energy(&divided, 1000), [250, 500, 250]);
    let idle = attribute(&holdings, &[], Amount::default());
    assert_eq!(divide_energy(&idle, 1000), [0, 0, 1000]);
    let alone = attribute(&[holding("a", Part::Whole, true)], &[], Amount::default());
    assert_eq!(divide_energy(&alone, 1000), [1000, 0]);
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        Just(Part::Whole),
        Just(Part::Share),
        Just(Part::Partition(None)),
        (0..3_u8).prop_map(|index| partition(&format!("MIG-{index}"))),
    ]
}

fn any_owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        Just(Owner::Stranger),
        Just(Owner::Unknown),
        Just(Owner::Ended),
        vec(0..4_u8, 1..3).prop_map(|names| {
            Owner::Claims(names.iter().map(|name| claim(&format!("c{name}"))).collect())
        }),
    ]
}

fn any_amount() -> impl Strategy<Value = Amount> {
    // Also what no device has: a sum must not wrap. Four fit without reaching the end.
    let memory = prop_oneof![0..1_000_u64, Just(u64::MAX / 16)];
    (memory, 0..1_000_000_u64).prop_map(|(memory, busy)| Amount {
        memory: MemoryBytes::new(memory),
        busy: Duration::from_nanos(busy),
    })
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_made_up(
        holdings in vec((0..4_u8, any_part(), any::<bool>()), 0..5),
        uses in vec((any_owner(), option::of(0..3_u8), any_amount()), 0..8),
        measured in any_amount(),
    ) {
        let holdings: Vec<_> = holdings
            .into_iter()
            .map(|(name, part, bound)| holding(&format!("c{name}"), part, bound))
            .collect();
        let uses: Vec<_> = uses
            .into_iter()
            .map(|(owner, partition, amount)| {
                let partition =
                    partition.map(|index| format!("MIG-{index}").parse().unwrap());
                ProcessUse { owner, partition, amount }
            })
            .collect();
        let found = attribute(&holdings, &uses, measured);
        let mut sum = found.unattributed;
        found.holdings.iter().for_each(|amount| sum.add(*amount));
        prop_assert_eq!(sum, found.device);
        let told = uses.iter().fold(Amount::default(), |mut sum, used| {
            sum.add(used.amount);
            sum
        });
        prop_assert_eq!(found.device.memory, told.memory.max(measured.memory));
        prop_assert_eq!(found.device.busy, told.busy.max(measured.busy));
        let energy = divide_energy(&found, 1_000_003);
        prop_assert_eq!(energy.iter().sum::<u64>(), 1_000_003);
    }
}
