//! Where words go: answers to standard output, all else to standard error.
//!
//! Text from the daemon is cleaned before it reaches a terminal: a label or a reason may
//! come from a tenant, and must not move the cursor.

mod human;
mod page;
mod progress;
mod table;
mod tone;
mod yaml;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::{
    args::{ColorChoice, Format},
    failure::{Failure, chain},
};

pub(crate) use self::{
    human::{age, bandwidth, clean, list, memory, permille, timestamp},
    page::Page,
    progress::Progress,
    table::{Cell, Column, Table},
    tone::Tone,
};

/// What tables and paragraphs keep to, whatever the terminal: it fits a report and a ticket.
pub(crate) const LINE_WIDTH: usize = 100;

/// The streams of this program and the form its user wants.
pub(crate) struct Console {
    format: Format,
    output_color: bool,
    error_color: bool,
    now_ms: u64,
}

impl Console {
    /// The console for the options given; asks the streams whether they are terminals.
    pub(crate) fn new(format: Format, color: ColorChoice, now_ms: u64) -> Self {
        Self {
            format,
            output_color: tone::is_wanted(color, io::stdout().is_terminal()),
            error_color: tone::is_wanted(color, io::stderr().is_terminal()),
            now_ms,
        }
    }

    /// The time of the run, in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The form that was asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether answers are in colour.
    pub(crate) fn has_color(&self) -> bool {
        self.output_color
    }

    /// Prints an answer: the document in a form for programs, else what `write` puts on the page.
    pub(crate) fn print(
        &self,
        document: &impl Serialize,
        write: impl FnOnce(&mut Page),
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => print_json(document),
            Format::Yaml => print_text(&yaml::to_yaml(document).map_err(Failure::Yaml)?),
            Format::Table | Format::Wide => {
                let wide = self.format == Format::Wide;
                let mut page = Page::new(self.output_color, wide, self.now_ms);
                write(&mut page);
                print_text(page.text())
            }
        }
    }

    /// Says why a command failed, with every reason behind it, and what to try.
    pub(crate) fn report(&self, failure: &Failure) {
        if !failure.is_worth_words() {
            return;
        }
        let mut lines = Vec::new();
        let mut say = |word: &str, tone: Tone, text: &str| {
            lines.push(format!("{}: {}\n", tone.paint(word, self.error_color), clean(text)));
        };
        match failure.code() {
            Some(code) => say(&format!("error[{code}]"), Tone::Bad, &chain(failure)),
            None => say("error", Tone::Bad, &chain(failure)),
        }
        if let Some(hint) = failure.hint() {
            say("hint", Tone::Strong, &hint);
        }
        if let Some(code) = failure.code() {
            say("help", Tone::Strong, &format!("docs/errors/{code}.md"));
        }
        // Where nobody can be told, there is nobody to tell that.
        let _ = io::stderr().write_all(lines.concat().as_bytes());
    }
}

/// Prints a document for which there is no table.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(document).map_err(Failure::Json)?;
    text.push('\n');
    print_text(&text)
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(Failure::Output)
}

/// Says something to the person, beside the answer.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", clean(text));
}

/// A progress line for calls; silent unless a person watches.
pub(crate) fn progress() -> Progress {
    Progress::new(io::stderr().is_terminal())
}
