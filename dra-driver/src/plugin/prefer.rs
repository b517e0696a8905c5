//! Which of the offered ids go best together.
//!
//! First those whose device can be had in the fewest other ways, since these are lost with it.
//! Of the rest, devices and partitions are for the daemon's planner to compare; shares are put
//! where least is left, so that whole devices stay whole. Never fails: the kubelet would refuse
//! the pod for an answer that is only a preference.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_proto::node::PreferDevicesRequest;

use super::offer::{Offered, Wanted};
use crate::node::Node;

/// What the kubelet asks about.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    pub(super) available: Vec<String>,
    pub(super) must_include: Vec<String>,
    pub(super) size: usize,
}

/// Chooses `size` of the available ids, those that must be included among them.
pub(super) async fn prefer(node: &Node, offered: &[Offered], choice: Choice) -> Vec<String> {
    let choice = least_versatile(offered, choice);
    let shares = offered.iter().any(|device| match device.wanted {
        Wanted::Share { .. } => true,
        Wanted::Device { .. } | Wanted::Partition { .. } => false,
    });
    if shares {
        return fullest_first(offered, &choice);
    }
    let request = PreferDevicesRequest {
        available: choice.available.clone(),
        must_include: choice.must_include.clone(),
        size: u32::try_from(choice.size).unwrap_or(u32::MAX),
    };
    match node.prefer(request).await {
        Ok(devices) if answers(&devices, &choice) => devices,
        Ok(devices) => {
            tracing::warn!(?devices, "the daemon's preference is no answer");
            first_fit(&choice)
        }
        Err(error) => {
            tracing::warn!(%error, "the daemon has no preference");
            first_fit(&choice)
        }
    }
}

/// Leaves out what can be had in more ways than must be touched for `size` of them.
fn least_versatile(offered: &[Offered], mut choice: Choice) -> Choice {
    let ways_of: BTreeMap<&str, usize> =
        offered.iter().map(|offered| (offered.id.as_str(), offered.ways)).collect();
    let ways = |id: &String| ways_of.get(id.as_str()).copied().unwrap_or(usize::MAX);
    let included = |id: &String| choice.must_include.contains(id);
    let free = choice.size.saturating_sub(choice.must_include.len());
    let mut rest: Vec<usize> =
        choice.available.iter().filter(|id| !included(id)).map(ways).collect();
    rest.sort_unstable();
    let Some(most) = free.checked_sub(1).and_then(|last| rest.get(last)) else { return choice };
    let kept = |id: &String| included(id) || ways(id) <= *most;
    let available = choice.available.iter().filter(|id| kept(id)).cloned().collect();
    choice.available = available;
    choice
}

/// True if `devices` are what was asked: so many, of the available, with those that must be.
fn answers(devices: &[String], choice: &Choice) -> bool {
    let chosen: BTreeSet<&String> = devices.iter().collect();
    chosen.len() == choice.size
        && devices.len() == choice.size
        && choice.must_include.iter().all(|id| chosen.contains(id))
        && devices.iter().all(|id| choice.available.contains(id))
}

fn first_fit(choice: &Choice) -> Vec<String> {
    let mut rest: Vec<&String> =
        choice.available.iter().filter(|id| !choice.must_include.contains(id)).collect();
    rest.sort();
    choice.must_include.iter().chain(rest).take(choice.size).cloned().collect()
}

/// Shares of the device with the fewest available ones first.
fn fullest_first(offered: &[Offered], choice: &Choice) -> Vec<String> {
    let device_of: BTreeMap<&str, &str> = offered
        .iter()
        .filter_map(|offered| match &offered.wanted {
            Wanted::Share { device, .. } => Some((offered.id.as_str(), device.as_str())),
            Wanted::Device { .. } | Wanted::Partition { .. } => None,
        })
        .collect();
    let device = |id: &String| device_of.get(id.as_str()).copied().unwrap_or_default();
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &choice.available {
        *left.entry(device(id)).or_default() += 1;
    }
    let mut rest: Vec<&String> =
        choice.available.iter().filter(|id| !choice.must_include.contains(id)).collect();
    rest.sort_by_key(|id| (left.get(device(id)).copied(), device(id), id.as_str()));
    choice.must_include.iter().chain(rest).take(choice.size).cloned().collect()
}

#[cfg(test)]
mod tests {
    use accelpool_model::{ComputePermille, MemoryBytes};

    use super::*;

    fn share(device: &str, index: u32) -> Offered {
        let (memory, compute) = (MemoryBytes::new(1), ComputePermille::WHOLE);
        let wanted = Wanted::Share { device: device.to_owned(), memory, compute };
        let id = format!("{device}-share-{index}");
        Offered { id, healthy: true, numa_node: None, enforced: false, ways: 2, wanted }
    }

    #[track_caller]
    fn check_versatile(must_include: &[&str], size: usize, expected: &[&str]) {
        let device = |(name, ways): (&str, usize)| {
            let wanted = Wanted::Device { name: name.to_owned() };
            Offered {
                id: name.to_owned(),
                healthy: true,
                numa_node: None,
                enforced: false,
                ways,
                wanted,
            }
        };
        let offered: Vec<_> = [("any", 3), ("plain-1", 1), ("cut", 2), ("plain-2", 1)]
            .into_iter()
            .map(device)
            .collect();
        let available = offered.iter().map(|offered| offered.id.clone()).collect();
        let choice = Choice { available, must_include: strings(must_include), size };
        assert_eq!(least_versatile(&offered, choice).available, expected);
    }

    #[test]
    fn what_can_be_had_in_one_way_alone_goes_first() {
        check_versatile(&[], 1, &["plain-1", "plain-2"]);
        check_versatile(&[], 2, &["plain-1", "plain-2"]);
        check_versatile(&[], 3, &["plain-1", "cut", "plain-2"]);
        check_versatile(&["any"], 2, &["any", "plain-1", "plain-2"]);
        check_versatile(&["any"], 1, &["any", "plain-1", "cut", "plain-2"]);
        check_versatile(&[], 9, &["any", "plain-1", "cut", "plain-2"]);
    }

    fn strings(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn shares_fill_the_fullest_device() {
        let offered: Vec<_> =
            (0..4).map(|index| share("a", index)).chain((0..4).map(|i| share("b", i))).collect();
        let available = strings(&["a-share-0", "a-share-1", "b-share-3", "a-share-2"]);
        let choice = Choice { available, must_include: vec![], size: 2 };
        assert_eq!(fullest_first(&offered, &choice), ["b-share-3", "a-share-0"]);
    }

    #[test]
    fn first_fit_keeps_what_must_be_included() {
        let choice =
            Choice { available: strings(&["c", "b", "a"]), must_include: strings(&["c"]), size: 2 };
        assert_eq!(first_fit(&choice), ["c", "a"]);
        assert!(answers(&strings(&["b", "c"]), &choice));
        for wrong in [&["a", "b"][..], &["c"], &["c", "c"], &["c", "x"], &["a", "b", "c"]] {
            assert!(!answers(&strings(wrong), &choice), "{wrong:?}");
        }
    }
}
