//! For suites and benches: tenants that are processes of their own and do what they are told, and
//! where cargo has put the stand-in that they load.
#![expect(
    clippy::missing_panics_doc,
    reason = "all of it ends where something is not as it must be"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process that answers each line with one; killed when this is dropped.
#[derive(Debug)]
pub struct Tenant {
    /// The process.
    pub child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Tenant {
    /// Runs a command as a tenant.
    ///
    /// # Errors
    ///
    /// It cannot be run.
    pub fn try_spawn(command: &mut Command) -> anyhow::Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{command:?} does not run"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let input = input.context("the tenant has no input")?;
        let output = BufReader::new(output.context("the tenant has no output")?);
        Ok(Self { child, input, output })
    }

    /// Tells it what to do, without waiting for the answer.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn try_send(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.input, "{line}").with_context(|| format!("the tenant takes no `{line}`"))
    }

    /// What it answers to the earliest line that has no answer yet.
    ///
    /// # Errors
    ///
    /// It has ended, or says that this failed.
    pub fn try_answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line).context("the tenant answers no text")? == 0 {
            bail!("the tenant ended: {}", self.child.wait()?);
        }
        match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, rest) => bail!("{rest}"),
        }
    }

    /// Tells it what to do and waits for the answer.
    ///
    /// # Errors
    ///
    /// As those of [`Self::try_answer`].
    pub fn try_ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.try_send(line)?;
        self.try_answer()
    }

    /// Runs a command as a tenant.
    #[must_use]
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        Self::try_spawn(&mut command).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Tells it what to do, without waiting for the answer.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        self.try_send(line).expect("the tenant listens");
    }

    /// Waits for its next answer; empty if it has ended.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the tenant answers in text");
        line.trim_end().to_owned()
    }

    /// Tells it what to do and waits for the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.answer()
    }

    /// Asks for what must succeed, and gives what it answers.
    #[track_caller]
    pub fn must(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        let rest = answer.strip_prefix("ok");
        rest.unwrap_or_else(|| panic!("`{line}` gave `{answer}`")).trim().to_owned()
    }

    /// Bytes that are free and bytes in all, as CUDA tells the tenant.
    #[track_caller]
    pub fn info(&mut self) -> (u64, u64) {
        let answer = self.must("info");
        let number = |index| answer.split(' ').nth(index).and_then(|it: &str| it.parse().ok());
        number(0).zip(number(1)).unwrap_or_else(|| panic!("`info` gave `{answer}`"))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id is positive")
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("a child can be signalled");
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The stand-in as cargo has built it for the running program, which must depend on it: the
/// newest beside the program and in the folder above.
#[must_use]
pub fn standin() -> PathBuf {
    let program = env::current_exe().expect("a running program has a path");
    let folders = program.ancestors().skip(1).take(2).map(Path::to_owned);
    let files = folders.map(|folder| folder.join("libaccelpool_cuda_standin.so"));
    let dated = files.filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)));
    dated.max().expect("cargo has built the stand-in").1
}
