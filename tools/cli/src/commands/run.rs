//! `accelpool run`: a claim around one command.
//!
//! The claim is held by this process in the daemon's eyes: should it be killed, the daemon
//! releases it, and the kernel ends the command. In between stands `held`, this same program,
//! which becomes the command once it has asked the kernel for that. Where the device gate holds
//! this process, the command gets a cgroup that the claim is bound to.

mod place;

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{self, ExitCode, ExitStatus},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpgrp, getppid, tcgetpgrp},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Stream, SignalKind, signal},
};

use self::place::Place;
use super::claim;
use crate::{
    args::{HeldArguments, RunArguments},
    client::Client,
    failure::{Failure, chain},
    output::{Console, note},
};

/// What shells answer if a command cannot be run, or is not there.
const NOT_RUN: u8 = 126;
const NOT_THERE: u8 = 127;

/// What libraries are loaded into the command before all others.
const PRELOAD: &str = "LD_PRELOAD";

/// Claims, runs, releases; the exit code is the command's.
pub(super) async fn run(
    connect: impl AsyncFn() -> Result<Client, Failure>,
    arguments: RunArguments,
) -> Result<ExitCode, Failure> {
    let client = connect().await?;
    let name = arguments.name.unwrap_or_else(|| format!("run-{}", process::id()));
    let mut request = claim::request(name.clone(), &arguments.wanted)?;
    request.held = true;
    let place = Place::below_gate(&client.gate().await?).map_err(Failure::Place)?;
    request.bindings = claim::bindings(place.iter().map(|it| it.path().to_owned()).collect());
    // Heard from here on, so that none ends this process while it holds the claim.
    let mut signals = Signals::new().map_err(Failure::Signals)?;
    let prepared = tokio::select! {
        prepared = client.prepare(request) => prepared?,
        (signal, _) = signals.any() => {
            // It may be granted all the same, so it is given back.
            client.release(&name).await?;
            return Ok(exit_of_signal(signal as i32));
        }
    };
    let (_, environment) = prepared;
    let ended = match start(&name, &arguments.command, &environment, place.as_ref()) {
        Ok(child) => wait(child, signals).await,
        Err(error) => Err(error),
    };
    // The daemon may have been replaced meanwhile, and the connection with it.
    if let Err(failure) = async { connect().await?.release(&name).await }.await {
        note(&format!(
            "claim {name} could not be released: {}; accelpoold does it once it runs",
            chain(&failure)
        ));
    }
    let command = || arguments.command[0].to_string_lossy().into_owned();
    ended.map(exit_code).map_err(|source| Failure::Command { command: command(), source })
}

fn start(
    claim: &str,
    command: &[OsString],
    environment: &HashMap<String, String>,
    place: Option<&Place>,
) -> io::Result<Child> {
    let mut child = Command::new(env::current_exe()?);
    child.arg("held").arg(process::id().to_string());
    if let Some(place) = place {
        child.arg("--cgroup").arg(place.processes());
    }
    child.arg("--").args(command);
    child.env("ACCELPOOL_CLAIM", claim);
    for (name, value) in environment {
        match env::var_os(name) {
            // What the user has loaded stays loaded, behind ours.
            Some(own) if name == PRELOAD && !own.is_empty() => {
                let mut both = OsString::from(value);
                both.push(":");
                both.push(own);
                child.env(name, both)
            }
            _ => child.env(name, value),
        };
    }
    child.spawn()
}

/// Becomes the command. It comes back only with what the shell would answer.
pub(super) fn become_held(arguments: HeldArguments, console: &Console) -> ExitCode {
    let bound = prctl::set_pdeathsig(Signal::SIGKILL);
    // It may have ended before that.
    if bound.is_err() || getppid() != Pid::from_raw(arguments.holder) {
        return ExitCode::from(NOT_RUN);
    }
    // Before it is the command: what that starts is there as well.
    if let Some(cgroup) = &arguments.cgroup
        && let Err(source) = fs::write(cgroup, "0")
    {
        console.report(&Failure::Place(source));
        return ExitCode::from(NOT_RUN);
    }
    let mut words = arguments.command.into_iter();
    let Some(program) = words.next() else { return ExitCode::from(NOT_RUN) };
    let source = process::Command::new(&program).args(words).exec();
    let exit = if source.kind() == io::ErrorKind::NotFound { NOT_THERE } else { NOT_RUN };
    let command = program.to_string_lossy().into_owned();
    console.report(&Failure::Command { command, source });
    ExitCode::from(exit)
}

/// Signals that are for the command.
struct Signals {
    /// Passed on.
    passed: [(Signal, Stream); 4],
    /// The terminal sends them to the command itself, being of the same process group.
    typed: [(Signal, Stream); 2],
}

impl Signals {
    fn new() -> io::Result<Self> {
        let of =
            |kind: Signal| Ok::<_, io::Error>((kind, signal(SignalKind::from_raw(kind as i32))?));
        Ok(Self {
            passed: [
                of(Signal::SIGTERM)?,
                of(Signal::SIGHUP)?,
                of(Signal::SIGUSR1)?,
                of(Signal::SIGUSR2)?,
            ],
            typed: [of(Signal::SIGINT)?, of(Signal::SIGQUIT)?],
        })
    }

    /// The next one, and whether it may have been typed.
    async fn any(&mut self) -> (Signal, bool) {
        let [term, hup, usr1, usr2] = &mut self.passed;
        let [int, quit] = &mut self.typed;
        tokio::select! {
            _ = term.1.recv() => (term.0, false),
            _ = hup.1.recv() => (hup.0, false),
            _ = usr1.1.recv() => (usr1.0, false),
            _ = usr2.1.recv() => (usr2.0, false),
            _ = int.1.recv() => (int.0, true),
            _ = quit.1.recv() => (quit.0, true),
        }
    }

    /// The next one that is to be passed on.
    async fn next(&mut self) -> Signal {
        loop {
            let (signal, typed) = self.any().await;
            if !typed || !is_in_foreground() {
                return signal;
            }
        }
    }
}

/// Whether what is typed at the terminal reaches this process, and so the command as well.
fn is_in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else { return false };
    tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp())
}

async fn wait(mut child: Child, mut signals: Signals) -> io::Result<ExitStatus> {
    loop {
        tokio::select! {
            ended = child.wait() => return ended,
            signal = signals.next() => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                if let Some(pid) = pid {
                    // One that has ended needs no signal; its end comes next.
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
        }
    }
}

/// The command's own exit code, or what shells say of one that was ended by a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        (None, Some(signal)) => exit_of_signal(signal),
        (None, None) => ExitCode::FAILURE,
    }
}

fn exit_of_signal(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(1))
}
