//! What was measured: each table as a file of tab-separated values, and all of them as one report.
//!
//! Both are written after each table, so that what is known stays if the machine goes away.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// A table, and what it must hold whatever the machine.
pub(crate) struct Sheet {
    /// The file's name.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How it was measured.
    pub(crate) method: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
    /// What is wrong on any machine: a wrong result, a quota that does not hold.
    broken: Vec<String>,
}

impl Sheet {
    pub(crate) fn new(
        name: &'static str,
        title: &'static str,
        method: &'static str,
        columns: &'static [&'static str],
    ) -> Self {
        Self { name, title, method, columns, rows: Vec::new(), broken: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// Says what is wrong if it does not hold.
    pub(crate) fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    fn tsv(&self) -> String {
        let line = |cells: Vec<String>| cells.join("\t") + "\n";
        let clean = |cell: &String| cell.replace(['\t', '\n'], " ");
        let rows = self.rows.iter().map(|row| line(row.iter().map(clean).collect()));
        line(self.columns.iter().map(|&it| it.to_owned()).collect()) + &rows.collect::<String>()
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " "));
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.method);
        for broken in &self.broken {
            write!(text, "**Does not hold: {broken}**\n\n").expect("a string takes any text");
        }
        if self.rows.is_empty() {
            return text;
        }
        let head: Vec<String> = self.columns.iter().map(|&it| it.to_owned()).collect();
        text.push_str(&line(&head));
        text.push_str(&"|---".repeat(self.columns.len()));
        text.push_str("|\n");
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text.push('\n');
        text
    }
}

/// All of them.
pub(crate) struct Book {
    out: PathBuf,
    head: String,
    sheets: Vec<Sheet>,
}

impl Book {
    /// `head` says of which machine it is.
    pub(crate) fn new(out: &Path, head: String) -> anyhow::Result<Self> {
        fs::create_dir_all(out).with_context(|| format!("cannot make `{}`", out.display()))?;
        Ok(Self { out: out.to_owned(), head, sheets: Vec::new() })
    }

    pub(crate) fn add(&mut self, sheet: Sheet) -> anyhow::Result<()> {
        self.write(&format!("{}.tsv", sheet.name), &sheet.tsv())?;
        self.sheets.push(sheet);
        let mut text = self.head.clone();
        self.sheets.iter().for_each(|sheet| text.push_str(&sheet.markdown()));
        self.write("report.md", text.trim_end_matches('\n'))
    }

    /// What does not hold, of all tables.
    pub(crate) fn broken(&self) -> impl Iterator<Item = String> {
        let of = |sheet: &Sheet| {
            let name = sheet.name;
            sheet.broken.iter().map(move |it| format!("{name}: {it}")).collect::<Vec<_>>()
        };
        self.sheets.iter().flat_map(of)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.out.join(name);
        let text = format!("{}\n", text.trim_end_matches('\n'));
        fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }
}
