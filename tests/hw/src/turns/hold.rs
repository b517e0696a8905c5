//! What must hold on any machine: the quota, and that nobody suffers from another's end.

use std::{thread, time::Duration};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::{
    book::Sheet,
    scene::{Claim, Node, Scene, Worker},
};
use crate::sample;

/// CUDA's out of memory.
const OUT_OF_MEMORY: &str = "2";

/// What a driver hands out at a time; the first refusal may come that much early.
const GRAIN: u64 = 2 << 20;

/// The daemon reads each page about ten times a second.
const LEDGER_WAIT: Duration = Duration::from_millis(250);

const RACERS: usize = 8;

/// How often kernels of 100 us may be held up by another's end, beside its turns.
const STALL_MAX_US: u64 = 50_000;

fn free(tenant: &mut Worker) -> anyhow::Result<u64> {
    let info = tenant.try_ask("info")?;
    Ok(info.split(' ').next().context("free and whole")?.parse()?)
}

/// F: how much a claim can have in each way.
pub(crate) fn quota(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "f-quota",
        "F. Memory quota",
        "A claim asks until it is refused with CUDA's out of memory, in each way and size. It must \
         never have more than its quota, and be refused no more than 2 MiB early, or its size.",
        &["way", "size", "granted", "times", "free at refusal", "ledger", "NVML", "refused with"],
    );
    let node = Node::start(scene, "guarantee")?;
    let claim = node.claim("a", 500, "normal")?;
    let quota = scene.share_mib() << 20;
    for (way, size) in [
        ("alloc", (1 << 20) - 1),
        ("alloc", GRAIN),
        ("alloc", 256 << 20),
        ("async", 32 << 20),
        ("create", 32 << 20),
        ("managed", 32 << 20),
    ] {
        let mut tenant = claim.tenant()?;
        let (mut granted, mut times) = (0_u64, 0_u64);
        let refused = loop {
            match tenant.try_ask(&format!("{way} {size}")) {
                Ok(_) => (granted, times) = (granted + size, times + 1),
                Err(error) => break error.to_string(),
            }
            if granted > quota {
                break "never".to_owned();
            }
        };
        // The daemon looks at pages now and then.
        thread::sleep(LEDGER_WAIT);
        let (left, used) = (free(&mut tenant)?, claim.figure("memory_used_bytes")?);
        let look = sample::take(&scene.place, &scene.uuid, Duration::ZERO);
        let seen = look.ok().and_then(|look| {
            let own = look.processes.into_iter().find(|it| it.pid == tenant.child.id())?;
            Some(format!("{} MiB", own.memory_bytes >> 20))
        });
        let word = format!("{way} of {size}");
        sheet.must(refused == OUT_OF_MEMORY, || format!("{word}: refused with {refused}"));
        sheet.must(used <= quota && granted <= quota, || format!("{word}: {used} of {quota}"));
        sheet.must(left < size + GRAIN, || format!("{word}: refused with {left} bytes left"));
        sheet.row([
            way.to_owned(),
            size.to_string(),
            granted.to_string(),
            times.to_string(),
            left.to_string(),
            used.to_string(),
            seen.unwrap_or("-".to_owned()),
            refused,
        ]);
    }
    race(scene, &claim, &mut sheet)?;
    Ok(sheet)
}

/// Processes of one claim that allocate and free at random, together more than it may have.
fn race(scene: &Scene, claim: &Claim<'_>, sheet: &mut Sheet) -> anyhow::Result<()> {
    let quota = scene.share_mib() << 20;
    let reserve = 512 << 20;
    // Each has a context, and the claim's quota pays for them.
    let count = usize::try_from(quota / reserve / 2)?.clamp(1, RACERS);
    let mut tenants = (0..count).map(|_| claim.tenant()).collect::<anyhow::Result<Vec<_>>>()?;
    let rounds = if scene.measures.judged { 2000 } else { 100 };
    for (seed, tenant) in (1..).zip(&mut tenants) {
        tenant.try_send(&format!("race {rounds} {} {}", seed * 977, quota / 8))?;
    }
    let (mut granted, mut denied) = (0_u64, 0_u64);
    for tenant in &mut tenants {
        let answer = tenant.try_answer().context("a racer fails")?;
        let mut figures = answer.split(' ').map(|it| it.parse::<u64>().unwrap_or(0));
        granted += figures.next().unwrap_or(0);
        denied += figures.next().unwrap_or(0);
    }
    let peak = claim.figure("memory_peak_bytes")?;
    sheet.must(peak <= quota, || format!("a race came to {peak} of {quota}"));
    sheet.row([
        format!("race of {count}"),
        format!("up to {}", quota / 8),
        String::new(),
        granted.to_string(),
        String::new(),
        format!("{peak} at most"),
        "-".to_owned(),
        format!("{OUT_OF_MEMORY}, {denied} times"),
    ]);
    Ok(())
}

/// H: what others notice when one is killed, stopped, or the daemon dies.
pub(crate) fn faults(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "h-faults",
        "H. Faults",
        "A neighbour does kernels of 100 us one by one beside a claim of the same weight that wants \
         all; its longest wait in microseconds. Aim: 50000 at most. Nobody may see an error.",
        &["what happens", "kernels", "longest wait", "within the aim"],
    );
    let node = Node::start(scene, "guarantee")?;
    let (own, other) = (node.claim("a", 500, "normal")?, node.claim("b", 400, "normal")?);
    let ms = scene.measures.burn_ms * 3;
    let mut tenant = own.tenant()?;
    for what in ["nothing", "the other is killed", "the other is stopped", "the daemon is killed"] {
        let mut beside = other.tenant()?;
        beside.try_send(&format!("burn 200 {}", ms * 2))?;
        tenant.try_send(&format!("beat 100 {ms}"))?;
        thread::sleep(Duration::from_millis(ms / 3));
        match what {
            "the other is killed" => beside.signal(Signal::SIGKILL),
            "the other is stopped" => beside.signal(Signal::SIGSTOP),
            "the daemon is killed" => node.replace()?,
            _ => {}
        }
        let answer = match tenant.try_answer() {
            Ok(answer) => answer,
            Err(error) => {
                sheet.must(false, || format!("{what}, and the neighbour fails: {error:#}"));
                return Ok(sheet);
            }
        };
        if matches!(what, "nothing" | "the daemon is killed") {
            let ended = beside.try_answer();
            sheet.must(ended.is_ok(), || format!("{what}, and the other fails: {ended:?}"));
        }
        let (kernels, longest) = answer.split_once(' ').context("two figures")?;
        let within = longest.parse::<u64>()? <= STALL_MAX_US;
        let within = if within { "yes" } else { "no" };
        sheet.row([what.to_owned(), kernels.to_owned(), longest.to_owned(), within.to_owned()]);
    }
    Ok(sheet)
}
