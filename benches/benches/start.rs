//! From the start of the daemon's process until a node of 16 devices takes requests: at most
//! 300 ms (DESIGN, section 8). Before that it has read the topology of this machine and its
//! ledger, started the vendor's worker, and brought the node in line.

use std::{process::ExitCode, time::Duration};

use accelpool_benches::{
    Report, Timing,
    node::{Home, profile, share},
};
use accelpool_proto::node::GetNodeRequest;
use tokio::runtime::Runtime;

const DEVICES: usize = 16;
const LEASES: usize = 100;
const BUDGET: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let mut report = Report::begin();
    let runs = report.runs(20);

    let first = Timing::of((0..runs).map(|_| ready_after(&Home::new(&profile(DEVICES)))).collect());
    report.time_line("start, 16 devices, empty ledger, median", first.median, BUDGET);
    report.time_line("start, 16 devices, empty ledger, p99", first.p99, BUDGET);

    let home = Home::new(&profile(DEVICES));
    fill(&home);
    let again = Timing::of((0..runs).map(|_| ready_after(&home)).collect());
    report.time_line("start, 16 devices, 100 leases, median", again.median, BUDGET);
    report.time_line("start, 16 devices, 100 leases, p99", again.p99, BUDGET);
    report.end()
}

/// How long a start takes; that the daemon is ready by then is checked afterwards.
fn ready_after(home: &Home) -> Duration {
    let daemon = home.start();
    let node = runtime().block_on(async { daemon.client().get_node(GetNodeRequest {}).await });
    let node = node.expect("the node answers").into_inner();
    assert_eq!(node.state, "ready", "{:?}", node.vendors);
    daemon.ready_after
}

fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made")
}

/// Prepares the leases, then kills the daemon: the next one finds them.
fn fill(home: &Home) {
    let daemon = home.start();
    runtime().block_on(async {
        let mut client = daemon.client();
        for index in 0..LEASES {
            let device = format!("gpu-0000-{:02x}-00-0", index % DEVICES + 1);
            let claim = share(&format!("claim-{index}"), &device, 4 << 30, 100);
            client.prepare_claim(claim).await.expect("the share fits");
        }
    });
}
