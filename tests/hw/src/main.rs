//! `accelpool-hw`: what can only be known on a real GPU, as one program to carry there.
//!
//! `check` runs the conformance suite and compares inventory, usage and events with other
//! sources. It needs the driver and nothing else, refuses a GPU that somebody uses, changes no
//! setting, and leaves a report and a snapshot of NVML's answers that the stand-in replays.

#![forbid(unsafe_code)]

mod busy;
mod check;
mod look;
mod place;
mod report;
mod tenant;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::place::Place;

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
    Look(Place),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Check(options) => check::run(&options),
        Command::Look(place) => look::run(&place),
    }
}
