//! Pages made of whole nodes: their text against golden files, and the API server's rules.
//!
//! `UPDATE_GOLDEN=1 cargo test -p accelpool-cluster --test slices` writes the files anew.

mod common;

use std::{fmt::Write as _, path::Path};

use accelpool_cluster::{Features, Layout, NodeState, Page, Pages, pages};
use accelpool_cluster_double::{Rules, pool_errors, slice_errors};
use accelpool_proto::node as wire;
use k8s_openapi::{
    api::resource::v1::{Device, DeviceAttribute, ResourcePool, ResourceSlice, ResourceSliceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::common::nodes;

/// Every mixture of features that a server can have.
fn all_features() -> Vec<Features> {
    let bits = (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0));
    bits.flat_map(|(counters, consumable, taints)| {
        [Layout::Separate, Layout::Combined].map(|layout| Features {
            counters,
            consumable,
            taints,
            layout,
        })
    })
    .collect()
}

fn built(state: &wire::WatchNodeResponse, features: Features) -> Pages {
    pages(&NodeState::from_wire(state), features)
}

#[track_caller]
fn check_valid(state: &wire::WatchNodeResponse, features: Features) {
    let pages = built(state, features).pages;
    let count = i64::try_from(pages.len()).expect("few pages");
    let pool = ResourcePool {
        name: "accelpool.dev/n1".to_owned(),
        generation: 1,
        resource_slice_count: count,
    };
    let spec = |page: &Page| ResourceSliceSpec {
        driver: "accelpool.dev".to_owned(),
        node_name: Some("n1".to_owned()),
        pool: pool.clone(),
        devices: (!page.devices.is_empty()).then(|| page.devices.clone()),
        shared_counters: (!page.counters.is_empty()).then(|| page.counters.clone()),
        ..ResourceSliceSpec::default()
    };
    let specs: Vec<ResourceSliceSpec> = pages.iter().map(spec).collect();
    let rules = match features.layout {
        Layout::Separate => Rules::Separate,
        Layout::Combined => Rules::Combined,
    };
    for spec in &specs {
        let metadata = ObjectMeta { name: Some("n".to_owned()), ..ObjectMeta::default() };
        let slice = ResourceSlice { metadata, spec: spec.clone() };
        assert_eq!(slice_errors(&slice, rules), [""; 0], "{features:?}");
        assert!(spec.devices.as_ref().is_none_or(|devices| devices.len() <= 64));
        for device in spec.devices.iter().flatten() {
            // Row 27: a pod would wait ten minutes for a condition that nobody sets.
            let waits = (&device.binding_conditions, &device.binding_failure_conditions);
            assert_eq!(waits, (&None, &None), "{}", device.name);
        }
    }
    assert_eq!(pool_errors(&specs), [""; 0], "{features:?}");
    same_attributes(&specs);
}

/// A selector that reads any of the driver's attributes must find it on every device.
#[track_caller]
fn same_attributes(specs: &[ResourceSliceSpec]) {
    let devices: Vec<&Device> =
        specs.iter().flat_map(|spec| spec.devices.iter().flatten()).collect();
    let own = |device: &Device| -> Vec<(String, u8)> {
        let attributes = device.attributes.iter().flatten();
        let own = attributes.filter(|(name, _)| !name.contains('/'));
        own.map(|(name, value)| (name.clone(), kind_of(value))).collect()
    };
    let capacities = |device: &Device| -> Vec<String> {
        device.capacity.iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    for device in &devices {
        assert_eq!(own(device), own(devices[0]), "{}", device.name);
        assert_eq!(capacities(device), ["compute", "memory"], "{}", device.name);
    }
}

fn kind_of(value: &DeviceAttribute) -> u8 {
    match value {
        DeviceAttribute { string: Some(_), .. } => 1,
        DeviceAttribute { int: Some(_), .. } => 2,
        DeviceAttribute { version: Some(_), .. } => 3,
        _ => 0,
    }
}

#[test]
fn every_node_is_valid_for_every_server() {
    let mut faulty = nodes::dgx_h100(16);
    for device in 0..16 {
        for key in ["fell-off-bus", "link", "operator", "reset-required", "memory", "throttled"] {
            nodes::taint(&mut faulty, device, key, "NoExecute");
        }
    }
    let mixed = nodes::mixed();
    let all = [
        nodes::dgx_h100(16),
        nodes::mi300x(8),
        nodes::atlas_910b(16),
        faulty,
        mixed,
        nodes::hostile(),
        wire::WatchNodeResponse::default(),
    ];
    for state in &all {
        for features in all_features() {
            check_valid(state, features);
        }
    }
}

#[test]
fn the_same_state_gives_the_same_pages_in_any_order() {
    let mut state = nodes::dgx_h100(8);
    let expected = built(&state, Features::ALL);
    state.devices.reverse();
    state.revision += 7;
    assert_eq!(built(&state, Features::ALL), expected);
}

/// Row 18: a page that is short without taints and too long with them would break with the first.
#[test]
fn the_first_taint_moves_no_device() {
    let names = |state: &wire::WatchNodeResponse| -> Vec<Vec<String>> {
        let pages = built(state, Features::ALL).pages;
        let names = |page: Page| page.devices.into_iter().map(|device| device.name).collect();
        pages.into_iter().map(names).collect()
    };
    for mut state in [nodes::dgx_h100(16), nodes::mi300x(8), nodes::atlas_910b(16)] {
        let before = names(&state);
        nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
        assert_eq!(names(&state), before);
    }
    // Devices without counters could stand 128 to a page, were it not for taints.
    let mut plain = nodes::dgx_h100(1);
    let one = wire::Device { partitioning: None, ..plain.devices[0].clone() };
    plain.devices = (0..100)
        .map(|index| wire::Device {
            name: format!("gpu-{index:03}"),
            uuid: format!("GPU-{index}"),
            ..one.clone()
        })
        .collect();
    plain.pools[0].devices = plain.devices.iter().map(|device| device.name.clone()).collect();
    let before = names(&plain);
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 64, 8]);
    nodes::taint(&mut plain, 70, "fell-off-bus", "NoSchedule");
    assert_eq!(names(&plain), before);
}

#[track_caller]
fn check_golden(name: &str, state: &wire::WatchNodeResponse, features: Features) {
    let Pages { pages, omitted } = built(state, features);
    let mut text = String::new();
    for (index, page) in pages.iter().enumerate() {
        let _ = writeln!(text, "page {index}");
        for set in &page.counters {
            let counters =
                set.counters.iter().map(|(name, one)| format!(" {name}={}", one.value.0));
            let _ = writeln!(text, "  set {}:{}", set.name, counters.collect::<String>());
        }
        for device in &page.devices {
            text.push_str(&device_lines(device));
        }
    }
    for reason in omitted {
        let _ = writeln!(text, "omitted {reason}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    for (line, (actual, expected)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(actual, expected, "{name}, line {}", line + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{name}: another number of lines");
}

fn device_lines(device: &Device) -> String {
    let attribute = |(name, value): (&String, &DeviceAttribute)| {
        let number = value.int.map(|number| number.to_string());
        let text = value.string.clone().map(|text| format!("{text:?}"));
        let text = text.or_else(|| value.version.clone()).or(number).unwrap_or_default();
        format!(" {name}={text}")
    };
    let attributes: String = device.attributes.iter().flatten().map(attribute).collect();
    let capacities = device.capacity.iter().flatten().map(|(name, capacity)| {
        let policy = capacity.request_policy.as_ref().map(|policy| {
            let quantity = |quantity: &Option<_>| match quantity {
                Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(text)) => text.clone(),
                None => "none".to_owned(),
            };
            let range = policy.valid_range.as_ref().expect("policies have a range");
            let (default, step) = (quantity(&policy.default), quantity(&range.step));
            format!("(default {default}, from {} by {step})", range.min.0)
        });
        format!(" {name}={}{}", capacity.value.0, policy.unwrap_or_default())
    });
    let capacities: String = capacities.collect();
    let mut text = format!("  {}:{capacities}", device.name);
    if device.allow_multiple_allocations == Some(true) {
        text.push_str(" shared");
    }
    text.push('\n');
    let _ = writeln!(text, "    has{attributes}");
    for draw in device.consumes_counters.iter().flatten() {
        let counters = draw.counters.iter().map(|(name, one)| format!(" {name}={}", one.value.0));
        let _ = writeln!(text, "    draws {}:{}", draw.counter_set, counters.collect::<String>());
    }
    for taint in device.taints.iter().flatten() {
        let since = taint.time_added.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let value = taint.value.clone().unwrap_or_default();
        let _ = writeln!(text, "    taint {}={value}:{} {since}", taint.key, taint.effect);
    }
    text
}

#[test]
fn a_dgx_h100_is_as_it_always_was() {
    let mut state = nodes::dgx_h100(2);
    nodes::taint(&mut state, 1, "fell-off-bus", "NoSchedule");
    check_golden("dgx-h100.txt", &state, Features::ALL);
}

#[test]
fn a_mi300x_is_as_it_always_was() {
    check_golden("mi300x.txt", &nodes::mi300x(1), Features::ALL);
}

#[test]
fn an_atlas_910b_is_as_it_always_was() {
    check_golden("atlas-910b.txt", &nodes::atlas_910b(1), Features::ALL);
}

#[test]
fn fixed_shares_are_as_they_always_were() {
    let features = Features { consumable: false, ..Features::ALL };
    check_golden("atlas-910b-fixed-shares.txt", &nodes::atlas_910b(1), features);
}

#[test]
fn one_page_for_each_device_of_1_34_is_as_it_always_was() {
    let features = Features { layout: Layout::Combined, ..Features::ALL };
    check_golden("atlas-910b-combined.txt", &nodes::atlas_910b(2), features);
}

/// The names published for the first device, with what the scheduler cannot know of it.
#[track_caller]
fn check_published(state: &wire::WatchNodeResponse, features: Features, expected: &[&str]) {
    let Pages { pages, .. } = built(state, features);
    let mut lines = Vec::new();
    for set in pages.iter().flat_map(|page| &page.counters) {
        let left: Vec<&str> =
            set.counters.values().map(|counter| counter.value.0.as_str()).collect();
        lines.push(format!("left {}", left.join(" ")));
    }
    let entries = pages.iter().flat_map(|page| &page.devices);
    for device in entries.filter(|device| !device.name.ends_with("-admin")) {
        let draws = device.consumes_counters.iter().flatten().count();
        let taints = device.taints.iter().flatten();
        let taints: Vec<String> = taints.map(|taint| format!(" {}", taint.key)).collect();
        let mark = if draws > 0 { "" } else { " free" };
        lines.push(format!("{}{mark}{}", device.name, taints.concat()));
    }
    assert_eq!(lines, expected);
}

/// The entries for claims with `adminAccess`: there whatever becomes of the device, as long as it is
/// there itself and ordinary claims can be kept off.
#[test]
fn who_looks_has_an_entry_that_draws_on_nothing() {
    let entries = |state: &wire::WatchNodeResponse, features| -> Vec<Device> {
        let devices = built(state, features).pages.into_iter().flat_map(|page| page.devices);
        devices.filter(|device| device.name.ends_with("-admin")).collect()
    };
    let mut state = nodes::dgx_h100(2);
    nodes::taint(&mut state, 0, "fell-off-bus", "NoExecute");
    let found = entries(&state, Features::ALL);
    assert_eq!(found.len(), 2);
    for entry in found {
        assert_eq!((&entry.consumes_counters, entry.allow_multiple_allocations), (&None, None));
        let taints = entry.taints.unwrap();
        let taints: Vec<_> = taints.iter().map(|it| (it.key.as_str(), &*it.effect)).collect();
        assert_eq!(taints, [("accelpool.dev/admin-only", "NoSchedule")], "nobody is evicted");
        assert_eq!(entry.attributes.unwrap()["form"].string.as_deref(), Some("admin"));
    }
    assert_eq!(entries(&state, Features { taints: false, ..Features::ALL }), []);
    state.devices[0].present = false;
    assert_eq!(entries(&state, Features::ALL).len(), 1);
    state.pools[0].exposure = "device-plugin".to_owned();
    assert_eq!(entries(&state, Features::ALL), []);
}

const CARD: &str = "npu-0000-18-00-0";

fn small(sharing: &str, exposure: &str) -> wire::WatchNodeResponse {
    let mut state = nodes::atlas_910b(1);
    state.pools[0].sharing = sharing.into();
    state.pools[0].exposure = exposure.into();
    let partitioning = state.devices[0].partitioning.as_mut().expect("vNPUs");
    partitioning.profiles.truncate(1);
    partitioning.profiles[0].instances_max = 2;
    state
}

fn lease(surface: Option<&str>, portion: wire::allocation::Portion) -> wire::Lease {
    let label = |surface: &str| (accelpool_cluster::SURFACE_LABEL.to_owned(), surface.to_owned());
    wire::Lease {
        claim: "c".to_owned(),
        state: "prepared".to_owned(),
        labels: surface.into_iter().map(label).collect(),
        allocations: vec![wire::Allocation {
            device: CARD.to_owned(),
            portion: Some(portion),
            ..wire::Allocation::default()
        }],
        ..wire::Lease::default()
    }
}

fn partition_portion() -> wire::allocation::Portion {
    wire::allocation::Portion::Partition(wire::PartitionPortion {
        name: format!("{CARD}-vnpu-vir06-1c-16g-1"),
        profile: "vir06_1c_16g".to_owned(),
        start: 1,
        adopted: false,
    })
}

fn existing(state: &str, claim: &str) -> wire::Partition {
    wire::Partition {
        device: CARD.to_owned(),
        profile: "vir06_1c_16g".to_owned(),
        start: 1,
        state: state.to_owned(),
        claim: claim.to_owned(),
        ..wire::Partition::default()
    }
}

#[test]
fn the_pools_policy_decides_what_is_offered() {
    let all = Features::ALL;
    let (zero, one) =
        (format!("{CARD}-vnpu-vir06-1c-16g-0"), format!("{CARD}-vnpu-vir06-1c-16g-1"));
    check_published(&small("any", "dra"), all, &["left 24", CARD, &zero, &one]);
    check_published(&small("partitions", "both"), all, &["left 24", CARD, &zero, &one]);
    let whole = format!("{CARD} free");
    check_published(&small("exclusive", "dra"), all, &[&whole]);
    check_published(&small("shares", "dra"), all, &[&whole]);
    check_published(&small("any", "device-plugin"), all, &[]);
    let mut homeless = small("any", "dra");
    homeless.pools.clear();
    check_published(&homeless, all, &[]);
}

#[test]
fn a_device_that_serves_parts_only_is_offered_in_parts() {
    let (zero, one) =
        (format!("{CARD}-vnpu-vir06-1c-16g-0"), format!("{CARD}-vnpu-vir06-1c-16g-1"));
    let mut state = small("any", "dra");
    state.devices[0].parts_only = true;
    check_published(&state, Features::ALL, &["left 24", &zero, &one]);
    // What the scheduler has given away whole stays listed, or it would lose count.
    let whole = wire::allocation::Portion::Whole(wire::Whole {});
    state.leases = vec![lease(Some("dra"), whole)];
    check_published(&state, Features::ALL, &["left 24", CARD, &zero, &one]);
}

#[test]
fn what_another_surface_holds_is_drawn_beforehand() {
    let all = Features::ALL;
    let (zero, one) =
        (format!("{CARD}-vnpu-vir06-1c-16g-0"), format!("{CARD}-vnpu-vir06-1c-16g-1"));
    let mut state = small("any", "both");
    state.leases = vec![lease(Some("device-plugin"), partition_portion())];
    check_published(&state, all, &["left 18", CARD, &zero, &one]);
    let share = wire::allocation::Portion::Share(wire::SharePortion::default());
    state.leases = vec![lease(None, share)];
    check_published(&state, all, &["left 0", CARD, &zero, &one]);
    state.leases = vec![lease(Some("dra"), share_of_nothing())];
    check_published(&state, all, &["left 24", CARD, &zero, &one]);
}

fn share_of_nothing() -> wire::allocation::Portion {
    wire::allocation::Portion::Share(wire::SharePortion::default())
}

#[test]
fn a_device_without_counters_is_tainted_while_another_surface_holds_it() {
    let mut state = small("exclusive", "both");
    state.leases =
        vec![lease(Some("device-plugin"), wire::allocation::Portion::Whole(wire::Whole {}))];
    let tainted = format!("{CARD} free accelpool.dev/held-elsewhere");
    check_published(&state, Features::ALL, &[&tainted]);
    check_published(&state, Features { taints: false, ..Features::ALL }, &[]);
}

#[test]
fn what_was_cut_by_hand_can_be_had_and_keeps_the_rest_off() {
    let all = Features::ALL;
    let zero = format!("{CARD}-vnpu-vir06-1c-16g-0");
    let one = format!("{CARD}-vnpu-vir06-1c-16g-1");
    let adoptable = format!("{one} free");
    let mut state = small("any", "dra");
    state.partitions = vec![existing("exists", "")];
    check_published(&state, all, &["left 18", CARD, &zero, &adoptable]);
    state.partitions = vec![existing("half-created", "")];
    check_published(&state, all, &["left 18", CARD, &zero, &one]);
    state.partitions = vec![existing("exists", "c")];
    state.leases = vec![lease(Some("dra"), partition_portion())];
    check_published(&state, all, &["left 24", CARD, &zero, &one]);
    let mut whole_only = small("exclusive", "dra");
    whole_only.partitions = vec![existing("exists", "")];
    let tainted = format!("{CARD} free accelpool.dev/cut-by-hand");
    check_published(&whole_only, all, &[&tainted]);
}

#[test]
fn without_counters_a_cut_device_is_offered_in_pieces() {
    let plain = Features { counters: false, ..Features::ALL };
    let mut state = small("any", "dra");
    check_published(&state, plain, &[&format!("{CARD} free")]);
    state.partitions = vec![existing("exists", "")];
    check_published(&state, plain, &[&format!("{CARD}-vnpu-vir06-1c-16g-1 free")]);
}

#[test]
fn a_lost_device_stays_listed_while_the_scheduler_counts_on_it() {
    let mut state = small("exclusive", "dra");
    state.devices[0].present = false;
    check_published(&state, Features::ALL, &[]);
    state.leases = vec![lease(Some("dra"), wire::allocation::Portion::Whole(wire::Whole {}))];
    let lost = format!("{CARD} free accelpool.dev/lost");
    check_published(&state, Features::ALL, &[&lost]);
    // Nothing can say it, and withdrawing it would lose count of what is taken.
    let plain = Features { taints: false, ..Features::ALL };
    check_published(&state, plain, &[&format!("{CARD} free")]);
}

#[test]
fn odd_devices_do_not_keep_the_others_off() {
    let Pages { pages, omitted } = built(&nodes::hostile(), Features::ALL);
    assert!(!pages.is_empty());
    assert!(omitted.iter().any(|reason| reason.contains("device `NOT A NAME`")), "{omitted:#?}");
    assert!(omitted.iter().any(|reason| reason.contains("counters")), "{omitted:#?}");
    assert!(omitted.iter().any(|reason| reason.contains("the name is taken")), "{omitted:#?}");
    assert!(omitted.iter().all(|reason| reason.len() < 400), "{omitted:#?}");
}
