//! Each test reads: pages stored, pages wanted, resulting writes.

use super::*;

fn identity() -> Identity {
    Identity {
        driver: "accelpool.dev".into(),
        node: "n1".into(),
        pool: "accelpool.dev/n1".into(),
        node_uid: "uid-1".into(),
    }
}

/// A page with one device of each name.
fn page(devices: &str) -> Page {
    let device = |name: &str| Device { name: name.to_owned(), ..Device::default() };
    Page { devices: devices.split_whitespace().map(device).collect(), counters: Vec::new() }
}

fn refs(pages: &[Page]) -> Vec<&Page> {
    pages.iter().collect()
}

fn pages(wanted: &[&str]) -> Vec<Page> {
    wanted.iter().map(|devices| page(devices)).collect()
}

/// Slices as they are after `wanted` was written at `generation`.
fn written(wanted: &[&str], generation: i64) -> Slices {
    let mut slices = Slices::new();
    let planned = plan(&slices, &refs(&pages(wanted)), &identity(), generation - 1);
    carry_out(&mut slices, &planned);
    slices
}

fn carry_out(slices: &mut Slices, plan: &Plan) {
    for write in plan.writes.clone() {
        match write {
            Write::Delete { name } => drop(slices.remove(&name)),
            Write::Update { slice, .. } | Write::Create { slice, .. } => {
                slices.extend(Stored::of(*slice));
            }
        }
    }
}

#[track_caller]
fn check(stored: &Slices, wanted: &[&str], expected: &[&str]) {
    let planned = plan(stored, &refs(&pages(wanted)), &identity(), 0);
    let lines: Vec<String> = planned.writes.iter().map(line).collect();
    assert_eq!(lines, expected);
    let mut slices = stored.clone();
    carry_out(&mut slices, &planned);
    let again = plan(&slices, &refs(&pages(wanted)), &identity(), planned.generation);
    assert_eq!(again.writes, [], "what is written needs no writing");
    assert_eq!(again.generation, planned.generation);
}

fn line(write: &Write) -> String {
    let shown = |slice: &ResourceSlice| {
        let ResourcePool { generation, resource_slice_count, .. } = &slice.spec.pool;
        let devices = slice.spec.devices.iter().flatten().map(|device| device.name.as_str());
        let devices: Vec<&str> = devices.collect();
        format!("{} of {resource_slice_count} at {generation}", devices.join("+"))
    };
    match write {
        Write::Delete { name } => format!("delete {name}"),
        Write::Update { name, slice } => format!("update {} {}", &name[..5], shown(slice)),
        Write::Create { name, slice } => format!("create {} {}", &name[..5], shown(slice)),
    }
}

#[test]
fn first_publication_creates_every_page() {
    check(&Slices::new(), &["a", "b"], &["create 00000 a of 2 at 1", "create 00001 b of 2 at 1"]);
}

#[test]
fn an_empty_pool_is_one_empty_page() {
    check(&Slices::new(), &[""], &["create 00000  of 1 at 1"]);
    let planned = plan(&Slices::new(), &refs(&pages(&[""])), &identity(), 0);
    let [Write::Create { slice, .. }] = planned.writes.as_slice() else { panic!("{planned:?}") };
    assert_eq!((&slice.spec.devices, &slice.spec.shared_counters), (&None, &None));
}

#[test]
fn nothing_changed_writes_nothing() {
    check(&written(&["a", "b"], 4), &["a", "b"], &[]);
}

#[test]
fn one_changed_page_is_written_in_place() {
    check(&written(&["a", "b"], 4), &["a", "c"], &["update 00001 c of 2 at 4"]);
}

#[test]
fn several_changed_pages_get_a_new_generation_everywhere() {
    check(
        &written(&["a", "b", "c"], 4),
        &["a", "x", "y"],
        &["update 00000 a of 3 at 5", "update 00001 x of 3 at 5", "update 00002 y of 3 at 5"],
    );
}

#[test]
fn another_count_gets_a_new_generation_everywhere() {
    check(
        &written(&["a", "b"], 4),
        &["a"],
        &["delete 00001-accelpool.dev-n1", "update 00000 a of 1 at 5"],
    );
    check(
        &written(&["a"], 4),
        &["a", "b"],
        &["update 00000 a of 2 at 5", "create 00001 b of 2 at 5"],
    );
}

#[test]
fn wiped_pages_come_back() {
    let mut slices = written(&["a", "b", "c"], 4);
    slices.remove(&slice_name(1, &identity()));
    check(&slices, &["a", "b", "c"], &["create 00001 b of 3 at 4"]);
    let planned = plan(&Slices::new(), &refs(&pages(&["a"])), &identity(), 4);
    assert_eq!(planned.generation, 5, "a generation is not used twice");
}

#[test]
fn wiped_and_changed_pages_get_a_new_generation() {
    let mut slices = written(&["a", "b"], 4);
    slices.remove(&slice_name(1, &identity()));
    check(&slices, &["x", "b"], &["update 00000 x of 2 at 5", "create 00001 b of 2 at 5"]);
}

#[test]
fn slices_edited_by_hand_are_set_right() {
    let name = slice_name(0, &identity());
    let edited = |edit: fn(&mut Stored)| {
        let mut slices = written(&["a"], 4);
        edit(slices.get_mut(&name).unwrap());
        slices
    };
    let same = ["update 00000 a of 1 at 4"];
    check(&edited(|slice| slice.page.devices.clear()), &["a"], &same);
    check(&edited(|slice| slice.metadata.owner_references = None), &["a"], &same);
    let next = ["update 00000 a of 1 at 5"];
    check(&edited(|slice| slice.pool.resource_slice_count = 9), &["a"], &next);
    let far = ["update 00000 a of 2 at 8", "update 00001 b of 2 at 8"];
    let mut slices = written(&["a", "b"], 4);
    slices.get_mut(&name).unwrap().pool.generation = 7;
    check(&slices, &["a", "b"], &far);
}

#[test]
fn strange_slices_are_deleted_first() {
    let mut slices = written(&["a"], 4);
    let stray = slices[&slice_name(0, &identity())].clone();
    slices.insert("by-hand".into(), stray);
    check(&slices, &["a"], &["delete by-hand"]);
}

#[test]
fn a_slice_of_another_pool_is_made_anew() {
    let mut slices = written(&["a"], 4);
    slices.get_mut(&slice_name(0, &identity())).unwrap().pool.name = "n1".into();
    check(&slices, &["a"], &["delete 00000-accelpool.dev-n1", "create 00000 a of 1 at 1"]);
}

#[test]
fn a_new_node_of_the_same_name_becomes_the_owner() {
    let mut slices = written(&["a"], 4);
    let stored = slices.get_mut(&slice_name(0, &identity())).unwrap();
    stored.metadata.owner_references.as_mut().unwrap()[0].uid = "uid-0".into();
    check(&slices, &["a"], &["update 00000 a of 1 at 4"]);
}

#[test]
fn a_time_that_the_server_filled_in_is_no_change() {
    let taint = DeviceTaint { key: "k".into(), effect: "NoSchedule".into(), ..Default::default() };
    let mut wanted = page("a");
    wanted.devices[0].taints = Some(vec![taint]);
    let mut stored = wanted.clone();
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
    );
    stored.devices[0].taints.as_mut().unwrap()[0].time_added = Some(time);
    assert!(is_same_page(&wanted, &stored));
    stored.devices[0].taints.as_mut().unwrap()[0].effect = "None".into();
    assert!(!is_same_page(&wanted, &stored));
}

#[test]
fn names_are_ordered_and_never_too_long() {
    let long = Identity { node: "n.".repeat(126) + "n", ..identity() };
    let names: Vec<String> = [0, 9, 10, 255, 256].map(|index| slice_name(index, &long)).into();
    assert!(names.is_sorted(), "{names:?}");
    assert!(names.iter().all(|name| crate::cluster::is_dns_subdomain(name, 253)), "{names:?}");
    let other = Identity { node: "n.".repeat(126) + "m", ..identity() };
    assert_ne!(slice_name(0, &long), slice_name(0, &other));
}
