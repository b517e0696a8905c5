//! SVG text: a few shapes, and the one place where words are escaped.

use std::fmt::Write;

/// Shapes in the order in which they are drawn.
#[derive(Default)]
pub(crate) struct Canvas {
    text: String,
}

impl Canvas {
    /// A rectangle with rounded corners.
    pub(crate) fn rect(
        &mut self,
        (x, y): (i32, i32),
        (width, height): (i32, i32),
        radius: i32,
        style: &str,
    ) {
        self.add(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" {style}/>"
        ));
    }

    /// Words; `style` is ours, `words` may be anybody's.
    pub(crate) fn text(&mut self, (x, y): (i32, i32), words: &str, style: &str) {
        self.add(format_args!("<text x=\"{x}\" y=\"{y}\" {style}>{}</text>", escape(words)));
    }

    /// A line along `path`.
    pub(crate) fn path(&mut self, path: &str, style: &str) {
        self.add(format_args!("<path d=\"{path}\" fill=\"none\" {style}/>"));
    }

    /// Begins a group that tells more under the pointer.
    pub(crate) fn begin_group(&mut self, hint: &str) {
        self.add(format_args!("<g><title>{}</title>", escape(hint)));
    }

    /// Ends a group.
    pub(crate) fn end_group(&mut self) {
        self.add(format_args!("</g>"));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{element}").expect("a String takes any text");
    }
}

/// The file made of `parts`, the last on top.
pub(crate) fn document(label: &str, (width, height): (i32, i32), parts: &[Canvas]) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" \
         font-family=\"Inter, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" fill=\"#1f2933\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escape(label)
    );
    for part in parts {
        text.push_str(&part.text);
    }
    text.push_str("</svg>\n");
    text
}

/// Words as XML text. Characters that XML 1.0 forbids, even as references, become U+FFFD.
pub(crate) fn escape(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for character in words.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            '\n' | '\t' => text.push(character),
            '\u{fffe}' | '\u{ffff}' => text.push('\u{fffd}'),
            _ if character.is_control() => text.push('\u{fffd}'),
            _ => text.push(character),
        }
    }
    text
}

/// A number of things as a coordinate. What would not fit is wider than any screen.
pub(crate) fn count(things: usize) -> i32 {
    i32::try_from(things).unwrap_or(1_000_000).min(1_000_000)
}
