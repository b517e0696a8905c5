//! A device's card: what it is, how it is used, by whom, and what is wrong with it.

use super::{Placed, cut};
use crate::{
    canvas::Canvas,
    document::Device,
    output::{list, memory, permille},
};

pub(super) const WIDTH: i32 = 158;
pub(super) const HEIGHT: i32 = 132;

/// How devices can be used, with the colour of each.
pub(super) const MODES: [(&str, &str); 5] = [
    ("free", "#2f9e44"),
    ("whole", "#1971c2"),
    ("shared", "#7048e8"),
    ("partitioned", "#0c8599"),
    ("foreign", "#868e96"),
];

/// The colour of what is wrong.
pub(super) const TAINT: &str = "#e03131";

pub(super) fn draw(placed: &Placed<'_>, canvas: &mut Canvas) {
    let Placed { device, x, y } = *placed;
    let mode = color(device);
    canvas.begin_group(&hint(device));
    let (edge, thick) = if device.taints.is_empty() { ("#9aa5b1", 1) } else { (TAINT, 2) };
    let dashes = if device.present { "" } else { " stroke-dasharray=\"5 4\"" };
    let style = format!("fill=\"#ffffff\" stroke=\"{edge}\" stroke-width=\"{thick}\"{dashes}");
    canvas.rect((x, y), (WIDTH, HEIGHT), 8, &style);
    canvas.rect((x + 6, y + 8), (4, 88), 2, &format!("fill=\"{mode}\""));
    let mono = "font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\"";
    let name = format!("font-size=\"12\" font-weight=\"600\" {mono}");
    canvas.text((x + 18, y + 20), &cut(&device.name, 18), &name);
    let small = "font-size=\"10\" fill=\"#616e7c\"";
    canvas.text((x + 18, y + 35), &cut(&device.model, 24), small);
    let (word, tone) = if device.present { (&*device.usage.mode, mode) } else { ("gone", TAINT) };
    let style = format!("font-size=\"12\" font-weight=\"600\" fill=\"{tone}\"");
    canvas.text((x + 18, y + 55), word, &style);
    let style = "font-size=\"11\" text-anchor=\"end\"";
    canvas.text((x + WIDTH - 10, y + 55), &memory(device.memory_bytes), style);
    let held = &device.usage;
    let compute = held.compute_permille;
    bar((x + 18, y + 71), "memory", (held.memory_bytes, device.memory_bytes), mode, canvas);
    bar((x + 18, y + 86), "compute", (u64::from(compute), 1000), mode, canvas);
    let holders = cut(&list(&held.claims, 1), 20);
    canvas.text((x + 18, y + 102), &holders, "font-size=\"11\"");
    draw_taint(placed, canvas);
    canvas.end_group();
}

/// How much of a whole is held.
fn bar((x, y): (i32, i32), word: &str, part: (u64, u64), color: &str, canvas: &mut Canvas) {
    let width = 80;
    canvas.text((x, y), word, "font-size=\"9\" fill=\"#616e7c\"");
    canvas.rect((x + 50, y - 7), (width, 7), 3, "fill=\"#e4e7eb\"");
    let (held, whole) = part;
    let filled = u128::from(held) * 80 / u128::from(whole.max(1));
    let filled = i32::try_from(filled).unwrap_or(width).min(width);
    if held > 0 {
        let style = format!("fill=\"{color}\"");
        canvas.rect((x + 50, y - 7), (filled.max(3), 7), 3, &style);
    }
}

fn draw_taint(placed: &Placed<'_>, canvas: &mut Canvas) {
    let Placed { device, x, y } = *placed;
    let Some(taint) = device.taints.first() else { return };
    let more = match device.taints.len() {
        1 => String::new(),
        taints => format!(" +{}", taints - 1),
    };
    let words = cut(&format!("{}: {}", taint.key, taint.effect), 23 - more.len().min(8)) + &more;
    let style = format!("fill=\"{TAINT}\"");
    canvas.rect((x + 6, y + HEIGHT - 24), (WIDTH - 12, 18), 4, &style);
    let style = "font-size=\"10\" font-weight=\"600\" fill=\"#ffffff\"";
    canvas.text((x + 13, y + HEIGHT - 11), &words, style);
}

fn color(device: &Device) -> &'static str {
    let mode = MODES.iter().find(|(mode, _)| *mode == device.usage.mode);
    mode.map_or("#868e96", |(_, color)| color)
}

/// What does not fit the card.
fn hint(device: &Device) -> String {
    let usage = &device.usage;
    let mut lines = vec![
        device.name.clone(),
        format!("{} {}, {}", device.vendor, device.model, device.uuid),
        format!(
            "{}: {} of {}, {}",
            usage.mode,
            memory(usage.memory_bytes),
            memory(device.memory_bytes),
            permille(usage.compute_permille)
        ),
    ];
    if !usage.claims.is_empty() {
        lines.push(format!("held by {}", list(&usage.claims, 20)));
    }
    for taint in &device.taints {
        lines.push(format!("{}:{}: {}", taint.key, taint.effect, taint.reason));
    }
    lines.join("\n")
}
