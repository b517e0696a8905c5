//! `turns`: what sharing a GPU by turns costs and gives, as tables.
//!
//! First the probe, which decides how devices of this kind are shared; then one table after the
//! other, with a daemon of this folder in a temporary one, on one device, natively and with
//! accelpool in the same minutes. No setting is changed; a device that somebody uses is refused.

mod book;
mod fair;
mod hold;
mod probe;
mod scene;
mod work;

use std::{path::PathBuf, process::ExitCode, time::Duration, time::Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use nix::sys::utsname::uname;
use serde_json::Value;

use self::{
    book::{Book, Sheet},
    scene::{Measures, Scene},
};
use crate::{
    check::{exit_code, listen},
    look::settings,
    place::Place,
    report::{Report, Row, Verdict},
    sample,
};

/// The driver takes a moment to forget our own tenants.
const FORGOTTEN_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// The GPU to measure, by its identity `GPU-...` [default: CUDA's first].
    #[arg(long, value_name = "UUID")]
    device: Option<String>,
    /// Only this part, given more than once each of them [default: all]. `settings` is always done.
    #[arg(long, value_enum, value_name = "PART")]
    part: Vec<Part>,
    /// A few milliseconds of each, to see that everything can be measured.
    #[arg(long)]
    short: bool,
    /// Where to write report.md and a file of tab-separated values for each table.
    #[arg(long, value_name = "DIR", default_value = "accelpool-hw-turns")]
    out: PathBuf,
    /// Seconds without a sign of life after which NVML is taken for hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=600))]
    patience: u64,
}

/// What is measured, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What decides how devices of this kind are shared.
    Probe,
    /// Right results.
    Sanity,
    /// What a launch costs.
    Launch,
    /// Throughput of one tenant.
    Throughput,
    /// Shares of 2, 3 and 8 tenants.
    Shares,
    /// Hard caps.
    Caps,
    /// Latency of a real-time tenant.
    Latency,
    /// Memory quota.
    Quota,
    /// Processes that are killed and stopped, a daemon that dies.
    Faults,
}

impl Part {
    fn measure(self, scene: &Scene) -> anyhow::Result<Sheet> {
        match self {
            Self::Probe => Ok(probe::sheet(scene)),
            Self::Sanity => work::sanity(scene),
            Self::Launch => work::launch(scene),
            Self::Throughput => work::throughput(scene),
            Self::Shares => fair::shares(scene),
            Self::Caps => fair::caps(scene),
            Self::Latency => fair::latency(scene),
            Self::Quota => hold::quota(scene),
            Self::Faults => hold::faults(scene),
        }
    }

    fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned())
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let heard = listen(&options.place, options.patience, true)?;
    let died = heard.rows.iter().any(|row| row.verdict == Verdict::Failed);
    if let Some(outcome) = heard.outcome.or(died.then_some("failed")) {
        print!("{}", Report::new(outcome, heard.rows).table());
        return Ok(exit_code(outcome));
    }
    let before = heard.snapshot.context("NVML was looked at")?;
    let measures = if options.short { Measures::SHORT } else { Measures::FULL };
    let scene = match Scene::new(&options.place, options.device.as_deref(), measures) {
        Ok(scene) => scene,
        Err(error) => {
            let (check, detail) = ("a_tenant_of_cuda_runs".to_owned(), format!("{error:#}"));
            let row = Row { check, verdict: Verdict::Failed, detail };
            print!("{}", Report::new("absent", vec![row]).table());
            return Ok(exit_code("absent"));
        }
    };
    let mut book = Book::new(&options.out, head(options, &scene, &before)?)?;
    let mut figures = figures();
    let all: Vec<Part> = Part::value_variants().to_vec();
    for part in if options.part.is_empty() { all } else { options.part.clone() } {
        let start = Instant::now();
        note(&mut figures, &scene, part, "begin");
        match scene.part(|| part.measure(&scene)) {
            Ok(sheet) => book.add(sheet)?,
            Err(error) => {
                let mut sheet = Sheet::new("failed", "Not measured", "A part that ended.", &[]);
                sheet.must(false, || format!("{}: {error:#}", part.word()));
                book.add(sheet)?;
            }
        }
        note(&mut figures, &scene, part, "end");
        println!("{}: {:.1} s", part.word(), start.elapsed().as_secs_f64());
    }
    book.add(figures)?;
    book.add(unchanged(options, &before)?)?;
    let broken: Vec<String> = book.broken().collect();
    for broken in &broken {
        println!("does not hold: {broken}");
    }
    println!("written to `{}`", options.out.display());
    Ok(exit_code(if broken.is_empty() { "passed" } else { "failed" }))
}

/// What the report says first: which machine it was.
fn head(options: &Options, scene: &Scene, machine: &Value) -> anyhow::Result<String> {
    let devices = machine["devices"].as_array();
    let ours = |it: &&Value| {
        it["uuid"].as_str().is_some_and(|uuid| uuid.eq_ignore_ascii_case(&scene.uuid))
    };
    let device = devices.into_iter().flatten().find(ours);
    let name = device.and_then(|it| it["name"].as_str()).unwrap_or("a device NVML does not list");
    let host = uname()?;
    let cpus = std::thread::available_parallelism()?;
    let mut doubts = String::new();
    if options.short {
        doubts +=
            "\n\n**A short run: it shows that all can be measured, and measures nothing well.**";
    }
    if scene.is_played() {
        doubts += "\n\n**A stand-in plays the driver: this is no measurement of a GPU.**";
    }
    Ok(format!(
        "# Turns on {name}\n\n`accelpool-hw turns` {} on one {name} with {} MiB, driver {}, Linux {}, \
         {cpus} CPUs; {} turns of the kernels' loop in a microsecond.{doubts}\n\n",
        env!("CARGO_PKG_VERSION"),
        scene.memory_mib,
        machine["driver_version"].as_str().unwrap_or("unknown"),
        host.release().to_string_lossy(),
        scene.scale,
    ))
}

fn figures() -> Sheet {
    Sheet::new(
        "figures",
        "The device meanwhile",
        "Clocks, temperature, power and what slows the device down, around each part.",
        &["part", "when", "figures"],
    )
}

fn note(figures: &mut Sheet, scene: &Scene, part: Part, when: &str) {
    let figure = |(name, value): &(String, String)| format!("{name} {value}");
    let text = match sample::take(&scene.place, &scene.uuid, Duration::ZERO) {
        Ok(look) => look.figures.iter().map(figure).collect::<Vec<_>>().join(", "),
        Err(error) => format!("not known: {error:#}"),
    };
    figures.row([part.word(), when.to_owned(), text]);
}

/// What an operator has set is as it was.
fn unchanged(options: &Options, before: &Value) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "settings",
        "Settings",
        "The card's settings before and after.",
        &["what", "is"],
    );
    let until = Instant::now() + FORGOTTEN_WAIT;
    let heard = loop {
        let heard = listen(&options.place, options.patience, true)?;
        if heard.outcome.is_none() || Instant::now() > until {
            break heard;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let left: Vec<String> = heard.rows.iter().map(|row| row.detail.clone()).collect();
    sheet.must(heard.outcome.is_none(), || format!("the device is not left idle: {left:?}"));
    let after = heard.snapshot.context("NVML was looked at")?;
    let (before, after) = (settings(before), settings(&after));
    sheet.must(before == after, || format!("{before:?} became {after:?}"));
    let same = if before == after { "unchanged" } else { "changed" };
    sheet.row(["mode, compute mode, persistence, accounting".to_owned(), same.to_owned()]);
    Ok(sheet)
}
