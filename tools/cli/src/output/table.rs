//! Plain columns: upper-case titles, two spaces between, nothing at the right edge.
//!
//! A table that is too wide for its page shortens the columns that can be shortened, widest
//! first; what is cut ends in `…`. The wide form has all columns and cuts nothing.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{LINE_WIDTH, Tone, clean};

const GAP: usize = 2;

/// What stands in a field that has nothing to say.
const EMPTY: &str = "-";

/// What is left of a column that must give way though it should not.
const WIDTH_MIN: usize = 4;

/// A column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    /// The width down to which it may be cut.
    cut_to: Option<usize>,
    place: Place,
    right: bool,
}

/// The forms of a table that a column stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Always,
    /// Unless nobody has anything to say in it; always in the wide form.
    IfFilled,
    Narrow,
    Wide,
}

impl Column {
    const fn at(title: &'static str, place: Place) -> Self {
        Self { title, cut_to: None, place, right: false }
    }

    /// A column that is shown in full.
    pub(crate) const fn new(title: &'static str) -> Self {
        Self::at(title, Place::Always)
    }

    /// A column that may be cut to `width`.
    pub(crate) const fn elastic(title: &'static str, width: usize) -> Self {
        let mut column = Self::at(title, Place::Always);
        column.cut_to = Some(width);
        column
    }

    /// An elastic column that is left out of the narrow form if all its fields are empty.
    pub(crate) const fn if_filled(title: &'static str, width: usize) -> Self {
        let mut column = Self::elastic(title, width);
        column.place = Place::IfFilled;
        column
    }

    /// An elastic column for which the wide form has others.
    pub(crate) const fn narrow(title: &'static str, width: usize) -> Self {
        let mut column = Self::elastic(title, width);
        column.place = Place::Narrow;
        column
    }

    /// A column of the wide form only.
    pub(crate) const fn wide(title: &'static str) -> Self {
        Self::at(title, Place::Wide)
    }

    /// The column with its text at the right edge, as for numbers.
    pub(crate) const fn right(mut self) -> Self {
        self.right = true;
        self
    }
}

/// One field.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A field in a tone.
    pub(crate) fn toned(text: &str, tone: Tone) -> Self {
        if text.is_empty() {
            return Self { text: EMPTY.to_owned(), tone: Tone::Faint };
        }
        Self { text: clean(text).into_owned(), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text.as_ref(), Tone::Plain)
    }
}

/// Rows under columns.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column, also those of the wide form.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    /// The text, `indent` columns to the right.
    pub(crate) fn render(&self, indent: usize, wide: bool, color: bool) -> String {
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|at| self.is_shown(*at, wide)).collect();
        let mut widths: Vec<usize> = shown.iter().map(|at| self.natural_width(*at)).collect();
        if !wide {
            self.fit(&shown, &mut widths, LINE_WIDTH.saturating_sub(indent));
        }
        let mut text = String::new();
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell { text: column.title.to_owned(), tone: Tone::Strong })
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            for (place, (at, width)) in shown.iter().zip(&widths).enumerate() {
                let is_last = place + 1 == shown.len();
                line.push_str(&field(&row[*at], self.columns[*at], *width, is_last, color));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn is_shown(&self, at: usize, wide: bool) -> bool {
        match self.columns[at].place {
            Place::Always => true,
            Place::IfFilled => wide || self.rows.iter().any(|row| row[at].text != EMPTY),
            Place::Narrow => !wide,
            Place::Wide => wide,
        }
    }

    fn natural_width(&self, at: usize) -> usize {
        let title = self.columns[at].title.width();
        self.rows.iter().map(|row| row[at].text.width()).fold(title, usize::max)
    }

    /// Takes from the widest column that still can give, until the line fits.
    fn fit(&self, shown: &[usize], widths: &mut [usize], line_width: usize) {
        let gaps = GAP * shown.len().saturating_sub(1);
        for forced in [false, true] {
            while widths.iter().sum::<usize>() + gaps > line_width {
                let floor = |place: usize| match self.columns[shown[place]].cut_to {
                    Some(width) if !forced => width,
                    None if !forced => usize::MAX,
                    Some(_) | None => WIDTH_MIN,
                };
                let can_give = (0..widths.len()).filter(|place| widths[*place] > floor(*place));
                let Some(widest) = can_give.max_by_key(|place| widths[*place]) else { break };
                widths[widest] -= 1;
            }
        }
    }
}

fn field(cell: &Cell, column: Column, width: usize, is_last: bool, color: bool) -> String {
    let text = elide(&cell.text, width);
    let space = " ".repeat(width.saturating_sub(text.width()));
    let painted = cell.tone.paint(&text, color);
    match (column.right, is_last) {
        (true, true) => format!("{space}{painted}"),
        (true, false) => format!("{space}{painted}{}", " ".repeat(GAP)),
        (false, true) => painted,
        (false, false) => format!("{painted}{space}{}", " ".repeat(GAP)),
    }
}

/// The text, cut to `width` columns with `…` at the end where it is longer.
fn elide(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let kept = text.chars().take_while(|character| {
        used += character.width().unwrap_or(0);
        used < width
    });
    let mut cut: String = kept.collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[
            Column::new("NAME"),
            Column::elastic("WORDS", 5),
            Column::wide("MORE"),
            Column::new("SIZE").right(),
        ]);
        table.row(["a".into(), "x".repeat(200).into(), "m".into(), "5".into()]);
        table.row(["long-name".into(), "".into(), "".into(), "10Gi".into()]);
        table
    }

    #[test]
    fn a_table_fits_its_page() {
        let text = table().render(2, false, false);
        assert!(text.lines().all(|line| line.width() <= LINE_WIDTH), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("  NAME       WORDS "));
        assert!(lines[1].ends_with("x…     5"), "{text}");
        assert!(lines[2].starts_with("  long-name  -  "));
    }

    #[test]
    fn the_wide_form_cuts_nothing() {
        let text = table().render(0, true, false);
        assert!(text.contains(&"x".repeat(200)) && text.contains("MORE"));
    }

    #[test]
    fn a_column_without_words_is_left_out() {
        let mut table = Table::new(&[
            Column::new("A"),
            Column::if_filled("TROUBLE", 8),
            Column::narrow("SHORT", 8),
            Column::wide("LONG"),
        ]);
        table.row(["a".into(), "".into(), "s".into(), "l".into()]);
        assert_eq!(table.render(0, false, false), "A  SHORT\na  s\n");
        assert_eq!(table.render(0, true, false), "A  TROUBLE  LONG\na  -        l\n");
        table.row(["b".into(), "broken".into(), "s".into(), "l".into()]);
        assert!(table.render(0, false, false).contains("broken"));
    }

    #[test]
    fn a_column_that_should_not_give_way_still_does_before_the_line_breaks() {
        let mut table = Table::new(&[Column::new("A"), Column::new("B")]);
        table.row(["y".repeat(90).into(), "z".repeat(90).into()]);
        let text = table.render(0, false, false);
        assert!(text.lines().all(|line| line.width() <= LINE_WIDTH), "{text}");
    }

    #[test]
    fn colour_does_not_shift_columns() {
        let mut table = Table::new(&[Column::new("A"), Column::new("B")]);
        table.row([Cell::toned("bad", Tone::Bad), "b".into()]);
        let plain = table.render(0, false, false);
        let painted = table.render(0, false, true);
        let stripped = ["\x1b[31m", "\x1b[1m", "\x1b[0m"]
            .iter()
            .fold(painted.clone(), |text, code| text.replace(code, ""));
        assert_ne!(painted, plain);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(elide("日本語", 5), "日本…");
        assert_eq!(elide("日本語", 4), "日…");
        assert_eq!(elide("abc", 3), "abc");
    }
}
