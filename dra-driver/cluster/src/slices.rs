//! Turns the node's state into the pages of its `ResourceSlices`. Pure.
//!
//! A device becomes a group: itself, its entry for those who look, and every partition it could be
//! cut into. The members
//! of a group draw on one counter set, so that the scheduler itself knows what excludes
//! what. Names, order and page breaks depend on nothing but the state, so that the same
//! state always gives the same pages.

pub(crate) mod admin;
mod attributes;
mod capacity;
mod counters;
mod group;
mod semver;

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::{CounterSet, Device};

pub(crate) use self::capacity::{FixedShare, consumable, decimal, published_memory};
use self::group::{Group, group};
use crate::NodeState;

/// Which fields the API server keeps, and how it wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `sharedCounters` and `consumesCounters`.
    pub counters: bool,
    /// `allowMultipleAllocations` and `requestPolicy`.
    pub consumable: bool,
    /// `taints`.
    pub taints: bool,
    /// Where counters stand.
    pub layout: Layout,
}

/// Where counter sets stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In slices of their own: Kubernetes 1.35 and later.
    Separate,
    /// In the slice of the devices that draw on them: Kubernetes 1.34.
    Combined,
}

impl Features {
    /// All that Kubernetes 1.36 has.
    pub const ALL: Self =
        Self { counters: true, consumable: true, taints: true, layout: Layout::Separate };
}

/// The content of one slice: devices or counter sets, or both in [`Layout::Combined`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// The devices.
    pub devices: Vec<Device>,
    /// The counter sets.
    pub counters: Vec<CounterSet>,
}

/// All pages of the pool, and what could not be published.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pages {
    /// In the order in which the scheduler looks at them; at least one.
    pub pages: Vec<Page>,
    /// What was left out and why, in words.
    pub omitted: Vec<String>,
}

/// The API's limit where any device has a taint or draws on counters. Kept always, so that
/// the first taint does not break a page in two.
const DEVICES_PER_PAGE_MAX: usize = 64;
/// The API's limit on counter sets in a slice.
const COUNTER_SETS_PER_PAGE_MAX: usize = 8;
/// The limit of Kubernetes 1.34 on what the devices of one slice draw together.
const DRAWS_PER_COMBINED_PAGE_MAX: usize = 1024;

/// The pages that `state` wants of an API server with `features`.
#[must_use]
pub fn pages(state: &NodeState, features: Features) -> Pages {
    let mut omitted = state.refused.clone();
    let mut groups: Vec<Group> = Vec::new();
    let mut names = BTreeSet::new();
    for device in &state.devices {
        if !names.insert(device.name.as_str()) {
            omitted.push(format!("`{}`: another device has the same name", device.name));
            continue;
        }
        groups.extend(group(device, features, &mut omitted));
    }
    drop_repeated(&mut groups, &mut omitted);
    groups.retain(|group| !group.devices.is_empty());
    let mut pages = match features.layout {
        Layout::Separate => separate(groups),
        Layout::Combined => combined(groups, &mut omitted),
    };
    if pages.is_empty() {
        // An empty pool is published too: it tells an idle driver from a dead one.
        pages.push(Page::default());
    }
    Pages { pages, omitted }
}

/// Leaves out devices with a name that is taken: one such pair would make all the pool void.
fn drop_repeated(groups: &mut [Group], omitted: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    for group in groups {
        group.devices.retain(|device| {
            let new = names.insert(device.name.clone());
            if !new {
                omitted.push(format!("`{}`: the name is taken already", device.name));
            }
            new
        });
    }
}

fn separate(groups: Vec<Group>) -> Vec<Page> {
    let (sets, devices): (Vec<_>, Vec<_>) =
        groups.into_iter().map(|group| (group.counters, group.devices)).unzip();
    let sets: Vec<CounterSet> = sets.into_iter().flatten().collect();
    let counters = sets
        .chunks(COUNTER_SETS_PER_PAGE_MAX)
        .map(|sets| Page { counters: sets.to_vec(), ..Page::default() });
    counters.chain(packed(devices)).collect()
}

/// Groups of devices on as few pages as keep each group on one page, if it fits at all: then
/// a change of one device rewrites one page.
fn packed(groups: Vec<Vec<Device>>) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    for mut devices in groups {
        while !devices.is_empty() {
            let rest = devices.split_off(devices.len().min(DEVICES_PER_PAGE_MAX));
            let fits =
                |page: &&mut Page| page.devices.len() + devices.len() <= DEVICES_PER_PAGE_MAX;
            match pages.last_mut().filter(fits) {
                Some(page) => page.devices.append(&mut devices),
                None => pages.push(Page { devices, ..Page::default() }),
            }
            devices = rest;
        }
    }
    pages
}

/// A page for each group with counters, since a set can only be drawn on where it stands.
fn combined(groups: Vec<Group>, omitted: &mut Vec<String>) -> Vec<Page> {
    let (counted, plain): (Vec<_>, Vec<_>) =
        groups.into_iter().partition(|group| group.counters.is_some());
    let counted = counted.into_iter().map(|Group { counters, mut devices }| {
        let mut draws = 0;
        let kept = devices.iter().take(DEVICES_PER_PAGE_MAX).take_while(|device| {
            draws += draws_of(device);
            draws <= DRAWS_PER_COMBINED_PAGE_MAX
        });
        let kept = kept.count();
        let dropped = devices.split_off(kept);
        omitted.extend(dropped.into_iter().map(|device| {
            format!("`{}`: this API server takes no more partitions of one device", device.name)
        }));
        Page { devices, counters: counters.into_iter().collect() }
    });
    let counted: Vec<Page> = counted.collect();
    counted
        .into_iter()
        .chain(packed(plain.into_iter().map(|group| group.devices).collect()))
        .collect()
}

fn draws_of(device: &Device) -> usize {
    device.consumes_counters.iter().flatten().map(|draw| draw.counters.len()).sum()
}
