//! The counters against the daemon's own rules of what may lie beside what: a scheduler that
//! only counts must come to the same answer, whatever it is asked in whatever order.

mod common;

use std::collections::BTreeMap;

use accelpool_cluster::{Features, NodeState, Page, pages};
use accelpool_proto::node as wire;
use k8s_openapi::api::resource::v1::Device;
use proptest::prelude::*;

use crate::common::nodes;

/// What an entry of a page stands for.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Whole,
    FixedShare,
    Partition { profile: wire::Profile, start: u32 },
}

/// An entry, and what it draws.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    part: Part,
    draws: BTreeMap<String, u64>,
}

/// The entries of a node with one device, and what there is to draw.
fn entries(
    state: &wire::WatchNodeResponse,
    features: Features,
) -> (Vec<Entry>, BTreeMap<String, u64>) {
    let pages = pages(&NodeState::from_wire(state), features).pages;
    let amounts = |counters: &BTreeMap<String, k8s_openapi::api::resource::v1::Counter>| {
        let amount = |text: &str| text.parse().expect("counters are below a thousand");
        counters.iter().map(|(name, one)| (name.clone(), amount(&one.value.0))).collect()
    };
    let sets = pages.iter().flat_map(|page: &Page| &page.counters);
    let total = sets.map(|set| amounts(&set.counters)).next().expect("a counter set");
    // What administrators look through draws nothing, and excludes nothing.
    let devices = pages.iter().flat_map(|page| &page.devices);
    let devices = devices.filter(|device| form(device) != "admin");
    let entry = |device: &Device| Entry {
        name: device.name.clone(),
        part: part(state, device),
        draws: device
            .consumes_counters
            .iter()
            .flatten()
            .map(|draw| amounts(&draw.counters))
            .next()
            .unwrap_or_default(),
    };
    (devices.map(entry).collect(), total)
}

fn form(device: &Device) -> &str {
    let attributes = device.attributes.as_ref().expect("attributes");
    attributes["form"].string.as_deref().expect("a text")
}

fn part(state: &wire::WatchNodeResponse, device: &Device) -> Part {
    let attributes = device.attributes.as_ref().expect("attributes");
    let text = |name: &str| attributes[name].string.clone().expect("a text");
    match form(device) {
        "device" => Part::Whole,
        "share" => Part::FixedShare,
        _ => {
            let cut = state.devices[0].partitioning.as_ref().expect("partitions");
            let named = |profile: &&wire::Profile| profile.name == text("profile");
            let profile = cut.profiles.iter().find(named).expect("a known profile").clone();
            let start = device.name.rsplit('-').next().and_then(|start| start.parse().ok());
            Part::Partition { profile, start: start.expect("a name ends in its start") }
        }
    }
}

/// The rules of `core/planner/src/occupancy.rs`, said again.
fn may_lie_beside(cut: &wire::Partitioning, held: &[Part], wanted: &Part) -> bool {
    let Part::Partition { profile, start } = wanted else {
        return held.is_empty()
            || *wanted == Part::FixedShare && held.iter().all(|part| *part == Part::FixedShare);
    };
    let mut slices = 0;
    let mut instances = 0;
    for part in held {
        let Part::Partition { profile: other, start: at } = part else { return false };
        let same = other.name == profile.name;
        let both_fixed = !profile.counted && !other.counted;
        let touch = both_fixed && *start < at + other.size && *at < start + profile.size;
        if touch || same && at == start || cut.uniform && !same {
            return false;
        }
        slices += other.size;
        instances += u32::from(same);
    }
    slices + profile.size <= cut.slices && instances < profile.instances_max
}

#[track_caller]
fn check(state: &wire::WatchNodeResponse, features: Features, order: &[prop::sample::Index]) {
    let (entries, mut left) = entries(state, features);
    let cut = state.devices[0].partitioning.as_ref().expect("partitions");
    let mut held: Vec<Part> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for index in order {
        let entry = index.get(&entries);
        if names.contains(&entry.name.as_str()) {
            continue; // the scheduler gives an entry once
        }
        let drawn = |(name, amount): (&String, &u64)| left[name] >= *amount;
        let counted = entry.draws.iter().all(drawn);
        let ruled = may_lie_beside(cut, &held, &entry.part);
        assert_eq!(counted, ruled, "{} beside {names:?}: counted {counted}", entry.name);
        if ruled {
            for (name, amount) in &entry.draws {
                *left.get_mut(name).expect("a known counter") -= amount;
            }
            held.push(entry.part.clone());
            names.push(&entry.name);
        }
    }
}

fn order() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 1..60)
}

const FIXED: Features = Features { consumable: false, ..Features::ALL };

proptest! {
    #[test]
    fn counters_agree_with_the_rules_of_mig(order in order()) {
        check(&nodes::dgx_h100(1), Features::ALL, &order);
        check(&nodes::dgx_h100(1), FIXED, &order);
    }

    #[test]
    fn counters_agree_with_the_rules_of_amds_modes(order in order()) {
        check(&nodes::mi300x(1), Features::ALL, &order);
        check(&nodes::mi300x(1), FIXED, &order);
    }

    #[test]
    fn counters_agree_with_the_rules_of_counted_slices(order in order()) {
        check(&nodes::atlas_910b(1), Features::ALL, &order);
        check(&nodes::atlas_910b(1), FIXED, &order);
    }
}
