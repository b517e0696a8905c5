//! What a new user runs first works as it is written: the README's quick start and the demo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use accelpool_tests::Podman;

/// The comment before each block of the README that is run here.
const MARK: &str = "<!-- ci: quick-start -->";

/// Where the README has its reader put things; here it is a folder of the test's own.
const README_FOLDER: &str = "/tmp/accelpool";

/// Also the first build of all may be part of it; a hang is not.
const SECONDS_MAX: &str = "1200";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the suites lie in `tests`").to_owned()
}

/// Runs bash in the root of the source tree.
fn bash(arguments: &[&str], configuration: Option<&Path>) -> Output {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", SECONDS_MAX, "bash"]).args(arguments).current_dir(root());
    // The folder that the README names, whatever the one who runs the tests prefers.
    command.env("CARGO_TARGET_DIR", root().join("target")).env("CARGO_TERM_COLOR", "never");
    if let Some(configuration) = configuration {
        command.env("CONTAINERS_CONF", configuration);
    }
    command.output().expect("bash can be run")
}

/// What a run printed, in full if it failed.
#[track_caller]
fn printed(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ended with {}:\n{out}\n{said}", output.status);
    out
}

/// The code blocks that follow [`MARK`], in order.
fn quick_start(readme: &str) -> Vec<&str> {
    readme.split(MARK).skip(1).map(block_of).collect()
}

/// The block of shell that `text` begins with.
fn block_of(text: &str) -> &str {
    let block = text.strip_prefix("\n```sh\n").and_then(|rest| rest.split_once("```\n"));
    block.expect("a block of sh follows the mark").0
}

/// The device nodes that the README says a container sees.
fn promised_nodes(readme: &str) -> Vec<&str> {
    let listed = readme.lines().filter(|line| line.starts_with("crw-"));
    listed.filter_map(|line| line.split_whitespace().last()).collect()
}

#[test]
fn the_quick_start_runs_as_it_is_written() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let blocks = quick_start(&readme);
    assert!(blocks.len() >= 5, "the README marks its quick start: {blocks:?}");
    let podman = Podman::take_turn();
    let folder = tempfile::Builder::new().prefix("accelpool-readme-").tempdir();
    let folder = folder.expect("a temporary folder can be made");
    let text = blocks.concat();
    assert!(text.contains(README_FOLDER), "the quick start has a folder of its own");
    let text = text.replace(README_FOLDER, &folder.path().display().to_string());
    // A reader sees a command fail; here the first that does ends the run, and the daemon.
    let script = format!("set -euo pipefail\ntrap 'jobs -p | xargs -r kill' EXIT\n{text}");
    let seen = printed(&bash(&["-c", &script], Some(&podman.configuration())));

    let nodes = promised_nodes(&readme);
    assert!(!nodes.is_empty(), "the README shows what a container sees");
    for node in nodes {
        let listed = |line: &str| line.starts_with('c') && line.ends_with(&format!(" {node}"));
        assert!(seen.lines().any(listed), "{node} is not in the container:\n{seen}");
    }
    assert!(seen.contains("[AP0103]"), "the over-commit was refused:\n{seen}");
    assert!(!folder.path().exists(), "the quick start cleans up");
}

#[test]
fn the_demo_shows_what_it_promises() {
    let seen = printed(&bash(&["tools/demo.sh"], None));
    // It checks itself; these lines prove that it came to its end by way of its middle.
    for line in ["$ kill -9 ", "7. Look around", "All shown and checked in "] {
        assert!(seen.contains(line), "{line} is missing:\n{seen}");
    }
    let picture = fs::read_to_string(root().join(".demo/topology.svg"));
    assert!(picture.is_ok_and(|picture| picture.contains("</svg>")), "the picture is there");
}

#[test]
fn the_demo_of_turns_shows_what_it_promises() {
    let seen = printed(&bash(&["tools/demo-turns.sh", "--lenient"], None));
    for line in ["CUDA_ERROR_OUT_OF_MEMORY", "and no error", "All shown and checked."] {
        assert!(seen.contains(line), "{line} is missing:\n{seen}");
    }
}

#[test]
fn the_demo_of_nvidia_shows_what_it_promises() {
    let seen = printed(&bash(&["tools/demo-nvidia.sh"], None));
    for line in ["accelpool partitions", "1g.10gb", "fell-off-bus", "All shown and checked."] {
        assert!(seen.contains(line), "{line} is missing:\n{seen}");
    }
}

#[test]
fn the_demo_of_the_gate_shows_what_it_promises() {
    let seen = printed(&bash(&["tools/demo-gate.sh"], None));
    for line in ["Operation not permitted", "No such device or address", "All shown and checked."] {
        assert!(seen.contains(line), "{line} is missing:\n{seen}");
    }
}

#[test]
fn the_metrics_demo_adds_up() {
    let seen = printed(&bash(&["-c", "ACCELPOOL_DEMO_SECONDS=10 tools/demo-metrics.sh"], None));
    // It checks itself; these lines prove that it came to its end by way of its middle.
    for line in ["missing or too much", "oldest figure", "All shown and checked; "] {
        assert!(seen.contains(line), "{line} is missing:\n{seen}");
    }
    let picture = fs::read_to_string(root().join(".demo-metrics/usage.svg"));
    assert!(picture.is_ok_and(|picture| picture.contains("</svg>")), "the picture is there");
}
