//! What it costs to know who used what: a scrape of a full node, the page in memory, dividing
//! a device among its holders, and finding out whose processes are whose.

use std::{
    alloc::System,
    fmt::Write as _,
    fs,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use accelpool_benches::{
    Report, Timing,
    node::{Daemon, Home, processor_time, profile, share},
    resident_mib,
};
use accelpool_daemon::usage::{
    Agent,
    history::{History, Used},
    process::Processes,
};
use accelpool_dra_driver::{
    http::Readiness,
    metrics::{Fetched, Form, Metrics, Source, encode, page},
    node::Node,
};
use accelpool_model::MemoryBytes;
use accelpool_planner::{Amount, Holding, Owner, Part, ProcessUse, attribute};
use accelpool_proto::node::GetMetricsRequest;
use prometheus_client::registry::Registry;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::{runtime::Runtime, task::JoinSet};

/// Counts allocations; it changes nothing else.
#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const DEVICES: usize = 16;
const SHARERS: usize = 64;
const PROCESSES: u32 = 10_000;

/// DESIGN, section 8.
const SCRAPE_BUDGET: Duration = Duration::from_millis(50);
/// At the default pace of two seconds, less than a hundredth of a core.
const ATTRIBUTE_BUDGET: Duration = Duration::from_millis(5);
/// Two files of procfs each, at about 10 us.
const LOOK_UP_BUDGET: Duration = Duration::from_millis(500);
/// Daemon and worker, of one core: a node that is as full as it can be may take a little more than
/// the hundredth of one that idles.
const SAMPLE_BUDGET_PERCENT: f64 = 5.0;
/// Five readings of every device at the default pace.
const SAMPLED: Duration = Duration::from_secs(10);
/// Of a node that has 32 new agents in each minute of a day; one with a hundred agents has a few.
const HISTORY_BUDGET_MIB: f64 = 13.0;
/// What Prometheus reads without trouble, in MiB.
const PAGE_BUDGET_MIB: f64 = 4.0;

fn main() -> ExitCode {
    let mut report = Report::begin();
    let runtime = Runtime::new().expect("a runtime can be made");
    scrape(&mut report, &runtime);
    divide(&mut report);
    look_up(&mut report);
    remember(&mut report);
    report.end()
}

/// A daemon that has every device shared by as many as there may be.
fn full_node(runtime: &Runtime, sharers: usize) -> (Home, Daemon) {
    let home = Home::new(&profile(DEVICES));
    let daemon = home.start();
    let mut script = String::new();
    runtime.block_on(async {
        let client = daemon.client();
        let listed =
            client.clone().list_devices(accelpool_proto::node::ListDevicesRequest {}).await;
        let devices = listed.expect("the daemon answers").into_inner().devices;
        for (index, device) in devices.into_iter().enumerate() {
            let mut calls = JoinSet::new();
            for number in 0..sharers {
                let pid = pid_of(index, number);
                write_process(&home.proc(), pid);
                writeln!(
                    script,
                    "[[process]]\npid = {pid}\ndevice = \"{}\"\nmemory = \"512Mi\"\n\
                     compute_permille = 15",
                    device.name
                )
                .expect("a String takes any text");
                let name = format!("{}-{number}", device.name);
                let mut request = share(&name, &device.name, 1 << 30, 15);
                let labels = [
                    ("accelpool.dev/namespace", "team"),
                    ("accelpool.dev/pod", "train-with-a-usual-name-0"),
                    ("accelpool.dev/pod-uid", &pod_uid(pid)),
                ];
                request.labels =
                    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
                let mut client = client.clone();
                calls.spawn(async move { client.prepare_claim(request).await });
            }
            while let Some(prepared) = calls.join_next().await {
                prepared.expect("no call panics").expect("the share fits");
            }
        }
    });
    home.script(&script);
    (home, daemon)
}

/// Each share has one process.
fn pid_of(device: usize, sharer: usize) -> u32 {
    u32::try_from(1 + device * SHARERS + sharer).expect("a node is small")
}

/// What it costs to read every device and to divide it, per second, beside its full house's
/// memory.
fn sample(report: &mut Report, daemon: &Daemon) {
    let processes: Vec<u32> = daemon.workers().into_iter().chain([daemon.id()]).collect();
    let used = || processes.iter().copied().map(processor_time).sum::<Duration>();
    let before = used();
    let length = if report.is_judged() { SAMPLED } else { Duration::ZERO };
    std::thread::sleep(length);
    let percent = used().saturating_sub(before).as_secs_f64() / SAMPLED.as_secs_f64() * 100.0;
    report.line("sampling, 16 x 64, share of one core", percent, SAMPLE_BUDGET_PERCENT, "%");
    report.note("resident, 16 x 64, daemon", resident_mib(daemon.id()), "MiB");
    let workers: f64 = daemon.workers().into_iter().map(resident_mib).sum();
    report.note("resident, 16 x 64, worker", workers, "MiB");
}

fn scrape(report: &mut Report, runtime: &Runtime) {
    let sharers = if report.is_judged() { SHARERS } else { 1 };
    let (_home, daemon) = full_node(runtime, sharers);
    sample(report, &daemon);
    let ready: Readiness = Arc::new(Vec::new);
    // A connection belongs to a runtime.
    let node = {
        let _inside = runtime.enter();
        Node::at(daemon.socket())
    };
    let scrape = |form| {
        // A source of its own: nothing of the scrape before is used again.
        let source = Source::new(node.clone());
        let metrics = Metrics::new(source, "worker-1", Arc::clone(&ready), Registry::default());
        runtime.block_on(metrics.render(form))
    };
    for (form, name) in [(Form::Protobuf, "protobuf"), (Form::OpenMetrics, "text")] {
        let Timing { median, p99 } = report.time(200, || scrape(form));
        report.note(&format!("scrape, 16 x 64, {name}, p50"), median.as_secs_f64() * 1e3, "ms");
        report.time_line(&format!("scrape, 16 x 64, {name}, p99"), p99, SCRAPE_BUDGET);
        let bytes = u32::try_from(scrape(form).len()).expect("a page is small");
        let mib = f64::from(bytes) / 1_048_576.0;
        report.line(&format!("page, 16 x 64, {name}"), mib, PAGE_BUDGET_MIB, "MiB");
    }
    let answer =
        runtime.block_on(async { daemon.client().get_metrics(GetMetricsRequest {}).await });
    let metrics = Some(Arc::new(answer.expect("the daemon answers").into_inner()));
    let fetched = Fetched { metrics, age: Duration::ZERO, up: true };
    let region = Region::new(GLOBAL);
    let page = encode(page(&fetched), "worker-1", &Registry::default(), Form::OpenMetrics);
    let change = region.change();
    let count = u32::try_from(change.allocations).expect("they are few");
    report.note("allocations for a page of text", f64::from(count), "");
    drop(page);
}

fn divide(report: &mut Report) {
    let name = |number: u32| format!("claim-{number}").parse().expect("it is a name");
    let holdings: Vec<Holding> = (0..64)
        .map(|number| Holding { claim: name(number), part: Part::Share, bound: true })
        .collect();
    let uses: Vec<ProcessUse> = (0..PROCESSES)
        .map(|number| ProcessUse {
            owner: Owner::Claims(vec![name(number % 70)]),
            partition: None,
            amount: Amount { memory: MemoryBytes::new(1), busy: Duration::from_nanos(1) },
        })
        .collect();
    let timing = report.time(50, || attribute(&holdings, &uses, Amount::default()));
    report.time_line("attribute, 10,000 processes, p50", timing.median, ATTRIBUTE_BUDGET);
}

fn look_up(report: &mut Report) {
    let proc = tempfile::tempdir().expect("a temporary folder can be made");
    let pids = if report.is_judged() { PROCESSES } else { 10 };
    for pid in 1..=pids {
        write_process(proc.path(), pid);
    }
    let mut processes = Processes::new(proc.path());
    let mut round = || {
        let begun = Instant::now();
        let found = (1..=pids).filter(|pid| processes.place(*pid).is_some()).count();
        processes.end_round();
        assert_eq!(found, usize::try_from(pids).expect("it is small"));
        begun.elapsed()
    };
    report.time_line("whose, 10,000 processes, first time", round(), LOOK_UP_BUDGET);
    report.time_line("whose, 10,000 processes, known", round(), LOOK_UP_BUDGET);
}

/// A day in which every minute has as many new agents as it tells apart, and each of its steps
/// too: as much as is ever remembered.
fn remember(report: &mut Report) {
    let minutes: u64 = if report.is_judged() { 24 * 60 } else { 2 };
    let region = Region::new(GLOBAL);
    let mut history = History::default();
    for step in 0..minutes * 12 {
        for number in 0..32 {
            let name = format!("train-with-a-usual-name-{}-{number}", step / 12);
            let agent = Agent { name, namespace: "team".to_owned() };
            let amount = Amount { memory: MemoryBytes::new(1), busy: Duration::from_millis(1) };
            let until_ms = (step + 1) * 5_000;
            let used = Used { until_ms, span_ms: 2_000, device: 0, amount, energy_mj: 1 };
            history.add(Some(&agent), used);
        }
    }
    let change = region.change();
    let bytes = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
    let mib = f64::from(u32::try_from(bytes).expect("it is bounded")) / 1_048_576.0;
    report.line("a day's history at its fullest", mib, HISTORY_BUDGET_MIB, "MiB");
    drop(history);
}

fn write_process(proc: &Path, pid: u32) {
    let folder = proc.join(pid.to_string());
    fs::create_dir(&folder).expect("the folder takes folders");
    let stat = format!("{pid} (train) R {}42 0\n", "0 ".repeat(18));
    fs::write(folder.join("stat"), stat).expect("the folder takes files");
    let cgroup = format!("0::/kubepods/burstable/pod{}/container\n", pod_uid(pid));
    fs::write(folder.join("cgroup"), cgroup).expect("the folder takes files");
}

fn pod_uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}
