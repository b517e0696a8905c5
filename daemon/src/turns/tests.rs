//! What the arbiter is told of leases, as data.

use accelpool_model::{Allocation, Claim, Enforcements, LeaseState, Portion, ShareClass, Weight};

use super::*;

const LIBRARY: Enforcements =
    Enforcements { memory: Enforcement::Library, compute: Enforcement::Library };

/// A share: its device, gigabytes, thousandths, weight and class.
type Part = (u8, u32, u64, u64, ShareClass);

fn lease(parts: &[Part], enforcement: Enforcements) -> Lease {
    let allocation = |(device, gib, permille, weight, class): &Part| Allocation {
        request: "r0".parse().unwrap(),
        device: format!("gpu-0000-0{device}-00-0").parse().unwrap(),
        uuid: uuid(*device),
        portion: Portion::Share {
            memory: MemoryBytes::from_gib(*gib),
            compute: ComputePermille::try_from(*permille).unwrap(),
            weight: Weight::try_from(*weight).unwrap(),
            class: *class,
        },
        share_id: None,
        enforcement,
    };
    let claim = Claim { id: "a".parse().unwrap(), requests: Vec::new(), labels: BTreeMap::new() };
    Lease {
        claim,
        allocations: parts.iter().map(allocation).collect(),
        state: LeaseState::Prepared,
        since_ms: 0,
        boot: "0f2b9c1e-5a77-4d6c-9a51-3f0a2c7d8e90".parse().unwrap(),
        bindings: Vec::new(),
    }
}

fn uuid(device: u8) -> DeviceUuid {
    format!("GPU-00000000-0000-4000-8000-{device:012}").parse().unwrap()
}

/// Weight, class, cap, and each device's gigabytes.
#[track_caller]
fn check(parts: &[Part], compute: ComputeRule, expected: (u32, ShareClass, Option<u16>, &[u64])) {
    let terms = Terms { compute, host_memory: Some(MemoryBytes::from_gib(2)) };
    let arming = arming(&lease(parts, LIBRARY), terms, MemoryBytes::from_gib(1)).unwrap();
    assert_eq!(arming.host, terms.host_memory);
    let quotas: Vec<u64> = arming.devices.iter().map(|it| it.quota.bytes() >> 30).collect();
    let cap = arming.cap.map(ComputePermille::permille);
    assert_eq!((arming.weight.value(), arming.class, cap, &*quotas), expected);
    assert!(arming.devices.iter().all(|device| device.reserve == MemoryBytes::from_gib(1)));
}

#[test]
fn weight_multiplies_what_was_granted() {
    let normal = ShareClass::Normal;
    let rule = ComputeRule::Guarantee;
    check(&[(1, 8, 750, 100, normal)], rule, (75_000, normal, None, &[8]));
    check(&[(1, 8, 250, 300, normal)], rule, (75_000, normal, None, &[8]));
    check(&[(1, 8, 1, 1, normal)], rule, (1, normal, None, &[8]));
    check(&[(1, 8, 1000, 1000, normal)], rule, (1_000_000, normal, None, &[8]));
}

#[test]
fn shares_of_one_device_add_up_and_those_of_several_are_served_together() {
    let (normal, realtime, idle) = (ShareClass::Normal, ShareClass::Realtime, ShareClass::Idle);
    let one = [(1, 8, 250, 100, idle), (1, 4, 250, 100, normal)];
    check(&one, ComputeRule::Cap, (50_000, normal, Some(500), &[12]));
    let two = [(1, 8, 250, 100, realtime), (2, 4, 500, 100, idle)];
    check(&two, ComputeRule::Guarantee, (50_000, realtime, None, &[8, 4]));
}

#[test]
fn a_cap_is_what_was_granted_and_all_of_it_is_none() {
    let normal = ShareClass::Normal;
    check(&[(1, 8, 250, 100, normal)], ComputeRule::Cap, (25_000, normal, Some(250), &[8]));
    check(&[(1, 8, 1000, 100, normal)], ComputeRule::Cap, (100_000, normal, None, &[8]));
}

#[test]
fn what_is_kept_apart_otherwise_takes_no_turns() {
    let parts = [(1, 8, 250, 100, ShareClass::Normal)];
    let hardware = lease(&parts, Enforcements::HARDWARE);
    assert_eq!(arming(&hardware, Terms::default(), MemoryBytes::ZERO), None);
    let none = lease(&parts, Enforcements::default());
    assert_eq!(arming(&none, Terms::default(), MemoryBytes::ZERO), None);
}

#[test]
fn a_promise_without_an_arbiter_is_a_trouble() {
    let held = lease(&[(1, 8, 250, 100, ShareClass::Normal)], LIBRARY);
    let armed = Keeper::off().arm(&held, Terms::default(), &mut Injections::new());
    assert!(matches!(armed, Err(TurnsStepError::Off)));
    assert!(Keeper::off().disarm(&held.claim.id).is_ok());
}
