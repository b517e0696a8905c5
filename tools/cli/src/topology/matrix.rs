//! The link matrix: how each pair of devices speaks, how fast, and through which switches.

use std::collections::{BTreeMap, BTreeSet};

use super::{NumaGroup, fastest_link, in_order, tree::cut};
use crate::{
    document::{Device, Link},
    output::{LINE_WIDTH, Page, Tone, bandwidth},
};

const GAP: usize = 2;

/// What stands in the place of a link.
const ROOT: &str = "root";
const NUMA: &str = "numa";
const CROSS: &str = "cross";
const UNKNOWN: &str = "?";

/// Stands for switches whose addresses nobody tells: of some boards the driver does not.
const UNNAMED: &str = "unnamed";

/// Writes the matrix in as many blocks as fit the page side by side with the names.
pub(crate) fn write_matrix(groups: &[NumaGroup<'_>], links: &[Link], page: &mut Page) {
    let devices = in_order(groups);
    if devices.len() < 2 {
        return;
    }
    let names = short_names(&devices);
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|a| devices.iter().map(|b| cell(groups, links, a, b)).collect())
        .collect();
    let name_width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let cell_widths = rows.iter().flatten().chain(&names).map(|cell| cell.chars().count());
    let cell_width = cell_widths.max().unwrap_or(0);
    let block = ((LINE_WIDTH - name_width.min(LINE_WIDTH)) / (cell_width + GAP)).max(1);
    page.heading("Links");
    for first in (0..devices.len()).step_by(block) {
        if first > 0 {
            page.line("");
        }
        let shown = first..devices.len().min(first + block);
        let line = |name: &str, cells: &[String]| {
            let fields = cells.iter().map(|cell| format!("{cell:>cell_width$}"));
            let name = std::iter::once(format!("{name:name_width$}"));
            name.chain(fields).collect::<Vec<_>>().join(&" ".repeat(GAP))
        };
        page.spans(&[(&line("", &names[shown.clone()]), Tone::Strong)]);
        for (name, row) in names.iter().zip(&rows) {
            page.line(&line(name, &row[shown.clone()]));
        }
    }
    page.gap();
    write_words(&rows, page);
    write_switches(&devices, &names, links, page);
}

/// The switches that links run through, each with the devices that it joins.
fn write_switches(devices: &[&Device], names: &[String], links: &[Link], page: &mut Page) {
    let mut joined: BTreeMap<(&str, &str), BTreeSet<usize>> = BTreeMap::new();
    let index = |name: &str| devices.iter().position(|device| device.name == name);
    for link in links.iter().filter(|link| link.switched) {
        let ends = [index(&link.a), index(&link.b)].into_iter().flatten();
        let switches = link.switches.iter().map(String::as_str);
        let nobody_tells = link.switches.is_empty().then_some(UNNAMED);
        for switch in switches.chain(nobody_tells) {
            joined.entry((switch, &link.kind)).or_default().extend(ends.clone());
        }
    }
    if joined.is_empty() {
        return;
    }
    page.heading("Switches");
    for ((switch, kind), of_switch) in joined {
        let of_switch: Vec<&str> = of_switch.into_iter().map(|at| names[at].as_str()).collect();
        page.line(&cut(&format!("{switch}  {kind}  {}", of_switch.join(" ")), LINE_WIDTH));
    }
}

/// Explains the words that occur.
fn write_words(rows: &[Vec<String>], page: &mut Page) {
    if rows.iter().flatten().any(|cell| cell.contains(' ')) {
        page.line("A number is GB/s each way.");
    }
    if rows.iter().flatten().any(|cell| cell.starts_with("NV")) {
        page.line("NVn    n NVLinks that work as one");
    }
    let words = [
        (ROOT, "no link, but the same PCIe root"),
        (NUMA, "no link, but the same NUMA node"),
        (CROSS, "no link, and on different NUMA nodes"),
        (UNKNOWN, "no link, and no NUMA node is known"),
    ];
    for (word, meaning) in words {
        if rows.iter().flatten().any(|cell| cell == word) {
            page.line(&format!("{word:5}  {meaning}"));
        }
    }
}

fn cell(groups: &[NumaGroup<'_>], links: &[Link], a: &Device, b: &Device) -> String {
    if a.name == b.name {
        return "-".to_owned();
    }
    if let Some(link) = fastest_link(links, &a.name, &b.name) {
        return format!("{} {}", made_of(link), bandwidth(link.bandwidth_bytes_per_second));
    }
    let of_both = |devices: &mut dyn Iterator<Item = &Device>| {
        devices.filter(|device| device.name == a.name || device.name == b.name).count() == 2
    };
    let roots = groups.iter().flat_map(|group| &group.roots);
    let mut roots = roots.filter(|root| root.label.is_some());
    if roots.any(|root| of_both(&mut root.devices())) {
        return ROOT.to_owned();
    }
    match (a.numa_node, b.numa_node) {
        (Some(a), Some(b)) if a == b => NUMA.to_owned(),
        (Some(_), Some(_)) => CROSS.to_owned(),
        (None, _) | (_, None) => UNKNOWN.to_owned(),
    }
}

/// The kind of a link; of NVLink, as its own tools write it: `NV18` is 18 of them as one.
fn made_of(link: &Link) -> String {
    match (link.kind.as_str(), link.strands) {
        ("nvlink", strands @ 1..) => format!("NV{strands}"),
        (kind, _) => kind.to_owned(),
    }
}

/// The part of each name that tells it from the others: `3b` of `gpu-0000-3b-00-0` where all
/// others differ only there.
fn short_names(devices: &[&Device]) -> Vec<String> {
    let words: Vec<Vec<&str>> =
        devices.iter().map(|device| device.name.split('-').collect()).collect();
    let shortest = words.iter().map(Vec::len).min().unwrap_or(0);
    let agree = |word: &dyn Fn(&Vec<&str>) -> String| {
        words.windows(2).all(|pair| word(&pair[0]) == word(&pair[1]))
    };
    let mut front = 0;
    while front + 1 < shortest && agree(&|name| name[front].to_owned()) {
        front += 1;
    }
    let mut back = 0;
    while front + back + 1 < shortest && agree(&|name| name[name.len() - 1 - back].to_owned()) {
        back += 1;
    }
    words.iter().map(|name| name[front..name.len() - back].join("-")).collect()
}
