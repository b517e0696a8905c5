//! The NVIDIA driver's own settings follow a pool's configuration, and nothing else changes them:
//! the daemon, its worker and the adapter on the stand-in for the driver's library.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{env, fs, path::PathBuf};

use accelpool_proto::node::DriverSettings;
use accelpool_tests::{
    Client, Home,
    requests::{claim, named},
    wait_for,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

const GPU: &str = "gpu-0000-3b-00-0";

fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    let mut files =
        test.ancestors().skip(1).take(2).map(|it| it.join("libaccelpool_nvml_standin.so"));
    files.find(|file| file.exists()).expect("cargo builds the stand-in for this test")
}

fn folder(home: &Home) -> PathBuf {
    home.sim().join("machine/driver/usr/lib64")
}

/// A machine with one GPU, and a pool for it with `keys`.
fn home(keys: &str) -> Home {
    let home = Home::new("dgx-h100");
    let machine = home.sim().join("machine");
    for folder in ["dev", "proc/driver/nvidia", "driver/usr/lib64"] {
        fs::create_dir_all(machine.join(folder)).unwrap();
    }
    fs::write(machine.join("proc/devices"), "Character devices:\n195 nvidia\n241 nvidia-uvm\n")
        .unwrap();
    for (name, major, minor) in
        [("nvidia0", 195, 0), ("nvidiactl", 195, 255), ("nvidia-uvm", 241, 0)]
    {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&machine.join("dev").join(name), SFlag::S_IFCHR, mode, makedev(major, minor))
            .unwrap();
    }
    fs::copy(library(), folder(&home).join("libnvidia-ml.so.1")).unwrap();
    let described = include_str!("../../vendors/nvidia/standin/machines/v100-535.json");
    fs::write(folder(&home).join("nvml-standin.json"), described).unwrap();
    configure(&home, keys);
    home
}

/// Writes the configuration for the next daemon.
fn configure(home: &Home, keys: &str) {
    let text = fs::read_to_string(home.config()).unwrap();
    let text = text.split("[[vendor]]\nname = \"nvidia\"").next().unwrap();
    let text = text.replace("observe_interval_ms = 600000", "observe_interval_ms = 200");
    let machine = home.sim().join("machine");
    let more = format!(
        "[[vendor]]\nname = \"nvidia\"\ndriver_root = {:?}\nmachine_root = {:?}\nturns = false\n\
         [[pool]]\nname = \"gpus\"\nvendor = \"nvidia\"\nsharing = \"exclusive\"\n{keys}\n\
         [[pool]]\nname = \"rest\"\n",
        machine.join("driver").to_str().unwrap(),
        machine.to_str().unwrap(),
    );
    fs::write(home.config(), format!("{text}{more}")).unwrap();
}

fn settings(client: &Client) -> DriverSettings {
    let devices = client.devices().unwrap();
    let gpu = devices.into_iter().find(|device| device.name == GPU).unwrap();
    let traits = gpu.traits.unwrap();
    assert_eq!(traits.compute_capability.as_deref(), Some("7.0"));
    assert_eq!(traits.runtime_version.as_deref(), Some("12.2"));
    traits.settings.unwrap()
}

fn told(compute_mode: &str, persistence: bool, accounting: bool) -> DriverSettings {
    DriverSettings {
        compute_mode: Some(compute_mode.to_owned()),
        persistence: Some(persistence),
        accounting: Some(accounting),
    }
}

#[track_caller]
fn wait(client: &Client, expected: &DriverSettings) {
    wait_for("the settings", || (settings(client) == *expected).then_some(()));
}

#[test]
fn a_pool_has_the_driver_set_and_keeps_it_so() {
    let home = home("compute_mode = \"exclusive-process\"\naccounting = true");
    let daemon = home.start();
    let client = daemon.client();
    let wanted = told("exclusive-process", true, true);
    wait(&client, &wanted);
    // Somebody sets it by hand; what the pool does not name is left to him.
    let path = folder(&home).join("nvml-standin.json.settings");
    let mut set: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for device in set.as_object_mut().unwrap().values_mut() {
        (device["accounting"], device["persistence"]) = (json!(false), json!(false));
    }
    let next = path.with_extension("by-hand");
    fs::write(&next, set.to_string()).unwrap();
    fs::rename(next, path).unwrap();
    wait(&client, &told("exclusive-process", false, true));
    // What a pool no longer wants stays as it is.
    drop(daemon);
    configure(&home, "");
    let daemon = home.start();
    assert_eq!(settings(&daemon.client()), told("exclusive-process", false, true));
}

#[test]
fn without_a_word_in_the_configuration_nothing_is_set() {
    let home = home("");
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(settings(&client), told("default", true, false));
    client.prepare(claim("a", vec![named("gpu", GPU)])).unwrap();
    client.release("a").unwrap();
    assert!(!folder(&home).join("nvml-standin.json.settings").exists());
}

#[test]
fn who_holds_a_device_keeps_its_compute_mode() {
    let home = home("");
    let daemon = home.start();
    daemon.client().prepare(claim("a", vec![named("gpu", GPU)])).unwrap();
    drop(daemon);
    configure(&home, "compute_mode = \"exclusive-process\"\naccounting = true");
    let daemon = home.start();
    let client = daemon.client();
    wait(&client, &told("default", true, true));
    client.release("a").unwrap();
    wait(&client, &told("exclusive-process", true, true));
}

#[test]
fn a_setting_that_cannot_be_had_is_told_and_harms_nobody() {
    let home = home("accounting = true");
    let path = folder(&home).join("nvml-standin.json");
    let mut described: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    described["devices"][0]["errors"] = json!({ "nvmlDeviceSetAccountingMode": 4 });
    fs::write(&path, described.to_string()).unwrap();
    let daemon = home.start();
    let client = daemon.client();
    let trouble = wait_for("the trouble", || {
        let vendors = client.node().unwrap().vendors;
        let trouble = vendors.into_iter().find(|it| it.name == "nvidia").unwrap().last_error;
        (!trouble.is_empty()).then_some(trouble)
    });
    let words = format!("AP0133: {GPU} cannot be set to accounting on");
    assert!(trouble.contains(&words), "{trouble}");
    client.prepare(claim("a", vec![named("gpu", GPU)])).unwrap();
}

#[test]
fn a_setting_that_the_driver_does_not_have_is_told_too() {
    let home = home("accounting = true\npersistence = true");
    let path = folder(&home).join("nvml-standin.json");
    let mut described: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    described["devices"][0]["errors"] = json!({ "nvmlDeviceGetAccountingMode": 3 });
    fs::write(&path, described.to_string()).unwrap();
    let daemon = home.start();
    let client = daemon.client();
    let words = format!("AP0133: {GPU} cannot be set to accounting on: not supported");
    wait_for("the trouble", || {
        let vendors = client.node().unwrap().vendors;
        vendors.iter().any(|it| it.last_error.contains(&words)).then_some(())
    });
    assert_eq!(settings(&client).accounting, None);
}
