//! What the bench programs share: how a figure is measured, and the line it is printed on.
//!
//! A bench is a plain program that prints one line per figure with its budget beside it
//! and fails if one is over. No statistics beyond that: a budget is a promise, not a trend.

#![forbid(unsafe_code)]

pub mod node;

use std::{
    env, fs,
    process::ExitCode,
    time::{Duration, Instant},
};

/// How long a piece of work took, over many runs.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Half of the runs took no longer.
    pub median: Duration,
    /// 99 of 100 runs took no longer.
    pub p99: Duration,
}

impl Timing {
    /// What `times`, at least one, come to.
    ///
    /// # Panics
    ///
    /// Without a time.
    #[must_use]
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let runs = times.len();
        Self { median: times[runs / 2], p99: times[(runs * 99 / 100).min(runs - 1)] }
    }
}

/// The memory of a process that is in RAM; pages of files that two share count for each.
///
/// # Panics
///
/// If it has ended.
#[must_use]
pub fn resident_mib(id: u32) -> f64 {
    mib(id, "status", "VmRSS:")
}

/// The same; of a page that `n` processes share, an `n`th.
///
/// # Panics
///
/// If it has ended.
#[must_use]
pub fn proportional_mib(id: u32) -> f64 {
    mib(id, "smaps_rollup", "Pss:")
}

/// What a line of a file in procfs says in kB.
fn mib(id: u32, file: &str, key: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{id}/{file}")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u32 = kib.and_then(|kib| kib.parse().ok()).expect("the kernel writes kB");
    f64::from(kib) / 1024.0
}

/// The lines of one bench program.
#[derive(Debug)]
pub struct Report {
    judged: bool,
    over: bool,
}

impl Report {
    /// Begins a report. Figures are judged under `cargo bench`; `cargo test --all-targets`,
    /// which starts the program without `--bench`, only sees that each case runs.
    #[must_use]
    pub fn begin() -> Self {
        let judged = env::args().any(|argument| argument == "--bench");
        println!("{:<44} {:>14} {:>14}", "name", "figure", "budget");
        Self { judged, over: false }
    }

    /// Times `work`, `runs` times after as many as a tenth of that to warm up.
    pub fn time<T>(&self, runs: usize, mut work: impl FnMut() -> T) -> Timing {
        let runs = self.runs(runs);
        let mut times: Vec<Duration> = Vec::with_capacity(runs);
        for run in 0..runs + runs / 10 {
            let start = Instant::now();
            std::hint::black_box(work());
            let time = start.elapsed();
            if run >= runs / 10 {
                times.push(time);
            }
        }
        Timing::of(times)
    }

    /// True under `cargo bench`.
    #[must_use]
    pub const fn is_judged(&self) -> bool {
        self.judged
    }

    /// `runs` under `cargo bench`, else one: enough to see that a case works.
    #[must_use]
    pub fn runs(&self, runs: usize) -> usize {
        if self.judged { runs.max(1) } else { 1 }
    }

    /// Prints a figure beside the most it may be, both in `unit`.
    pub fn line(&mut self, name: &str, figure: f64, budget: f64, unit: &str) {
        let over = figure > budget;
        self.over |= over;
        let verdict = match (self.judged, over) {
            (true, true) => "OVER",
            (true, false) => "ok",
            (false, _) => "not judged",
        };
        let figure = format!("{figure:.3} {unit}");
        let budget = format!("{budget:.3} {unit}");
        println!("{name:<44} {figure:>14} {budget:>14}  {verdict}");
    }

    /// Prints a figure that has no budget of its own, but explains another.
    pub fn note(&self, name: &str, figure: f64, unit: &str) {
        println!("{name:<44} {:>14} {:>14}", format!("{figure:.3} {unit}"), "-");
    }

    /// Prints a time beside the most it may be, in milliseconds.
    pub fn time_line(&mut self, name: &str, figure: Duration, budget: Duration) {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        self.line(name, milliseconds(figure), milliseconds(budget), "ms");
    }

    /// Ends the report: a failure if a figure that is judged was over its budget.
    #[must_use]
    pub fn end(self) -> ExitCode {
        if self.judged && self.over { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
