//! Choosing 4 of 16 devices by topology: at most 1 ms (DESIGN, section 8).

use std::{process::ExitCode, time::Duration};

use accelpool_benches::Report;
use accelpool_model::{Bandwidth, DeviceName, Link, LinkKind, Route};
use accelpool_planner::choose::{Candidate, choose};

const DEVICES: usize = 16;
const BUDGET: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    let names: Vec<DeviceName> = (0..DEVICES)
        .map(|index| format!("gpu-0000-{index:02x}-00-0").parse().expect("a DNS label"))
        .collect();
    let roots: Vec<String> =
        (0..DEVICES).map(|index| format!("pci0000:{:02x}", index / 2)).collect();
    let device = |index: usize| Candidate {
        name: &names[index],
        numa_node: u32::try_from(index * 2 / DEVICES).ok(),
        pcie_root: Some(&roots[index]),
    };
    let candidates: Vec<_> = (0..DEVICES).map(device).collect();
    let links = |joined: fn(usize, usize) -> bool| -> Vec<Link> {
        let pairs = (0..DEVICES).flat_map(|a| (0..a).map(move |b| (a, b)));
        let link = |(a, b): (usize, usize)| Link {
            ends: (names[a].clone(), names[b].clone()),
            kind: LinkKind::NvLink,
            bandwidth: Bandwidth::from_bytes_per_second(450_000_000_000),
            strands: 0,
            route: Route::Direct,
        };
        pairs.filter(|&(a, b)| joined(a, b)).map(link).collect()
    };

    let mut report = Report::begin();
    let mut case = |name: &str, links: &[Link]| {
        let timing = report.time(2000, || choose(&candidates, links, 4, &[]));
        report.time_line(&format!("choose 4 of 16, {name}, median"), timing.median, BUDGET);
        report.time_line(&format!("choose 4 of 16, {name}, p99"), timing.p99, BUDGET);
    };
    case("full mesh", &links(|_, _| true));
    case("two islands", &links(|a, b| a % 2 == b % 2));
    case("no links", &[]);
    report.end()
}
