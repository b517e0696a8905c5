//! What decides how a GPU is shared: each open question of the design, what was seen, and what
//! follows. A minute on a real device.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    signal::Signal,
};

use super::{
    book::Sheet,
    scene::{Scene, Worker},
};
use crate::sample;

/// What a tenant holds that looks for itself in NVML's lists.
const HELD_BYTES: u64 = 256 << 20;

const POOL_BYTES: u64 = 64 << 20;

/// How long a word that the device writes may take to be seen.
const SEEN_WAIT: Duration = Duration::from_secs(10);

/// How long NVML may take to know of a process.
const LISTED_WAIT: Duration = Duration::from_secs(10);

/// A kernel that is still running when its process is stopped.
const LONG_US: u64 = 200_000;

/// Wakes from which a median comes.
const HOPS: usize = 2000;

struct Found {
    seen: String,
    decides: String,
}

fn found(seen: impl Into<String>, decides: impl Into<String>) -> Found {
    Found { seen: seen.into(), decides: decides.into() }
}

type Question = (&'static str, fn(&Scene) -> anyhow::Result<Found>);

pub(crate) fn sheet(scene: &Scene) -> Sheet {
    let mut sheet = Sheet::new(
        "probe",
        "Probe: what decides the open branches",
        "Tenants without accelpool, one question after the other.",
        &["question", "seen", "decides"],
    );
    let questions: [Question; 8] = [
        ("cuGetProcAddress and dlsym give the same pointers", pointers),
        ("a fence in a registered memfd is seen by another process", |scene| fence(scene, false)),
        ("the same while its process is stopped", |scene| fence(scene, true)),
        ("a pool's maxSize is kept by the driver", pool),
        ("NVML lists a process, its memory and its time", listed),
        ("what a context takes", context),
        ("what a change of context costs", switch),
        ("what a futex hop costs on this machine", |_| hop()),
    ];
    for (question, look) in questions {
        let found = look(scene).unwrap_or_else(|error| Found {
            seen: format!("not known: {error:#}"),
            decides: "nothing".to_owned(),
        });
        sheet.row([question.to_owned(), found.seen, found.decides]);
    }
    for (question, why) in [
        ("private export tables never launch on their own", "needs a program of the CUDA runtime"),
        ("checkpoint with a registered page mapped", "accelpool does not park claims yet"),
    ] {
        sheet.row([question.to_owned(), format!("not looked at: {why}"), "nothing".to_owned()]);
    }
    sheet
}

fn pointers(scene: &Scene) -> anyhow::Result<Found> {
    let answer = scene.native()?.try_ask("pointers")?;
    let same = answer.split(' ').nth(2).unwrap_or_default().is_empty();
    Ok(found(
        answer,
        if same { "wrappers are chosen by name" } else { "these are wrapped by what is returned" },
    ))
}

/// The first word of a page.
fn word(page: &File) -> anyhow::Result<u32> {
    let mut bytes = [0; 4];
    page.read_exact_at(&mut bytes, 0)?;
    Ok(u32::from_le_bytes(bytes))
}

fn fence(scene: &Scene, stopped: bool) -> anyhow::Result<Found> {
    let page = File::from(memfd_create("fence", MFdFlags::MFD_CLOEXEC)?);
    page.set_len(4096)?;
    let mut tenant = scene.native()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), page.as_raw_fd());
    tenant.try_ask(&format!("fence {path}"))?;
    // A kernel that has not run yet takes long the first time.
    tenant.try_ask("fence-after 10 1")?;
    tenant.try_ask("sync")?;
    let start = Instant::now();
    tenant.try_ask(&format!("fence-after {LONG_US} 2"))?;
    if stopped {
        tenant.signal(Signal::SIGSTOP);
    }
    let early = word(&page)? == 2;
    while word(&page)? != 2 && start.elapsed() < SEEN_WAIT {
        thread::sleep(Duration::from_millis(1));
    }
    let (is_seen, took) = (word(&page)? == 2, start.elapsed());
    tenant.signal(Signal::SIGCONT);
    let seen = match (is_seen, early) {
        (true, true) => "yes, but before it was stopped: this says nothing".to_owned(),
        (true, false) => format!("yes, {} us after the kernel's end", past(took)),
        (false, _) => format!("no, in {SEEN_WAIT:?}"),
    };
    Ok(found(
        seen,
        match (is_seen, stopped) {
            (true, false) => "fences by write-value",
            (false, false) => "a helper thread polls events",
            (true, true) => "a stopped holder's turn ends with its work",
            (false, true) => "a stopped holder costs the 10 ms rule",
        },
    ))
}

fn past(took: Duration) -> u128 {
    took.as_micros().saturating_sub(u128::from(LONG_US))
}

fn pool(scene: &Scene) -> anyhow::Result<Found> {
    let mut tenant = scene.native()?;
    tenant.try_ask(&format!("pool {POOL_BYTES}"))?;
    tenant.try_ask(&format!("async {POOL_BYTES}")).context("as much as it may have")?;
    let kept = tenant.try_ask(&format!("async {POOL_BYTES}")).is_err();
    Ok(found(
        if kept { "yes" } else { "no" },
        if kept { "pools are capped by the driver" } else { "pools are trimmed near the quota" },
    ))
}

fn listed(scene: &Scene) -> anyhow::Result<Found> {
    let mut tenant = scene.native()?;
    tenant.try_ask(&format!("alloc {HELD_BYTES}"))?;
    let over = Duration::from_millis(if scene.measures.judged { 1500 } else { 50 });
    let until = Instant::now() + LISTED_WAIT;
    let own = loop {
        tenant.try_send(&format!("burn 200 {}", over.as_millis() + 500))?;
        let look = sample::take(&scene.place, &scene.uuid, over)?;
        tenant.try_answer()?;
        let pids: Vec<u32> = look.processes.iter().map(|it| it.pid).collect();
        match look.processes.into_iter().find(|it| it.pid == tenant.child.id()) {
            Some(own) => break own,
            None if Instant::now() < until => {}
            None => {
                return Ok(found(
                    format!("no: {pids:?}"),
                    "a constant for contexts, no watch of violations",
                ));
            }
        }
    };
    let busy = own.busy_us.map_or("no time".to_owned(), |us| format!("{us} us busy of {over:?}"));
    Ok(found(
        format!("yes: {} MiB of {} MiB held, {busy}", own.memory_bytes >> 20, HELD_BYTES >> 20),
        if own.busy_us.is_some() {
            "memory is trued up, violations are seen"
        } else {
            "memory is trued up; time of violations is not seen"
        },
    ))
}

fn free(tenant: &mut Worker) -> anyhow::Result<u64> {
    let info = tenant.try_ask("info")?;
    Ok(info.split(' ').next().context("free and whole")?.parse()?)
}

fn context(scene: &Scene) -> anyhow::Result<Found> {
    let mut first = scene.native()?;
    let before = free(&mut first)?;
    let second = scene.native()?;
    let bytes = before.saturating_sub(free(&mut first)?);
    drop(second);
    Ok(found(
        format!("{} MiB of the device's memory for a process more", bytes >> 20),
        format!("turns.context_reserve of at least {}Mi (default 512Mi)", bytes >> 20),
    ))
}

/// Microseconds of each of the kernels that tenants do at the same time, one by one.
fn each_us(tenants: &mut [Worker], ms: u64) -> anyhow::Result<f64> {
    for tenant in tenants.iter_mut() {
        tenant.try_send(&format!("beat 50 {ms}"))?;
    }
    let mut count = 0_u32;
    for tenant in tenants {
        let answer = tenant.try_answer()?;
        count += answer.split(' ').next().context("a count")?.parse::<u32>()?;
    }
    Ok(f64::from(u32::try_from(ms * 1000)?) / f64::from(count.max(1)))
}

fn switch(scene: &Scene) -> anyhow::Result<Found> {
    let mut tenants = [scene.native()?, scene.native()?];
    let ms = scene.measures.burn_ms * 2;
    each_us(&mut tenants, ms / 2)?; // both are warm
    let alone = each_us(&mut tenants[..1], ms)?;
    let both = each_us(&mut tenants, ms)?;
    let cost = (both - 50.0).max(0.0);
    let quantum = match cost {
        cost if cost <= 50.0 => "a quantum of 5 ms",
        cost if cost <= 100.0 => "a quantum of 10 ms",
        _ => "a quantum of 20 ms, open more often",
    };
    Ok(found(
        format!(
            "kernels of 50 us: one each {alone:.0} us alone, one each {both:.0} us of two in turn: \
             at most {cost:.0} us"
        ),
        quantum,
    ))
}

/// A wake of a thread that sleeps in the kernel, there and back, halved.
fn hop() -> anyhow::Result<Found> {
    let (there, waits) = mpsc::sync_channel::<()>(0);
    let (back, hears) = mpsc::sync_channel::<()>(0);
    let echo = thread::spawn(move || while waits.recv().is_ok() && back.send(()).is_ok() {});
    let mut took = Vec::with_capacity(HOPS);
    for _ in 0..HOPS {
        let start = Instant::now();
        there.send(()).context("the echo listens")?;
        hears.recv().context("the echo answers")?;
        took.push(start.elapsed() / 2);
    }
    drop(there);
    let _ = echo.join();
    took.sort_unstable();
    let cpus = thread::available_parallelism()?;
    let (median, high) = (took[HOPS / 2], took[HOPS * 99 / 100]);
    Ok(found(
        format!("{median:?} median, {high:?} of 99 in 100, {cpus} CPUs"),
        if median < Duration::from_micros(15) {
            "waiters sleep"
        } else {
            "waiters spin until their turn is expected"
        },
    ))
}
