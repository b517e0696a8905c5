//! The topology as a picture: one self-contained SVG file without scripts or outside parts.
//!
//! NUMA nodes are boxes, PCIe roots are boxes inside, devices are cards. A set of devices of
//! which every two speak equally fast is drawn as one bar below, other links as curves:
//!
//! ```text
//! +- NUMA node 0 -----------------+  +- NUMA node 1 --+
//! | +- root --+ +- root --+       |  | +- root --+    |
//! | | [card]  | | [card]  |       |  | | [card]  |    |
//! | +---|-----+ +---|-----+       |  | +---|-----+    |
//! +-----|-----------|-------------+  +-----|----------+
//!      [======= nvlink, each pair 450 GB/s ======]
//! ```
//!
//! All devices stand in one row, so that no line has to pass behind a card.

mod card;
mod fabric;
mod legend;

use super::{Branch, NumaGroup, RootGroup, tree::cut};
use crate::{
    canvas::{Canvas, count, document},
    document::{Device, GetTopologyResponse},
    output::memory,
};

/// Space around the picture, and between boxes of a level.
const MARGIN: i32 = 32;
const NUMA_GAP: i32 = 28;
const ROOT_GAP: i32 = 14;
const CARD_GAP: i32 = 12;

/// Space inside a box beside what it holds, and above it for its title.
const PADDING: i32 = 14;
const NUMA_TITLE: i32 = 38;
const ROOT_TITLE: i32 = 28;
const SWITCH_TITLE: i32 = 20;
const SWITCH_PADDING: i32 = 8;

/// Where the boxes begin, below the picture's title.
const TOP: i32 = 92;

/// About the width of a character of the titles.
const LETTER: i32 = 7;

/// A card with the place of its upper left corner.
struct Placed<'a> {
    device: &'a Device,
    x: i32,
    y: i32,
}

/// The picture as SVG text.
pub(crate) fn draw(groups: &[NumaGroup<'_>], topology: &GetTopologyResponse) -> String {
    let mut boxes = Canvas::default();
    let mut cards = Vec::new();
    let has_switches = groups.iter().flat_map(|group| &group.roots).any(has_switch);
    let switch_height = if has_switches { SWITCH_TITLE + SWITCH_PADDING } else { 0 };
    let root_height = ROOT_TITLE + card::HEIGHT + 2 * PADDING - 6 + switch_height;
    let height = NUMA_TITLE + root_height + PADDING;
    let mut x = MARGIN;
    for group in groups {
        x += draw_numa(group, x, height, root_height, &mut boxes, &mut cards) + NUMA_GAP;
    }
    let bottom = TOP + height;
    let mut lines = Canvas::default();
    let fabric_bottom = fabric::draw(&cards, &topology.links, bottom, &mut lines);
    let mut faces = Canvas::default();
    for placed in &cards {
        card::draw(placed, &mut faces);
    }
    let mut footer = Canvas::default();
    let legend_width = legend::draw(&topology.links, MARGIN, fabric_bottom + 40, &mut footer);
    let width = (x - NUMA_GAP).max(MARGIN + legend_width) + MARGIN;
    let size = (width, fabric_bottom + 40 + legend::HEIGHT + MARGIN);
    let parts = [title(topology), boxes, lines, faces, footer];
    document("Topology of the node", size, &parts)
}

fn title(topology: &GetTopologyResponse) -> Canvas {
    let mut canvas = Canvas::default();
    canvas.text((MARGIN, 48), "Topology", "font-size=\"24\" font-weight=\"600\"");
    let devices = match topology.devices.len() {
        1 => "1 device".to_owned(),
        devices => format!("{devices} devices"),
    };
    let words = match topology.source.as_str() {
        "host" => format!("{devices}; host as hwloc sees it"),
        source => format!("{devices}; host from {}", cut(source, 80)),
    };
    canvas.text((MARGIN, 70), &words, "font-size=\"13\" fill=\"#616e7c\"");
    canvas
}

fn has_switch(root: &RootGroup<'_>) -> bool {
    root.branches.iter().any(|branch| branch.switch.is_some())
}

fn draw_numa<'a>(
    group: &NumaGroup<'a>,
    x: i32,
    height: i32,
    root_height: i32,
    canvas: &mut Canvas,
    cards: &mut Vec<Placed<'a>>,
) -> i32 {
    let name = group.id.map_or("No NUMA node known".to_owned(), |id| format!("NUMA node {id}"));
    let mut words = Vec::new();
    if !group.cpus.is_empty() {
        words.push(format!("{} processors", group.cpus.len()));
    }
    if group.memory_bytes > 0 {
        words.push(memory(group.memory_bytes));
    }
    if group.roots.is_empty() {
        words.push("no devices".to_owned());
    }
    let words = words.join(", ");
    let inner: i32 = group.roots.iter().map(root_width).sum::<i32>()
        + ROOT_GAP * (count(group.roots.len()) - 1).max(0);
    let title_width = LETTER * (count(name.chars().count() + words.chars().count()) + 4);
    let width = inner.max(title_width) + 2 * PADDING;
    canvas.rect((x, TOP), (width, height), 14, "fill=\"#f5f7fa\" stroke=\"#cbd2d9\"");
    canvas.text((x + PADDING, TOP + 25), &name, "font-size=\"15\" font-weight=\"600\"");
    let style = "font-size=\"12\" fill=\"#616e7c\" text-anchor=\"end\"";
    canvas.text((x + width - PADDING, TOP + 25), &words, style);
    let mut at = x + PADDING;
    for root in &group.roots {
        draw_root(root, (at, TOP + NUMA_TITLE), root_height, canvas, cards);
        at += root_width(root) + ROOT_GAP;
    }
    width
}

fn draw_root<'a>(
    root: &RootGroup<'a>,
    (x, y): (i32, i32),
    height: i32,
    canvas: &mut Canvas,
    cards: &mut Vec<Placed<'a>>,
) {
    let style = "fill=\"#ffffff\" stroke=\"#cbd2d9\"";
    canvas.rect((x, y), (root_width(root), height), 10, style);
    let label = cut(root.title(), 20);
    canvas.text((x + PADDING, y + 20), &label, "font-size=\"12\" fill=\"#616e7c\"");
    let y = y + ROOT_TITLE + 4;
    let mut at = x + PADDING;
    for branch in &root.branches {
        draw_branch(branch, (at, y), canvas, cards);
        at += branch_width(branch) + CARD_GAP;
    }
}

fn draw_branch<'a>(
    branch: &Branch<'a>,
    (x, y): (i32, i32),
    canvas: &mut Canvas,
    cards: &mut Vec<Placed<'a>>,
) {
    let mut corner = (x, y);
    if let Some(switch) = &branch.switch {
        let size = (branch_width(branch), SWITCH_TITLE + card::HEIGHT + SWITCH_PADDING);
        let style = "fill=\"none\" stroke=\"#9aa5b1\" stroke-dasharray=\"4 3\"";
        canvas.rect(corner, size, 8, style);
        let words = cut(&format!("switch {switch}"), 26);
        let style = "font-size=\"11\" fill=\"#616e7c\"";
        canvas.text((x + SWITCH_PADDING, y + 14), &words, style);
        corner = (x + SWITCH_PADDING, y + SWITCH_TITLE);
    }
    for device in &branch.devices {
        cards.push(Placed { device, x: corner.0, y: corner.1 });
        corner.0 += card::WIDTH + CARD_GAP;
    }
}

fn branch_width(branch: &Branch<'_>) -> i32 {
    let cards = count(branch.devices.len());
    let width = cards * card::WIDTH + (cards - 1).max(0) * CARD_GAP;
    if branch.switch.is_some() { width + 2 * SWITCH_PADDING } else { width }
}

fn root_width(root: &RootGroup<'_>) -> i32 {
    let branches: i32 = root.branches.iter().map(branch_width).sum();
    branches + (count(root.branches.len()) - 1).max(0) * CARD_GAP + 2 * PADDING
}

#[cfg(test)]
mod tests;
