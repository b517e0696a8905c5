//! What the daemon costs a node that does nothing: memory with 8 devices and 100 leases, and
//! processor time. DESIGN, section 8 gives both programs 40 MiB; the daemon and its worker
//! may have 24 of them, so that 16 are left for what speaks to Kubernetes.

use std::{process::ExitCode, time::Duration};

use accelpool_benches::{
    Report,
    node::{Daemon, Home, processor_time, share},
    resident_mib,
};

const LEASES: usize = 100;
const MEMORY_BUDGET_MIB: f64 = 24.0;
/// Of one core, both processes together.
const IDLE_BUDGET_PERCENT: f64 = 1.0;
const IDLE: Duration = Duration::from_secs(10);

/// The devices of `dgx-h100`.
const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];

fn main() -> ExitCode {
    let mut report = Report::begin();
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    fill(&daemon);

    let workers = daemon.workers();
    let own = resident_mib(daemon.id());
    let theirs: f64 = workers.iter().copied().map(resident_mib).sum();
    report.note("resident, 8 devices, 100 leases, daemon", own, "MiB");
    report.note("resident, 8 devices, 100 leases, worker", theirs, "MiB");
    report.line("resident, 8 devices, 100 leases", own + theirs, MEMORY_BUDGET_MIB, "MiB");

    let processes: Vec<_> = workers.into_iter().chain([daemon.id()]).collect();
    let used = || processes.iter().copied().map(processor_time).sum::<Duration>();
    let before = used();
    // The one figure that takes time to come about; nothing is waited for.
    let idle = if report.is_judged() { IDLE } else { Duration::ZERO };
    std::thread::sleep(idle);
    let percent = used().saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    report.line("idle, share of one core", percent, IDLE_BUDGET_PERCENT, "%");
    report.end()
}

fn fill(daemon: &Daemon) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let mut client = daemon.client();
        for index in 0..LEASES {
            let device = format!("gpu-0000-{}-00-0", BUSES[index % BUSES.len()]);
            let claim = share(&format!("claim-{index}"), &device, 5 << 30, 70);
            client.prepare_claim(claim).await.expect("the share fits");
        }
    });
}
