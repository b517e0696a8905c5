//! One file per command: ask the daemon, then lay out the answer.

mod claim;
mod claims;
mod completion;
mod devices;
mod doctor;
mod explain;
mod gate;
mod holders;
mod ledger;
mod partitions;
mod pools;
mod quiesce;
mod reload;
mod run;
mod snapshot;
mod status;
mod taint;
mod top;
mod topology;
mod usage;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use accelpool_proto::node::DEFAULT_SOCKET;

use crate::{
    args::{Arguments, ClaimCommand, Command},
    client::Client,
    failure::Failure,
    output::{Console, progress},
};

/// Does what the command line says.
pub(crate) async fn run(arguments: Arguments, console: &Console) -> Result<ExitCode, Failure> {
    let socket = arguments.socket.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let connect = || Client::connect(&socket, arguments.timeout, progress());
    let done = match arguments.command {
        Command::Run(wanted) => return run::run(async || connect().await, *wanted).await,
        Command::Held(wanted) => return Ok(run::become_held(wanted, console)),
        Command::Devices => devices::run(&connect().await?, console).await,
        Command::Partitions(wanted) => partitions::run(&connect().await?, console, wanted).await,
        Command::Claims => claims::run(&connect().await?, console).await,
        Command::Gate => gate::run(&connect().await?, console).await,
        Command::Holders(wanted) => holders::run(&connect().await?, console, wanted.device).await,
        Command::Verify(wanted) => verify::run(&connect().await?, console, wanted.claim).await,
        Command::Pools => pools::run(&connect().await?, console).await,
        Command::Topology(wanted) => {
            topology::run(&connect().await?, console, wanted.svg.as_deref()).await
        }
        Command::Usage(wanted) => usage::run(&connect().await?, console, wanted).await,
        Command::Explain(wanted) => explain::run(&connect().await?, console, &wanted.claim).await,
        Command::Claim(ClaimCommand::Create(wanted)) => {
            let mut request = claim::request(wanted.name, &wanted.wanted)?;
            request.bindings = claim::bindings(wanted.cgroup);
            claim::create(&connect().await?, console, request).await
        }
        Command::Claim(ClaimCommand::Release(wanted)) => {
            claim::release(&connect().await?, console, &wanted.names).await
        }
        Command::Taint(wanted) => taint::taint(&connect().await?, console, wanted).await,
        Command::Untaint(wanted) => taint::untaint(&connect().await?, console, wanted).await,
        Command::Top(wanted) => top::run(&connect().await?, console, wanted.once).await,
        Command::Status => status::run(&connect().await?, console).await,
        Command::Snapshot => snapshot::run(&connect().await?, console).await,
        Command::Doctor(wanted) => {
            doctor::run(console, &wanted.root, arguments.socket, arguments.timeout).await
        }
        Command::Quiesce(wanted) => {
            quiesce::run(&connect().await?, console, wanted.vendor, wanted.length).await
        }
        Command::Resume(wanted) => quiesce::resume(&connect().await?, console, wanted.vendor).await,
        Command::Reload => reload::run(&connect().await?, console).await,
        Command::Ledger(command) => Err(ledger::run(command)),
        Command::Completion(wanted) => completion::run(wanted.shell),
    };
    done.map(|()| ExitCode::SUCCESS)
}
