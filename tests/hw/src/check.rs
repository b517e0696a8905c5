//! `check`: has a child look at the machine, and writes down what it says.
//!
//! Only the child loads the library. One that says nothing for too long is killed.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    place::Place,
    report::{Report, Row, Verdict},
};

/// Lines of a child; a library may print too.
const LINES_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) place: Place,
    /// How to print the report.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where to write report.md, report.json and snapshot.json.
    #[arg(long, value_name = "DIR", default_value = "accelpool-hw-report")]
    out: PathBuf,
    /// Seconds without a sign of life after which the library is taken for hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=600))]
    patience: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What the child says, one on a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// What comes next.
    Begin(String),
    Row(Row),
    /// NVML's answers.
    Snapshot(Value),
    /// The machine may not be touched.
    Refused(Vec<String>),
    /// There is nothing to look at.
    Absent(String),
    /// All was looked at.
    End,
}

/// What is known once the child is gone.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) rows: Vec<Row>,
    pub(crate) snapshot: Option<Value>,
    /// `refused` or `absent`; none if it was looked at.
    pub(crate) outcome: Option<&'static str>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let heard = listen(&options.place, options.patience, false)?;
    let failed = heard.rows.iter().any(|row| row.verdict == Verdict::Failed);
    let outcome = heard.outcome.unwrap_or(if failed { "failed" } else { "passed" });
    let report = Report::new(outcome, heard.rows);
    write(&options.out, &report, heard.snapshot.as_ref())?;
    match options.output {
        Output::Table => {
            print!("{}", report.table());
            println!("written to `{}`", options.out.display());
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(exit_code(outcome))
}

pub(crate) fn exit_code(outcome: &str) -> ExitCode {
    match outcome {
        "passed" => 0,
        "failed" => 1,
        "refused" => 2,
        _ => 3,
    }
    .into()
}

fn write(out: &Path, report: &Report, snapshot: Option<&Value>) -> anyhow::Result<()> {
    let put = |name: &str, text: String| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
    };
    fs::create_dir_all(out).with_context(|| format!("cannot make `{}`", out.display()))?;
    put("report.md", report.markdown())?;
    put("report.json", serde_json::to_string_pretty(report)? + "\n")?;
    if let Some(snapshot) = snapshot {
        put("snapshot.json", serde_json::to_string_pretty(snapshot)? + "\n")?;
    }
    Ok(())
}

/// The child; it is killed when this is dropped.
struct Looking(Child);

impl Drop for Looking {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has a child look, `brief`ly if only at whether it may; silence of `patience` seconds ends it.
pub(crate) fn listen(place: &Place, patience: u64, brief: bool) -> anyhow::Result<Heard> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("look").args(place.arguments()).args(brief.then_some("--brief"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Looking(command.spawn().context("cannot run this program again")?);
    let out = child.0.stdout.take().context("the child has no output")?;
    let lines = read(out);

    let (mut heard, mut now) = (Heard::default(), "to start".to_owned());
    loop {
        let failed = match lines.recv_timeout(Duration::from_secs(patience)) {
            Ok(Said::Begin(what)) => {
                now = what;
                continue;
            }
            Ok(Said::End) => return Ok(heard),
            Ok(said) => {
                heard.take(said);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                heard.outcome = Some("absent");
                format!("no sign of life for {patience} s: the library hangs")
            }
            Err(RecvTimeoutError::Disconnected) if heard.outcome.is_some() => return Ok(heard),
            Err(RecvTimeoutError::Disconnected) => {
                format!("the process that looks ended: {}", child.0.wait()?)
            }
        };
        heard.rows.push(Row { check: now, verdict: Verdict::Failed, detail: failed });
        return Ok(heard);
    }
}

impl Heard {
    fn take(&mut self, said: Said) {
        let row = |check: &str, verdict, detail| Row { check: check.to_owned(), verdict, detail };
        match said {
            Said::Row(row) => self.rows.push(row),
            Said::Snapshot(snapshot) => self.snapshot = Some(snapshot),
            Said::Refused(reasons) => {
                self.outcome = Some("refused");
                let failed = |why| row("nobody_uses_the_machine", Verdict::Failed, why);
                self.rows.extend(reasons.into_iter().map(failed));
            }
            Said::Absent(why) => {
                self.outcome = Some("absent");
                self.rows.push(row("the_library_answers", Verdict::Failed, why));
            }
            Said::Begin(_) | Said::End => {}
        }
    }
}

/// What a child says, as it comes; what is not ours is passed on.
fn read(out: ChildStdout) -> mpsc::Receiver<Said> {
    let (to, from) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok).take(LINES_MAX) {
            match serde_json::from_str(&line) {
                Ok(said) => {
                    if to.send(said).is_err() {
                        return;
                    }
                }
                Err(_) => eprintln!("{line}"),
            }
        }
    });
    from
}
