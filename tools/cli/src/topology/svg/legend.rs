//! What the colours mean.

use super::{
    card::{MODES, TAINT},
    fabric,
};
use crate::{
    canvas::{Canvas, count},
    document::Link,
};

/// Space for the row of samples.
pub(super) const HEIGHT: i32 = 24;

/// Draws the samples in one row and says how wide it is. Only kinds of link that are there
/// have a sample.
pub(super) fn draw(links: &[Link], x: i32, y: i32, canvas: &mut Canvas) -> i32 {
    let mut at = x;
    for (word, color) in MODES {
        at += sample((at, y), word, &format!("fill=\"{color}\""), canvas);
    }
    let edge = format!("fill=\"#ffffff\" stroke=\"{TAINT}\" stroke-width=\"2\"");
    at += sample((at, y), "tainted", &edge, canvas);
    at += sample(
        (at, y),
        "gone",
        "fill=\"#ffffff\" stroke=\"#9aa5b1\" stroke-dasharray=\"3 2\"",
        canvas,
    );
    for (kind, color) in fabric::KINDS {
        if links.iter().any(|link| link.kind == kind) {
            let style = format!("stroke=\"{color}\" stroke-width=\"4\"");
            canvas.path(&format!("M {at} {} h 22", y + 7), &style);
            canvas.text((at + 28, y + 12), kind, "font-size=\"12\"");
            at += 28 + advance(kind);
        }
    }
    at - x
}

fn sample((x, y): (i32, i32), word: &str, style: &str, canvas: &mut Canvas) -> i32 {
    canvas.rect((x, y), (14, 14), 3, style);
    canvas.text((x + 20, y + 12), word, "font-size=\"12\"");
    20 + advance(word)
}

fn advance(word: &str) -> i32 {
    7 * count(word.chars().count()) + 22
}
