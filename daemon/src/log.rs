//! The log: `tracing` events on standard error, as text or as lines of JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::Log;

/// Starts the log. Later calls change nothing.
pub fn start(log: &Log) {
    // The configuration has shown that the filter is valid.
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a log was started before, by a test.
    let _ = if log.json { builder.json().try_init() } else { builder.try_init() };
}
