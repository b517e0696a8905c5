//! The meter: counters only grow, nothing is lost, what ended is gone.

use std::time::{Duration, Instant};

use accelpool_model::MemoryBytes;
use accelpool_planner::{Amount, Holding, Owner, Part, ProcessUse};
use proptest::{collection::vec, prelude::*};

use super::{
    Agent, Meter,
    meter::{DeviceTotals, Engines, Held, Measured, Reading, Source, Totals, Used},
};

fn agent(name: &str) -> Agent {
    Agent { name: name.to_owned(), namespace: "team".to_owned() }
}

fn held(claim: &str, part: Part) -> Held {
    let holding = Holding { claim: claim.parse().unwrap(), part, bound: true };
    Held { holding, index: 0, agent: agent(claim) }
}

fn used(claim: &str, memory: u64, busy_ms: u64) -> Used {
    let amount = Amount { memory: MemoryBytes::new(memory), busy: Duration::from_millis(busy_ms) };
    let owner = match claim {
        "" => Owner::Stranger,
        claim => Owner::Claims(vec![claim.parse().unwrap()]),
    };
    let process = ProcessUse { owner, partition: None, amount };
    Used { process, agent: None, has_busy: true, engines: Engines::new(), source: Source::Process }
}

struct Bench {
    meter: Meter,
    begun: Instant,
    seconds: u64,
}

impl Bench {
    fn new() -> Self {
        Self { meter: Meter::default(), begun: Instant::now(), seconds: 0 }
    }

    fn read(&mut self, held: &[Held], used: &[Used], measured: Measured) {
        self.seconds += 1;
        self.meter.record(&Reading {
            uuid: &"GPU-1".parse().unwrap(),
            held,
            used,
            measured,
            counters: None,
            unix_ms: self.seconds * 1000,
            at: self.begun + Duration::from_secs(self.seconds),
        });
    }

    fn device(&self) -> DeviceTotals {
        self.meter.read(|devices| devices[&"GPU-1".parse().unwrap()].clone())
    }
}

/// Lines of name, memory, busy milliseconds, energy.
#[track_caller]
fn check(device: &DeviceTotals, expected: &[&str]) {
    let line = |name: &str, totals: &Totals| {
        let busy =
            totals.measured_busy().map_or("-".to_owned(), |busy| busy.as_millis().to_string());
        let energy = totals.energy_mj.map_or("-".to_owned(), |energy| energy.to_string());
        format!("{name} {} {busy} {energy}", totals.memory_bytes)
    };
    let mut lines = vec![line("device", &device.device)];
    lines.extend(
        device
            .allocations
            .iter()
            .map(|(key, totals)| line(&format!("{}/{}", key.claim, key.agent.name), totals)),
    );
    lines.extend(device.agents.iter().map(|(agent, totals)| line(&agent.name, totals)));
    lines.push(line("unattributed", &device.unattributed));
    lines.push(line("released", &device.released));
    assert_eq!(lines, expected);
}

#[test]
fn counters_add_up_and_memory_is_of_the_moment() {
    let mut bench = Bench::new();
    let both = [held("a", Part::Share), held("b", Part::Share)];
    let energy = Measured { energy_mj: Some(100), ..Measured::default() };
    bench.read(&both, &[used("a", 10, 100), used("b", 5, 300)], energy);
    bench.read(&both, &[used("a", 4, 100), used("", 1, 100)], energy);
    check(
        &bench.device(),
        &[
            "device 5 600 200",
            "a/a 4 200 75",
            "b/b 0 300 75",
            "a 4 200 75",
            "b 0 300 75",
            "unattributed 1 100 50",
            "released 0 0 -",
        ],
    );
}

#[test]
fn a_lease_that_ends_takes_its_counters_along_and_leaves_what_it_used() {
    let mut bench = Bench::new();
    let both = [held("a", Part::Share), held("b", Part::Share)];
    bench.read(&both, &[used("a", 10, 100), used("b", 5, 300)], Measured::default());
    bench.read(&both[..1], &[used("a", 10, 100)], Measured::default());
    check(
        &bench.device(),
        &[
            "device 10 500 -",
            "a/a 10 200 -",
            "a 10 200 -",
            "unattributed 0 0 -",
            "released 0 300 -",
        ],
    );
}

#[test]
fn who_has_it_alone_is_billed_what_the_device_says() {
    let mut bench = Bench::new();
    let measured = Measured {
        memory_bytes: Some(50),
        busy: Some(Duration::from_millis(900)),
        energy_mj: Some(7),
    };
    bench.read(&[held("a", Part::Whole)], &[used("a", 10, 100)], measured);
    let device = bench.device();
    check(
        &device,
        &["device 50 900 7", "a/a 50 900 7", "a 50 900 7", "unattributed 0 0 0", "released 0 0 -"],
    );
    assert!(device.allocations.values().all(|totals| totals.source == Source::Device));
}

#[test]
fn what_nobody_measures_is_absent() {
    let mut bench = Bench::new();
    let unmeasured = Used { has_busy: false, ..used("a", 10, 0) };
    bench.read(&[held("a", Part::Share)], &[unmeasured], Measured::default());
    check(
        &bench.device(),
        &["device 10 - -", "a/a 10 - -", "a 10 - -", "unattributed 0 - -", "released 0 - -"],
    );
}

#[test]
fn a_claim_of_several_agents_is_divided_by_process() {
    let mut bench = Bench::new();
    let other = Used { agent: Some(agent("z")), ..used("a", 3, 300) };
    let energy = Measured { energy_mj: Some(100), ..Measured::default() };
    bench.read(&[held("a", Part::Whole)], &[used("a", 1, 100), other], energy);
    check(
        &bench.device(),
        &[
            "device 4 400 100",
            "a/a 1 100 25",
            "a/z 3 300 75",
            "a 1 100 25",
            "z 3 300 75",
            "unattributed 0 0 0",
            "released 0 0 -",
        ],
    );
}

#[test]
fn a_ratio_is_over_the_last_ten_seconds() {
    let mut bench = Bench::new();
    let one = [held("a", Part::Share)];
    for second in 0..30 {
        bench.read(
            &one,
            &[used("a", 1, if second < 15 { 1000 } else { 250 })],
            Measured::default(),
        );
    }
    let device = bench.device();
    let ratio = device.allocations.values().next().unwrap().ratio().unwrap();
    assert!((ratio - 0.25).abs() < 1e-9, "{ratio}");
}

proptest! {
    /// Whatever comes and goes: allocations, released and unattributed are together the device.
    #[test]
    fn conservation(rounds in vec((0..8_u8, vec((0..4_u8, 0..100_u64, 0..900_u64), 0..6), 0..50_u64), 1..12)) {
        let names = ["a", "b", "c"];
        let mut bench = Bench::new();
        let mut before = Duration::ZERO;
        for (present, processes, energy) in rounds {
            let held: Vec<Held> = (0..3)
                .filter(|bit| present & (1 << bit) != 0)
                .map(|bit| held(names[bit], Part::Share))
                .collect();
            let used: Vec<Used> = processes
                .iter()
                .map(|(who, memory, busy)| {
                    used(names.get(usize::from(*who)).copied().unwrap_or(""), *memory, *busy)
                })
                .collect();
            bench.read(&held, &used, Measured { energy_mj: Some(energy), ..Measured::default() });
            let device = bench.device();
            let parts = || {
                device.allocations.values().chain([&device.unattributed, &device.released])
            };
            let busy: Duration = parts().map(|totals| totals.busy).sum();
            prop_assert_eq!(busy, device.device.busy);
            prop_assert!(busy >= before);
            before = busy;
            let energy: u64 = parts().filter_map(|totals| totals.energy_mj).sum();
            prop_assert_eq!(Some(energy), device.device.energy_mj);
            let memory: u64 = parts().map(|totals| totals.memory_bytes).sum();
            prop_assert_eq!(memory, device.device.memory_bytes);
        }
    }
}
