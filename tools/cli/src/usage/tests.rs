//! Sums of usage, and that the parts are the whole.

use accelpool_proto::node::{UsageBucket, UsageEntry};

use super::*;

const MINUTE: u64 = 60_000;

fn entry(who: Who, busy_ms: u64, memory_bytes: u64) -> UsageEntry {
    UsageEntry { who: Some(who), busy_ms, memory_bytes, energy_mj: 0 }
}

fn usage(only: Option<&str>) -> Usage {
    let agent = |name: &str| Agent { name: name.to_owned(), namespace: "team".to_owned() };
    let bucket = |minute: u64, entries| UsageBucket { start_unix_ms: minute * MINUTE, entries };
    let wire = GetUsageResponse {
        unix_ms: 10 * MINUTE,
        since_unix_ms: 2 * MINUTE,
        bucket_ms: MINUTE,
        devices: 2,
        agents: vec![agent("a"), agent("b")],
        buckets: vec![
            bucket(3, vec![entry(Who::Agent(0), 1000, 5), entry(Who::Agent(1), 60_000, 1)]),
            bucket(5, vec![entry(Who::Agent(0), 2000, 9), entry(Who::Unattributed(true), 500, 2)]),
        ],
    };
    Usage::new(wire, MINUTE, only)
}

#[test]
fn agents_are_summed_greatest_first() {
    let rows = |usage: &Usage| -> Vec<(String, u64, u64)> {
        usage.agents.iter().map(|it| (it.agent.words(), it.busy_ms, it.memory_bytes)).collect()
    };
    let all = usage(None);
    let expected = [("team/b", 60_000, 1), ("team/a", 3_000, 9), ("(unattributed)", 500, 2)];
    assert_eq!(rows(&all), expected.map(|(name, busy, most)| (name.to_owned(), busy, most)));
    // Eight minutes are remembered, of two devices.
    assert_eq!((all.span_ms(), all.capacity_ms()), (8 * MINUTE, 16 * MINUTE));
    assert_eq!(rows(&usage(Some("a"))), [("team/a".to_owned(), 3_000, 9)]);
    assert_eq!(rows(&usage(Some("c"))), []);
}

#[test]
fn steps_hold_every_minute_once() {
    for steps in [1, 2, 3, 5, 100] {
        let usage = usage(None);
        let (step_ms, found) = usage.steps(steps);
        assert!(u64::try_from(found.len()).unwrap() <= steps.max(1), "{steps}");
        assert_eq!(step_ms % MINUTE, 0);
        let busy: u64 = found.iter().flat_map(|(_, it)| it.values()).map(|it| it.busy_ms).sum();
        assert_eq!(busy, 63_500, "{steps}");
    }
}

#[test]
fn numbers_are_short() {
    for (ms, text) in [(0, "0.0s"), (340, "0.3s"), (42_000, "42s"), (750_000, "12m30s")] {
        assert_eq!(time(ms), text);
    }
    assert_eq!(time(11_100_000), "3h05m");
    assert_eq!((part(1, 8), part(0, 0)), ("12.5%".to_owned(), String::new()));
    assert_eq!(
        (bar(1, 1_000_000), bar(5, 5), bar(0, 9)),
        ("#".into(), "#".repeat(20), String::new())
    );
    assert_eq!(
        (energy(0), energy(1_500), energy(20_000_000)),
        (String::new(), "1 J".into(), "20 kJ".into())
    );
}

/// A node that is mostly idle has a picture all the same, and no bar is cut off.
#[test]
fn the_picture_is_as_high_as_what_was_used() {
    let mut usage = usage(None);
    usage.devices = 8;
    // In the fullest minute 61 s.
    assert_eq!(svg::scale(&usage), 2);
    let picture = draw(&usage);
    assert!(picture.contains("devices busy, of 8") && picture.contains(">2.00<"), "{picture}");
    assert!(!picture.contains("stroke-dasharray"), "the node ends further up");
    usage.devices = 1;
    assert_eq!(svg::scale(&usage), 1);
    assert!(draw(&usage).contains("stroke-dasharray"));
}
