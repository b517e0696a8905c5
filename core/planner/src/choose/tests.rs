//! Each test reads: devices as `name/NUMA node/root`, links, what is wanted, the choice.

use accelpool_model::{Bandwidth, LinkKind, Route};
use proptest::{prelude::*, sample::subsequence};

use super::*;

/// A device of its own, so that candidates can borrow from it.
#[derive(Debug, Clone)]
struct Free {
    name: DeviceName,
    numa_node: Option<u32>,
    pcie_root: Option<String>,
}

impl Free {
    /// Reads `name/NUMA node/root`, each of the latter two empty where unknown.
    fn new(text: &str) -> Self {
        let mut parts = text.split('/');
        let mut part = || parts.next().filter(|part| !part.is_empty());
        Self {
            name: part().expect("a name").parse().unwrap(),
            numa_node: part().map(|node| node.parse().unwrap()),
            pcie_root: part().map(str::to_owned),
        }
    }
}

fn candidates(free: &[Free]) -> Vec<Candidate<'_>> {
    fn candidate(free: &Free) -> Candidate<'_> {
        let Free { name, numa_node, pcie_root } = free;
        Candidate { name, numa_node: *numa_node, pcie_root: pcie_root.as_deref() }
    }
    free.iter().map(candidate).collect()
}

fn link(a: &str, b: &str, kind: LinkKind, gigabytes: u64) -> Link {
    let bandwidth = Bandwidth::from_bytes_per_second(gigabytes * 1_000_000_000);
    let ends = (a.parse().unwrap(), b.parse().unwrap());
    Link { ends, kind, bandwidth, strands: 0, route: Route::Direct }
}

/// `free` and `must_include` are lists of words; a link is `a-b=GB/s`.
#[track_caller]
fn check(free: &str, links: &str, (count, must_include): (usize, &str), expected: &str) {
    let free: Vec<Free> = free.split_whitespace().map(Free::new).collect();
    let read = |text: &str| {
        let (ends, rate) = text.split_once('=').unwrap();
        let (a, b) = ends.split_once('-').unwrap();
        link(a, b, LinkKind::NvLink, rate.parse().unwrap())
    };
    let links: Vec<Link> = links.split_whitespace().map(read).collect();
    let include: Vec<DeviceName> =
        must_include.split_whitespace().map(|name| name.parse().unwrap()).collect();
    let answer = choose(&candidates(&free), &links, count, &include.iter().collect::<Vec<_>>());
    let actual = match answer {
        Some(chosen) => {
            chosen.iter().map(|&index| free[index].name.as_str()).collect::<Vec<_>>().join(" ")
        }
        None => "none".to_owned(),
    };
    assert_eq!(actual, expected);
}

#[test]
fn the_weakest_link_decides_before_the_sum() {
    // a-b-c sums up to 110 and crawls over one pair; d-e-f sums up to 60.
    let links = "a-b=50 a-c=50 b-c=10 d-e=20 d-f=20 e-f=20";
    check("a b c d e f", links, (3, ""), "d e f");
}

#[test]
fn the_sum_decides_between_equal_weakest_links() {
    check("a b c d", "a-b=10 a-c=10 b-c=10 b-d=10 c-d=30", (3, ""), "b c d");
}

#[test]
fn links_decide_before_numa_nodes() {
    check("a/0 b/0 c/1", "a-c=10", (2, ""), "a c");
}

#[test]
fn numa_nodes_decide_before_roots() {
    check("a/0/x b/1/x c/0/y", "", (2, ""), "a c");
}

#[test]
fn roots_decide_within_a_numa_node() {
    check("a/0/x b/0/y c/0/x", "", (2, ""), "a c");
}

#[test]
fn the_broken_group_is_used_up_first() {
    check("a/0 b/0 c/0 d/0 e/1 f/1 g/1", "", (1, ""), "e");
    check("a/0/x b/0/x c/0/y", "", (1, ""), "c");
    check("a b c d", "a-b=10 a-c=10 b-c=10", (1, ""), "d");
    check("a/0 b/0 c/0 d/0 e/1 f/1", "", (2, ""), "e f");
}

#[test]
fn unknown_places_count_as_one_place() {
    check("a/0 b c/1 d", "", (2, ""), "b d");
}

#[test]
fn names_settle_the_rest() {
    check("d c b a", "", (2, ""), "a b");
}

#[test]
fn the_fastest_link_of_a_pair_counts() {
    check("a b c", "a-b=10 a-b=10 b-c=15 b-c=1", (2, ""), "b c");
}

#[test]
fn other_ends_and_loops_do_not_count() {
    check("a b c", "a-x=90 x-y=90 a-a=90 b-c=1", (2, ""), "b c");
}

#[test]
fn what_must_be_included_is() {
    let links = "a-b=50 c-d=20 b-c=10";
    check("a b c d", links, (2, ""), "a b");
    check("a b c d", links, (2, "c"), "c d");
    check("a b c d", links, (2, "d a"), "a d");
    check("a b c d", links, (1, "c c"), "c");
}

#[test]
fn none_and_all_are_choices_too() {
    check("b a", "", (0, ""), "");
    check("b a", "", (2, ""), "a b");
    check("", "", (0, ""), "");
}

#[test]
fn what_cannot_be_met_is_no_choice() {
    check("a b", "", (3, ""), "none");
    check("a b", "", (1, "x"), "none");
    check("a b", "", (1, "a b"), "none");
    let many: Vec<String> = (0..=CANDIDATES_MAX).map(|index| format!("d{index}")).collect();
    check(&many.join(" "), "", (1, ""), "none");
    check(&many[1..].join(" "), "", (1, ""), "d1");
}

#[test]
fn the_largest_choice_comes_to_an_end() {
    let free: Vec<Free> =
        (0..CANDIDATES_MAX).map(|index| Free::new(&format!("d{index:03}/{}", index % 8))).collect();
    let chosen = choose(&candidates(&free), &[], CANDIDATES_MAX / 2, &[]).unwrap();
    let nodes: std::collections::BTreeSet<_> =
        chosen.iter().map(|&index| free[index].numa_node).collect();
    assert_eq!((chosen.len(), nodes.len()), (CANDIDATES_MAX / 2, 4));
}

/// The score as the header of the module defines it, from the links themselves.
fn plain_score(free: &[Free], links: &[Link], chosen: &[usize]) -> Score {
    use std::{cmp::Reverse, collections::BTreeSet};
    let rate = |a: usize, b: usize| {
        let (a, b) = (&free[a].name, &free[b].name);
        let joins = |link: &&Link| (&link.ends.0, &link.ends.1) == (a, b);
        let either = |link: &&Link| joins(link) || (&link.ends.1, &link.ends.0) == (a, b);
        links.iter().filter(either).map(|link| link.bandwidth.bytes_per_second()).max().unwrap_or(0)
    };
    let pairs = |set: &[usize]| -> Vec<(usize, usize)> {
        let all = set.iter().flat_map(|&a| set.iter().map(move |&b| (a, b)));
        all.filter(|(a, b)| a < b).collect()
    };
    let rest: Vec<usize> = (0..free.len()).filter(|index| !chosen.contains(index)).collect();
    let sum = |set: &[usize]| pairs(set).iter().map(|&(a, b)| u128::from(rate(a, b))).sum::<u128>();
    let weakest = pairs(chosen).iter().map(|&(a, b)| rate(a, b)).min().unwrap_or(u64::MAX);
    let numa: BTreeSet<_> = chosen.iter().map(|&index| free[index].numa_node).collect();
    let roots: BTreeSet<_> = chosen.iter().map(|&index| &free[index].pcie_root).collect();
    let near = |same: &dyn Fn(usize, usize) -> bool| {
        pairs(&rest).iter().filter(|&&(a, b)| same(a, b)).count()
    };
    Score {
        weakest: Bandwidth::from_bytes_per_second(weakest),
        bandwidth: sum(chosen),
        numa_nodes: Reverse(numa.len()),
        pcie_roots: Reverse(roots.len()),
        rest_bandwidth: sum(&rest),
        rest_numa_pairs: near(&|a, b| free[a].numa_node == free[b].numa_node),
        rest_root_pairs: near(&|a, b| free[a].pcie_root == free[b].pcie_root),
    }
}

/// All sets of `count` places below `all` with all of `included`.
fn every_set(all: usize, count: usize, included: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let sets = 0..1_u32 << all;
    let places = move |set: u32| (0..all).filter(|place| set >> place & 1 == 1).collect::<Vec<_>>();
    sets.map(places)
        .filter(move |set| set.len() == count && included.iter().all(|place| set.contains(place)))
}

/// A node of up to `most` devices, in the order of their names, and links between them.
fn node(most: usize) -> impl Strategy<Value = (Vec<Free>, Vec<Link>)> {
    (1..=most).prop_flat_map(|len| {
        let device = (prop::option::of(0..3_u32), prop::option::of(0..4_u32));
        let devices = prop::collection::vec(device, len).prop_map(|devices| {
            let name = |(index, (numa, root)): (usize, (Option<u32>, Option<u32>))| Free {
                name: format!("d{index:02}").parse().unwrap(),
                numa_node: numa,
                pcie_root: root.map(|root| format!("pci0000:{root:02x}")),
            };
            devices.into_iter().enumerate().map(name).collect()
        });
        // One name more than devices, so that some links end nowhere.
        let link = (0..=len, 0..=len, 0..3_u64, prop::bool::ANY).prop_map(|(a, b, rate, fast)| {
            let kind = if fast { LinkKind::NvLink } else { LinkKind::Pcie };
            link(&format!("d{a:02}"), &format!("d{b:02}"), kind, rate * 25)
        });
        (devices, prop::collection::vec(link, 0..len * 4))
    })
}

/// A node, how many of its devices are wanted, and which must be among them.
fn wanted(most: usize) -> impl Strategy<Value = (Vec<Free>, Vec<Link>, usize, Vec<usize>)> {
    node(most).prop_flat_map(|(free, links)| {
        let places: Vec<usize> = (0..free.len()).collect();
        (Just(free), Just(links), 0..=places.len()).prop_flat_map(move |(free, links, count)| {
            let included = subsequence(places.clone(), 0..=count.min(3));
            (Just(free), Just(links), Just(count), included)
        })
    })
}

fn names<'a>(free: &'a [Free], places: &[usize]) -> Vec<&'a DeviceName> {
    places.iter().map(|&place| &free[place].name).collect()
}

proptest! {
    #[test]
    fn few_devices_get_the_best_set_there_is((free, links, count, included) in wanted(9)) {
        let chosen =
            choose(&candidates(&free), &links, count, &names(&free, &included)).unwrap();
        let best = every_set(free.len(), count, &included)
            .map(|set| plain_score(&free, &links, &set))
            .max();
        prop_assert_eq!(Some(plain_score(&free, &links, &chosen)), best);
        prop_assert_eq!(Some(score(&candidates(&free), &links, &chosen)), best);
    }

    #[test]
    fn no_choice_is_worse_than_first_fit((free, links, count, included) in wanted(64)) {
        let free_names = candidates(&free);
        let chosen = choose(&free_names, &links, count, &names(&free, &included)).unwrap();
        let others = (0..free.len()).filter(|place| !included.contains(place));
        let first_fit: Vec<usize> = included.iter().copied().chain(others).take(count).collect();
        let score = |set: &[usize]| score(&free_names, &links, set);
        prop_assert!(score(&chosen) >= score(&first_fit));
        prop_assert_eq!(chosen.len(), count);
        prop_assert!(chosen.is_sorted_by(|a, b| a < b));
        prop_assert!(included.iter().all(|place| chosen.contains(place)));
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        ((free, links, count, _), keys) in (wanted(24), prop::collection::vec(any::<u64>(), 24)),
    ) {
        let chosen = choose(&candidates(&free), &links, count, &[]).unwrap();
        let mut shuffled: Vec<(u64, Free)> = keys.into_iter().zip(free.clone()).collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<Free> = shuffled.into_iter().map(|(_, free)| free).collect();
        let again = choose(&candidates(&shuffled), &links, count, &[]).unwrap();
        prop_assert_eq!(names(&shuffled, &again), names(&free, &chosen));
    }
}
