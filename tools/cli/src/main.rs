//! `accelpool`: the operator's view of one node's accelerators.
//!
//! Speaks the node API on the daemon's unix socket and nothing else: it opens no device,
//! reads no ledger and holds no state of its own. What it prints as JSON or YAML is a
//! stable format (`document`); what it prints as text is for people and may change.

#![forbid(unsafe_code)]

mod args;
mod canvas;
mod client;
mod commands;
mod doctor;
mod document;
mod failure;
mod output;
mod quantity;
mod topology;
mod usage;

use std::{process::ExitCode, time::SystemTime};

use clap::Parser;

use crate::{args::Arguments, output::Console};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let now_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let console = Console::new(arguments.output, arguments.color, now_ms);
    match commands::run(arguments, &console).await {
        Ok(exit) => exit,
        Err(failure) => {
            console.report(&failure);
            failure.exit().into()
        }
    }
}
