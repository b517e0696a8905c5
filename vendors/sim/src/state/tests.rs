//! Each test reads: what the state file holds, what becomes of it.

use super::*;

const SOUND: &str = r#"{
    "version": 1, "profile": "dgx-h100", "major": 240, "serial": 2,
    "partitions": [
        {"uuid": "MIG-1", "device": "GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000",
         "profile": "3g.40gb", "start": 0, "complete": true},
        {"uuid": "MIG-2", "device": "GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000",
         "profile": "1g.10gb", "start": 4, "complete": false}
    ],
    "absent": [], "changes": 0, "changes_told": 0, "done": ["a"], "calls": {"b": 3},
    "sampled_ns": {}
}"#;

/// Replaces `from` by `to` in a sound file and checks what reading it says.
#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    assert!(SOUND.contains(from), "{from}");
    check_text(&SOUND.replacen(from, to, 1), expected);
}

#[track_caller]
fn check_text(text: &str, expected: &str) {
    let profile = Profile::embedded("dgx-h100").unwrap();
    let said = match State::parse(text, &profile, Path::new("/run/state.json")) {
        Ok(_) => "sound".to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_file_of_version_1_is_read() {
    check("MIG-1", "MIG-1", "sound");
}

#[test]
fn a_damaged_file_is_refused_with_a_way_out() {
    let way_out = "`/run/state.json` is damaged: EOF while parsing a value at line 1 column 0; \
                   delete the file to power-cycle the simulated machine";
    check_text("", way_out);
    for len in 1..SOUND.len() {
        check_text(&SOUND[..len], "damaged");
    }
    check("\"serial\": 2", "\"serial\": -2", "damaged");
    check("\"serial\"", "\"other\"", "damaged");
}

#[test]
fn other_versions_and_profiles_are_refused_by_name() {
    check("\"version\": 1", "\"version\": 2, \"new\": 1", "has version 2, this program reads 1");
    check("dgx-h100", "mi300x", "holds the state of profile mi300x, not of dgx-h100");
}

#[test]
fn impossible_partitions_are_refused() {
    check("\"start\": 4", "\"start\": 3", "there is no room for 1g.10gb at 3");
    check("\"start\": 4", "\"start\": 7", "there is no room for 1g.10gb at 7");
    check("1g.10gb", "9g", "there is no room for 9g at 4");
    check("MIG-2", "MIG-1", "there is no room for 1g.10gb at 4");
    check("GPU-5a1f0001", "GPU-gone", "there is no room for 3g.40gb at 0");
    check("\"major\": 240", "\"major\": 195", "major 195 is not one of 240 to 254");
}
