//! Finds sets of devices in which every two speak equally fast.
//!
//! Such a set is one fabric to its users, and one bar in the picture instead of a line for
//! each pair.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::Link;

/// Fewer devices than this are drawn by their lines.
const CLIQUE_MIN: usize = 3;

/// Devices, by index, of which each two have a link of this kind and rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clique {
    pub(super) members: Vec<usize>,
    pub(super) kind: String,
    pub(super) bandwidth: u64,
}

/// A link that belongs to no clique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) ends: (usize, usize),
    pub(super) kind: String,
    pub(super) bandwidth: u64,
}

type Pairs = BTreeSet<(usize, usize)>;

/// Splits links into cliques and the lines that are left. Names without an index are left out.
pub(super) fn split(links: &[Link], index: &BTreeMap<&str, usize>) -> (Vec<Clique>, Vec<Line>) {
    let mut classes: BTreeMap<(&str, u64), Pairs> = BTreeMap::new();
    for link in links {
        let ends = (index.get(link.a.as_str()), index.get(link.b.as_str()));
        let (Some(a), Some(b)) = ends else { continue };
        if a != b {
            let class = (link.kind.as_str(), link.bandwidth_bytes_per_second);
            classes.entry(class).or_default().insert((*a.min(b), *a.max(b)));
        }
    }
    let mut cliques = Vec::new();
    let mut rest = Vec::new();
    for ((kind, bandwidth), mut pairs) in classes {
        while let Some(members) = next_clique(&pairs) {
            pairs.retain(|(a, b)| !(members.contains(a) && members.contains(b)));
            let members = members.into_iter().collect();
            cliques.push(Clique { members, kind: kind.to_owned(), bandwidth });
        }
        let line = |ends| Line { ends, kind: kind.to_owned(), bandwidth };
        rest.extend(pairs.into_iter().map(line));
    }
    (cliques, rest)
}

/// A clique that no device can join, grown from the first pair that belongs to one.
fn next_clique(pairs: &Pairs) -> Option<BTreeSet<usize>> {
    let devices: BTreeSet<usize> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let are_joined = |a: usize, b: usize| pairs.contains(&(a.min(b), a.max(b)));
    pairs.iter().find_map(|(a, b)| {
        let mut members = BTreeSet::from([*a, *b]);
        for device in &devices {
            if !members.contains(device) && members.iter().all(|other| are_joined(*device, *other))
            {
                members.insert(*device);
            }
        }
        (members.len() >= CLIQUE_MIN).then_some(members)
    })
}
