//! Who lives for less than the time between two readings is billed all the same: the vendor here
//! never sees a process, and the arbiter's word is all that there is.

use std::path::Path;

use accelpool_proto::node::{GetMetricsResponse, usage_entry::Who};
use accelpool_tests::{
    Client, Home,
    tenants::{Proc, of_pod},
    wait_for,
};

use crate::scene::{DEVICE, Scene, ask};

/// A scene whose devices are read at this pace.
fn scene(sample_interval_ms: u32) -> Scene {
    let home = Home::with_turns("dgx-h100");
    home.sample_every(sample_interval_ms, Path::new("/proc"));
    Scene::of(home, &[DEVICE])
}

/// A program that comes, works and ends; the answer is what the arbiter charged for it.
fn work(scene: &Scene, claim: &str) -> u64 {
    let before = scene.turns_of(claim).map_or(0, |told| told.used_ns);
    let mut tenant = scene.tenant(claim);
    tenant.must("burn 200 100");
    drop(tenant);
    let ended =
        scene.until("the end of it", claim, |told| told.pids.is_empty() && told.used_ns > before);
    ended.used_ns
}

fn allocation(metrics: &GetMetricsResponse, claim: &str) -> Option<(u64, String)> {
    let found = metrics.allocations.iter().find(|it| it.claim == claim)?;
    Some((found.busy_ns?, found.source.clone()))
}

/// Holders, what is released and what is nobody's are the device; the answer is what is released.
fn released(metrics: &GetMetricsResponse) -> u64 {
    let device = metrics.devices.iter().find(|it| it.device == DEVICE).unwrap();
    let held: u64 = metrics
        .allocations
        .iter()
        .filter(|it| it.device == DEVICE)
        .filter_map(|it| it.busy_ns)
        .sum();
    let released = device.busy_released_ns.unwrap_or(0);
    let rest = released + device.busy_unattributed_ns.unwrap_or(0);
    assert_eq!(held + rest, device.busy_ns.unwrap_or(0), "{metrics:?}");
    released
}

/// What the node's own account says of an agent.
fn account(client: &Client, agent: &str) -> u64 {
    let usage = client.usage().unwrap();
    let Some(number) = usage.agents.iter().position(|it| it.name == agent) else { return 0 };
    let who = Some(Who::Agent(u32::try_from(number).unwrap()));
    let entries = usage.buckets.iter().flat_map(|bucket| &bucket.entries);
    entries.filter(|entry| entry.who == who).map(|entry| entry.busy_ms).sum()
}

#[test]
fn a_process_that_no_reading_saw_is_billed_by_the_arbiter() {
    let scene = scene(100);
    scene.share("a", 8, 500);
    scene.share("b", 8, 500);
    let used = work(&scene, "a");
    let (billed, source) = wait_for("what was used to be billed", || {
        let metrics = scene.client.metrics().unwrap();
        released(&metrics);
        allocation(&metrics, "a").filter(|(billed, _)| *billed >= used)
    });
    assert_eq!((billed, source.as_str()), (used, "turns"), "to the nanosecond");
    let metrics = scene.client.metrics().unwrap();
    assert_eq!(allocation(&metrics, "b"), Some((0, "turns".to_owned())));
}

/// The claim itself comes and goes between two readings: what it used is not lost with it, and
/// one of its name that comes after it is billed for its own time alone.
#[test]
fn a_claim_that_no_reading_saw_is_billed_by_the_arbiter() {
    let scene = scene(3_000);
    let mut used = 0;
    for _ in 0..2 {
        scene.share("a", 8, 500);
        used += work(&scene, "a");
        assert!(scene.client.release("a").unwrap());
    }
    let billed = wait_for("what was used to be released", || {
        let metrics = scene.client.metrics().unwrap();
        let billed = released(&metrics);
        (billed >= used && metrics.allocations.is_empty()).then_some(billed)
    });
    assert_eq!(billed, used, "to the nanosecond");
    let account = account(&scene.client, "a");
    assert!((account..=account + 10).contains(&(used / 1_000_000)), "{account} {used}");
}

/// Who goes round the library gets no turns for it, and its bill all the same.
#[test]
fn who_takes_no_turns_is_billed_by_the_vendor() {
    let (home, proc) = (Home::with_turns("dgx-h100"), Proc::new());
    home.sample_every(100, proc.path());
    proc.add(101, 1);
    home.script(&format!(
        "[[process]]\npid = 101\ndevice = \"{DEVICE}\"\nmemory = \"1Gi\"\n\
         compute_permille = 500\n"
    ));
    let scene = Scene::of(home, &[DEVICE]);
    scene.client.prepare(of_pod(ask("a", 8, 500), 1)).unwrap();
    scene.share("b", 8, 500);
    wait_for("what the vendor saw", || {
        let metrics = scene.client.metrics().unwrap();
        released(&metrics);
        allocation(&metrics, "a").filter(|(billed, _)| *billed > 100_000_000)
    });
    let metrics = scene.client.metrics().unwrap();
    assert_eq!(allocation(&metrics, "b").unwrap().0, 0);
}
