//! A device's partitioning mode follows the claims, where the operator allows it.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::fs;

use accelpool_tests::{
    Client, Faults, Home, page,
    requests::{claim, named, share},
    rules::{Picture, hardware},
};

const WHOLE: &str = "gpu-0000-1b-00-0";
const PART: &str = "gpu-0000-1b-00-0-mig-1g-10gb-0";

/// A node whose devices begin outside of their mode.
fn home(switch_mode: bool) -> Home {
    let home = Home::new("dgx-h100");
    let profile = include_str!("../../vendors/sim/profiles/dgx-h100.toml");
    let moded = profile.replace("scheme = \"mig\"", "scheme = \"mig\"\nmode = false");
    let path = home.sim().join("moded.toml");
    fs::write(&path, moded).unwrap();
    let config = fs::read_to_string(home.config()).unwrap();
    let config = config.replace("\"dgx-h100\"", &format!("\"{}\"", path.display()));
    let pool = format!("\n[[pool]]\nname = \"all\"\nswitch_mode = {switch_mode}\n");
    fs::write(home.config(), config + &pool).unwrap();
    home
}

/// The mode of the device, whether it is offered in parts only, and whether it is in parts.
fn mode(client: &Client) -> (String, bool, bool) {
    let devices = client.devices().unwrap();
    let device = devices.into_iter().find(|device| device.name == WHOLE).unwrap();
    (device.partitioning_mode, device.parts_only, device.partitioning.is_some())
}

fn state(mode: &str, parts_only: bool, in_parts: bool) -> (String, bool, bool) {
    (mode.to_owned(), parts_only, in_parts)
}

#[test]
fn a_mode_follows_the_claims_where_the_pool_allows_it() {
    let home = home(true);
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(mode(&client), state("off", false, true));
    client.prepare(claim("part", vec![named("gpu", PART)])).unwrap();
    assert_eq!(mode(&client), state("on", false, true));
    let held = client.prepare(claim("whole", vec![named("gpu", WHOLE)])).unwrap_err();
    assert_eq!(page(&held), Some("AP0103"));
    assert_eq!(mode(&client), state("on", false, true));
    client.release("part").unwrap();
    client.prepare(claim("whole", vec![named("gpu", WHOLE)])).unwrap();
    assert_eq!(mode(&client), state("off", false, true));
    let held = client.prepare(claim("part", vec![named("gpu", PART)])).unwrap_err();
    assert_eq!(page(&held), Some("AP0103"));
    client.release("whole").unwrap();
    client.prepare(claim("share", vec![share("gpu", WHOLE, 1 << 30, 100)])).unwrap();
    assert_eq!(Picture::take(&home, &client).faults(), Vec::<String>::new());
}

#[test]
fn a_mode_that_is_the_operators_stays() {
    let home = home(false);
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(mode(&client), state("off", false, false));
    let refused = client.prepare(claim("part", vec![named("gpu", PART)])).unwrap_err();
    assert_eq!(page(&refused), Some("AP0130"), "{refused}");
    client.prepare(claim("whole", vec![named("gpu", WHOLE)])).unwrap();
    assert_eq!(mode(&client), state("off", false, false));
}

#[test]
fn somebody_who_uses_the_device_keeps_its_mode() {
    let home = home(true);
    let daemon = home.start();
    let client = daemon.client();
    let process = "[[process]]\npid = 77\ndevice = \"gpu-0000-1b-00-0\"\nmemory = \"1Gi\"\n";
    home.script(process);
    let failed = client.prepare(claim("part", vec![named("gpu", PART)])).unwrap_err();
    assert_eq!(page(&failed), Some("AP0114"), "{failed}");
    assert!(failed.message().contains("process 77"), "{failed}");
    assert_eq!(mode(&client), state("off", false, true));
    assert_eq!(client.claims().unwrap(), []);
    home.script("");
    client.prepare(claim("part", vec![named("gpu", PART)])).unwrap();
}

/// Kills the daemon at `point` while it prepares the partition, and looks at what comes of it.
#[track_caller]
fn check_kill(point: &str) {
    let home = home(true);
    let faults = Faults::kill(point, 1);
    let mut daemon = home.try_start(&faults).unwrap();
    let client = daemon.client();
    assert!(client.prepare(claim("part", vec![named("gpu", PART)])).is_err(), "{point}");
    daemon.wait();
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(client.claims().unwrap(), [], "{point}");
    assert_eq!(hardware(&home), [], "{point}");
    // Whichever mode it was left in, both kinds of claim find their way.
    client.prepare(claim("whole", vec![named("gpu", WHOLE)])).unwrap();
    client.release("whole").unwrap();
    client.prepare(claim("part", vec![named("gpu", PART)])).unwrap();
    assert_eq!(Picture::take(&home, &client).faults(), Vec::<String>::new());
}

#[test]
fn a_crash_around_a_switch_leaves_nothing_behind() {
    check_kill("switch_mode.before");
    check_kill("switch_mode.after");
    check_kill("create_partition.after");
}
