//! Workers are killed in the middle of whatever they do; the hardware stays usable.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use accelpool_model::{Device, ProfileName};
use accelpool_vendor_api::Vendor;
use accelpool_vendor_sim::{Profile, Sim};

/// Tells this program that it is the worker, and on which folder.
const FOLDER: &str = "ACCELPOOL_SIM_KILL_TEST_FOLDER";

const KILLS: usize = 40;

fn open(dir: &Path) -> Sim {
    Sim::open(Profile::embedded("dgx-h100").unwrap(), dir).unwrap()
}

fn places() -> Vec<(ProfileName, u32)> {
    let place = |(profile, start): (&str, u32)| (profile.parse().unwrap(), start);
    [("1g.10gb", 0), ("2g.20gb", 2), ("3g.40gb", 4)].map(place).into()
}

/// The worker: creates and destroys for ever, and says so. A plain run has nothing to do.
#[test]
fn worker() {
    let Some(dir) = env::var_os(FOLDER) else { return };
    let sim = open(Path::new(&dir));
    let device = sim.discover().unwrap().remove(0).uuid;
    loop {
        for (profile, start) in places() {
            // What the last worker left may be in the way: it is destroyed in the same round.
            if let Err(error) = sim.create_partition(&device, &profile, start) {
                eprintln!("{error}");
            }
            println!("step");
            sim.destroy_partition(&device, &profile, start).unwrap();
            println!("step");
        }
    }
}

#[test]
fn a_kill_at_any_time_leaves_sound_hardware() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..KILLS {
        let mut worker = Command::new(env::current_exe().unwrap())
            .args(["worker", "--exact", "--nocapture"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Between the last line read and the kill lies a time that nobody chose.
        let lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        let steps = lines.map_while(Result::ok).filter(|line| line.contains("step"));
        assert_eq!(steps.take(1 + round).count(), 1 + round, "the worker ended by itself");
        worker.kill().unwrap();
        worker.wait().unwrap();
        check_sound(dir.path());
    }
}

/// Checks that what is listed can be used, and that what is half-created can be cleared.
fn check_sound(dir: &Path) {
    let sim = open(dir);
    let device: Device = sim.discover().unwrap().remove(0);
    let listed = sim.partitions(&device.uuid).unwrap();
    assert!(listed.len() <= 1, "{listed:?}");
    for partition in &listed {
        if partition.complete {
            for node in &partition.injection.nodes {
                assert!(fs::metadata(&node.host_path).is_ok(), "{node:?}");
            }
        }
        sim.destroy_partition(&device.uuid, &partition.profile, partition.start).unwrap();
    }
    for (profile, start) in places() {
        sim.create_partition(&device.uuid, &profile, start).unwrap();
        sim.destroy_partition(&device.uuid, &profile, start).unwrap();
    }
    let left = fs::read_dir(dir.join("dev/nvidia-caps")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nodes of no partition are left");
}
