//! Usage as a picture: bars over time, one colour for each agent, as high as devices were busy.
//!
//! The dashed line is what there is, where the scale reaches so far: it ends not far above what
//! was used. What has no colour was idle.

use std::collections::BTreeMap;

use super::{Billed, Usage, part, time};
use crate::{
    canvas::{Canvas, count, document},
    output::{memory, timestamp},
};

const MARGIN: i32 = 32;
const TOP: i32 = 92;
const LEFT: i32 = 70;
const WIDTH: i32 = 960;
const HEIGHT: i32 = 300;
const ROW: i32 = 24;
/// Where the legend's columns end.
const COLUMNS: [i32; 3] = [560, 680, 800];

/// Bars that a picture of this width can tell apart.
const STEPS_MAX: u64 = 120;
/// Agents with a colour of their own; the rest share the last one.
const COLORS: [&str; 10] = [
    "#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777",
    "#4d7c0f", "#64748b",
];
const UNATTRIBUTED: &str = "#9aa5b1";

/// The picture as SVG text.
pub(crate) fn draw(usage: &Usage) -> String {
    let colors = colors(usage);
    let mut canvas = Canvas::default();
    canvas.text((MARGIN, 48), "Usage by agent", "font-size=\"24\" font-weight=\"600\"");
    let words = format!(
        "{} to {}; {} devices, {} of {} busy",
        timestamp(usage.since_unix_ms.max(usage.remembered_unix_ms)),
        timestamp(usage.until_unix_ms),
        usage.devices,
        time(usage.agents.iter().fold(0_u64, |sum, total| sum.saturating_add(total.busy_ms))),
        time(usage.capacity_ms()),
    );
    canvas.text((MARGIN, 70), &words, "font-size=\"13\" fill=\"#616e7c\"");
    axes(usage, &mut canvas);
    bars(usage, &colors, &mut canvas);
    let bottom = legend(usage, &colors, &mut canvas);
    document("Usage by agent", (LEFT + WIDTH + MARGIN, bottom + MARGIN), &[canvas])
}

/// A colour for each agent, the greatest first.
fn colors(usage: &Usage) -> BTreeMap<&Billed, &'static str> {
    let mut free = COLORS.iter();
    let last = COLORS[COLORS.len() - 1];
    let color = |name: &Billed| match name.kind {
        "agent" => None,
        _ => Some(UNATTRIBUTED),
    };
    usage
        .agents
        .iter()
        .map(|total| {
            let own = color(&total.agent).unwrap_or_else(|| free.next().copied().unwrap_or(last));
            (&total.agent, own)
        })
        .collect()
}

/// How many devices the picture is high: all of them, or a power of two that is enough.
pub(super) fn scale(usage: &Usage) -> u32 {
    let (step_ms, steps) = usage.steps(STEPS_MAX);
    let busy = |parts: &BTreeMap<&Billed, super::Entry>| {
        parts.values().fold(0_u64, |sum, entry| sum.saturating_add(entry.busy_ms))
    };
    let most = steps.iter().map(|(_, parts)| busy(parts)).max().unwrap_or_default();
    let most = most.div_ceil(step_ms.max(1)).max(1).next_power_of_two();
    u32::try_from(most).unwrap_or(u32::MAX).min(usage.devices).max(1)
}

fn axes(usage: &Usage, canvas: &mut Canvas) {
    let scale = scale(usage);
    let line = "stroke=\"#cbd2d9\"";
    for quarter in 0..=4 {
        let y = TOP + HEIGHT - HEIGHT * quarter / 4;
        let style = if quarter == 4 && scale == usage.devices {
            "stroke=\"#616e7c\" stroke-dasharray=\"6 4\""
        } else {
            line
        };
        canvas.path(&format!("M {LEFT} {y} h {WIDTH}"), style);
        let hundredths = u64::from(scale) * 25 * u64::from(quarter.unsigned_abs());
        let words = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        let style = "font-size=\"12\" fill=\"#616e7c\" text-anchor=\"end\"";
        canvas.text((LEFT - 8, y + 4), &words, style);
    }
    let style = "font-size=\"12\" fill=\"#616e7c\"";
    let words = format!("devices busy, of {}", usage.devices);
    canvas.text((LEFT, TOP - 6), &words, style);
    let (_, steps) = usage.steps(STEPS_MAX);
    let (Some((first, _)), Some((last, _))) = (steps.first(), steps.last()) else { return };
    canvas.text((LEFT, TOP + HEIGHT + 18), &timestamp(*first), style);
    let end = "font-size=\"12\" fill=\"#616e7c\" text-anchor=\"end\"";
    canvas.text((LEFT + WIDTH, TOP + HEIGHT + 18), &timestamp(*last), end);
}

fn bars(usage: &Usage, colors: &BTreeMap<&Billed, &'static str>, canvas: &mut Canvas) {
    let (step_ms, steps) = usage.steps(STEPS_MAX);
    let number = count(steps.len()).max(1);
    let full = u128::from(step_ms) * u128::from(scale(usage));
    let height = |busy: u64| {
        let pixels = u128::from(busy) * u128::from(HEIGHT.unsigned_abs()) / full.max(1);
        i32::try_from(pixels).unwrap_or(HEIGHT).min(HEIGHT)
    };
    for (index, (start_ms, parts)) in (0..).zip(&steps) {
        let x = LEFT + WIDTH * index / number;
        let width = (LEFT + WIDTH * (index + 1) / number - x - 1).max(1);
        let mut below = 0_u64;
        for total in &usage.agents {
            let Some(entry) = parts.get(&total.agent) else { continue };
            let (from, to) = (height(below), height(below.saturating_add(entry.busy_ms)));
            below = below.saturating_add(entry.busy_ms);
            if to == from {
                continue;
            }
            let color = colors.get(&total.agent).copied().unwrap_or(UNATTRIBUTED);
            let when = timestamp(*start_ms);
            let hint = format!(
                "{}, {when}: {}, {} at most",
                total.agent.words(),
                time(entry.busy_ms),
                memory(entry.memory_bytes)
            );
            canvas.begin_group(&hint);
            let corner = (x, TOP + HEIGHT - to);
            canvas.rect(corner, (width, to - from), 0, &format!("fill=\"{color}\""));
            canvas.end_group();
        }
    }
}

/// The agents with their colours and sums; the answer is where the picture ends.
fn legend(usage: &Usage, colors: &BTreeMap<&Billed, &'static str>, canvas: &mut Canvas) -> i32 {
    let capacity = usage.capacity_ms();
    let busy = usage.agents.iter().fold(0_u64, |sum, total| sum.saturating_add(total.busy_ms));
    let idle = capacity.saturating_sub(busy);
    let mut y = TOP + HEIGHT + 48;
    for (words, x) in ["device time", "part", "most memory"].iter().zip(COLUMNS) {
        let style = "font-size=\"12\" fill=\"#616e7c\" text-anchor=\"end\"";
        canvas.text((LEFT + x, y), words, style);
    }
    y += ROW;
    let rows = usage.agents.iter().map(|total| {
        let color = colors.get(&total.agent).copied().unwrap_or(UNATTRIBUTED);
        let words =
            [time(total.busy_ms), part(total.busy_ms, capacity), memory(total.memory_bytes)];
        (format!("fill=\"{color}\""), total.agent.words(), words)
    });
    let nobody = (
        "fill=\"#ffffff\" stroke=\"#9aa5b1\"".to_owned(),
        "(idle)".to_owned(),
        [time(idle), part(idle, capacity), String::new()],
    );
    for (style, name, words) in rows.chain([nobody]) {
        canvas.rect((LEFT, y - 11), (14, 14), 3, &style);
        let shown: String = name.chars().take(60).collect();
        canvas.text((LEFT + 24, y), &shown, "font-size=\"13\"");
        for (words, x) in words.iter().zip(COLUMNS) {
            let style = "font-size=\"13\" text-anchor=\"end\"";
            canvas.text((LEFT + x, y), words, style);
        }
        y += ROW;
    }
    y
}
