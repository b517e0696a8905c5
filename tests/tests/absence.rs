//! A device that is away, by itself or since an operator paused its vendor, and what is owed then.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use accelpool_proto::node::{QuiesceRequest, ResumeRequest};
use accelpool_tests::{
    Client, Daemon, Faults, Home, page,
    requests::{claim, named},
    rules::{Picture, hardware},
    wait_for,
};

const DEVICE: &str = "gpu-0000-1b-00-0";
const PART: &str = "gpu-0000-1b-00-0-mig-1g-10gb-3";
const AWAY: &str = "absent = [\"gpu-0000-1b-00-0\"]\n";

fn is_present(client: &Client) -> bool {
    let devices = client.devices().unwrap();
    devices.iter().any(|device| device.name == DEVICE && device.present)
}

/// A claim on a part of a device, released while the device is off the bus.
fn released_while_away(home: &Home) -> Daemon {
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("part", vec![named("gpu", PART)])).unwrap();
    home.script(AWAY);
    wait_for("the device to leave", || (!is_present(&client)).then_some(()));
    assert!(client.release("part").unwrap());
    assert_eq!(client.claims().unwrap(), []);
    assert_eq!(hardware(home).len(), 1, "the hardware keeps it");
    daemon
}

#[track_caller]
fn check_settled(home: &Home, client: &Client) {
    wait_for("the partition to go", || hardware(home).is_empty().then_some(()));
    // Nobody takes it for one that was made by hand.
    wait_for("the place to be free", || {
        client.prepare(claim("next", vec![named("gpu", PART)])).ok()
    });
    assert_eq!(Picture::take(home, client).faults(), Vec::<String>::new());
    let lease = client.claims().unwrap().remove(0);
    assert!(!format!("{lease:?}").contains("adopted: true"), "{lease:?}");
}

#[test]
fn a_partition_that_comes_back_with_its_device_is_destroyed() {
    let home = Home::new("dgx-h100");
    let daemon = released_while_away(&home);
    home.script("");
    check_settled(&home, &daemon.client());
}

#[test]
fn what_is_owed_outlives_the_daemon() {
    let home = Home::new("dgx-h100");
    released_while_away(&home).kill();
    home.script("");
    let daemon = home.start();
    check_settled(&home, &daemon.client());
}

#[test]
fn a_crash_while_it_is_settled_leaves_nothing_behind() {
    for point in ["settle.before", "settle.after"] {
        let home = Home::new("dgx-h100");
        released_while_away(&home).kill();
        home.script("");
        // Killed as soon as it looks: it may not even come to serve.
        if let Ok(mut daemon) = home.try_start(&Faults::kill(point, 1)) {
            daemon.wait();
        }
        let daemon = home.start();
        check_settled(&home, &daemon.client());
    }
}

#[test]
fn one_that_is_in_use_waits_until_it_is_not() {
    let home = Home::new("dgx-h100");
    let daemon = released_while_away(&home);
    let process = "[[process]]\npid = 7\ndevice = \"gpu-0000-1b-00-0\"\nmemory = \"1Gi\"\n\
        partition = { profile = \"1g.10gb\", start = 3 }\n";
    home.script(process);
    let client = daemon.client();
    wait_for("the device to be back", || is_present(&client).then_some(()));
    let refused = client.prepare(claim("next", vec![named("gpu", PART)])).unwrap_err();
    assert_eq!(page(&refused), Some("AP0111"), "{refused}");
    assert_eq!(hardware(&home).len(), 1);
    // Something else changes, so that the vendor tells and is looked at again.
    home.script("absent = [\"gpu-0000-df-00-0\"]\n");
    check_settled(&home, &client);
}

fn quiesce(client: &Client, for_ms: u64) -> Result<(), tonic::Status> {
    let request = QuiesceRequest { vendor: "sim".to_owned(), for_ms };
    client.call(async |mut node| node.quiesce(request).await).map(drop)
}

fn resume(client: &Client) -> Vec<String> {
    let request = ResumeRequest { vendor: String::new() };
    client.call(async |mut node| node.resume(request).await).unwrap().vendors
}

fn vendor_state(client: &Client) -> (String, bool) {
    let vendor = client.node().unwrap().vendors.remove(0);
    (vendor.state, vendor.paused_until_unix_ms > 0)
}

const HOUR: u64 = 60 * 60 * 1000;

#[test]
fn a_paused_vendor_is_left_alone_until_it_is_resumed() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("part", vec![named("gpu", PART)])).unwrap();
    quiesce(&client, HOUR).unwrap();
    assert_eq!(vendor_state(&client), ("paused".to_owned(), true));
    // Whatever is asked of its library fails, so one that were called would show.
    let called = "[[call]]\nid = \"called\"\nmethod = \"discover\"\nerror = \"library\"\n";
    home.script(called);
    let refused = client.prepare(claim("whole", vec![named("gpu", "gpu-0000-43-00-0")]));
    assert_eq!(page(&refused.unwrap_err()), Some("AP0131"));
    let refused = client.release("part").unwrap_err();
    assert_eq!(page(&refused), Some("AP0131"), "{refused}");
    assert_eq!(client.devices().unwrap().len(), 8);
    let state = std::fs::read_to_string(home.sim().join("state.json")).unwrap();
    assert!(!state.contains("called"), "the library was called while it was paused");
    // A daemon that is started anew in the middle of it keeps away too.
    daemon.kill();
    home.script("");
    let daemon = home.start_unheard();
    let client = daemon.client();
    assert_eq!(vendor_state(&client), ("paused".to_owned(), true));
    assert_eq!(resume(&client), ["sim"]);
    assert_eq!(resume(&client), Vec::<String>::new());
    wait_for("the lease to be cleared away", || client.claims().unwrap().is_empty().then_some(()));
    wait_for("the vendor to answer", || {
        client.prepare(claim("whole", vec![named("gpu", "gpu-0000-43-00-0")])).ok()
    });
}

#[test]
fn a_pause_ends_by_itself_and_has_a_limit() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    let refused = quiesce(&client, 25 * HOUR).unwrap_err();
    assert_eq!(page(&refused), Some("AP0100"));
    quiesce(&client, 1).unwrap();
    wait_for("the end of the pause", || {
        client.prepare(claim("part", vec![named("gpu", PART)])).ok()
    });
    assert!(!vendor_state(&client).1);
}
