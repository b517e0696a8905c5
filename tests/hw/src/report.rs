//! What was found, as rows: for people as a table, for programs as JSON, for docs as Markdown.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// A table of text is cut to this width, a file is not.
const WIDTH: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Passed,
    Failed,
    /// It could not be tried; the detail says why.
    Skipped,
    /// A fact that is neither good nor bad.
    Noted,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) check: String,
    pub(crate) verdict: Verdict,
    #[serde(default)]
    pub(crate) detail: String,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// `passed`, `failed`, `refused` or `absent`.
    pub(crate) outcome: &'static str,
    pub(crate) version: &'static str,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(outcome: &'static str, rows: Vec<Row>) -> Self {
        Self { outcome, version: env!("CARGO_PKG_VERSION"), rows }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    fn sum(&self) -> String {
        let of = |verdict| self.count(verdict);
        format!(
            "{}: {} passed, {} failed, {} skipped",
            self.outcome,
            of(Verdict::Passed),
            of(Verdict::Failed),
            of(Verdict::Skipped)
        )
    }

    pub(crate) fn table(&self) -> String {
        let wide = self.rows.iter().map(|row| row.check.chars().count()).max().unwrap_or(0).max(5);
        let mut text = format!("{:wide$}  {:8}  DETAIL\n", "CHECK", "VERDICT");
        for row in &self.rows {
            let mut line = format!("{:wide$}  {:8}  ", row.check, row.verdict.word());
            let room = WIDTH.saturating_sub(line.chars().count());
            let whole = row.verdict == Verdict::Failed || row.detail.chars().count() <= room;
            if whole {
                line.push_str(&row.detail);
            } else {
                line.extend(row.detail.chars().take(room.saturating_sub(1)));
                line.push('…');
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.sum());
        text.push('\n');
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# accelpool-hw check {}\n\n{}\n\n", self.version, self.sum());
        text.push_str("| Check | Verdict | Detail |\n|---|---|---|\n");
        for row in &self.rows {
            let detail = row.detail.replace('|', "\\|").replace('\n', " ");
            let written = writeln!(text, "| {} | {} | {detail} |", row.check, row.verdict.word());
            written.expect("a string takes any text");
        }
        text
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Noted => "noted",
        }
    }
}
