//! `accelpool ledger` and `accelpool audit`: hand over to `accelpoold`.
//!
//! The way out of a damaged ledger, when the daemon refuses to start. Only accelpoold knows
//! the formats of the ledger and of the audit log, so this program becomes accelpoold and reads nothing itself.

use std::{env, ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process};

use crate::{
    args::{AuditCommand, LedgerCommand},
    failure::Failure,
};

const PROGRAM: &str = "accelpoold";

/// Comes back only with the reason why it did not work.
pub(super) fn run(command: LedgerCommand) -> Failure {
    let (verb, rest) = match command {
        LedgerCommand::Export(given) => ("export", given.arguments),
        LedgerCommand::Import(given) => ("import", given.arguments),
    };
    hand_over("ledger", verb, rest)
}

/// Comes back only with the reason why it did not work.
pub(super) fn run_audit(command: AuditCommand) -> Failure {
    let (verb, rest) = match command {
        AuditCommand::Verify(given) => ("verify", given.arguments),
        AuditCommand::Show(given) => ("show", given.arguments),
    };
    hand_over("audit", verb, rest)
}

fn hand_over(noun: &str, verb: &str, rest: Vec<OsString>) -> Failure {
    let program = program();
    let source = process::Command::new(&program).args([noun, verb]).args(rest).exec();
    Failure::Exec { program, source }
}

/// The daemon's program beside this one, else whatever PATH has.
fn program() -> PathBuf {
    let beside = env::current_exe().ok().map(|program| program.with_file_name(PROGRAM));
    beside.filter(|program| program.is_file()).unwrap_or_else(|| PathBuf::from(PROGRAM))
}
