//! Finds the best set: every subset where they are few, else good starts and swaps.
//!
//! Everything walks the places in order and keeps the first of equals, so that the same
//! graph always gives the same set.

use super::graph::{Graph, Reach, Score, Tally};

/// Subsets times their size squared up to which all are tried, about the reads of a pair
/// that this takes. Nine of 16 need the most of all choices from 16: 926,640.
const EXACT_WORK_MAX: usize = 1_000_000;

/// Reads of a pair that improving a start may take, for all starts together.
const SWAP_WORK_MAX: usize = 4_000_000;

/// Starts that are grown beside the first fit, spread evenly over the places: nodes have
/// fewer groups of devices than that.
const SEEDS_MAX: usize = 16;

/// The best `count` places of `graph` with all of `included`, which are distinct.
pub(super) fn best(graph: &Graph, included: &[usize], count: usize) -> Vec<usize> {
    let others: Vec<usize> = (0..graph.len()).filter(|place| !included.contains(place)).collect();
    let start = Set::of(graph, included);
    let missing = count - included.len();
    let work = subsets(others.len(), missing).saturating_mul(count.saturating_mul(count));
    if work > EXACT_WORK_MAX {
        return bounded(graph, &start, &others, missing).places;
    }
    let mut exact = Exact { graph, places: start.places, best: None };
    exact.grow(start.tally, &others, missing);
    exact.best.map(|(_, places)| places).unwrap_or_default()
}

/// Number of ways to take `count` of `all`, or a number above [`EXACT_WORK_MAX`].
fn subsets(all: usize, count: usize) -> usize {
    let mut ways: usize = 1;
    for step in 0..count.min(all - count) {
        // Exact: the product of `step + 1` successive numbers is divisible by each factorial.
        ways = ways.saturating_mul(all - step) / (step + 1);
        if ways > EXACT_WORK_MAX {
            return usize::MAX;
        }
    }
    ways
}

/// A set of places with its figures.
#[derive(Clone)]
struct Set {
    places: Vec<usize>,
    tally: Tally,
}

impl Set {
    fn of(graph: &Graph, places: &[usize]) -> Self {
        let empty = Self { places: Vec::new(), tally: Tally::default() };
        places.iter().fold(empty, |set, &place| set.with(graph, place))
    }

    fn with(&self, graph: &Graph, place: usize) -> Self {
        let tally = self.tally.with(graph, place, graph.reach(&self.places, place));
        let mut places = self.places.clone();
        places.push(place);
        Self { places, tally }
    }
}

/// A walk over all sets.
struct Exact<'a> {
    graph: &'a Graph,
    /// The set in hand.
    places: Vec<usize>,
    best: Option<(Score, Vec<usize>)>,
}

impl Exact<'_> {
    /// Tries every way to add `missing` of `others` to the set in hand, whose figures are
    /// `tally`, in order. A set that is already slower than the best one is not grown.
    fn grow(&mut self, tally: Tally, others: &[usize], missing: usize) {
        if self.best.as_ref().is_some_and(|(score, _)| tally.is_hopeless(score)) {
            return;
        }
        if missing == 0 {
            let score = tally.score(self.graph);
            if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
                self.best = Some((score, self.places.clone()));
            }
            return;
        }
        for (index, &place) in others.iter().enumerate().take(others.len() + 1 - missing) {
            let reach = self.graph.reach(&self.places, place);
            self.places.push(place);
            self.grow(tally.with(self.graph, place, reach), &others[index + 1..], missing - 1);
            self.places.pop();
        }
    }
}

/// The best of the first fit and sets grown from seeds, each improved by swaps.
fn bounded(graph: &Graph, start: &Set, others: &[usize], missing: usize) -> Set {
    let fixed = start.places.len();
    let seeds = others.len().min(SEEDS_MAX);
    let improved = |mut set: Set| {
        improve(graph, &mut set, fixed, SWAP_WORK_MAX / (seeds + 1));
        set
    };
    let first_fit = others[..missing].iter().fold(start.clone(), |set, &at| set.with(graph, at));
    let mut best = improved(first_fit);
    for seed in (0..seeds).map(|seed| others[seed * others.len() / seeds]) {
        let set = improved(grow(graph, start.with(graph, seed), fixed + missing));
        if set.tally.score(graph) > best.tally.score(graph) {
            best = set;
        }
    }
    best
}

/// Adds the place that leaves the best set, again and again, until there are `count`.
fn grow(graph: &Graph, mut set: Set, count: usize) -> Set {
    let mut reaches: Vec<Option<Reach>> = (0..graph.len())
        .map(|place| (!set.places.contains(&place)).then(|| graph.reach(&set.places, place)))
        .collect();
    while set.places.len() < count {
        let mut next: Option<(Score, usize, Tally)> = None;
        for (place, reach) in reaches.iter().enumerate() {
            let Some(reach) = reach else { continue };
            let tally = set.tally.with(graph, place, *reach);
            let score = tally.score(graph);
            if next.as_ref().is_none_or(|(best, ..)| score > *best) {
                next = Some((score, place, tally));
            }
        }
        let Some((_, added, tally)) = next else { break };
        set.places.push(added);
        set.tally = tally;
        reaches[added] = None;
        for (place, reach) in reaches.iter_mut().enumerate() {
            *reach = reach.map(|reach| reach.and(graph.pair(place, added)));
        }
    }
    set
}

/// Swaps a chosen place, after the `fixed` first ones, for one outside as long as that
/// makes a better set and `work` is left.
fn improve(graph: &Graph, set: &mut Set, fixed: usize, mut work: usize) {
    let mut score = set.tally.score(graph);
    let mut out = fixed;
    // A full round of places without a better set ends the search.
    let mut in_vain = fixed;
    while in_vain < set.places.len() {
        let Some(left) = work.checked_sub(swap_work(graph, set)) else { return };
        work = left;
        in_vain += 1;
        if let Some((better, better_score)) = swap(graph, set, out, score) {
            (*set, score) = (better, better_score);
            in_vain = fixed;
        }
        out = if out + 1 < set.places.len() { out + 1 } else { fixed };
    }
}

/// Reads of a pair that one call of [`swap`] takes.
fn swap_work(graph: &Graph, set: &Set) -> usize {
    graph.len() * set.places.len()
}

/// The best set that has another place for `places[out]`, if it beats `score`.
fn swap(graph: &Graph, set: &Set, out: usize, mut score: Score) -> Option<(Set, Score)> {
    let mut kept = set.places.clone();
    kept.remove(out);
    let kept = Set::of(graph, &kept);
    let mut best = None;
    for place in (0..graph.len()).filter(|place| !set.places.contains(place)) {
        let tally = kept.tally.with(graph, place, graph.reach(&kept.places, place));
        let candidate = tally.score(graph);
        if candidate > score {
            score = candidate;
            best = Some((place, tally));
        }
    }
    let (place, tally) = best?;
    let mut places = set.places.clone();
    places[out] = place;
    Some((Set { places, tally }, score))
}
