//! `accelpool snapshot`: all that the daemon knows, for a bug report.

use serde::Serialize;

use crate::{
    args::Format,
    client::Client,
    document::{Device, Finding, GetNodeResponse, GetTopologyResponse, Lease, Partition, Pool},
    failure::Failure,
    output::{Console, print_json},
};

#[derive(Serialize)]
struct Document {
    cli_version: &'static str,
    node: GetNodeResponse,
    devices: Vec<Device>,
    partitions: Vec<Partition>,
    pools: Vec<Pool>,
    leases: Vec<Lease>,
    topology: GetTopologyResponse,
    findings: Vec<Finding>,
}

pub(super) async fn run(client: &Client, console: &Console) -> Result<(), Failure> {
    let document = Document {
        cli_version: env!("CARGO_PKG_VERSION"),
        node: client.node().await?,
        devices: client.devices().await?,
        partitions: client.partitions(None, false).await?,
        pools: client.pools().await?,
        leases: client.leases().await?,
        topology: client.topology().await?,
        findings: client.diagnose().await?,
    };
    match console.format() {
        // A snapshot is for programs and for people far away: there is no table of it.
        Format::Table | Format::Wide => print_json(&document),
        Format::Json | Format::Yaml => console.print(&document, |_| {}),
    }
}
