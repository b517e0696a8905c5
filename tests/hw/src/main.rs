//! `accelpool-hw`: what can only be known on a real GPU, as one program to carry there.
//!
//! `check` runs the conformance suite and compares inventory, usage and events with other
//! sources. It needs the driver and nothing else, refuses a GPU that somebody uses, changes no
//! setting, and leaves a report and a snapshot of NVML's answers that the stand-in replays. `turns`
//! measures what sharing a GPU by turns costs and gives, with a daemon of its own.

#![forbid(unsafe_code)]

mod busy;
mod check;
mod look;
mod place;
mod report;
mod sample;
mod tenant;
mod turns;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Checks and measures accelpool on a machine with a real GPU.
///
/// Exit codes: 0 all held, 1 something did not, 2 refused (the GPU is used or set up otherwise),
/// 3 nothing to check (no driver, or a library that does not answer).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the adapter, and compare what it says with what others say.
    Check(check::Options),
    /// The part of `check` that loads the library; it may hang, and is killed then.
    #[command(hide = true)]
    Look(look::Options),
    /// What the library says of one device; it may hang, and is killed then.
    #[command(hide = true)]
    Sample(sample::Options),
    /// Measure shared GPUs: first what decides how they are shared, then table by table.
    Turns(turns::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Check(options) => check::run(&options),
        Command::Look(options) => look::run(&options),
        Command::Sample(options) => sample::run(&options),
        Command::Turns(options) => turns::run(&options),
    }
}
