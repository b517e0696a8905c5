//! `turns`, as it is carried to a machine with a GPU, on stand-ins for its libraries.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{fs, process::Output};

use serde_json::{Value, json};

use crate::machine::{LIBRARIES, Machine, engine, two_gpus};

/// The machine's quota for a share of the stand-in's 80 GiB, less what a context takes.
const FREE: u64 = (4096 - 512) << 20;

/// Runs `turns --short` on a machine that the driver describes so once tenants come.
fn turns(machine: &Machine, described: &Value, arguments: &[&str]) -> Output {
    let engine = engine(machine, described);
    let mut command = machine.command("turns");
    command.arg("--short").args(arguments).env("ACCELPOOL_CUDA_STANDIN", engine.socket());
    machine.output(&mut command, described, false)
}

/// The rows of a table below its head, as wide as that, and each row's cells.
#[track_caller]
fn table(machine: &Machine, name: &str, rows: usize) -> Vec<Vec<String>> {
    let text = fs::read_to_string(machine.path("report").join(name)).unwrap();
    let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut all: Vec<_> = text.lines().map(cells).collect();
    let head = all.remove(0);
    assert!(all.iter().all(|row| row.len() == head.len()), "{name}: {text}");
    assert_eq!(all.len(), rows, "{name}: {text}");
    all
}

#[test]
fn everything_is_measured_and_written_down() {
    let described = two_gpus();
    let machine = Machine::new(&described);
    let ran = turns(&machine, &described, &[]);
    let report = fs::read_to_string(machine.path("report/report.md")).unwrap_or_default();
    assert_eq!(ran.status.code(), Some(0), "{ran:?}\n{report}");
    assert!(report.contains("no measurement of a GPU"), "{report}");

    let probe = table(&machine, "probe.tsv", 10);
    let seen = |index: usize| probe[index][1].as_str();
    assert!(seen(0).starts_with("14 of 14"), "{probe:?}");
    assert!(seen(1).starts_with("yes, "), "{probe:?}");
    assert_eq!(seen(3), "yes", "{probe:?}");
    assert!(seen(4).starts_with("yes: 300 MiB"), "{probe:?}");
    assert!(seen(5).starts_with("512 MiB"), "{probe:?}");
    assert!(seen(6).starts_with("kernels of 50 us"), "{probe:?}");
    assert!(probe[..8].iter().all(|row| row[2] != "nothing"), "{probe:?}");

    let quota = table(&machine, "f-quota.tsv", 7);
    for row in &quota[1..6] {
        assert_eq!((row[2].parse(), row[4].as_str(), row[7].as_str()), (Ok(FREE), "0", "2"));
    }
    for (name, rows) in [
        ("a-sanity.tsv", 2),
        ("b-launch.tsv", 4),
        ("c-throughput.tsv", 4),
        ("d-shares.tsv", 34),
        ("d-caps.tsv", 3),
        ("e-latency.tsv", 6),
        ("h-faults.tsv", 4),
        ("figures.tsv", 18),
        ("settings.tsv", 1),
    ] {
        table(&machine, name, rows);
    }
}

#[test]
fn a_busy_machine_is_refused() {
    let mut described = two_gpus();
    described["devices"][1]["processes"] = json!([{ "pid": 4711, "memory_mib": 5 }]);
    let machine = Machine::new(&described);
    let ran = machine.command("turns").output().unwrap();
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stdout).contains("process 4711 uses it"), "{ran:?}");
    assert!(!machine.path("report").exists());
}

#[test]
fn without_cuda_there_is_nothing_to_measure() {
    let machine = Machine::new(&two_gpus());
    fs::write(machine.path(LIBRARIES).join("libcuda.so.1"), "not a library").unwrap();
    let ran = machine.command("turns").output().unwrap();
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    fs::remove_file(machine.path(LIBRARIES).join("libnvidia-ml.so.1")).unwrap();
    let ran = machine.command("turns").output().unwrap();
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
}

/// Somebody changes a setting meanwhile.
#[test]
fn a_setting_that_changed_is_told() {
    let mut described = two_gpus();
    let machine = Machine::new(&described);
    let before = described["devices"][0]["persistence"].as_bool().unwrap_or(false);
    described["devices"][0]["persistence"] = (!before).into();
    let ran = turns(&machine, &described, &["--part", "sanity"]);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("does not hold: settings: "), "{said}");
    table(&machine, "a-sanity.tsv", 2);
}
