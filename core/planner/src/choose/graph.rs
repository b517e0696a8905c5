//! What the devices are to each other, and how good a set of them is.
//!
//! All figures of a set grow by one device at a time: a [`Tally`] plus the [`Reach`] of a
//! device to the set gives the next tally in constant time, so that searches stay cheap.

use std::{cmp::Reverse, collections::BTreeMap};

use accelpool_model::Bandwidth;

use super::Candidate;

/// How good a set of devices is; of two sets of one size, the greater score is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    // The order of the fields is the order in which they decide.
    pub(super) weakest: Bandwidth,
    pub(super) bandwidth: u128,
    pub(super) numa_nodes: Reverse<usize>,
    pub(super) pcie_roots: Reverse<usize>,
    pub(super) rest_bandwidth: u128,
    pub(super) rest_numa_pairs: usize,
    pub(super) rest_root_pairs: usize,
}

/// Candidates by place, with the bandwidth of every pair.
pub(super) struct Graph {
    numa: Vec<usize>,
    root: Vec<usize>,
    /// Row by row; zero where no link joins the pair, and on the diagonal.
    bandwidth: Vec<u64>,
    /// What each place adds over all its pairs.
    degrees: Vec<Pairs>,
    /// Over all pairs of the graph.
    total: Pairs,
}

/// Figures summed over pairs of devices.
#[derive(Clone, Copy, Default)]
struct Pairs {
    bandwidth: u128,
    numa: usize,
    root: usize,
}

impl Pairs {
    fn plus(self, other: Self) -> Self {
        Self {
            bandwidth: self.bandwidth + other.bandwidth,
            numa: self.numa + other.numa,
            root: self.root + other.root,
        }
    }
}

/// What one device is to a set.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    weakest: u64,
    pairs: Pairs,
}

/// The figures of a set.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    /// No pair yet: nothing slows the set.
    weakest: u64,
    inside: Pairs,
    /// The degrees of the members: pairs inside count twice, pairs to the rest once.
    degrees: Pairs,
    numa_nodes: usize,
    pcie_roots: usize,
}

impl Graph {
    /// The graph of `candidates`, in their order, with links between pairs of places. Of
    /// several links between a pair the fastest stays.
    pub(super) fn new(
        candidates: &[Candidate<'_>],
        links: impl Iterator<Item = (usize, usize, Bandwidth)>,
    ) -> Self {
        let mut graph = Self {
            numa: groups(candidates.iter().map(|candidate| candidate.numa_node)),
            root: groups(candidates.iter().map(|candidate| candidate.pcie_root)),
            bandwidth: vec![0; candidates.len() * candidates.len()],
            degrees: Vec::new(),
            total: Pairs::default(),
        };
        for (a, b, bandwidth) in links.filter(|(a, b, _)| a != b) {
            for cell in [a * graph.len() + b, b * graph.len() + a] {
                graph.bandwidth[cell] = graph.bandwidth[cell].max(bandwidth.bytes_per_second());
            }
        }
        graph.sum_up();
        graph
    }

    pub(super) fn len(&self) -> usize {
        self.numa.len()
    }

    fn sum_up(&mut self) {
        let all: Vec<usize> = (0..self.len()).collect();
        let degree = |&place: &usize| {
            let (before, after) = all.split_at(place);
            self.reach(before, place).pairs.plus(self.reach(&after[1..], place).pairs)
        };
        let to_earlier = |&place: &usize| self.reach(&all[..place], place).pairs;
        let total = all.iter().map(to_earlier).fold(Pairs::default(), Pairs::plus);
        self.degrees = all.iter().map(degree).collect();
        self.total = total;
    }

    /// What `place` is to the pair partner `other`.
    pub(super) fn pair(&self, place: usize, other: usize) -> Reach {
        let bandwidth = self.bandwidth[place * self.len() + other];
        let pairs = Pairs {
            bandwidth: u128::from(bandwidth),
            numa: usize::from(self.numa[place] == self.numa[other]),
            root: usize::from(self.root[place] == self.root[other]),
        };
        Reach { weakest: bandwidth, pairs }
    }

    /// What `place` is to `set`, which does not hold it.
    pub(super) fn reach(&self, set: &[usize], place: usize) -> Reach {
        set.iter().fold(Reach::NONE, |reach, &other| reach.and(self.pair(place, other)))
    }
}

/// Numbers the groups of equal keys.
fn groups<K: Ord>(keys: impl Iterator<Item = K>) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let number = |key| {
        let next = numbers.len();
        *numbers.entry(key).or_insert(next)
    };
    keys.map(number).collect()
}

impl Reach {
    /// To the empty set.
    pub(super) const NONE: Self =
        Self { weakest: u64::MAX, pairs: Pairs { bandwidth: 0, numa: 0, root: 0 } };

    /// To the union of two sets that have nothing in common.
    pub(super) fn and(self, other: Self) -> Self {
        Self { weakest: self.weakest.min(other.weakest), pairs: self.pairs.plus(other.pairs) }
    }
}

impl Default for Tally {
    fn default() -> Self {
        let none = Pairs::default();
        Self { weakest: u64::MAX, inside: none, degrees: none, numa_nodes: 0, pcie_roots: 0 }
    }
}

impl Tally {
    /// The set and one further `place`, whose reach to the set is `reach`.
    pub(super) fn with(self, graph: &Graph, place: usize, reach: Reach) -> Self {
        Self {
            weakest: self.weakest.min(reach.weakest),
            inside: self.inside.plus(reach.pairs),
            degrees: self.degrees.plus(graph.degrees[place]),
            numa_nodes: self.numa_nodes + usize::from(reach.pairs.numa == 0),
            pcie_roots: self.pcie_roots + usize::from(reach.pairs.root == 0),
        }
    }

    /// True if no set that holds this one can have a score as good as `score`.
    pub(super) fn is_hopeless(&self, score: &Score) -> bool {
        self.weakest < score.weakest.bytes_per_second()
    }

    pub(super) fn score(&self, graph: &Graph) -> Score {
        // All pairs, less those that touch the set; `degrees` has the ones inside twice.
        let rest = |total: usize, degrees: usize, inside: usize| total + inside - degrees;
        let (total, degrees, inside) = (graph.total, self.degrees, self.inside);
        Score {
            weakest: Bandwidth::from_bytes_per_second(self.weakest),
            bandwidth: inside.bandwidth,
            numa_nodes: Reverse(self.numa_nodes),
            pcie_roots: Reverse(self.pcie_roots),
            rest_bandwidth: total.bandwidth + inside.bandwidth - degrees.bandwidth,
            rest_numa_pairs: rest(total.numa, degrees.numa, inside.numa),
            rest_root_pairs: rest(total.root, degrees.root, inside.root),
        }
    }
}
