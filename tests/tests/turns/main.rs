//! Shares that take turns, end to end: the real daemon, the real shim, tenants that are killed,
//! stopped, hang, flood, scribble, and go on while the daemon is away.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod billed;
mod fair;
mod hostile;
mod scene;
mod spans;
#[cfg(target_arch = "x86_64")]
mod steps;
mod top;

use std::fs;

use accelpool_proto::node::{Enforcements, GetTurnsResponse, ListPoolsRequest};
use accelpool_tests::{Home, page, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{DEVICE, GIB, Scene, ask};

/// Keeps the device busy from now on; answers when this is over, far beyond the test.
const FOR_EVER: &str = "burn 200 600000";

#[test]
fn a_share_gets_what_its_programs_need_and_loses_it_with_the_claim() {
    let scene = Scene::new();
    let lease = scene.share("a", 8, 750);
    let classes = lease.allocations[0].enforcement.clone().unwrap();
    assert_eq!((&*classes.memory, &*classes.compute), ("library", "library"));

    let spec = fs::read_to_string(scene.home.cdi().join("accelpool.dev-claim_a.json")).unwrap();
    let spec: Value = serde_json::from_str(&spec).unwrap();
    let mounts = spec["devices"][0]["containerEdits"]["mounts"].as_array().unwrap();
    let host_of = |container: &str| {
        let mount = mounts.iter().find(|mount| mount["containerPath"] == *container)?;
        assert!(mount["options"].as_array().unwrap().contains(&"ro".into()));
        mount["hostPath"].as_str().map(str::to_owned)
    };
    let turns = scene.client.turns().unwrap();
    assert_eq!(host_of("/run/accelpool/turns/a").unwrap(), format!("{}/a", turns.folder));
    let list = fs::read_to_string(host_of("/etc/ld.so.preload").unwrap()).unwrap();
    assert_eq!(host_of(list.trim()).unwrap(), turns.shim);

    let told = scene.turns_of("a").unwrap();
    assert_eq!((told.granted_permille, told.memory_quota_bytes), (1000, 8 * GIB));
    scene.share("b", 8, 250);
    let granted = |claim| scene.turns_of(claim).map(|told| told.granted_permille);
    scene.until("both parts", "a", |told| told.granted_permille == 750);
    assert_eq!(granted("b"), Some(250));

    assert!(scene.client.release("a").unwrap());
    assert_eq!(scene.turns_of("a"), None);
    assert!(!scene.home.turns().join("a").exists());
    scene.until("the rest", "b", |told| told.granted_permille == 1000);
}

#[test]
fn a_pool_tells_how_its_devices_are_shared() {
    let scene = Scene::with_pool(
        "compute = \"cap\"\non_violation = \"freeze\"\nhost_memory = \"2Gi\"",
        &[DEVICE],
    );
    let pools = |client: &accelpool_tests::Client| {
        let answer = client.call(async |mut node| node.list_pools(ListPoolsRequest {}).await);
        answer.unwrap().pools
    };
    let told = &pools(&scene.client)[0];
    assert_eq!((&*told.compute, &*told.on_violation, told.mps), ("cap", "freeze", false));
    assert_eq!(told.host_memory_bytes, Some(2 << 30));
    let home = Home::with_turns_in("dgx-h100", "");
    let told = &pools(&home.start().client())[0];
    assert_eq!((&*told.compute, &*told.on_violation, told.mps), ("guarantee", "report", false));
    assert_eq!(told.host_memory_bytes, None);
}

#[test]
fn without_turns_nothing_is_promised() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    assert_eq!(client.turns().unwrap(), GetTurnsResponse::default());
    let mut demanding = ask("a", 8, 250);
    let library = "library".to_owned();
    let demand = Enforcements { memory: library.clone(), compute: library, ..Default::default() };
    demanding.requests[0].demand = Some(demand);
    let refused = client.prepare(demanding).unwrap_err();
    assert_eq!(page(&refused), Some("AP0107"), "{refused}");
    let lease = client.prepare(ask("a", 8, 250)).unwrap();
    assert_eq!(lease.allocations[0].enforcement.clone().unwrap().compute, "none");
}

#[test]
fn the_next_one_is_served_when_the_holder_is_killed() {
    let scene = Scene::new();
    scene.share("a", 8, 750);
    scene.share("b", 8, 250);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.must("alloc 1073741824");
    a.send(FOR_EVER);
    b.send(FOR_EVER);
    scene.until("turns of a", "a", |told| told.turns > 3 && told.memory_used_bytes > GIB);
    scene.until("turns of b", "b", |told| told.turns > 3);
    a.signal(Signal::SIGKILL);
    let told = scene.until("a is gone", "a", |told| told.pids.is_empty());
    assert_eq!(told.state, "idle");
    scene.until("its bytes are given back", "a", |told| told.memory_used_bytes == 0);
    let before = scene.turns_of("b").unwrap().used_ns;
    scene.until("b goes on", "b", |told| told.used_ns > before + 200_000_000);
}

#[test]
fn a_holder_that_is_stopped_or_hangs_holds_up_nobody() {
    let scene = Scene::new();
    scene.share("a", 8, 500);
    scene.share("b", 8, 250);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.send(FOR_EVER);
    b.send(FOR_EVER);
    scene.until("turns of both", "b", |told| told.turns > 3);
    a.signal(Signal::SIGSTOP);
    let before = scene.turns_of("b").unwrap().used_ns;
    scene.until("b goes on beside one that is stopped", "b", |told| {
        told.used_ns > before + 300_000_000
    });
    a.signal(Signal::SIGCONT);
    let before = scene.turns_of("a").unwrap().used_ns;
    scene.until("a goes on where it was", "a", |told| told.used_ns > before + 100_000_000);
    drop(a);

    scene.until("a is gone", "a", |told| told.pids.is_empty());
    let mut spinning = scene.tenant("a");
    spinning.must("hang");
    scene.until("it does not drain", "a", |told| told.stuck > 0);
    let before = scene.turns_of("b").unwrap().used_ns;
    scene.until("b goes on beside one that hangs", "b", |told| told.used_ns > before + 200_000_000);
}

#[test]
fn a_daemon_that_dies_under_load_disturbs_nobody() {
    let mut scene = Scene::new();
    scene.share("a", 4, 750);
    scene.share("b", 4, 250);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.must("alloc 1073741824");
    let used = scene.until("its bytes", "a", |told| told.memory_used_bytes > GIB);
    a.send("burn 200 4000");
    b.send("burn 200 4000");
    scene.until("turns of both", "b", |told| told.turns > 3);
    scene.restart();
    // Both come back by themselves, and what they hold is still counted.
    let back = scene.until("a is back", "a", |told| told.pids == [a.pid()]);
    assert_eq!(back.memory_used_bytes, used.memory_used_bytes);
    scene.until("b is back", "b", |told| told.pids == [b.pid()]);
    for tenant in [&mut a, &mut b] {
        let answer = tenant.answer();
        assert!(answer.starts_with("ok "), "a tenant saw the daemon die: {answer}");
    }
    // The quota held throughout, and holds.
    a.send("alloc 4294967296");
    assert!(a.answer().contains('2'), "CUDA's out of memory");
    assert_eq!(scene.turns_of("a").unwrap().memory_quota_bytes, 4 * GIB);
    a.must("launch 10 1");
}

#[test]
fn who_is_stopped_over_a_restart_comes_back_to_its_turns_and_bytes() {
    let mut scene = Scene::new();
    scene.share("a", 4, 500);
    scene.share("b", 4, 500);
    let (mut a, mut b) = (scene.tenant("a"), scene.tenant("b"));
    a.must("alloc 1073741824");
    b.send(FOR_EVER);
    let used = scene.until("its bytes", "a", |told| told.memory_used_bytes > GIB);
    a.signal(Signal::SIGSTOP);
    scene.restart();
    scene.until("b is back", "b", |told| told.pids == [b.pid()]);
    // Longer than any shim waits between two tries.
    let before = scene.turns_of("b").unwrap().used_ns;
    let told = scene.until("b works", "b", |told| told.used_ns > before + 3_000_000_000);
    assert_eq!(told.stuck, 0);
    let held = scene.turns_of("a").unwrap();
    assert_eq!((held.memory_used_bytes, held.pids.len()), (used.memory_used_bytes, 0));
    // A second process of the claim finds only what is left of the quota.
    let mut second = scene.tenant("a");
    assert_eq!(second.ask("alloc 3221225472"), "error 2");
    a.signal(Signal::SIGCONT);
    scene.until("a is back", "a", |told| told.pids.contains(&a.pid()));
    a.send(FOR_EVER);
    scene.until("turns of a", "a", |told| told.turns > 3 && told.used_ns > 100_000_000);
    drop((a, second));
    scene.until("its bytes are given back", "a", |told| told.memory_used_bytes == 0);
}

#[test]
fn what_an_earlier_daemon_left_is_cleared() {
    let mut scene = Scene::new();
    scene.share("kept", 4, 250);
    let page = fs::metadata(scene.home.turns().join("kept/ctrl")).unwrap();
    fs::create_dir(scene.home.turns().join("left")).unwrap();
    scene.restart();
    let left = scene.home.turns().join("left");
    wait_for("the folder of no claim goes", || (!left.exists()).then_some(()));
    // The page of a claim that is kept is written in place: its tenants have it mapped.
    let after = fs::metadata(scene.home.turns().join("kept/ctrl")).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&page),
        std::os::unix::fs::MetadataExt::ino(&after)
    );
    assert!(scene.turns_of("kept").is_some());
    assert_eq!(scene.turns_of("kept").unwrap().memory_quota_bytes, 4 * GIB);
    let devices = scene.client.turns().unwrap().devices;
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].device, DEVICE);
}

#[test]
fn a_pools_limit_of_pinned_memory_reaches_its_shares() {
    let mut scene = Scene::with_pool("host_memory = \"8Mi\"", &[DEVICE]);
    scene.share("a", 8, 750);
    let mut a = scene.tenant("a");
    let most = a.must("pin 8388608");
    assert_eq!(a.ask("pin 1"), "error 2", "CUDA's out of memory");
    // The next daemon says the same, and what is pinned is still counted.
    scene.restart();
    scene.until("a is back", "a", |told| told.pids == [a.pid()]);
    assert_eq!(a.ask("pin 1"), "error 2");
    a.must(&format!("unpin {most}"));
    a.must("pin 1");
}

/// The comment before the table of `docs/turns.md` that has a test for each row.
const MARK: &str = "<!-- ci: hostile table -->";

#[test]
fn each_row_of_the_table_names_tests_that_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = fs::read_to_string(root.join("docs/turns.md")).unwrap();
    let (_, table) = guide.split_once(MARK).expect("the table is marked");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 12, "{} rows", rows.len());
    let mut sources = String::new();
    let mut folders: Vec<_> = ["tests/tests", "daemon", "vendors"].map(|it| root.join(it)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for row in rows {
        let named = row.rsplit('|').nth(1).unwrap();
        let mut count = 0;
        for name in named.split('`').skip(1).step_by(2) {
            assert!(sources.contains(&format!("#[test]\nfn {name}() {{")), "no test `{name}`");
            count += 1;
        }
        assert!(count > 0, "no test: {row}");
    }
}
