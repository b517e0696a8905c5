//! What a claim's status says of its lease, and which change of it is worth an event.

use accelpool_proto::node as wire;

use super::*;

fn lease() -> Lease {
    let labels = [(SURFACE_LABEL, SURFACE_DRA), (labels::NAMESPACE, "team"), (labels::NAME, "a")];
    Lease {
        claim: "uid".to_owned(),
        state: "prepared".to_owned(),
        since_unix_ms: 5,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        allocations: vec![Allocation { device: "gpu-0".to_owned(), ..Allocation::default() }],
        ..Lease::default()
    }
}

fn state(effect: Option<&str>) -> NodeState {
    let taint = |effect: &str| wire::Taint {
        key: "link".to_owned(),
        effect: effect.to_owned(),
        reason: "nvlink 3 is down".to_owned(),
        since_unix_ms: 9,
    };
    let device = wire::Device {
        name: "gpu-0".to_owned(),
        vendor: "sim".to_owned(),
        kind: "gpu".to_owned(),
        present: true,
        taints: effect.map(taint).into_iter().collect(),
        ..wire::Device::default()
    };
    let response = wire::WatchNodeResponse { devices: vec![device], ..Default::default() };
    NodeState::from_wire(&response)
}

/// The conditions as lines: kind, status, reason, message, time.
#[track_caller]
fn check(lease: &Lease, state: &NodeState, expected: &[&str]) {
    let statuses = statuses(lease, state, "pool");
    let line = |condition: &Condition| {
        let Condition { kind, holds, reason, message, since_unix_ms } = condition;
        format!("{kind} {holds:?} {reason}: {message} ({since_unix_ms})")
    };
    let lines: Vec<_> = statuses[0].conditions.iter().map(line).collect();
    assert_eq!(lines, expected);
}

const READY_LINE: &str = "Ready Some(true) Prepared: prepared on the node (5)";

#[test]
fn conditions_follow_lease_and_device() {
    let sound = "Healthy Some(true) NoFault: no fault is known (5)";
    check(&lease(), &state(None), &[READY_LINE, sound]);
    let mild = "Healthy Some(true) NoFault: nvlink 3 is down (9)";
    check(&lease(), &state(Some("None")), &[READY_LINE, mild]);
    let ill = "Healthy Some(false) DeviceFault: nvlink 3 is down (9)";
    check(&lease(), &state(Some("NoSchedule")), &[READY_LINE, ill]);
    let gone = "Healthy Some(false) DeviceFault: the device is no longer on the node (5)";
    check(&lease(), &NodeState::default(), &[READY_LINE, gone]);
    let troubled = Lease { trouble: "the node of gpu-0 is gone".to_owned(), ..lease() };
    let trouble = "Ready Some(false) Troubled: the node of gpu-0 is gone (5)";
    check(&troubled, &state(None), &[trouble, sound]);
}

#[test]
fn what_was_found_in_containers_is_a_condition() {
    let found = |state: &str, deviations: &[&str]| Lease {
        verification: Some(wire::Verification {
            state: state.to_owned(),
            deviations: deviations.iter().map(|&it| it.to_owned()).collect(),
            unix_ms: 7,
        }),
        ..lease()
    };
    let sound = "Healthy Some(true) NoFault: no fault is known (5)";
    for (lease, expected) in [
        (
            found("verified", &[]),
            "Verified Some(true) Verified: its containers can open what was granted, and nothing \
             else (7)",
        ),
        (found("drifted", &["x", "y"]), "Verified Some(false) Drifted: x; y (7)"),
        (found("unused", &[]), "Verified None Unused: no process runs that was given it (7)"),
        (found("unknown", &["no gate"]), "Verified None Unknown: no gate (7)"),
    ] {
        check(&lease, &state(None), &[READY_LINE, sound, expected]);
    }
    // Looked at again with the same outcome: nothing has changed, and nothing is written.
    let of = |at: u64, outcome: &str| {
        let mut lease = found(outcome, &[]);
        lease.verification.as_mut().unwrap().unix_ms = at;
        statuses(&lease, &state(None), "pool")
    };
    let (last, mut again, mut other) = (of(7, "verified"), of(9, "verified"), of(9, "unused"));
    keep_times(&mut again, &last);
    assert_eq!(again, last);
    keep_times(&mut other, &last);
    assert_eq!(other, of(9, "unused"));
}

#[test]
fn only_prepared_claims_of_kubernetes_have_a_status() {
    let claim = claim_of(&lease()).unwrap();
    assert_eq!((claim.namespace.as_str(), claim.name.as_str()), ("team", "a"));
    let preparing = Lease { state: "preparing".to_owned(), ..lease() };
    assert_eq!(claim_of(&preparing), None);
    let mut local = lease();
    local.labels.remove(SURFACE_LABEL);
    assert_eq!(claim_of(&local), None);
}

#[test]
fn a_change_of_health_is_told_once() {
    let claim = claim_of(&lease()).unwrap();
    let sound = statuses(&lease(), &state(None), "pool");
    let ill = statuses(&lease(), &state(Some("NoExecute")), "pool");
    let events = |last: &[DeviceStatus], next: &[DeviceStatus]| {
        let events = health_events(&claim, last, next).into_iter();
        events.map(|event| format!("{}: {}", event.reason, event.note)).collect::<Vec<_>>()
    };
    assert_eq!(events(&[], &sound), [""; 0]);
    assert_eq!(events(&[], &ill), ["DeviceUnhealthy: device gpu-0: nvlink 3 is down"]);
    assert_eq!(events(&sound, &ill), ["DeviceUnhealthy: device gpu-0: nvlink 3 is down"]);
    assert_eq!(events(&ill, &ill), [""; 0]);
    assert_eq!(events(&ill, &sound), ["DeviceRecovered: device gpu-0: no fault is known"]);
}
