//! `PrepareClaim` against the two synchronous commits that make it durable: at most 1.5 times
//! their cost, and 20 ms at the 99th percentile (DESIGN, section 8).
//!
//! Both are measured in turns on one disk: two bare commits of similar records in a redb of
//! their own, then a share through the socket of a real daemon. An empty call beside them says
//! how much of the rest is the way through the socket: where a disk commits in far less than a
//! millisecond, that alone goes beyond the budget. Claims that come together share their
//! commits, so thirty cost far less than thirty times one.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use accelpool_benches::{
    Report, Timing,
    node::{Home, share},
};
use accelpool_daemon::audit::{Asker, Entry, Limits, Log};
use accelpool_proto::node::{GetNodeRequest, ReleaseClaimRequest, node_client::NodeClient};
use redb::{Database, TableDefinition};
use tonic::transport::Channel;

/// The cost of a prepare beside that of its two commits.
const RATIO_BUDGET: f64 = 1.5;
const P99_BUDGET: Duration = Duration::from_millis(20);
/// What the audit log may take of a prepare: its sync is not waited for.
const AUDIT_BUDGET: f64 = 0.1;
/// Thirty claims at once beside the sixty commits that they would take one by one.
const TOGETHER: u32 = 30;
const TOGETHER_BUDGET: f64 = 0.5;

const DEVICE: &str = "gpu-0000-1b-00-0";
const MEMORY_BYTES: u64 = 1 << 30;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// The length of a lease's record with one share and one label.
const RECORD_LEN: usize = 700;
/// The length of the record that every commit of the ledger writes beside.
const START_LEN: usize = 80;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut report = Report::begin();
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    let bare = Bare::open(&home.path().join("bare.redb"));

    let (mut commits, mut reads, mut prepares) = (Vec::new(), Vec::new(), Vec::new());
    let runs = report.runs(300);
    for run in 0..runs + runs / 10 {
        let commit = timed(|| bare.commit_twice(&format!("bare-{run}")));
        let began = Instant::now();
        read(client.clone()).await;
        let read = began.elapsed();
        let name = format!("claim-{run}");
        let began = Instant::now();
        prepare(client.clone(), &name).await;
        let took = began.elapsed();
        release(client.clone(), name).await;
        bare.remove(&format!("bare-{run}"));
        if run >= runs / 10 {
            commits.push(commit);
            reads.push(read);
            prepares.push(took);
        }
    }
    let (commits, reads, prepares) = (Timing::of(commits), Timing::of(reads), Timing::of(prepares));
    note(&report, "two bare redb commits, median", commits.median);
    note(&report, "two bare redb commits, p99", commits.p99);
    note(&report, "an empty call (GetNode), median", reads.median);
    note(&report, "PrepareClaim, share, median", prepares.median);
    let ratio = prepares.median.as_secs_f64() / commits.median.as_secs_f64();
    report.line("PrepareClaim, share, median / two commits", ratio, RATIO_BUDGET, "x");
    report.time_line("PrepareClaim, share, p99", prepares.p99, P99_BUDGET);
    let audit = audit_alone(&report, &home.path().join("audit-alone"));
    report.note("a record of the audit log, median", audit.median.as_secs_f64() * 1e6, "us");
    let ratio = audit.median.as_secs_f64() / prepares.median.as_secs_f64();
    report.line("audit log / PrepareClaim, median", ratio, AUDIT_BUDGET, "x");

    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for run in 0..report.runs(20) {
        let names: Vec<_> = (0..TOGETHER).map(|index| format!("at-once-{run}-{index}")).collect();
        alone.push(timed(|| names.iter().for_each(|name| bare.commit_twice(name))));
        let began = Instant::now();
        let claims: Vec<_> = names
            .iter()
            .map(|name| tokio::spawn(prepare_owned(client.clone(), name.clone())))
            .collect();
        for claim in claims {
            claim.await.expect("a claim is prepared");
        }
        together.push(began.elapsed());
        for name in names {
            release(client.clone(), name).await;
        }
    }
    let (alone, together) = (Timing::of(alone), Timing::of(together));
    note(&report, "sixty bare redb commits, median", alone.median);
    note(&report, "30 PrepareClaim at once, median", together.median);
    let ratio = together.median.as_secs_f64() / alone.median.as_secs_f64();
    report.line("30 at once / sixty commits", ratio, TOGETHER_BUDGET, "x");
    report.end()
}

/// The record of a prepare, as the owner writes it between commit and answer.
fn audit_alone(report: &Report, folder: &Path) -> Timing {
    let mut log = Log::open(folder, Limits::default()).expect("the folder takes a log");
    let labels = ["namespace", "name", "pod", "pod-uid", "surface"];
    let label = |key: &str| (format!("accelpool.dev/{key}"), "train-with-a-usual-name".to_owned());
    let entry = Entry {
        at_ms: 1_764_000_000_000,
        kind: "prepared".to_owned(),
        claim: "3f0a2c7d-5a77-4d6c-9a51-8e900f2b9c1e".to_owned(),
        devices: vec![DEVICE.to_owned()],
        message: format!("granted {DEVICE}"),
        by: Asker { uid: Some(0), gid: Some(0), pid: Some(4711), ..Asker::default() },
        labels: labels.map(label).into(),
        ..Entry::default()
    };
    let runs = report.runs(2000);
    let times = (0..runs).map(|_| {
        let entries = vec![entry.clone()];
        timed(|| log.append(entries))
    });
    Timing::of(times.collect())
}

fn note(report: &Report, name: &str, time: Duration) {
    report.note(name, time.as_secs_f64() * 1e3, "ms");
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// A call that decides and writes nothing: what the way through the socket costs.
async fn read(mut client: NodeClient<Channel>) {
    client.get_node(GetNodeRequest {}).await.expect("the node answers");
}

async fn prepare(mut client: NodeClient<Channel>, name: &str) {
    let request = share(name, DEVICE, MEMORY_BYTES, 10);
    client.prepare_claim(request).await.expect("the share fits");
}

async fn prepare_owned(client: NodeClient<Channel>, name: String) {
    prepare(client, &name).await;
}

async fn release(mut client: NodeClient<Channel>, claim: String) {
    client.release_claim(ReleaseClaimRequest { claim }).await.expect("a claim is released");
}

/// A redb without a daemon around it, used as the ledger uses its own.
struct Bare(Database);

impl Bare {
    fn open(path: &Path) -> Self {
        let mut builder = Database::builder();
        builder.set_cache_size(1 << 20);
        Self(builder.create(path).expect("the folder takes a database"))
    }

    /// The intent, then the result: two durable commits.
    fn commit_twice(&self, name: &str) {
        for state in [0, 1] {
            self.write(|table| {
                let record = [state; RECORD_LEN];
                table.insert(name, record.as_slice()).expect("a record is written");
                table.insert("start", [state; START_LEN].as_slice()).expect("a record is written");
            });
        }
    }

    fn remove(&self, name: &str) {
        self.write(|table| drop(table.remove(name).expect("a record is removed")));
    }

    fn write(&self, change: impl FnOnce(&mut redb::Table<'_, &'static str, &'static [u8]>)) {
        let transaction = self.0.begin_write().expect("nobody else writes");
        change(&mut transaction.open_table(RECORDS).expect("the table is of this type"));
        transaction.commit().expect("the disk takes a commit");
    }
}
