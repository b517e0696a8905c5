//! One process of a tenant: `cuda-tenant`, which lies beside this program, and does what it is
//! told line by line.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};

pub(crate) struct Tenant {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Tenant {
    /// A tenant that loads `libcuda`.
    pub(crate) fn start(libcuda: &Path) -> anyhow::Result<Self> {
        Self::spawn(&mut command(libcuda)?)
    }

    pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("`cuda-tenant` cannot be run")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let input = input.context("the tenant has no input")?;
        let output = BufReader::new(output.context("the tenant has no output")?);
        Ok(Self { child, input, output })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.input, "{line}").with_context(|| format!("the tenant takes no `{line}`"))
    }

    /// The answer to the earliest line that has none yet.
    pub(crate) fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the tenant ended: {}", self.child.wait()?);
        }
        match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
            ("ok", rest) => Ok(rest.to_owned()),
            (_, rest) => bail!("{rest}"),
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.send(line)?;
        self.answer()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `cuda-tenant` with that library; a bare name is for the loader to find.
pub(crate) fn command(libcuda: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(beside("cuda-tenant")?);
    if let Some(folder) = libcuda.parent().filter(|folder| folder.is_absolute()) {
        command.env("LD_LIBRARY_PATH", folder);
    }
    Ok(command)
}

/// A program of the bundle.
pub(crate) fn beside(name: &str) -> anyhow::Result<OsString> {
    let me = env::current_exe()?;
    let path = me.parent().context("this program lies in no folder")?.join(name);
    if !path.exists() {
        bail!("`{}` is missing: copy the whole folder", path.display());
    }
    Ok(path.into())
}
