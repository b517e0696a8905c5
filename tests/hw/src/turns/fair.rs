//! What several tenants get: shares, caps, and what a real-time tenant waits.

use std::time::Duration;

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};

use super::{
    book::Sheet,
    scene::{Claim, Node, Scene, Worker},
};

/// Tenants that share: a claim's thousandths, and its processes.
type Party = &'static [(u64, usize)];

const PARTIES: [(&str, Party); 5] = [
    ("1:1", &[(500, 1), (500, 1)]),
    ("1:3", &[(250, 1), (750, 1)]),
    ("1:2:4", &[(140, 1), (280, 1), (560, 1)]),
    ("8 x 1", &[(125, 1); 8]),
    ("3 processes : 1", &[(500, 3), (500, 1)]),
];

/// Microseconds of kernels in each window, for each of the tenants at the same time.
fn windows(scene: &Scene, tenants: &mut [Worker]) -> anyhow::Result<Vec<Vec<u64>>> {
    let measures = &scene.measures;
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    let from = now.as_millis() + u128::from(measures.warm_ms);
    for (seed, tenant) in (1..).zip(tenants.iter_mut()) {
        let (count, ms) = (measures.windows, measures.window_ms);
        tenant.try_send(&format!("windows {from} {count} {ms} {seed}"))?;
    }
    let number = |word: &str| word.parse::<u64>().context("a number for each window");
    let read = |tenant: &mut Worker| tenant.try_answer()?.split(' ').map(number).collect();
    tenants.iter_mut().map(read).collect()
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run, as a share")]
fn part(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

fn sum(all: &[u64]) -> u64 {
    all.iter().sum()
}

/// What one tenant alone gets done, natively: the unit.
fn alone(scene: &Scene) -> anyhow::Result<u64> {
    let did = windows(scene, &mut [scene.native()?])?;
    Ok(sum(&did[0]).max(1))
}

/// D: shares by work that was done.
pub(crate) fn shares(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "d-shares",
        "D. Shares",
        "Tenants with kernels of 20 us to 2 ms, mixed at random, all at the same time; work done \
         by a tenant alone on the device is 1. Errors in points of the work that all did: over the \
         whole run (aim: 1 at most) and in its worst window (aim: 3 at most).",
        &[
            "tenants",
            "system",
            "claim",
            "owed %",
            "got %",
            "error",
            "worst window",
            "rate",
            "all",
            "hand-over us",
        ],
    );
    let unit = alone(scene)?;
    let node = Node::start(scene, "guarantee")?;
    for (name, party) in PARTIES {
        let mut natives = Vec::new();
        for _ in 0..party.iter().map(|(_, processes)| processes).sum() {
            natives.push(scene.native()?);
        }
        let did = windows(scene, &mut natives)?;
        drop(natives);
        rows(&mut sheet, (name, "native", "-".to_owned()), party, &did, unit);

        let claim = |(index, (permille, _)): (usize, &(u64, usize))| {
            node.claim(&format!("c{index}"), *permille, "normal")
        };
        let claims: Vec<Claim<'_>> =
            party.iter().enumerate().map(claim).collect::<anyhow::Result<_>>()?;
        let mut tenants = Vec::new();
        for (claim, (_, processes)) in claims.iter().zip(party) {
            for _ in 0..*processes {
                tenants.push(claim.tenant()?);
            }
        }
        let did = windows(scene, &mut tenants)?;
        let hand_over = claims.first().context("a claim at least")?.hand_over_ns()? / 1000;
        rows(&mut sheet, (name, "accelpool", hand_over.to_string()), party, &did, unit);
    }
    Ok(sheet)
}

/// The figures of one run: `did` has the windows of each process.
fn rows(
    sheet: &mut Sheet,
    (name, system, hand_over): (&str, &str, String),
    party: Party,
    did: &[Vec<u64>],
    unit: u64,
) {
    let all_owed: u64 = party.iter().map(|(permille, _)| permille).sum();
    let count = did.iter().map(Vec::len).min().unwrap_or(0);
    let of_window =
        |tenants: &[Vec<u64>], window: usize| tenants.iter().map(|it| it[window]).sum::<u64>();
    let whole = did.iter().map(|it| sum(it)).sum::<u64>();
    let mut rest = did;
    for (index, (permille, processes)) in party.iter().enumerate() {
        let (own, others) = rest.split_at(*processes);
        rest = others;
        let owed = part(*permille, all_owed) * 100.0;
        let got = |some: u64, all: u64| part(some, all) * 100.0;
        let mine = own.iter().map(|it| sum(it)).sum::<u64>();
        let worst = (0..count)
            .map(|window| (got(of_window(own, window), of_window(did, window)) - owed).abs());
        sheet.row([
            name.to_owned(),
            system.to_owned(),
            format!("c{index}"),
            format!("{owed:.1}"),
            format!("{:.1}", got(mine, whole)),
            format!("{:.2}", (got(mine, whole) - owed).abs()),
            format!("{:.2}", worst.fold(0.0, f64::max)),
            format!("{:.3}", part(mine, unit)),
            format!("{:.3}", part(whole, unit)),
            hand_over.clone(),
        ]);
    }
}

/// D, second half: claims that get no more than their part of an idle device.
pub(crate) fn caps(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "d-caps",
        "D. Caps",
        "One tenant on an idle device, in a pool with `compute = \"cap\"`; work done by one \
         without a cap is 100. Aim: 1 point at most.",
        &["cap %", "got %", "error"],
    );
    let unit = alone(scene)?;
    let node = Node::start(scene, "cap")?;
    for cap in [250, 500, 750] {
        let claim = node.claim("capped", cap, "normal")?;
        let did = windows(scene, &mut [claim.tenant()?])?;
        let (cap, got) = (part(cap, 1000) * 100.0, part(sum(&did[0]), unit) * 100.0);
        sheet.row([format!("{cap:.0}"), format!("{got:.1}"), format!("{:.2}", (got - cap).abs())]);
    }
    Ok(sheet)
}

/// E: what requests of a real-time tenant wait beside one that leaves no gap.
pub(crate) fn latency(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "e-latency",
        "E. Latency of a real-time tenant",
        "Graphs of 20 kernels of 100 us that come at random, 20 in a second; microseconds from \
         their coming to their end. Aims for 99 of 100: 1.15 times that of the tenant alone beside \
         kernels of 0.5 ms, 1.3 times beside kernels of 8 ms. The window of 300 us is accelpool's \
         own; others are not tried.",
        &["beside", "system", "median", "95 %", "99 %", "longest", "99 % to alone", "batch kept"],
    );
    let node = Node::start(scene, "guarantee")?;
    for system in ["native", "accelpool"] {
        let ours = system == "accelpool";
        let prompt = if ours { Some(node.claim("prompt", 300, "realtime")?) } else { None };
        let batch = if ours { Some(node.claim("batch", 600, "normal")?) } else { None };
        let start = |claim: &Option<Claim<'_>>| {
            claim.as_ref().map_or_else(|| scene.native(), Claim::tenant)
        };
        let mut tenant = start(&prompt)?;
        let mut first = None;
        for (beside, us) in [("nobody", 0), ("kernels of 0.5 ms", 500), ("kernels of 8 ms", 8000)] {
            let mut other = start(&batch)?;
            let mut kept = "-".to_owned();
            let solo = if us > 0 { count(&mut other, us, scene.measures.burn_ms)? } else { 0.0 };
            if us > 0 {
                // About as long as the requests take to come.
                other.try_send(&format!("burn {us} {}", scene.measures.requests * 50))?;
            }
            let line = format!("poisson 100 20 {} 20 {}", scene.measures.requests, 7);
            let answer = tenant.try_ask(&line)?;
            if us > 0 {
                let did = other.try_answer()?.parse::<f64>()?;
                let ms = f64::from(u32::try_from(scene.measures.requests * 50)?);
                kept = format!("{:.2}", did / ms / solo.max(f64::MIN_POSITIVE));
            }
            let all: Vec<u64> =
                answer.split(' ').map(str::parse).collect::<Result<_, _>>().context("figures")?;
            let [median, high, higher, longest] = all[..] else { anyhow::bail!("`{answer}`") };
            let to_alone = part(higher, *first.get_or_insert(higher));
            sheet.row([
                beside.to_owned(),
                system.to_owned(),
                median.to_string(),
                high.to_string(),
                higher.to_string(),
                longest.to_string(),
                format!("{to_alone:.2}"),
                kept,
            ]);
        }
    }
    Ok(sheet)
}

/// Kernels for each millisecond.
fn count(tenant: &mut Worker, us: u64, ms: u64) -> anyhow::Result<f64> {
    let did = tenant.try_ask(&format!("burn {us} {ms}"))?.parse::<f64>()?;
    Ok(did / f64::from(u32::try_from(ms)?))
}
