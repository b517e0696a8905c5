//! Chooses the best `count` of the free devices for one claim.
//!
//! Better means, in this order: a faster weakest link between the chosen (a collective
//! runs at the pace of its slowest pair), more bandwidth over all their pairs, fewer NUMA
//! nodes, fewer PCIe roots, and more left for later claims: bandwidth between the devices
//! that stay free, then free pairs on one NUMA node, then free pairs under one root. Pairs
//! favour whole groups, so a claim takes from a group that is already broken. What still
//! ties is settled by name. It knows nothing of pools, quotas or leases: the candidates are
//! the devices that the claim may have.

mod graph;
mod search;
#[cfg(test)]
mod tests;

use accelpool_model::{Device, DeviceName, Link};

pub use self::graph::Score;
use self::graph::{Graph, Tally};

/// The most candidates that are looked at: far above any node's count, and the square of
/// it, the table of pairs, still fits a processor's cache.
pub const CANDIDATES_MAX: usize = 512;

/// A free device, as far as a choice needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name, unique among the candidates.
    pub name: &'a DeviceName,
    /// Its NUMA node. All devices without one count as if on one further node.
    pub numa_node: Option<u32>,
    /// The PCIe root above it. All devices without one count as if under one further root.
    pub pcie_root: Option<&'a str>,
}

impl<'a> Candidate<'a> {
    /// The candidate that `device` is while it is free.
    #[must_use]
    pub fn of(device: &'a Device) -> Self {
        let Device { name, numa_node, pcie_root, .. } = device;
        Self { name, numa_node: *numa_node, pcie_root: pcie_root.as_deref() }
    }
}

/// Chooses `count` of `candidates`, all of `must_include` among them.
///
/// Answers with indices into `candidates`, in the order of the names. The same devices in
/// another order give the same choice. Where several links join a pair, the fastest counts:
/// a transfer takes one way, not all. Links to devices that are no candidates do not count.
///
/// The choice is the best there is for up to 16 candidates, and for more of them as long as
/// the subsets are few (2 of 64, say). Beyond that it is at least as good as the first
/// `count` by name, `must_include` before the others, and the work is bounded: at most a
/// few million steps for any input that [`CANDIDATES_MAX`] admits.
///
/// `None` if that cannot be: fewer candidates than `count`, more of them than
/// [`CANDIDATES_MAX`], names in `must_include` that are no candidates or exceed `count`.
#[must_use]
pub fn choose(
    candidates: &[Candidate<'_>],
    links: &[Link],
    count: usize,
    must_include: &[&DeviceName],
) -> Option<Vec<usize>> {
    if candidates.len() > CANDIDATES_MAX || count > candidates.len() {
        return None;
    }
    let by_name = ByName::new(candidates);
    let mut included = Vec::new();
    for name in must_include {
        included.push(by_name.place(name)?);
    }
    included.sort_unstable();
    included.dedup();
    if included.len() > count {
        return None;
    }
    let mut chosen = search::best(&by_name.graph(links), &included, count);
    chosen.sort_unstable();
    Some(chosen.into_iter().map(|place| by_name.order[place]).collect())
}

/// How good the set `chosen` of `candidates` is: of two sets, the greater score is better.
///
/// `chosen` holds indices into `candidates`; those out of range and repeated do not count.
#[must_use]
pub fn score(candidates: &[Candidate<'_>], links: &[Link], chosen: &[usize]) -> Score {
    let by_name = ByName::new(candidates);
    let graph = by_name.graph(links);
    let mut places = Vec::new();
    let mut tally = Tally::default();
    for (place, index) in by_name.order.iter().enumerate() {
        if chosen.contains(index) {
            tally = tally.with(&graph, place, graph.reach(&places, place));
            places.push(place);
        }
    }
    tally.score(&graph)
}

/// The candidates in the order of their names; a place is a position in that order.
struct ByName<'a> {
    candidates: &'a [Candidate<'a>],
    order: Vec<usize>,
}

impl<'a> ByName<'a> {
    fn new(candidates: &'a [Candidate<'a>]) -> Self {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|&index| candidates[index].name);
        Self { candidates, order }
    }

    fn place(&self, name: &DeviceName) -> Option<usize> {
        self.order.binary_search_by_key(&name, |&index| self.candidates[index].name).ok()
    }

    fn graph(&self, links: &[Link]) -> Graph {
        let ordered: Vec<_> = self.order.iter().map(|&index| self.candidates[index]).collect();
        let links = links.iter().filter_map(|Link { ends, bandwidth, .. }| {
            Some((self.place(&ends.0)?, self.place(&ends.1)?, *bandwidth))
        });
        Graph::new(&ordered, links)
    }
}
