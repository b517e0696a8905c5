//! Sockets, registration and restarts: of the driver, of the kubelet, of two drivers at once
//! (`kubernetes.md` 1, 2.4, 10 and 11, and the kubelet's own list of tests).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use accelpool_cluster::DRIVER_NAME;
use accelpool_cluster_double::{Fault, Verb};
use accelpool_dra_driver::{
    driver::{Pace, SocketPaths},
    registration::Registered,
};
use accelpool_kubelet_double::{Stumble, Stumbles};
use accelpool_proto::kubelet::registration::{
    InfoRequest, registration_client::RegistrationClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use serde_json::json;

use crate::common::{
    Bench, GPU_0, NODE, POD_UID, POOL, Setup, eventually, get, gpu, other, result, taint, uid_of,
};

const NEXT_POD_UID: &str = "22222222-2222-4222-8222-222222222222";
const REGISTERED: &str = "accelpool.dev registered";

/// Everything in a folder that is a socket, by name.
fn sockets(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_socket())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn dial(path: PathBuf) -> Channel {
    Endpoint::from_static("http://driver.invalid")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// Rows 1 and 3: the answer depends on nothing: no daemon, no API server, no kubelet.
#[tokio::test]
async fn the_driver_says_who_it_is_whatever_else_hangs() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.daemon.kill();
    bench.api.fail(None, Fault::Hang, usize::MAX);
    let _driver = bench.driver(POD_UID).await;
    let paths = SocketPaths::new(&bench.root(), POD_UID);
    let mut client = RegistrationClient::new(dial(paths.registration).await);
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("DRAPlugin", DRIVER_NAME));
    assert_eq!(info.endpoint, paths.service.display().to_string());
    assert_eq!(
        info.supported_versions,
        ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"]
    );
}

/// Row 3: a vendor's library hangs, and with it every call of the daemon that needs it. The double
/// gives `GetInfo` the kubelet's second, and claims that need nothing new are still answered.
#[tokio::test]
async fn a_vendor_that_hangs_holds_up_no_registration() {
    let (mut bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    bench.daemon.hold();
    let waiting = bench.claim("a", &[result("gpu", GPU_0)]);
    let claims = std::sync::Arc::clone(&kubelet.claims);
    let call = tokio::spawn(async move { claims.prepare(&waiting).await });
    eventually("a call hangs", || bench.daemon.waiting() == 1).await;
    bench.options.records = kubelet.stop();
    let kubelet = bench.kubelet();
    kubelet.log.wait_for(REGISTERED, 2).await;
    let unknown = common::pod("b", &[("b", &uid_of("b"))]);
    kubelet.claims.unprepare(&unknown).await.unwrap();
    kubelet.plugins.health.wait_for((DRIVER_NAME, POOL, GPU_0), "Healthy").await;
    bench.daemon.let_go();
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn sockets_are_named_after_the_pod_and_go_with_it() {
    let (bench, kubelet, driver) = Bench::running(Setup::default()).await;
    let registry = bench.root().join("plugins_registry");
    let plugins = bench.root().join("plugins").join(DRIVER_NAME);
    assert_eq!(sockets(&registry), [format!("{DRIVER_NAME}@{POD_UID}-reg.sock")]);
    assert_eq!(sockets(&plugins), [format!("dra-{POD_UID}.sock")]);
    driver.drain().await;
    assert_eq!(sockets(&registry), [""; 0]);
    assert_eq!(sockets(&plugins), [""; 0]);
    kubelet.log.wait_for("accelpool.dev deregistered", 1).await;
}

#[tokio::test]
async fn a_driver_that_starts_after_the_kubelet_or_before_it_is_found() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    drop(kubelet);
    let kubelet = bench.kubelet();
    kubelet.log.wait_for(REGISTERED, 2).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
}

/// Row 4: a driver that was killed leaves its sockets; the next one makes them anew, and the
/// kubelet sees that. Here the driver is the program itself.
#[tokio::test]
async fn a_killed_driver_is_replaced_at_the_same_paths() {
    let bench = Bench::new(Setup::default()).await;
    let kubelet = bench.kubelet();
    let mut program = bench.program(POD_UID);
    kubelet.log.wait_for(REGISTERED, 1).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    program.kill().await.unwrap();
    assert_eq!(sockets(&bench.root().join("plugins_registry")).len(), 1);

    let mut program = bench.program(POD_UID);
    kubelet.log.wait_for(REGISTERED, 2).await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0], "the lease was the daemon's all the time");

    // SIGTERM takes the sockets away and ends with success.
    let pid = nix::unistd::Pid::from_raw(program.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(program.wait().await.unwrap().success());
    assert_eq!(sockets(&bench.root().join("plugins_registry")), [""; 0]);
}

/// Row 5 and section 2.4: the old instance and the new one live side by side.
#[tokio::test]
async fn an_update_loses_no_call() {
    let (bench, kubelet, old) = Bench::running(Setup::default()).await;
    let early = bench.claim("early", &[result("gpu", GPU_0)]);
    bench.daemon.hold();
    let claims = std::sync::Arc::clone(&kubelet.claims);
    let in_hand = tokio::spawn(async move { claims.prepare(&early).await });
    eventually("the old instance has a call in hand", || bench.daemon.waiting() == 1).await;

    let new = bench.driver(NEXT_POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 2).await;
    let endpoint = SocketPaths::new(&bench.root(), NEXT_POD_UID).service;
    eventually("the newest instance is connected", || {
        kubelet.plugins.of(DRIVER_NAME).is_some_and(|plugin| plugin.is_connected())
    })
    .await;
    assert_eq!(kubelet.plugins.of(DRIVER_NAME).unwrap().endpoint, endpoint);

    let drained = tokio::spawn(old.drain());
    bench.daemon.let_go();
    in_hand.await.unwrap().unwrap();
    drained.await.unwrap();
    kubelet.log.wait_for("accelpool.dev deregistered", 1).await;
    let registry = sockets(&bench.root().join("plugins_registry"));
    assert_eq!(registry, [format!("{DRIVER_NAME}@{NEXT_POD_UID}-reg.sock")]);
    let late = bench.claim("late", &[result("gpu", common::GPU_1)]);
    kubelet.claims.prepare(&late).await.unwrap();
    assert_eq!(bench.daemon.claims().len(), 2);
    new.drain().await;
}

/// The e2e list: `GetInfo` and the notification fail at first.
#[tokio::test]
async fn a_registration_whose_answers_are_lost_is_made_again() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.options.stumbles = Stumbles::of([Stumble::GetInfo, Stumble::Notify, Stumble::GetInfo]);
    let kubelet = bench.kubelet();
    let mut driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    assert_eq!(kubelet.log.count("GetInfo: the answer is lost"), 2);
    assert_eq!(kubelet.log.count("NotifyRegistrationStatus failed"), 1);
    driver.registered.wait_for(|registered| *registered == Registered::Yes).await.unwrap();
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
}

/// The e2e list: there is a socket before there is a service.
#[tokio::test]
async fn a_registration_that_fails_is_tried_again() {
    let bench = Bench::new(Setup::default()).await;
    let registry = bench.root().join("plugins_registry");
    fs::create_dir_all(&registry).unwrap();
    // A socket of the driver's name that nobody serves: what a crash leaves behind.
    let path = SocketPaths::new(&bench.root(), POD_UID).registration;
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let kubelet = bench.kubelet();
    kubelet.log.wait_for("-reg.sock: dial", 2).await;
    let mut driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    driver.registered.wait_for(|registered| *registered == Registered::Yes).await.unwrap();
}

/// The e2e list: one connection for each instance.
#[tokio::test]
async fn one_connection_is_enough() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    for name in ["a", "b", "c"] {
        let pod = bench.claim(name, &[result("gpu", GPU_0)]);
        kubelet.claims.prepare(&pod).await.unwrap();
        kubelet.claims.unprepare(&pod).await.unwrap();
    }
    kubelet.plugins.health.wait_for((DRIVER_NAME, POOL, GPU_0), "Healthy").await;
    assert_eq!(kubelet.plugins.of(DRIVER_NAME).unwrap().connections(), 1);
}

/// Row 13: slices are gone when the kubelet starts, and back without anybody's help.
#[tokio::test]
async fn slices_come_back_after_a_kubelet_restart() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let published = || !bench.api.list("resourceslices").is_empty();
    eventually("slices are published", published).await;
    drop(kubelet);
    let kubelet = bench.kubelet();
    kubelet.log.wait_for(REGISTERED, 2).await;
    eventually("slices are back", published).await;
}

/// The e2e list: slices stay over a quick restart, and go when the driver stays away.
#[tokio::test]
async fn slices_outlive_a_quick_restart_only() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.options.times.wipe = Duration::from_secs(2);
    let kubelet = bench.kubelet();
    let driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 1).await;
    let uids = || {
        let slices = bench.api.list("resourceslices");
        slices.iter().map(|slice| slice["metadata"]["uid"].clone()).collect::<Vec<_>>()
    };
    eventually("slices are published", || !uids().is_empty()).await;
    let before = uids();
    driver.drain().await;
    let driver = bench.driver(POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 2).await;
    assert_eq!(uids(), before);
    driver.drain().await;
    kubelet.log.wait_for("deletes the slices of accelpool.dev", 1).await;
    assert_eq!(bench.api.list("resourceslices").len(), 0);
}

/// The e2e list: a pod was deleted while the kubelet was down.
#[tokio::test]
async fn a_pod_that_ended_meanwhile_is_unprepared() {
    let (mut bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    bench.options.records = kubelet.stop();
    bench.api.remove("resourceclaims", "team", "a");
    let kubelet = bench.kubelet();
    kubelet.log.wait_for(REGISTERED, 2).await;
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

/// The e2e list: health is shown, becomes unknown when the driver stops, and recovers.
#[tokio::test]
async fn health_is_shown_and_recovers() {
    let (bench, kubelet, driver) = Bench::running(Setup::default()).await;
    let health = &kubelet.plugins.health;
    let device = (DRIVER_NAME, POOL, GPU_0);
    health.wait_for(device, "Healthy").await;
    bench.daemon.change(|node| {
        node.devices[0].taints = vec![taint("fell-off-bus", "NoExecute", "xid-79: gone")];
    });
    assert_eq!(health.wait_for(device, "Unhealthy").await, "xid-79: gone");
    assert_eq!(health.of(DRIVER_NAME, POOL, common::GPU_1).0, "Healthy");
    // An operator's taint keeps work off and says nothing of the device's health.
    bench.daemon.change(|node| {
        node.devices[0].taints = vec![taint("operator", "NoSchedule", "maintenance")];
    });
    assert_eq!(health.wait_for(device, "Healthy").await, "");
    driver.drain().await;
    health.wait_for(device, "Unknown").await;
    let _driver = bench.driver(POD_UID).await;
    health.wait_for(device, "Healthy").await;
}

/// Rows 29 and 30: the whole list comes again although nothing has changed.
#[tokio::test]
async fn health_is_repeated_before_it_grows_old() {
    let pace = Pace { health_repeat: Duration::from_millis(100), ..Pace::default() };
    let (_bench, kubelet, _driver) = Bench::running(Setup { pace, ..Setup::default() }).await;
    let health = &kubelet.plugins.health;
    health.wait_for((DRIVER_NAME, POOL, GPU_0), "Healthy").await;
    let so_far = health.messages();
    eventually("it is repeated", || health.messages() > so_far + 2).await;
    assert_eq!(health.of(DRIVER_NAME, POOL, GPU_0).0, "Healthy");
    // What the kubelet believes without a newer message, with room for a lost one.
    assert!(Pace::default().health_repeat * 2 < Duration::from_secs(30));
}

/// The claim's own status says what was granted, and follows the device's health.
#[tokio::test]
async fn the_claims_status_follows_the_device() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let status = || {
        let claim = bench.api.get("resourceclaims", "team", "a").unwrap();
        claim["status"]["devices"][0].clone()
    };
    let condition = |kind: &str, status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == kind)
    };
    eventually("the status is written", || condition("Ready", &status()).is_some()).await;
    let written = status();
    assert_eq!((&written["pool"], &written["device"]), (&POOL.into(), &GPU_0.into()));
    assert_eq!(written["data"]["memoryEnforcement"], "hardware");
    assert_eq!(written["data"]["computeEnforcement"], "library");
    assert_eq!(condition("Healthy", &written).unwrap()["status"], "True");

    bench.daemon.change(|node| {
        node.devices[0].taints = vec![taint("fell-off-bus", "NoExecute", "xid-79: gone")];
    });
    let ill = || condition("Healthy", &status()).is_some_and(|found| found["status"] == "False");
    eventually("the status follows", ill).await;
    assert_eq!(condition("Healthy", &status()).unwrap()["message"], "xid-79: gone");
    let told = || bench.api.list("events").iter().any(|event| event["reason"] == "DeviceUnhealthy");
    eventually("an event tells it", told).await;
}

#[tokio::test]
async fn a_failure_is_told_on_the_claim() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", "gpu-9999-00-00-0")]);
    kubelet.claims.prepare(&pod).await.unwrap_err();
    let told =
        || bench.api.list("events").into_iter().find(|event| event["reason"] == "PrepareFailed");
    eventually("an event tells it", || told().is_some()).await;
    let event = told().unwrap();
    assert_eq!(event["regarding"]["uid"], uid_of("a"));
    assert!(event["note"].as_str().unwrap().contains("delete the pod"), "{event}");
}

/// An outage of the API server: what is prepared keeps working and can be given back.
#[tokio::test]
async fn an_outage_of_the_api_server_stops_no_unprepare() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let pod = bench.claim("a", &[result("gpu", GPU_0)]);
    kubelet.claims.prepare(&pod).await.unwrap();
    for verb in [Verb::Get, Verb::Patch, Verb::List, Verb::Watch] {
        bench.api.fail(Some(verb), Fault::Refuse(503), usize::MAX);
    }
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}

#[tokio::test]
async fn readiness_says_what_is_waited_for() {
    let mut bench = Bench::new(Setup::default()).await;
    bench.daemon.kill();
    let driver = bench.driver(POD_UID).await;
    let address = driver.http.unwrap();
    let (code, body) = get(address, "/readyz").await;
    assert_eq!(code, 503);
    assert!(body.contains("waits for the daemon accelpoold"), "{body}");
    assert!(body.contains("waits for the kubelet to register the driver"), "{body}");
    assert_eq!(get(address, "/healthz").await.0, 200);

    bench.daemon.resume();
    let kubelet = bench.kubelet();
    kubelet.log.wait_for(REGISTERED, 1).await;
    loop {
        let (code, body) = get(address, "/readyz").await;
        if code == 200 {
            break;
        }
        assert!(body.contains("waits for"), "{body}");
        tokio::task::yield_now().await;
    }
    assert_eq!(get(address, "/").await.0, 404);
}

/// Two instances tell the API server the same, so neither undoes the other's slices.
#[tokio::test]
async fn two_instances_publish_the_same() {
    let (bench, kubelet, _old) = Bench::running(Setup::default()).await;
    eventually("slices are published", || !bench.api.list("resourceslices").is_empty()).await;
    let _new = bench.driver(NEXT_POD_UID).await;
    kubelet.log.wait_for(REGISTERED, 2).await;
    bench.daemon.change(|node| node.devices.push(gpu("gpu-0000-52-00-0", None)));
    let devices = || {
        let slices = bench.api.list("resourceslices");
        let form = |device: &&serde_json::Value| device["attributes"]["form"]["string"] == "device";
        let of = |slice: &serde_json::Value| {
            slice["spec"]["devices"].as_array().map_or(0, |all| all.iter().filter(form).count())
        };
        slices.iter().filter(|slice| slice["spec"]["nodeName"] == NODE).map(of).sum::<usize>()
    };
    eventually("the third device is published once", || devices() == 3).await;
}

/// The e2e list: two drivers in one pod, of which the other one fails at first.
#[tokio::test]
async fn another_drivers_failure_is_survived() {
    let (bench, kubelet, _driver) = Bench::running(Setup::default()).await;
    let _other = other::start(&bench.root(), 1);
    kubelet.log.wait_for(&format!("{} registered", other::NAME), 1).await;
    let nic = json!({ "request": "nic", "driver": other::NAME, "pool": "p", "device": "eth0" });
    let mut pod = bench.claim("a", &[result("gpu", GPU_0), nic]);
    pod.claims[0].drivers.push(other::NAME.to_owned());
    // Ours is prepared first and not rolled back; the next try asks both again.
    let error = kubelet.claims.prepare(&pod).await.unwrap_err();
    assert!(error.contains("told to fail"), "{error}");
    assert_eq!(bench.daemon.claims(), [uid_of("a")]);
    kubelet.claims.prepare(&pod).await.unwrap();
    let devices = kubelet.claims.devices("team", "a");
    assert_eq!(devices[0], devices[1], "the same answer twice");
    kubelet.claims.unprepare(&pod).await.unwrap();
    assert_eq!(bench.daemon.claims(), [""; 0]);
}
