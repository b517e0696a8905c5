//! The simulated nodes pass the conformance suite, and broken adapters do not.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod broken;

use accelpool_vendor_api::{
    Vendor,
    conformance::{self, Options, Report},
};
use accelpool_vendor_sim::{Profile, Sim};

use crate::broken::{Broken, Defect};

const EVERYTHING: Options = Options { cut: true, nodes: true };

fn run(profile: &str, wrap: impl FnOnce(Sim) -> Box<dyn Vendor>) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::open(Profile::embedded(profile).unwrap(), dir.path()).unwrap();
    conformance::check(wrap(sim).as_ref(), EVERYTHING)
}

#[track_caller]
fn check(profile: &str, skipped: &[&str]) {
    let report = run(profile, |sim| Box::new(sim));
    report.assert_passed();
    let found: Vec<&str> = report.skipped().map(|outcome| outcome.check).collect();
    assert_eq!(found, skipped, "{report}");
}

/// Checks that `defect` is found, by the check that is there for it.
#[track_caller]
fn check_caught(defect: Defect, by: &str) {
    check_caught_on("dgx-h100", defect, by);
}

#[track_caller]
fn check_caught_on(profile: &str, defect: Defect, by: &str) {
    let report = run(profile, |sim| Box::new(Broken::new(sim, defect)));
    let failed: Vec<&str> = report.failed().map(|outcome| outcome.check).collect();
    assert!(failed.contains(&by), "{defect:?} passed {by}\n{report}");
}

#[test]
fn embedded_nodes_conform() {
    for profile in ["dgx-h100", "mi300x", "atlas-910b"] {
        check(profile, &["a_mode_goes_there_and_back"]);
    }
}

#[test]
fn a_node_whose_devices_have_a_mode_conforms() {
    let text = include_str!("../profiles/dgx-h100.toml");
    for mode in ["true", "false"] {
        let moded = text.replace("scheme = \"mig\"", &format!("scheme = \"mig\"\nmode = {mode}"));
        assert_ne!(moded, text);
        let dir = tempfile::tempdir().unwrap();
        let sim = Sim::open(Profile::parse(&moded).unwrap(), dir.path()).unwrap();
        let report = conformance::check(&sim, EVERYTHING);
        report.assert_passed();
        let skipped = report.skipped().any(|it| it.check == "a_mode_goes_there_and_back");
        assert!(!skipped, "{report}");
    }
}

#[test]
fn a_node_with_nothing_to_cut_conforms_as_far_as_it_goes() {
    check(
        "mixed-edge",
        &[
            "unknown_profiles_are_refused",
            "a_partition_comes_and_goes",
            "a_mode_goes_there_and_back",
            "a_second_destruction_succeeds",
            "taken_slices_are_refused",
            "neighbours_are_not_disturbed",
            "one_of_many_creations_wins",
        ],
    );
}

#[test]
fn partitions_are_left_alone_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::open(Profile::embedded("dgx-h100").unwrap(), dir.path()).unwrap();
    let before = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    let report = conformance::check(&sim, Options::default());
    report.assert_passed();
    assert_eq!(report.skipped().count(), 7, "{report}");
    let after = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    let partitions = |state: &str| state.split("\"absent\"").next().unwrap().to_owned();
    assert_eq!(partitions(&after), partitions(&before));
}

#[test]
fn a_defect_in_devices_is_caught() {
    check_caught(Defect::OneUuidForTwo, "device_identities_are_distinct");
    check_caught(Defect::NameByIndex, "device_names_follow_kind_and_address");
    check_caught(Defect::LongProductName, "device_attributes_fit");
    check_caught(Defect::EmptyDriverVersion, "device_attributes_fit");
    check_caught(Defect::NoNodes, "device_injections_are_usable");
    check_caught(Defect::NodeThatIsNotThere, "device_injections_are_usable");
    check_caught(Defect::TwoNodesAtOnePath, "device_injections_are_usable");
    check_caught(Defect::StartBeyondTheEnd, "partitioning_is_sound");
    check_caught(Defect::ProfileTwice, "partitioning_is_sound");
    check_caught(Defect::NewUuidEachTime, "discovery_is_stable");
    check_caught(Defect::Panics, "device_identities_are_distinct");
}

#[test]
fn a_defect_in_links_is_caught() {
    check_caught(Defect::LinkToNowhere, "links_join_known_devices");
    check_caught(Defect::LinkToItself, "links_join_known_devices");
    check_caught(Defect::LinkTwiceReversed, "links_join_known_devices");
}

#[test]
fn a_defect_in_calls_is_caught() {
    check_caught(Defect::SamplesAnything, "unknown_devices_are_refused");
    check_caught(Defect::DestroysAnything, "unknown_devices_are_refused");
    check_caught(Defect::ProbesAnything, "unknown_devices_are_refused");
    check_caught(Defect::ProbeForgetsDevices, "health_of_known_devices_is_answered");
    check_caught(Defect::ProcessTwice, "samples_are_consistent");
    check_caught(Defect::ProcessInNoPartition, "samples_are_consistent");
    check_caught(Defect::CountsAnything, "unknown_devices_are_refused");
    check_caught(Defect::BusierThanBusy, "counters_are_possible");
    check_caught(Defect::EnergyComesBack, "counters_are_possible");
    check_caught(Defect::EventsWithoutEnd, "waiting_for_events_ends");
    check_caught(Defect::DeadAfterQuiesce, "quiesce_is_not_the_end");
    check_caught(Defect::OneThreadOnly, "calls_may_run_at_once");
}

#[test]
fn a_defect_in_partitions_is_caught() {
    check_caught(Defect::ListsForAllDevices, "listed_partitions_belong_to_the_device");
    check_caught(Defect::UnknownProfileIsOccupied, "unknown_profiles_are_refused");
    check_caught(Defect::AnyStart, "unknown_profiles_are_refused");
    check_caught(Defect::AnswersHalfCreated, "a_partition_comes_and_goes");
    check_caught(Defect::DestroysNothing, "a_partition_comes_and_goes");
    check_caught(Defect::PartitionWithoutNodes, "a_partition_comes_and_goes");
    check_caught(Defect::GoneIsAnError, "a_second_destruction_succeeds");
    check_caught(Defect::OccupiedIsAFailure, "taken_slices_are_refused");
    check_caught(Defect::EvictsWhoIsThere, "taken_slices_are_refused");
    check_caught(Defect::NumbersAnew, "neighbours_are_not_disturbed");
    check_caught(Defect::DestroysAll, "neighbours_are_not_disturbed");
    check_caught(Defect::EveryoneWins, "one_of_many_creations_wins");
    // Slices with a place, slices that are only counted, one profile for all.
    for profile in ["dgx-h100", "atlas-910b", "mi300x"] {
        check_caught_on(profile, Defect::MakesRoomThatIsNotThere, "taken_slices_are_refused");
    }
}
