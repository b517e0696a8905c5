//! The engine as a program of its own: `cuda-engine SOCKET [MACHINE.json]`, until a signal.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use accelpool_cuda_engine::{Engine, machine::Machine};
use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda-engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(socket) = arguments.next().map(PathBuf::from) else {
        bail!("usage: cuda-engine SOCKET [MACHINE.json]");
    };
    let machine = match arguments.next() {
        None => Machine::default(),
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("failed to read `{}`", path.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("`{}` describes no machine", path.display()))?
        }
    };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Before the engine's thread starts, so that it inherits the mask.
    signals.thread_block()?;
    let _engine = Engine::start(machine, &socket)?;
    signals.wait()?;
    Ok(())
}
