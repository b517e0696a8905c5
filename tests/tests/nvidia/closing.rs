//! Whoever unloads the driver, or gives a device away, finds it in nobody's hands.

use std::{fs, path::Path};

use accelpool_proto::node::{QuiesceRequest, ResumeRequest};
use accelpool_tests::{Client, wait_for};

use crate::machine::Machine;

/// The processes of this machine that have a device node or the library of `machine` open or
/// mapped, with what it is.
fn holders(machine: &Machine) -> Vec<String> {
    let (nodes, driver) = (machine.path("dev"), machine.path("driver"));
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let name = process.file_name().into_string().unwrap_or_default();
        // Processes come and go while they are looked at.
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        for file in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            if file.starts_with(&nodes) || file.starts_with(&driver) {
                found.push(format!("{name} has {}", file.display()));
            }
        }
        let maps = fs::read_to_string(process.path().join("maps")).unwrap_or_default();
        if maps.contains(driver.to_str().unwrap()) {
            found.push(format!("{name} maps the library"));
        }
    }
    found
}

fn pause(client: &Client) {
    let request = QuiesceRequest { vendor: "nvidia".to_owned(), for_ms: 3_600_000 };
    client.call(async |mut node| node.quiesce(request).await).unwrap();
}

fn resume(client: &Client) {
    let request = ResumeRequest { vendor: "nvidia".to_owned() };
    client.call(async |mut node| node.resume(request).await).unwrap();
}

fn devices(client: &Client) -> usize {
    let vendors = client.node().unwrap().vendors;
    vendors.iter().map(|vendor| vendor.devices as usize).sum()
}

/// The daemon has gone on to look at the devices, and was refused, so many more times.
fn looks(machine: &Machine, more: usize) {
    const REFUSED: &str = "no events, polling";
    let before = machine.logged(REFUSED);
    wait_for("the daemon's next looks", || {
        (machine.logged(REFUSED) >= before + more).then_some(())
    });
}

#[test]
fn a_pause_closes_all_until_it_ends_whatever_the_daemon_does() {
    // It looks and samples as often as it can be told to.
    let machine = Machine::new(100);
    machine.home.sample_every(100, Path::new("/proc"));
    let daemon = machine.home.start();
    let client = daemon.client();
    wait_for("the library to be in use", || {
        let found = holders(&machine);
        let has = |words: &str| found.iter().any(|it| it.contains(words));
        (has("dev/nvidia0") && has("dev/nvidia7") && has("maps the library")).then_some(())
    });
    for _ in 0..5 {
        pause(&client);
        // As it answers, not a moment later: calls that were on their way included.
        assert_eq!(holders(&machine), [""; 0]);
        looks(&machine, 1);
        assert_eq!(holders(&machine), [""; 0]);
        resume(&client);
        wait_for("the library to be in use again", || {
            (!holders(&machine).is_empty()).then_some(())
        });
    }
    pause(&client);
    looks(&machine, 3);
    assert_eq!(holders(&machine), [""; 0]);
    // A daemon that starts in the middle of it holds to it.
    daemon.kill();
    let daemon = machine.home.start_unheard();
    let client = daemon.client();
    looks(&machine, 3);
    assert_eq!(holders(&machine), [""; 0]);
    resume(&client);
    wait_for("the devices", || (devices(&client) == 3).then_some(()));
    assert!(!holders(&machine).is_empty());
}

#[test]
fn a_library_that_hangs_is_closed_with_its_worker() {
    let machine = Machine::new(100);
    machine.home.sample_every(100, Path::new("/proc"));
    let daemon = machine.home.start();
    let client = daemon.client();
    wait_for("the library to be in use", || (!holders(&machine).is_empty()).then_some(()));
    // Whatever is asked from here on does not return, the call to close it neither.
    machine.change(|described| {
        described["hang"] = ["nvmlDeviceGetHandleByIndex_v2", "nvmlShutdown"].into();
    });
    pause(&client);
    assert_eq!(holders(&machine), [""; 0]);
    looks(&machine, 2);
    assert_eq!(holders(&machine), [""; 0]);
    machine.change(|described| described["hang"] = [""; 0].into());
    resume(&client);
    wait_for("the library to be in use", || (!holders(&machine).is_empty()).then_some(()));
}
