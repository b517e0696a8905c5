//! The publisher against a double of the API server: what it writes, and when.

mod common;

use accelpool_cluster::PublishStatus;
use accelpool_cluster_double::{Fault, Gates, Options, Verb, pool_errors};
use serde_json::json;

use crate::common::{Bench, NODE, node_object, nodes};

#[tokio::test]
async fn slices_appear_and_name_their_node() {
    let bench = Bench::publishing(Options::default(), &nodes::dgx_h100(8)).await;
    // One slice of counter sets, and each two devices with their 25 partitions on a page.
    let expected: Vec<String> = (0..5).map(|_| "create".to_owned()).collect();
    assert_eq!(bench.writes(), expected);
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    for slice in bench.server.list("resourceslices") {
        assert_eq!(slice["spec"]["nodeName"], NODE);
        assert_eq!(slice["spec"]["pool"]["name"], format!("accelpool.dev/{NODE}"));
        let owner = json!([{
            "apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "node-uid-1", "controller": true,
        }]);
        assert_eq!(slice["metadata"]["ownerReferences"], owner);
    }
}

#[tokio::test]
async fn an_empty_node_publishes_an_empty_slice() {
    let bench = Bench::publishing(Options::default(), &nodes::dgx_h100(0)).await;
    assert_eq!(bench.writes(), ["create"]);
    assert_eq!(bench.slices()[0].pool.resource_slice_count, 1);
}

#[tokio::test]
async fn a_state_that_says_nothing_new_writes_nothing() {
    let mut state = nodes::dgx_h100(2);
    let bench = Bench::publishing(Options::default(), &state).await;
    let _ = bench.writes();
    for _ in 0..5 {
        state.revision += 1;
        bench.say(&state);
        bench.published(state.revision).await;
    }
    assert_eq!(bench.writes(), [""; 0]);
}

#[tokio::test]
async fn one_changed_device_rewrites_one_page() {
    let mut state = nodes::dgx_h100(8);
    let bench = Bench::publishing(Options::default(), &state).await;
    let _ = bench.writes();
    nodes::taint(&mut state, 7, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    let status = bench.published(state.revision).await;
    assert_eq!(bench.writes(), ["update 00004"]);
    assert_eq!(status, PublishStatus::Published { revision: 2, generation: 1, slices: 5 });
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
}

#[tokio::test]
async fn changes_on_several_pages_get_a_new_generation() {
    let mut state = nodes::dgx_h100(8);
    let bench = Bench::publishing(Options::default(), &state).await;
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    nodes::taint(&mut state, 7, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    let status = bench.published(state.revision).await;
    assert_eq!(status, PublishStatus::Published { revision: 3, generation: 2, slices: 5 });
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
}

#[tokio::test]
async fn wiped_slices_come_back() {
    let bench = Bench::publishing(Options::default(), &nodes::dgx_h100(8)).await;
    let before = bench.slices();
    bench.server.wipe_slices(NODE);
    bench.slices_are(|slices| slices.len() == before.len()).await;
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    let devices = |slices: &[k8s_openapi::api::resource::v1::ResourceSliceSpec]| {
        slices.iter().map(|slice| slice.devices.clone()).collect::<Vec<_>>()
    };
    assert_eq!(devices(&bench.slices()), devices(&before));
}

#[tokio::test]
async fn slices_edited_by_hand_are_set_right() {
    let bench = Bench::publishing(Options::default(), &nodes::dgx_h100(1)).await;
    let good = bench.slices();
    let mut slice = bench.server.list("resourceslices").remove(1);
    slice["spec"]["devices"] = json!([{ "name": "stolen" }]);
    bench.server.put(slice.clone());
    bench.slices_are(|slices| slices == good).await;
    slice["metadata"]["name"] = json!("by-hand");
    slice["metadata"]["uid"] = json!(null);
    bench.server.put(slice);
    bench.slices_are(|slices| slices == good).await;
}

#[tokio::test]
async fn a_node_that_was_made_anew_becomes_the_owner() {
    let bench = Bench::publishing(Options::default(), &nodes::dgx_h100(1)).await;
    bench.server.put(node_object("node-uid-2"));
    bench.server.wipe_slices(NODE); // the garbage collector takes the old node's slices
    bench.slices_are(|slices| slices.len() == 2).await;
    for slice in bench.server.list("resourceslices") {
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "node-uid-2");
    }
}

#[tokio::test]
async fn an_outage_is_sat_out() {
    let mut state = nodes::dgx_h100(2);
    let bench = Bench::publishing(Options::default(), &state).await;
    bench.server.fail(None, Fault::Refuse(503), usize::MAX);
    bench.server.end_watches();
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.status(|status| matches!(status, PublishStatus::Failing(_))).await;
    bench.server.heal();
    bench.published(state.revision).await;
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_repeated_in_vain() {
    let mut state = nodes::dgx_h100(2);
    let bench = Bench::publishing(Options::default(), &state).await;
    bench.server.fail(Some(Verb::Update), Fault::CutAfter, 1);
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(state.revision).await;
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    let taints = bench.slices()[1].devices.as_ref().unwrap()[0].taints.clone();
    assert_eq!(taints.map(|taints| taints.len()), Some(1));
}

#[tokio::test]
async fn conflicts_are_resolved_by_looking_again() {
    let mut state = nodes::dgx_h100(2);
    let bench = Bench::publishing(Options::default(), &state).await;
    let _ = bench.writes();
    bench.server.fail(Some(Verb::Update), Fault::Refuse(409), 2);
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(state.revision).await;
    assert_eq!(bench.writes(), ["update 00001"; 3]);
    assert_eq!(bench.cluster.counters().snapshot().write_conflicts, 2);
}

#[tokio::test]
async fn an_expired_watch_begins_with_a_new_list() {
    let mut state = nodes::dgx_h100(1);
    let bench = Bench::publishing(Options::default(), &state).await;
    bench.server.compact();
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(state.revision).await;
    bench.server.wipe_slices(NODE);
    bench.slices_are(|slices| slices.len() == 2).await;
    assert!(bench.cluster.counters().snapshot().watch_restarts > 0);
}

#[tokio::test]
async fn a_driver_that_follows_another_changes_nothing() {
    let state = nodes::dgx_h100(8);
    let bench = Bench::publishing(Options::default(), &state).await;
    let Bench { server, cluster, states, publisher } = bench;
    drop(publisher);
    let _ = server.take_calls();
    let publisher = accelpool_cluster::Publisher::spawn(cluster.clone(), states.subscribe());
    let bench = Bench { server, cluster, states, publisher };
    let status = bench.published(state.revision).await;
    assert_eq!(status, PublishStatus::Published { revision: 1, generation: 1, slices: 5 });
    assert_eq!(bench.writes(), [""; 0]);
}

#[tokio::test]
async fn two_drivers_beside_each_other_agree() {
    let mut state = nodes::dgx_h100(4);
    let bench = Bench::started(Options::default(), Some(&state)).await;
    let other = accelpool_cluster::Publisher::spawn(
        common::connect(&bench.server).await,
        bench.states.subscribe(),
    );
    bench.published(1).await;
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(2).await;
    let mut progress = other.status();
    let published =
        |status: &PublishStatus| matches!(status, PublishStatus::Published { revision: 2, .. });
    let reached = tokio::time::timeout(common::PATIENCE, progress.wait_for(published)).await;
    assert!(reached.is_ok(), "{:?}", *other.status().borrow());
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    assert_eq!(bench.slices().len(), 3, "the two write the same objects");
}

#[tokio::test]
async fn the_daemon_may_be_late() {
    let state = nodes::dgx_h100(1);
    let bench = Bench::started(Options::default(), None).await;
    assert_eq!(*bench.publisher.status().borrow(), PublishStatus::Waiting("the daemon"));
    bench.say(&state);
    bench.published(1).await;
}

#[tokio::test]
async fn a_missing_right_is_told_and_waited_for() {
    let options = Options { rules: Some(Vec::new()), ..Options::default() };
    let bench = Bench::started(options, Some(&nodes::dgx_h100(1))).await;
    let failing = bench.status(|status| matches!(status, PublishStatus::Failing(_))).await;
    let PublishStatus::Failing(reason) = failing else { panic!("{failing:?}") };
    assert!(reason.contains("403") && reason.contains("resourceslices"), "{reason}");
}

#[track_caller]
fn forms(bench: &Bench) -> Vec<String> {
    let slices = bench.slices();
    let devices = slices.iter().flat_map(|slice| slice.devices.iter().flatten());
    let form = |device: &k8s_openapi::api::resource::v1::Device| {
        let attributes = device.attributes.as_ref().expect("every device has attributes");
        attributes["form"].string.clone().expect("the form is a text")
    };
    let mut forms: Vec<String> = devices.map(form).collect();
    forms.dedup();
    forms.sort();
    forms
}

#[tokio::test]
async fn fields_that_the_server_does_not_keep_are_not_sent() {
    let gates = |counters, consumable, taints| Gates { counters, consumable, taints, ..Gates::ALL };
    for (gates, expected) in [
        (gates(true, false, true), &["admin", "device", "partition", "share"][..]),
        (gates(false, true, true), &["admin", "device"]),
        (Gates::NONE, &["device"]),
    ] {
        let options = Options { gates, ..Options::default() };
        let bench = Bench::publishing(options, &nodes::dgx_h100(1)).await;
        assert_eq!(forms(&bench), expected, "{gates:?}");
        assert_eq!(bench.cluster.counters().snapshot().dropped_fields, 0, "{gates:?}");
        assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    }
}

#[tokio::test]
async fn an_older_server_gets_counters_beside_their_devices() {
    let options = Options { minor: 34, ..Options::default() };
    let mut state = nodes::dgx_h100(3);
    let bench = Bench::publishing(options, &state).await;
    assert_eq!(bench.slices().len(), 3);
    assert!(bench.slices().iter().all(|slice| slice.shared_counters.is_some()));
    assert_eq!(pool_errors(&bench.slices()), [""; 0]);
    let _ = bench.writes();
    nodes::taint(&mut state, 1, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(state.revision).await;
    assert_eq!(bench.writes(), ["update 00001"]);
}

#[tokio::test]
async fn without_taints_a_faulty_device_is_withdrawn() {
    let gates = Gates { taints: false, ..Gates::ALL };
    let mut state = nodes::atlas_910b(2);
    let bench = Bench::publishing(Options { gates, ..Options::default() }, &state).await;
    nodes::taint(&mut state, 0, "fell-off-bus", "NoSchedule");
    bench.say(&state);
    bench.published(state.revision).await;
    let slices = bench.slices();
    let names: Vec<&str> = slices
        .iter()
        .flat_map(|slice| slice.devices.iter().flatten())
        .map(|device| device.name.as_str())
        .filter(|name| name.starts_with("npu-0000-18"))
        .collect();
    assert_eq!(names, [""; 0]);
    assert_eq!(bench.cluster.counters().snapshot().dropped_fields, 0);
}

#[tokio::test]
async fn a_gate_turned_off_under_way_lowers_the_model_once() {
    let mut state = nodes::dgx_h100(1);
    let bench = Bench::publishing(Options::default(), &state).await;
    bench.server.set_gates(Gates { consumable: false, ..Gates::ALL });
    bench
        .slices_are(|slices| {
            let devices = slices.iter().flat_map(|slice| slice.devices.iter().flatten());
            devices.map(|device| device.name.as_str()).any(|name| name.ends_with("-share-0-of-4"))
        })
        .await;
    state.revision += 1;
    bench.say(&state);
    bench.published(state.revision).await;
    let _ = bench.writes();
    state.revision += 1;
    bench.say(&state);
    bench.published(state.revision).await;
    assert_eq!(bench.writes(), [""; 0], "a lowered model is not written again and again");
}

#[tokio::test]
async fn a_field_dropped_for_no_known_reason_is_accepted() {
    let gates = Gates { model: false, ..Gates::ALL };
    let mut state = nodes::dgx_h100(2);
    let bench = Bench::publishing(Options { gates, ..Options::default() }, &state).await;
    assert_eq!(bench.writes(), ["create", "create"]);
    assert_eq!(bench.cluster.counters().snapshot().dropped_fields, 1);
    state.revision += 1;
    bench.say(&state);
    bench.published(state.revision).await;
    assert_eq!(bench.writes(), [""; 0]);
}
