//! `check`, as it is carried to a machine with a GPU, on stand-ins for its libraries.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{fs, os::unix::fs::symlink, process::Output, thread};

use serde_json::{Value, json};

use crate::machine::{LIBRARIES, Machine, engine, two_gpus};

/// Runs `check`, and gives the exit code and the report that it printed.
#[track_caller]
fn read(ran: &Output) -> (Option<i32>, Value) {
    let report = serde_json::from_slice(&ran.stdout);
    (ran.status.code(), report.unwrap_or_else(|error| panic!("{error}: {ran:?}")))
}

fn check(machine: &Machine) -> (Option<i32>, Value) {
    read(&run(machine, &["-o", "json", "--patience", "60"]))
}

fn run(machine: &Machine, arguments: &[&str]) -> Output {
    machine.command("check").args(arguments).output().unwrap()
}

fn snapshot(machine: &Machine) -> Value {
    let text = fs::read_to_string(machine.path("report/snapshot.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn rows<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let all = report["rows"].as_array().unwrap();
    let of = all.iter().filter(|row| row["verdict"] == verdict);
    of.map(|row| row["check"].as_str().unwrap()).collect()
}

#[track_caller]
fn is_refused(change: impl FnOnce(&mut Value), expected: &str) {
    let mut described = two_gpus();
    change(&mut described);
    let machine = Machine::new(&described);
    let (code, report) = check(&machine);
    assert_eq!((code, &report["outcome"]), (Some(2), &json!("refused")), "{report:#}");
    let told = report["rows"].as_array().unwrap().iter().map(|row| row["detail"].as_str().unwrap());
    let told: Vec<&str> = told.collect();
    assert!(told.iter().any(|detail| detail.contains(expected)), "{told:?}");
    // What was said is kept all the same.
    assert_eq!(snapshot(&machine)["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn a_sound_machine_passes_and_is_written_down() {
    let described = two_gpus();
    let machine = Machine::new(&described);
    let engine = engine(&machine, &described);
    let mut command = machine.command("check");
    command.args(["-o", "json", "--patience", "60"]);
    command.env("ACCELPOOL_CUDA_STANDIN", engine.socket());
    let (code, report) = read(&machine.output(&mut command, &described, true));
    assert_eq!(rows(&report, "failed"), Vec::<&str>::new(), "{report:#}");
    assert_eq!((code, &report["outcome"]), (Some(0), &json!("passed")));
    let passed = rows(&report, "passed");
    for check in [
        "discovery_is_stable",
        "the_kernel_lists_the_same_devices",
        "the_kernel_has_the_same_driver",
        "memory_adds_up",
        "an_idle_device_has_no_processes",
        "a_process_of_ours_is_seen",
        "an_event_of_ours_is_told",
        "no_setting_changed",
        "quiesce_closes_every_file",
    ] {
        assert!(passed.contains(&check), "{check}: {report:#}");
    }
    for name in ["report.md", "report.json", "snapshot.json"] {
        assert!(fs::metadata(machine.path("report").join(name)).unwrap().len() > 100, "{name}");
    }
}

/// A machine that answers as the snapshot says is told from the first by nobody.
#[test]
fn a_snapshot_is_replayed_through_the_stand_in() {
    let first = Machine::new(&two_gpus());
    let (_, report) = check(&first);
    let said = snapshot(&first);
    let again = Machine::new(&said);
    let (code, replayed) = check(&again);
    assert_eq!((code, snapshot(&again)), (Some(0), said));
    assert_eq!(report["rows"], replayed["rows"]);
}

#[test]
fn people_get_a_table() {
    let machine = Machine::new(&two_gpus());
    let ran = run(&machine, &[]);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.starts_with("CHECK") && text.contains("passed: "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_busy_machine_is_refused() {
    is_refused(
        |it| it["devices"][1]["processes"] = json!([{ "pid": 4711, "memory_mib": 5 }]),
        "process 4711 uses it",
    );
    is_refused(|it| it["devices"][0]["mig"] = true.into(), "MIG mode");
    is_refused(|it| it["devices"][0]["compute_mode"] = 3.into(), "compute mode is 3");
    is_refused(|it| it["devices"][0]["recovery_action"] = 1.into(), "asks for recovery");
}

#[test]
fn who_has_a_device_open_is_in_the_way() {
    let machine = Machine::new(&two_gpus());
    let folder = machine.path("proc/815/fd");
    fs::create_dir_all(&folder).unwrap();
    machine.write("proc/815/comm", "python\n");
    symlink("/dev/nvidia0", folder.join("9")).unwrap();
    let (code, report) = check(&machine);
    assert_eq!(code, Some(2), "{report:#}");
    assert!(report.to_string().contains("process 815 (python)"), "{report:#}");
    machine.write("proc/815/comm", "nvidia-persistenced\n");
    assert_eq!(check(&machine).0, Some(2));
    machine.write("proc/815/comm", "nvidia-persiste\n");
    assert_eq!(check(&machine).0, Some(0));
}

#[test]
fn a_library_that_hangs_is_left() {
    let hangs = |symbol: &str, expected: &str| {
        let mut described = two_gpus();
        described["hang"] = json!([symbol]);
        let machine = Machine::new(&described);
        let (code, report) = read(&run(&machine, &["-o", "json", "--patience", "8"]));
        assert_eq!(code, Some(3), "{symbol}: {report:#}");
        let last = report["rows"].as_array().unwrap().last().unwrap();
        assert_eq!(last["check"], expected, "{symbol}");
        assert!(last["detail"].as_str().unwrap().contains("hangs"), "{symbol}: {last}");
    };
    thread::scope(|scope| {
        scope.spawn(|| hangs("nvmlInitWithFlags", "the_library_answers"));
        scope.spawn(|| hangs("nvmlDeviceGetUtilizationRates", "the_library_answers"));
        scope.spawn(|| hangs("nvmlEventSetWait_v2", "conformance"));
    });
}

#[test]
fn without_a_library_there_is_nothing_to_check() {
    let machine = Machine::new(&two_gpus());
    let library = machine.path(LIBRARIES).join("libnvidia-ml.so.1");
    fs::write(&library, "not a library").unwrap();
    let (code, report) = check(&machine);
    assert_eq!((code, &report["outcome"]), (Some(3), &json!("absent")), "{report:#}");
    fs::remove_file(&library).unwrap();
    assert_eq!(check(&machine).0, Some(3));
    fs::remove_dir_all(machine.path("proc/driver")).unwrap();
    let (code, report) = check(&machine);
    assert_eq!(code, Some(3));
    assert!(report.to_string().contains("there is no NVIDIA driver"), "{report:#}");
    machine.write(&format!("{LIBRARIES}/nvml-standin.json"), "{}");
    assert_eq!(check(&machine).0, Some(3));
}
