//! Instructions of a function and all that it calls, as valgrind's callgrind counts them.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

pub(crate) fn is_installed() -> bool {
    let mut command = Command::new("valgrind");
    let command = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs `command` and gives the instructions of all calls of `function` by the program itself.
pub(crate) fn inclusive(command: &Command, function: &str, file: &Path) -> u64 {
    let mut counted = Command::new("valgrind");
    counted.args(["--quiet", "--tool=callgrind"]);
    counted.arg(format!("--callgrind-out-file={}", file.display()));
    counted.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        counted.env(name, value.expect("the bench takes no variable away"));
    }
    let output = counted.output().expect("valgrind runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "valgrind failed: {said}");
    let profile = fs::read_to_string(file).expect("callgrind has written its file");
    calls(&profile, function)
}

/// The sum of what calls of `function` from other functions cost. Of a name that two objects
/// have, the one that the program itself calls is meant, not the one that this calls.
fn calls(profile: &str, function: &str) -> u64 {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut within, mut target) = ("", "");
    let mut sum = 0;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        match key {
            // A name stands where it comes first, and its number everywhere.
            "fn" | "cfn" => {
                let (number, name) = value.split_once(' ').unwrap_or((value, ""));
                if !name.is_empty() {
                    names.insert(number, name);
                }
                let name = names.get(number).copied().unwrap_or_default();
                *(if key == "fn" { &mut within } else { &mut target }) = name;
            }
            "calls" => {
                let cost = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
                if target == function && within != function {
                    sum += cost.unwrap_or(0);
                }
            }
            _ => {}
        }
    }
    sum
}
