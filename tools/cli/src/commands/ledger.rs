//! `accelpool ledger`: hands over to `accelpoold ledger`.
//!
//! The way out of a damaged ledger, when the daemon refuses to start. Only accelpoold knows
//! the ledger's format, so this program becomes accelpoold and reads nothing itself.

use std::{env, os::unix::process::CommandExt, path::PathBuf, process};

use crate::{args::LedgerCommand, failure::Failure};

const PROGRAM: &str = "accelpoold";

/// Comes back only with the reason why it did not work.
pub(super) fn run(command: LedgerCommand) -> Failure {
    let (verb, rest) = match command {
        LedgerCommand::Export(given) => ("export", given.arguments),
        LedgerCommand::Import(given) => ("import", given.arguments),
    };
    let program = program();
    let source = process::Command::new(&program).args(["ledger", verb]).args(rest).exec();
    Failure::Exec { program, source }
}

/// The daemon's program beside this one, else whatever PATH has.
fn program() -> PathBuf {
    let beside = env::current_exe().ok().map(|program| program.with_file_name(PROGRAM));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PathBuf::from(PROGRAM))
}
