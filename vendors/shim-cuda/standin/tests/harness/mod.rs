//! An engine, and tenants that are processes of their own and load the stand-in as `libcuda.so.1`.

#![allow(dead_code, reason = "each suite uses a part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use accelpool_cuda_engine::{Engine, machine::Machine};
use tempfile::TempDir;

pub(crate) struct Node {
    dir: TempDir,
    pub(crate) engine: Engine,
}

impl Node {
    pub(crate) fn new(machine: Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(standin(), dir.path().join("libcuda.so.1")).unwrap();
        let engine = Engine::start(machine, &dir.path().join("engine.sock")).unwrap();
        Self { dir, engine }
    }

    pub(crate) fn tenant(&self) -> Tenant {
        self.tenant_with(&[])
    }

    pub(crate) fn tenant_with(&self, variables: &[(&str, &str)]) -> Tenant {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-tenant"));
        command.env("LD_LIBRARY_PATH", self.dir.path());
        command.env("ACCELPOOL_CUDA_STANDIN", self.engine.socket());
        command.envs(variables.iter().copied());
        let mut tenant = Tenant::spawn(command);
        assert_eq!(tenant.ask("start 0"), "ok");
        tenant
    }
}

/// A tenant's process; killed when this is dropped.
pub(crate) struct Tenant {
    pub(crate) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Tenant {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.answer()
    }

    /// Asks for what must succeed, and gives what it answers.
    pub(crate) fn must(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        let rest = answer.strip_prefix("ok");
        rest.unwrap_or_else(|| panic!("`{line}` gave `{answer}`")).trim().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The library as cargo has built it for this test: the newest beside the test and below it.
fn standin() -> PathBuf {
    let test = env::current_exe().unwrap();
    let folders = test.ancestors().skip(1).take(2).map(Path::to_owned);
    let files = folders.map(|folder| folder.join("libaccelpool_cuda_standin.so"));
    let dated = files.filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)));
    dated.max().expect("cargo has built the stand-in").1
}
