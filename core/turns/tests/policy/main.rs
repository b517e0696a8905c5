//! The policy in virtual time: what each tenant gets, how late, and what is left unused.

mod world;

use accelpool_model::ShareClass;
use accelpool_turns::{
    ClaimKey, Command, DeviceKey, Mode, Seen, Settings, Terms, TurnWeight, Turns,
};
use proptest::prelude::*;

use crate::world::{Habit, MS, Owed, SECOND, World};

/// Kernels of 50 to 150 microseconds.
const KERNELS: (u64, u64) = (50_000, 150_000);
const SWITCH_NS: u64 = 100_000;

/// Runs batch tenants of these weights, and compares what each did with what it is owed.
#[track_caller]
fn check_weights(settings: Settings, weights: &[u32], switch_ns: u64, error_max: f64) {
    let mut world = World::new(settings, 1, switch_ns, 7);
    for weight in weights {
        world.join(*weight, Habit::Batch, KERNELS, &[0]);
    }
    world.run(SECOND);
    world.forget();
    world.run(10 * SECOND);
    check_shares(&world, weights, error_max);
    let idle = world.idle_ns * 1000 / (10 * SECOND);
    assert!(idle <= 20, "the device was idle for {idle} thousandths beside a backlog");
}

#[track_caller]
fn check_shares(world: &World, weights: &[u32], error_max: f64) {
    let all: u32 = weights.iter().sum();
    for (share, weight) in world.shares().iter().zip(weights) {
        let owed = f64::from(*weight) * 100.0 / f64::from(all);
        let off = (share - owed).abs();
        assert!(off <= error_max, "weights {weights:?}: {owed:.2} owed, {share:.2} given");
    }
}

#[test]
fn weights_hold() {
    for weights in [&[1, 1][..], &[1, 2, 4], &[1; 8], &[3, 1], &[7, 1, 5, 2, 2]] {
        for switch_ns in [0, 30_000, 100_000, 300_000] {
            check_weights(Settings::default(), weights, switch_ns, 0.3);
        }
    }
}

#[test]
fn weights_hold_with_early_grants() {
    let settings = Settings { early_grant_ns: 40_000, ..Settings::default() };
    check_weights(settings, &[1, 2, 4], 50_000, 0.3);
}

/// Equal claims, one of them with this habit: what it gets, in points of a hundred.
fn beside(habit: Habit, others: u32, seconds: u64) -> (f64, World) {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 11);
    world.join(100, habit, KERNELS, &[0]);
    for _ in 0..others {
        world.join(100, Habit::Batch, KERNELS, &[0]);
    }
    world.run(SECOND);
    world.forget();
    world.run(seconds * SECOND);
    (world.shares()[0], world)
}

#[test]
fn who_pauses_leaves_its_time_to_others() {
    // Ten of forty milliseconds at half the device: what it wanted, no more, and none of it lost.
    let (share, world) = beside(Habit::OnOff(10 * MS, 30 * MS), 1, 10);
    assert!((12.0..=25.3).contains(&share), "{share}");
    assert!(world.idle_ns * 1000 / (10 * SECOND) <= 20, "{}", world.idle_ns);
    // Short pauses between kernels do not cost it the turn each time.
    let (share, world) = beside(Habit::Pause(20_000), 1, 10);
    assert!(share > 35.0, "{share}");
    assert!(world.tenants[&0].granted < 11 * 200, "{}", world.tenants[&0].granted);
    // Long ones do: the others run meanwhile.
    let (_, world) = beside(Habit::Pause(5 * MS), 1, 10);
    assert!(world.idle_ns * 1000 / (10 * SECOND) <= 40, "{}", world.idle_ns);
}

#[test]
fn who_lies_gains_little() {
    let (share, _) = beside(Habit::SaysDrained, 3, 10);
    // Of each turn of 12 ms it hides its window of a millisecond, which the next one pays for.
    assert!(share < 29.2, "{share}");
    let (share, world) = beside(Habit::OnlyWaits, 3, 10);
    assert!(share < 0.1, "{share}");
    let others = world.shares();
    assert!(others[1..].iter().all(|share| (share - 100.0 / 3.0).abs() < 0.5), "{others:?}");
}

#[test]
fn who_never_drains_is_sliced_and_pays() {
    let (share, world) = beside(Habit::SpinsAfter(SECOND / 10), 3, 10);
    assert!(world.stuck > 0);
    let others = world.shares();
    // The hardware gives it half of the time, whoever has the other half.
    assert!(share < 52.0, "{share}");
    let least = others[1..].iter().copied().fold(f64::MAX, f64::min);
    let most = others[1..].iter().copied().fold(0.0, f64::max);
    assert!(most - least < 3.0, "the others' shares drift: {others:?}");
    assert!(least > 15.0, "{others:?}");
}

#[test]
fn cap_holds_alone_and_beside_others() {
    for cap in [250, 500, 750] {
        let mut world = World::new(Settings::default(), 1, SWITCH_NS, 3);
        let owed = Owed { class: ShareClass::Normal, weight: 100, cap: Some(cap) };
        world.join(owed, Habit::Batch, KERNELS, &[0]);
        world.run(SECOND);
        world.forget();
        world.run(5 * SECOND);
        let used = world.tenants[&0].busy_ns * 1000 / (5 * SECOND);
        assert!(used.abs_diff(cap) <= 10, "capped at {cap}, used {used}");
        assert_eq!(world.modes, [Mode::Metered]);
        world.join(300, Habit::Batch, KERNELS, &[0]);
        world.forget();
        world.run(5 * SECOND);
        let share = world.shares()[0];
        assert!((share - 25.0).abs() <= 1.5, "capped at {cap}, used {share} of 25 owed");
    }
}

#[test]
fn idle_class_uses_what_is_left() {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 5);
    let idle = Owed { class: ShareClass::Idle, weight: 1000, cap: None };
    world.join(idle, Habit::Batch, KERNELS, &[0]);
    world.join(1, Habit::OnOff(50 * MS, 50 * MS), KERNELS, &[0]);
    world.run(SECOND);
    world.forget();
    world.run(10 * SECOND);
    let shares = world.shares();
    assert!(shares[1] > 45.0, "{shares:?}");
    assert!(shares[0] > 40.0, "{shares:?}");
}

/// Requests of 2 ms, 20 a second, beside batch work of such kernels: the 99th percentile.
#[track_caller]
fn check_realtime(kernels: (u64, u64), bound_ns: u64) {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 17);
    let owed = Owed { class: ShareClass::Realtime, weight: 100, cap: None };
    world.join(owed, Habit::Requests(2 * MS, 20), (100_000, 300_000), &[0]);
    world.join(100, Habit::Batch, kernels, &[0]);
    world.join(100, Habit::Batch, kernels, &[0]);
    world.run(SECOND);
    world.forget();
    world.run(30 * SECOND);
    let mut latencies = world.tenants[&0].latencies.clone();
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    assert!(latencies.len() > 500, "{}", latencies.len());
    assert!(p99 <= bound_ns, "p99 {p99}");
    let shares = world.shares();
    assert!((shares[1] - shares[2]).abs() < 0.6, "{shares:?}");
}

#[test]
fn realtime_is_bounded() {
    // Own service and a request before it (each 2 ms), window, the longest kernel, switches.
    check_realtime((50_000, 500_000), 2 * 2 * MS + 300_000 + 500_000 + 300_000);
    // Long kernels are not waited for: the hardware slices between both while they end.
    check_realtime((4 * MS, 8 * MS), 2 * 2 * 2 * MS + 1_500_000 + 4 * MS);
}

#[test]
fn realtime_stays_within_its_budget() {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 19);
    let owed = Owed { class: ShareClass::Realtime, weight: 1, cap: None };
    world.join(owed, Habit::Batch, KERNELS, &[0]);
    world.join(1, Habit::Batch, KERNELS, &[0]);
    world.run(SECOND);
    world.forget();
    world.run(10 * SECOND);
    let shares = world.shares();
    assert!((shares[1] - 20.0).abs() < 1.5, "{shares:?}");
}

#[test]
fn one_alone_is_not_held_up() {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 23);
    world.join(1, Habit::Batch, KERNELS, &[0]);
    let other = world.join(1, Habit::Batch, KERNELS, &[0]);
    world.run(SECOND);
    assert_eq!(world.modes, [Mode::Exclusive]);
    world.leave(other);
    world.run(SECOND);
    assert_eq!(world.modes, [Mode::Exclusive, Mode::Open]);
    world.forget();
    world.run(SECOND);
    assert!(world.tenants[&0].busy_ns > SECOND * 99 / 100);
}

#[test]
fn parked_claims_stay_off_until_resumed() {
    let mut world = World::new(Settings::default(), 1, SWITCH_NS, 31);
    let parked = world.join(100, Habit::Batch, KERNELS, &[0]);
    world.join(100, Habit::Batch, KERNELS, &[0]);
    world.run(SECOND);
    world.park(parked, true);
    world.run(SECOND / 10);
    assert_eq!(world.parked, [parked]);
    world.forget();
    world.run(SECOND);
    assert_eq!(world.tenants[&parked].busy_ns, 0);
    world.park(parked, false);
    world.run(SECOND);
    world.forget();
    world.run(SECOND);
    assert!((world.shares()[0] - 50.0).abs() < 2.0, "{:?}", world.shares());
}

#[test]
fn who_is_next_is_told_when_the_turn_ends() {
    let mut turns = Turns::new(Settings::default());
    let waits = Seen { waiting: true, ..Seen::default() };
    for key in (0..3).map(ClaimKey) {
        let weight = TurnWeight::try_from(1 + key.0).expect("a weight");
        let devices = [DeviceKey(0)].into();
        let terms = Terms { class: ShareClass::Normal, weight, cap: None, devices };
        turns.add(MS, key, terms).expect("there is room");
        turns.set_processes(MS, key, 1);
        turns.observe(MS, key, waits);
    }
    let mut commands = Vec::new();
    turns.decide(MS, &mut commands);
    let granted = commands.iter().find_map(|it| {
        let Command::Grant { claim, deadline_ns, .. } = it else { return None };
        Some((*claim, (*deadline_ns)?))
    });
    let (holder, end) = granted.expect("one of them has a turn that ends");
    let told = |commands: &[Command]| -> Vec<(ClaimKey, u64)> {
        let told = commands.iter().filter_map(|it| {
            let Command::Expect { claim, at_ns } = it else { return None };
            Some((*claim, *at_ns))
        });
        told.collect()
    };
    match told(&commands)[..] {
        [(next, at)] => assert!(next != holder && at == end, "{next:?} at {at}, not {end}"),
        ref other => panic!("one is next, not {other:?}"),
    }
    commands.clear();
    turns.decide(MS + 1000, &mut commands);
    assert_eq!(told(&commands), [], "it is not said again");
}

#[test]
fn claims_of_several_devices_get_all_or_none() {
    let mut world = World::new(Settings::default(), 2, SWITCH_NS, 29);
    world.join(100, Habit::Batch, KERNELS, &[0, 1]);
    world.join(100, Habit::Batch, KERNELS, &[0]);
    world.join(100, Habit::Batch, KERNELS, &[1]);
    world.join(200, Habit::Batch, KERNELS, &[1]);
    assert_eq!(world.devices_used().len(), 2);
    world.run(SECOND);
    world.forget();
    world.run(10 * SECOND);
    // Nobody starves, and the gang has its part of the busier device: a quarter of it.
    let gang = world.tenants[&0].busy_ns / 2;
    let quarter = 10 * SECOND / 4;
    assert!(gang.abs_diff(quarter) < SECOND / 4, "{gang} of {quarter}");
    for (key, tenant) in &world.tenants {
        assert!(tenant.busy_ns > 10 * SECOND / 6, "{key} got {}", tenant.busy_ns);
    }
}

/// A turn's length: the quantum at this cost of a hand-over.
fn quantum_ns(switch_ns: u64) -> u64 {
    ((switch_ns + 20_000) * 100).clamp(2 * MS, 50 * MS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The theorem of start-time fair queueing: whoever always wants the device, the time that
    /// two of them had per weight differs by no more than a turn and a drain of each.
    #[test]
    fn nobody_lags_more_than_a_turn_and_a_drain(
        weights in prop::collection::vec(1_u32..20, 2..6),
        longest_us in 100_u64..4000,
        switch_us in 0_u64..200,
        seed in 1_u64..u64::MAX,
    ) {
        let (longest, switch_ns) = (longest_us * 1000, switch_us * 1000);
        let mut world = World::new(Settings::default(), 1, switch_ns, seed);
        for weight in &weights {
            world.join(*weight, Habit::Batch, (50_000, longest), &[0]);
        }
        world.run(SECOND);
        world.forget();
        for _ in 0..20 {
            world.run(97 * MS);
            // Lengths change with the measured cost; a drain is a window and a kernel.
            let slack = 2 * quantum_ns(switch_ns + 200_000) + MS + longest;
            for (one, first) in &world.tenants {
                for (other, second) in &world.tenants {
                    let per = |tenant: &world::Tenant, key: &u32| {
                        tenant.busy_ns / u64::from(weights[*key as usize])
                    };
                    let bound = slack / u64::from(weights[*one as usize])
                        + slack / u64::from(weights[*other as usize]);
                    let off = per(first, one).abs_diff(per(second, other));
                    prop_assert!(off <= bound, "{off} of at most {bound}");
                }
            }
        }
    }

    /// Whatever the others do, who wants the device gets it, and the policy never spins.
    #[test]
    fn nobody_starves(habits in prop::collection::vec(0_usize..7, 1..7), seed in 1_u64..u64::MAX) {
        let all = [
            Habit::Batch,
            Habit::OnOff(7 * MS, 13 * MS),
            Habit::Pause(30_000),
            Habit::Pause(3 * MS),
            Habit::SaysDrained,
            Habit::SpinsAfter(50 * MS),
            Habit::OnlyWaits,
        ];
        let mut world = World::new(Settings::default(), 1, 50_000, seed);
        world.join(100, Habit::Batch, KERNELS, &[0]);
        for habit in &habits {
            world.join(100, all[*habit], KERNELS, &[0]);
        }
        world.run(SECOND);
        world.forget();
        world.run(3 * SECOND);
        let owed = 100.0 / f64::from(u32::try_from(habits.len() + 1).expect("few"));
        let given = world.shares()[0];
        // The hardware gives a context that never ends an equal slice, whatever is decided.
        let spins = habits.iter().filter(|it| **it == 5).count() + 1;
        let least = owed * 0.8 / f64::from(u32::try_from(spins).expect("few"));
        prop_assert!(given >= least, "{given} of {owed} for {habits:?}");
    }
}
