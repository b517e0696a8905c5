//! Links below the cards: a bar for each clique, a curve for each other link.

use std::collections::BTreeMap;

use super::{Placed, card};
use crate::{
    canvas::{Canvas, count},
    document::Link,
    output::bandwidth,
    topology::clique::{self, Clique, Line},
};

/// Height of a bar's lane, and of the bar in it.
const LANE: i32 = 62;
const BAR: i32 = 30;

/// More curves than this carry no figures: they would cover each other.
const FIGURES_MAX: usize = 12;

/// The deepest curve.
const DEPTH_MAX: i32 = 280;

/// Kinds of link, with the colour of each.
pub(super) const KINDS: [(&str, &str); 4] =
    [("nvlink", "#e8590c"), ("xgmi", "#c2255c"), ("hccs", "#9c36b5"), ("pcie", "#868e96")];

/// The colour of a kind of link.
pub(super) fn color(kind: &str) -> &'static str {
    KINDS.iter().find(|(name, _)| *name == kind).map_or("#495057", |(_, color)| color)
}

/// Draws all links below `top` and says how far down they reach.
pub(super) fn draw(cards: &[Placed<'_>], links: &[Link], top: i32, canvas: &mut Canvas) -> i32 {
    let index: BTreeMap<&str, usize> =
        cards.iter().enumerate().map(|(at, placed)| (placed.device.name.as_str(), at)).collect();
    let (cliques, curves) = clique::split(links, &index);
    let fastest = links.iter().map(|link| link.bandwidth_bytes_per_second).max().unwrap_or(1);
    let mut bottom = top;
    for line in &curves {
        let thickness = thickness(line.bandwidth, fastest);
        let depth = draw_curve(cards, line, top, &thickness, canvas);
        bottom = bottom.max(top + depth);
    }
    if curves.len() <= FIGURES_MAX {
        for line in &curves {
            draw_figure(cards, line, top, canvas);
        }
    }
    let lanes = lanes(&cliques);
    let first_lane = bottom + 30;
    for (clique, lane) in cliques.iter().zip(&lanes) {
        let thickness = thickness(clique.bandwidth, fastest);
        draw_drops(cards, clique, *lane, first_lane, &thickness, canvas);
    }
    for (clique, lane) in cliques.iter().zip(&lanes) {
        draw_bar(cards, clique, first_lane + lane * LANE, canvas);
    }
    match lanes.iter().max() {
        Some(lane) => first_lane + lane * LANE + BAR,
        None => bottom,
    }
}

/// The lane of each clique: the first in which it covers no other.
fn lanes(cliques: &[Clique]) -> Vec<i32> {
    let mut taken: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut lanes = Vec::new();
    for clique in cliques {
        let span = (
            clique.members.first().copied().unwrap_or(0),
            clique.members.last().copied().unwrap_or(0),
        );
        let is_clear = |lane: &Vec<(usize, usize)>| {
            lane.iter().all(|other| span.1 < other.0 || other.1 < span.0)
        };
        let lane = taken.iter().position(is_clear).unwrap_or(taken.len());
        if lane == taken.len() {
            taken.push(Vec::new());
        }
        taken[lane].push(span);
        lanes.push(count(lane));
    }
    lanes
}

fn center(placed: &Placed<'_>) -> i32 {
    placed.x + card::WIDTH / 2
}

fn draw_drops(
    cards: &[Placed<'_>],
    clique: &Clique,
    lane: i32,
    first_lane: i32,
    thickness: &str,
    canvas: &mut Canvas,
) {
    let color = color(&clique.kind);
    for at in &clique.members {
        // A lane's lines stand beside those of the lanes above.
        let x = center(&cards[*at]) + 14 * lane;
        let from = cards[*at].y + card::HEIGHT;
        let path = format!("M {x} {from} V {}", first_lane + lane * LANE + BAR / 2);
        canvas.path(&path, &format!("stroke=\"{color}\" stroke-width=\"{thickness}\""));
    }
}

fn draw_bar(cards: &[Placed<'_>], clique: &Clique, y: i32, canvas: &mut Canvas) {
    let centers = clique.members.iter().map(|at| center(&cards[*at]));
    let (left, right) =
        centers.fold((i32::MAX, i32::MIN), |(left, right), x| (left.min(x), right.max(x)));
    let (left, right) = (left - 60, right + 60);
    let style = format!("fill=\"{}\"", color(&clique.kind));
    canvas.rect((left, y), (right - left, BAR), 15, &style);
    let words = format!(
        "{}, {} GB/s each way between any two of {}",
        clique.kind,
        bandwidth(clique.bandwidth),
        clique.members.len()
    );
    let style = "font-size=\"13\" font-weight=\"600\" fill=\"#ffffff\" text-anchor=\"middle\"";
    canvas.text((left.midpoint(right), y + 20), &words, style);
}

/// The curve's two ends and how deep it hangs below the boxes.
fn curve(cards: &[Placed<'_>], line: &Line) -> (i32, i32, i32) {
    let (a, b) = line.ends;
    let distance = count(b.abs_diff(a));
    // Beside the lines down to the bars.
    (center(&cards[a]) - 14, center(&cards[b]) - 14, (30 + 24 * distance).min(DEPTH_MAX))
}

fn draw_curve(
    cards: &[Placed<'_>],
    line: &Line,
    top: i32,
    thickness: &str,
    canvas: &mut Canvas,
) -> i32 {
    let (left, right, depth) = curve(cards, line);
    let from = cards[line.ends.0].y + card::HEIGHT;
    let to = cards[line.ends.1].y + card::HEIGHT;
    // A cubic curve reaches three quarters of the way to its two control points.
    let control = top + depth * 4 / 3;
    let path = format!(
        "M {left} {from} V {top} C {left} {control} {right} {control} {right} {top} V {to}"
    );
    let color = color(&line.kind);
    canvas.path(&path, &format!("stroke=\"{color}\" stroke-width=\"{thickness}\""));
    depth
}

fn draw_figure(cards: &[Placed<'_>], line: &Line, top: i32, canvas: &mut Canvas) {
    let (left, right, depth) = curve(cards, line);
    let (x, y) = (left.midpoint(right), top + depth);
    let words = format!("{} {}", line.kind, bandwidth(line.bandwidth));
    let width = 8 * count(words.chars().count());
    canvas.rect((x - width / 2, y - 8), (width, 16), 4, "fill=\"#ffffff\"");
    let style = format!(
        "font-size=\"11\" font-weight=\"600\" text-anchor=\"middle\" fill=\"{}\"",
        color(&line.kind)
    );
    canvas.text((x, y + 4), &words, &style);
}

/// From 1.5 to 6 points, by the root of the rate: eye and ear work alike.
fn thickness(bandwidth: u64, fastest: u64) -> String {
    let part = u128::from(bandwidth) * 10_000 / u128::from(fastest.max(1));
    let tenths = 15 + 45 * part.min(10_000).isqrt() / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}
