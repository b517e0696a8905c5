//! The tree: NUMA node, PCIe root, switch, device.

use super::{Branch, NumaGroup, in_order};
use crate::{
    document::Device,
    output::{Page, Tone, list, memory},
};

/// Columns for a device's name, its model, and its holders: with the deepest branch they
/// fill a line of 100.
const NAME_WIDTH: usize = 16;
const MODEL_WIDTH: usize = 24;
const WORDS_WIDTH: usize = 26;

/// Writes the groups as a tree.
pub(crate) fn write_tree(groups: &[NumaGroup<'_>], page: &mut Page) {
    let names = in_order(groups).into_iter().map(|device| device.name.chars().count());
    let name_width = names.max().unwrap_or(0);
    for group in groups {
        page.spans(&[(&title(group), Tone::Strong)]);
        if group.roots.is_empty() {
            page.spans(&[("└─ no devices", Tone::Faint)]);
        }
        for (at, root) in group.roots.iter().enumerate() {
            let (arm, stem) = arm(at + 1 == group.roots.len());
            page.line(&format!("{arm}{}", root.title()));
            for (at, branch) in root.branches.iter().enumerate() {
                let is_last = at + 1 == root.branches.len();
                write_branch(branch, stem, is_last, name_width, page);
            }
        }
    }
}

fn write_branch(
    branch: &Branch<'_>,
    stem: &str,
    is_last: bool,
    name_width: usize,
    page: &mut Page,
) {
    let mut stem = stem.to_owned();
    let mut is_last = is_last;
    if let Some(switch) = &branch.switch {
        let (arm, below) = arm(is_last);
        page.line(&format!("{stem}{arm}switch {switch}"));
        stem.push_str(below);
        is_last = true;
    }
    for (at, device) in branch.devices.iter().enumerate() {
        let (arm, _) = arm(is_last && at + 1 == branch.devices.len());
        write_device(device, &format!("{stem}{arm}"), name_width, page);
    }
}

const fn arm(is_last: bool) -> (&'static str, &'static str) {
    if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") }
}

fn write_device(device: &Device, lead: &str, name_width: usize, page: &mut Page) {
    // Longer names take their room from the model.
    let model_width = (MODEL_WIDTH + NAME_WIDTH).saturating_sub(name_width).min(MODEL_WIDTH);
    let form = format!(
        "{lead}{:name_width$}  {:model_width$}  {:>7}  ",
        device.name,
        cut(&device.model, model_width),
        memory(device.memory_bytes),
    );
    let (word, tone) = match device.usage.mode.as_str() {
        _ if !device.present => ("gone", Tone::Bad),
        "free" => ("free", Tone::Good),
        mode => (mode, Tone::Attention),
    };
    let holders = match device.usage.claims.as_slice() {
        [] => String::new(),
        claims => {
            let word = if device.present { "by" } else { "but held by" };
            cut(&format!(" {word} {}", list(claims, 1)), WORDS_WIDTH)
        }
    };
    page.spans(&[(&form, Tone::Plain), (word, tone), (&holders, Tone::Plain)]);
    for taint in &device.taints {
        // Below the name, where it belongs to no other device.
        let stem = lead.replace("├─", "│ ").replace("└─", "  ");
        let words = format!("{}:{} {}", taint.key, taint.effect, taint.reason);
        let words = if page.is_wide() { words } else { cut(&words, 60) };
        page.spans(&[
            (&format!("{stem}  "), Tone::Plain),
            (&format!("tainted {words}"), Tone::Bad),
        ]);
    }
}

fn title(group: &NumaGroup<'_>) -> String {
    let Some(id) = group.id else { return "No NUMA node known".to_owned() };
    let mut words = vec![format!("NUMA node {id}")];
    if !group.cpus.is_empty() {
        words.push(format!("processors {}", cut(&ranges(group.cpus), 50)));
    }
    if group.memory_bytes > 0 {
        words.push(memory(group.memory_bytes));
    }
    words.join(", ")
}

/// Numbers as ranges, such as `0-3,8`.
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = number,
            Some(_) | None => ranges.push((number, number)),
        }
    }
    let words = ranges.iter().map(|(start, end)| match end - start {
        0 => start.to_string(),
        _ => format!("{start}-{end}"),
    });
    words.collect::<Vec<_>>().join(",")
}

/// The text cut to `width` characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept.push('…');
    kept
}
