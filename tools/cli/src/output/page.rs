//! One answer as text: lines, wrapped paragraphs and tables.

use unicode_width::UnicodeWidthStr;

use super::{LINE_WIDTH, Table, Tone, clean};

/// Text under construction.
pub(crate) struct Page {
    text: String,
    color: bool,
    wide: bool,
    now_ms: u64,
}

impl Page {
    /// An empty page.
    pub(crate) fn new(color: bool, wide: bool, now_ms: u64) -> Self {
        Self { text: String::new(), color, wide, now_ms }
    }

    /// The time of the answer, for ages.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// True if lines may be as long as what they say.
    pub(crate) fn is_wide(&self) -> bool {
        self.wide
    }

    /// All of the text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// A line, not wrapped.
    pub(crate) fn line(&mut self, line: &str) {
        self.spans(&[(line, Tone::Plain)]);
    }

    /// A line of pieces, not wrapped.
    pub(crate) fn spans(&mut self, spans: &[(&str, Tone)]) {
        for (text, tone) in spans {
            self.text.push_str(&tone.paint(&clean(text), self.color));
        }
        self.text.push('\n');
    }

    /// An empty line between parts, never two and never at the top.
    pub(crate) fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// The title of a part.
    pub(crate) fn heading(&mut self, text: &str) {
        self.gap();
        self.spans(&[(text, Tone::Strong)]);
    }

    /// Prose, wrapped; `lead` stands before the first line and its width before the rest.
    pub(crate) fn paragraph(&mut self, lead: &[(&str, Tone)], text: &str) {
        let lead_width = lead.iter().map(|(text, _)| text.width()).sum();
        for (index, line) in wrap(&clean(text), LINE_WIDTH - lead_width).iter().enumerate() {
            if index == 0 {
                for (text, tone) in lead {
                    self.text.push_str(&tone.paint(text, self.color));
                }
            } else {
                self.text.push_str(&" ".repeat(lead_width));
            }
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// A table at the left edge.
    pub(crate) fn table(&mut self, table: &Table) {
        self.indented_table(0, table);
    }

    /// A table that stands `indent` columns to the right.
    pub(crate) fn indented_table(&mut self, indent: usize, table: &Table) {
        self.text.push_str(&table.render(indent, self.wide, self.color));
    }
}

/// Breaks text between words; a word that is longer than a line is broken itself.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let line = lines.last_mut().expect("there is always a line");
            let gap = usize::from(!line.is_empty());
            if line.width() + gap + word.width() <= width {
                line.push_str(&" ".repeat(gap));
                line.push_str(&word);
                break;
            }
            if line.is_empty() {
                // At least one character, or a line narrower than it would never end.
                let at = word
                    .char_indices()
                    .map(|(at, _)| at)
                    .take_while(|at| word[..*at].width() <= width);
                let at = at.last().filter(|at| *at > 0);
                let at = at.unwrap_or_else(|| word.chars().next().map_or(0, char::len_utf8));
                let rest = word.split_off(at);
                line.push_str(&word);
                if rest.is_empty() {
                    break;
                }
                word = rest;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(wrap("日本", 1), ["日", "本"]);
    }

    #[test]
    fn a_paragraph_hangs_under_its_first_line() {
        let mut page = Page::new(false, false, 0);
        page.paragraph(&[("  memory: ", Tone::Plain)], "word ".repeat(30).trim());
        let lines: Vec<&str> = page.text().lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("  memory: word"));
        assert!(lines[1].starts_with("          word"));
        assert!(lines.iter().all(|line| line.width() <= LINE_WIDTH));
    }
}
