//! Random histories of a node: claims, releases, faults, crashes at any step, restarts, power
//! failures, devices that leave and return, hardware that fails half-way. After each step the
//! rules are checked, and each answer is compared with a reference that knows only the rules.
//!
//! A history that fails is made short and kept in `proptest-regressions/history.txt`.
//! `ACCELPOOL_HISTORIES` says how many are tried.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;
mod mortal;
mod reference;
mod world;

use accelpool_daemon::{fault_point::FaultPoints, node::NodeError};
use accelpool_model::{
    Claim, ComputePermille, Enforcements, Lease, LeaseState, MemoryBytes, Request, Selector, Share,
    ShareClass, Wanted, Weight,
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use crate::{
    reference::{Cut, DEVICES, Piece, fits, pieces_on, starts},
    world::{Ended, World},
};

/// Histories tried unless the environment says otherwise.
const HISTORIES: u32 = 64;
/// Steps of a history.
const STEPS_MAX: usize = 30;

const CLAIMS: [&str; 5] = ["ada", "bob", "cid", "dan", "eve"];
const PROFILES: [&str; 3] = ["one", "two", "three"];
const CLASSES: [&str; 4] = ["throttled", "link", "reset-required", "memory-uncorrectable"];

/// What a request asks for; devices and profiles by index.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    Whole(usize),
    Share { device: usize, memory_mib: u64, compute: u64 },
    Part { device: usize, profile: usize, start: u32 },
    AnyWhole { count: u32 },
    AnyShare { memory_mib: u64, compute: u64 },
    AnyPart { profile: usize, count: u32 },
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Op {
    Prepare {
        claim: usize,
        wants: Vec<Want>,
    },
    Repeat {
        claim: usize,
    },
    Release {
        claim: usize,
    },
    Fault {
        device: usize,
        class: usize,
    },
    Heal {
        device: usize,
    },
    Unplug {
        device: usize,
    },
    Replug {
        device: usize,
    },
    /// The next such call for the device fails.
    Break {
        device: usize,
        method: &'static str,
        at: &'static str,
    },
    /// The daemon is restarted and will die at the n-th step that it takes.
    CrashAt {
        step: u64,
    },
    Restart,
    PowerCycle,
}

fn want() -> impl Strategy<Value = Want> {
    let device = 0..DEVICES.len();
    let memory = prop_oneof![Just(250_u64), Just(500), Just(1000), Just(1001), 1..1000_u64];
    let compute = prop_oneof![Just(250_u64), Just(500), Just(1000), 1..1000_u64];
    let profile = prop_oneof![4 => 0..2_usize, 1 => Just(2)];
    prop_oneof![
        2 => device.clone().prop_map(Want::Whole),
        4 => (device.clone(), memory.clone(), compute.clone()).prop_map(
            |(device, memory_mib, compute)| Want::Share { device, memory_mib, compute }
        ),
        8 => (device, profile.clone(), 0..4_u32)
            .prop_map(|(device, profile, start)| Want::Part { device, profile, start }),
        1 => (1..4_u32).prop_map(|count| Want::AnyWhole { count }),
        2 => (memory, compute)
            .prop_map(|(memory_mib, compute)| Want::AnyShare { memory_mib, compute }),
        3 => (profile, 1..4_u32).prop_map(|(profile, count)| Want::AnyPart { profile, count }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let claim = 0..CLAIMS.len();
    let device = 0..DEVICES.len();
    let method = prop_oneof![Just("create_partition"), Just("destroy_partition")];
    let at = prop_oneof![Just("before"), Just("half-way"), Just("after")];
    prop_oneof![
        14 => (claim.clone(), prop::collection::vec(want(), 1..4))
            .prop_map(|(claim, wants)| Op::Prepare { claim, wants }),
        3 => claim.clone().prop_map(|claim| Op::Repeat { claim }),
        7 => claim.prop_map(|claim| Op::Release { claim }),
        1 => (device.clone(), 0..CLASSES.len())
            .prop_map(|(device, class)| Op::Fault { device, class }),
        1 => device.clone().prop_map(|device| Op::Heal { device }),
        2 => device.clone().prop_map(|device| Op::Unplug { device }),
        3 => device.clone().prop_map(|device| Op::Replug { device }),
        3 => (device, method, at)
            .prop_map(|(device, method, at)| Op::Break { device, method, at }),
        5 => (1..16_u64).prop_map(|step| Op::CrashAt { step }),
        1 => Just(Op::Restart),
        1 => Just(Op::PowerCycle),
    ]
}

fn claim_of(claim: usize, wants: &[Want]) -> Claim {
    let share = |memory_mib: u64, compute: u64| {
        Some(Share {
            memory: Some(MemoryBytes::new(memory_mib << 20)),
            compute: Some(ComputePermille::try_from(compute).unwrap()),
            weight: Weight::DEFAULT,
            class: ShareClass::Normal,
        })
    };
    let any = |profile: Option<usize>, count| Wanted::Any {
        selector: Selector::default(),
        profile: profile.map(|profile| PROFILES[profile].parse().unwrap()),
        count,
    };
    let named = |device: usize| Wanted::Named(DEVICES[device].name.to_owned());
    let request = |(index, want): (usize, &Want)| {
        let (wanted, share) = match want {
            Want::Whole(device) => (named(*device), None),
            Want::Share { device, memory_mib, compute } => {
                (named(*device), share(*memory_mib, *compute))
            }
            Want::Part { device, profile, start } => {
                let (on, profile) = (&DEVICES[*device], PROFILES[*profile]);
                let name = format!("{}-{}-{profile}-{start}", on.name, on.scheme);
                (Wanted::Named(name), None)
            }
            Want::AnyWhole { count } => (any(None, *count), None),
            Want::AnyShare { memory_mib, compute } => (any(None, 1), share(*memory_mib, *compute)),
            Want::AnyPart { profile, count } => (any(Some(*profile), *count), None),
        };
        Request {
            name: format!("r{index}").parse().unwrap(),
            wanted,
            share,
            demand: Enforcements::default(),
            share_id: None,
            admin: false,
        }
    };
    Claim {
        id: CLAIMS[claim].parse().unwrap(),
        requests: wants.iter().enumerate().map(request).collect(),
        labels: [].into(),
    }
}

/// True if the reference grants the claim, false if it refuses; `None` where the answer hangs on
/// a choice that it does not make.
fn expected(world: &World, claim: &Claim, wants: &[Want]) -> Option<bool> {
    let leases = world.leases();
    // What is half released may be free by the time of the call.
    if leases.iter().any(|lease| lease.state != LeaseState::Prepared) {
        return None;
    }
    if let Some(lease) = world.lease(claim.id.as_str()) {
        return expected_again(world, lease, claim);
    }
    let mut held: Vec<Vec<Piece>> =
        DEVICES.iter().map(|shape| pieces_on(shape.uuid, &leases)).collect();
    for (index, want) in wants.iter().enumerate() {
        let last = index + 1 == wants.len();
        let fits_on = |device: usize, piece: &Piece| {
            let shape = &DEVICES[device];
            !world.machine.absent.contains(shape.name)
                && fits(shape.cut, &held[device], &world.strays_on(shape.uuid), piece)
        };
        let (device, piece) = match want {
            Want::Whole(device) => (*device, Piece::Whole),
            Want::Share { device, memory_mib, compute } => {
                (*device, Piece::Share { memory_mib: *memory_mib, compute: *compute })
            }
            Want::Part { device, profile, start } => {
                (*device, Piece::Part { profile: PROFILES[*profile].into(), start: *start })
            }
            Want::AnyWhole { .. } | Want::AnyShare { .. } | Want::AnyPart { .. } => {
                let granted = expected_any(world, want, &fits_on)?;
                return if !granted || last { Some(granted) } else { None };
            }
        };
        if !fits_on(device, &piece) {
            return Some(false);
        }
        held[device].push(piece);
    }
    Some(true)
}

fn expected_again(world: &World, lease: &Lease, claim: &Claim) -> Option<bool> {
    if lease.claim.requests != claim.requests {
        return Some(false);
    }
    let absent = lease
        .allocations
        .iter()
        .any(|one| world.machine.absent.iter().any(|name| *name == one.device.as_str()));
    // An adopted partition that a power failure took is nobody's to make anew.
    let adopted = |one: &accelpool_model::Allocation| {
        matches!(one.portion, accelpool_model::Portion::Partition { adopted: true, .. })
    };
    if !absent && lease.allocations.iter().any(adopted) { None } else { Some(!absent) }
}

fn expected_any(
    world: &World,
    want: &Want,
    fits_on: &dyn Fn(usize, &Piece) -> bool,
) -> Option<bool> {
    let state = world.seen.as_ref()?;
    // The node keeps its own choice off tainted devices.
    let tainted = |device: usize| {
        let name = DEVICES[device].name.parse().unwrap();
        state.inventory.taints.get(&name).is_some_and(|taints| {
            taints.iter().any(|taint| taint.effect != accelpool_model::TaintEffect::None)
        })
    };
    let fitting = |piece: &Piece| {
        (0..DEVICES.len()).filter(|device| !tainted(*device) && fits_on(*device, piece)).count()
    };
    match want {
        Want::AnyWhole { count } => Some(fitting(&Piece::Whole) >= *count as usize),
        Want::AnyShare { memory_mib, compute } => {
            let piece = Piece::Share { memory_mib: *memory_mib, compute: *compute };
            Some(fitting(&piece) > 0)
        }
        Want::AnyPart { profile, count } => {
            let profile = PROFILES[*profile];
            let at = |start| Piece::Part { profile: profile.into(), start };
            let room = starts(Cut::Counted, profile)
                .into_iter()
                .chain(starts(Cut::Placed, profile))
                .any(|start| fitting(&at(start)) > 0);
            // Several may hang on where the first was put.
            if room && *count > 1 { None } else { Some(room) }
        }
        Want::Whole(_) | Want::Share { .. } | Want::Part { .. } => None,
    }
}

fn prepare(world: &mut World, claim: &Claim, expected: Option<bool>) {
    let name = claim.id.as_str().to_owned();
    let breaks = world.machine.pending_breaks().len();
    match world.prepare(claim.clone()) {
        Ended::Crashed => {
            world.doubtful.insert(name);
            world.crashed();
        }
        Ended::Answered(Ok(lease)) => {
            assert_ne!(expected, Some(false), "{claim:?} was granted: {lease:?}");
            assert_eq!(lease.state, LeaseState::Prepared);
            if let Some(before) = world.promised.insert(name, lease.clone()) {
                assert_eq!(before.allocations, lease.allocations, "the answer to a repeat");
                assert_eq!(before.since_ms, lease.since_ms);
            }
        }
        Ended::Answered(Err(NodeError::Refused(refusal))) => {
            assert_ne!(expected, Some(true), "{claim:?} was refused: {refusal}");
        }
        Ended::Answered(Err(NodeError::Failed(error))) => {
            let met = world.machine.pending_breaks().len() < breaks;
            assert!(met, "{claim:?} failed without a cause: {error:?}");
        }
        Ended::Answered(Err(error)) => panic!("{claim:?}: {error}"),
    }
}

fn release(world: &mut World, name: &str) {
    let breaks = world.machine.pending_breaks().len();
    let held = world.lease(name).map(|lease| lease.state);
    world.promised.remove(name);
    match world.release(name) {
        Ended::Crashed => {
            world.doubtful.insert(name.to_owned());
            world.crashed();
        }
        Ended::Answered(Ok(released)) => match held {
            Some(LeaseState::Prepared) => assert!(released, "{name} was held"),
            None => assert!(!released, "{name} was not held"),
            // It may have been cleared away meanwhile.
            Some(LeaseState::Preparing | LeaseState::Releasing) => {}
        },
        Ended::Answered(Err(NodeError::Failed(error))) => {
            let met = world.machine.pending_breaks().len() < breaks;
            assert!(met, "{name} failed without a cause: {error:?}");
        }
        Ended::Answered(Err(error)) => panic!("{name}: {error}"),
    }
}

fn step(world: &mut World, op: &Op) {
    match op {
        Op::Prepare { claim, wants } => {
            let claim = claim_of(*claim, wants);
            let expected = expected(world, &claim, wants);
            prepare(world, &claim, expected);
        }
        Op::Repeat { claim } => {
            let Some(lease) = world.lease(CLAIMS[*claim]) else { return };
            let claim = lease.claim.clone();
            let expected = expected(world, &claim, &[]);
            prepare(world, &claim, expected);
        }
        Op::Release { claim } => release(world, CLAIMS[*claim]),
        Op::Fault { device, class } => {
            let name = DEVICES[*device].name;
            if !world.machine.absent.contains(name) {
                world.machine.add_fault(name, CLASSES[*class]);
                world.poke();
            }
        }
        Op::Heal { device } => {
            world.machine.heal(DEVICES[*device].name);
            world.poke();
        }
        Op::Unplug { device } => {
            world.machine.absent.insert(DEVICES[*device].name);
            world.machine.write_script();
            world.poke();
        }
        Op::Replug { device } => {
            let name = DEVICES[*device].name;
            world.machine.heal(name);
            world.machine.absent.remove(name);
            world.machine.write_script();
            world.poke();
        }
        Op::Break { device, method, at } => {
            world.machine.add_break(DEVICES[*device].name, method, at);
            world.poke();
        }
        Op::CrashAt { step } => world.restart(FaultPoints::stop_at(*step)),
        Op::Restart => world.restart(FaultPoints::default()),
        Op::PowerCycle => {
            world.kill();
            world.machine.power_cycle();
            world.abandoned.clear();
            world.start(FaultPoints::default());
        }
    }
}

/// Everything comes back and is given back; nothing is left.
fn end(world: &mut World) {
    world.restart(FaultPoints::default());
    world.rest();
    for device in 0..DEVICES.len() {
        step(world, &Op::Replug { device });
        world.rest();
    }
    for claim in CLAIMS {
        release(world, claim);
        world.rest();
    }
    world.restart(FaultPoints::default());
    world.rest();
    assert_eq!(world.leases(), []);
    assert_eq!(world.machine.specs().len(), 0);
}

/// Lives through a whole history.
fn live(history: &[Op]) {
    let mut world = World::new();
    for op in history {
        step(&mut world, op);
        world.rest();
    }
    end(&mut world);
}

/// The kubelet must be able to give back what a device that is gone took along.
#[test]
fn a_claim_is_released_while_its_device_is_away() {
    let wants = vec![Want::Part { device: 1, profile: 0, start: 0 }];
    let prepare = Op::Prepare { claim: 3, wants };
    let away = Op::Unplug { device: 1 };
    live(&[prepare.clone(), away.clone(), Op::Release { claim: 3 }]);
    live(&[prepare, away, Op::Restart, Op::Release { claim: 3 }]);
}

#[test]
fn no_history_breaks_the_rules() {
    let histories = std::env::var("ACCELPOOL_HISTORIES").ok().and_then(|text| text.parse().ok());
    let file = FileFailurePersistence::Direct("proptest-regressions/history.txt");
    let config = Config {
        cases: histories.unwrap_or(HISTORIES),
        failure_persistence: Some(Box::new(file)),
        ..Config::default()
    };
    let history = prop::collection::vec(op(), 1..STEPS_MAX);
    let outcome = TestRunner::new(config).run(&history, |history| {
        live(&history);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
