//! Who gets how much of a device, by what the engine has really run. Shares are waited for, window
//! by window: a loaded machine may take more of them, and a wrong policy never gets there.

use std::time::{Duration, Instant};

use accelpool_cuda_engine::suite::Tenant;
use accelpool_proto::node::{PrepareClaimRequest, request::Wanted};
use accelpool_tests::wait_for;

use crate::{
    FOR_EVER,
    scene::{DEVICE, SECOND_DEVICE, Scene, ask},
};

/// Device time of one window: a hundred turns.
const WINDOW: Duration = Duration::from_millis(500);

/// How far a share may be off, in points: no two of the shares below are as near as that, and no
/// equal split is.
const POINTS: f64 = 8.0;

fn weighted(name: &str, permille: u32, weight: u32) -> PrepareClaimRequest {
    let mut request = ask(name, 1, permille);
    if let Some(share) = &mut request.requests[0].share {
        share.weight = weight;
    }
    request
}

/// What the engine ran of each tenant in the next window, in seconds.
fn window(scene: &Scene, tenants: &[Tenant], device: usize) -> Vec<f64> {
    let look = || -> Vec<u64> {
        let all = scene.engine.processes(device);
        let busy = |pid: i32| all.iter().find(|it| it.pid == pid).map_or(0, |it| it.busy_ns);
        tenants.iter().map(|it| busy(it.pid())).collect()
    };
    let before = look();
    wait_for("a window of device time", || {
        let did = look().into_iter().zip(&before).map(|(now, then)| now - then);
        let did: Vec<Duration> = did.map(Duration::from_nanos).collect();
        (did.iter().sum::<Duration>() >= WINDOW)
            .then(|| did.iter().map(Duration::as_secs_f64).collect())
    })
}

/// Tenants that are granted so many thousandths at such a weight, and leave no gap.
#[track_caller]
fn check_shares(granted: &[(u32, u32)]) {
    let scene = Scene::new();
    let mut tenants = Vec::new();
    for (index, (permille, weight)) in granted.iter().enumerate() {
        let name = format!("t{index}");
        scene.client.prepare(weighted(&name, *permille, *weight)).unwrap();
        tenants.push(scene.tenant(&name));
    }
    for tenant in &mut tenants {
        tenant.send(FOR_EVER);
    }
    let owed: Vec<f64> = granted.iter().map(|it| f64::from(it.0 * it.1)).collect();
    let all: f64 = owed.iter().sum();
    let points = |part: f64, all: f64| part / all * 100.0;
    wait_for(&format!("a window as {granted:?} is owed"), || {
        let did = window(&scene, &tenants, 0);
        let ran = did.iter().sum();
        let mut pairs = did.iter().zip(&owed);
        pairs
            .all(|(did, owed)| (points(*did, ran) - points(*owed, all)).abs() <= POINTS)
            .then_some(())
    });
}

#[test]
fn two_get_what_each_is_owed() {
    check_shares(&[(750, 100), (250, 100)]);
}

#[test]
fn weight_multiplies_what_was_granted() {
    check_shares(&[(200, 400), (200, 100)]);
}

#[test]
fn three_and_four_get_what_each_is_owed() {
    check_shares(&[(140, 100), (280, 100), (560, 100)]);
    check_shares(&[(100, 100), (200, 100), (300, 100), (400, 100)]);
}

#[test]
fn eight_get_what_each_is_owed() {
    // Two of them as much as the six others together.
    let mut granted = [(50, 100); 8];
    granted[0].0 = 150;
    granted[1].0 = 150;
    check_shares(&granted);
}

/// The part of the time from now on for which the engine ran a tenant.
fn part_of_time(scene: &Scene, tenants: &[Tenant]) -> f64 {
    let start = Instant::now();
    let did = window(scene, tenants, 0);
    did[0] / start.elapsed().as_secs_f64()
}

#[test]
fn what_others_leave_is_used() {
    let scene = Scene::new();
    scene.share("heavy", 1, 750);
    scene.share("light", 1, 250);
    let mut heavy = scene.tenant("heavy");
    let mut light = vec![scene.tenant("light")];
    light[0].send(FOR_EVER);
    // The other one has a claim, and nothing to do.
    wait_for("the whole device for the only one", || {
        (part_of_time(&scene, &light) > 0.9).then_some(())
    });
    // It comes for a moment now and then: its turn is over when it has nothing to do.
    heavy.send("pace 200 100000 20000");
    scene.until("turns of both", "heavy", |told| told.turns > 3);
    wait_for("most of the device for who is owed a quarter", || {
        (part_of_time(&scene, &light) > 0.75).then_some(())
    });
}

#[test]
fn a_cap_holds_while_nobody_else_wants_the_device() {
    let scene = Scene::with_pool("compute = \"cap\"", &[DEVICE]);
    scene.share("capped", 1, 250);
    let mut capped = vec![scene.tenant("capped")];
    capped[0].send(FOR_EVER);
    scene.until("the device is metered", "capped", |told| told.turns > 3);
    let part = part_of_time(&scene, &capped);
    assert!(part < 0.35, "granted a quarter at most, ran for {part} of the time");
}

#[test]
fn realtime_has_its_budget_and_no_more() {
    let scene = Scene::new();
    let mut urgent = ask("urgent", 1, 100);
    if let Some(share) = &mut urgent.requests[0].share {
        share.class = "realtime".to_owned();
    }
    scene.client.prepare(urgent).unwrap();
    scene.share("batch", 1, 900);
    let mut tenants = vec![scene.tenant("urgent"), scene.tenant("batch")];
    for tenant in &mut tenants {
        tenant.send(FOR_EVER);
    }
    // 80 ms of each 100, however little it was granted and however much it wants.
    wait_for("four fifths and one", || {
        let did = window(&scene, &tenants, 0);
        let part = did[0] / (did[0] + did[1]);
        (0.7..0.88).contains(&part).then_some(())
    });
}

#[test]
fn a_claim_of_two_devices_gets_its_part_of_both() {
    let scene = Scene::with_pool("", &[DEVICE, SECOND_DEVICE]);
    let shares = |name: &str, devices: &[&str]| {
        let mut request = ask(name, 1, 500);
        let one = request.requests[0].clone();
        request.requests = devices
            .iter()
            .enumerate()
            .map(|(index, device)| {
                let mut share = one.clone();
                share.name = format!("gpu{index}");
                share.wanted = Some(Wanted::Device((*device).to_owned()));
                share
            })
            .collect();
        scene.client.prepare(request).unwrap();
    };
    shares("gang", &[DEVICE, SECOND_DEVICE]);
    shares("first", &[DEVICE]);
    shares("second", &[SECOND_DEVICE]);
    let mut firsts = vec![scene.tenant("gang"), scene.tenant("first")];
    let mut seconds = vec![scene.tenant_on("gang", 1), scene.tenant_on("second", 1)];
    for tenant in firsts.iter_mut().chain(&mut seconds) {
        tenant.send(FOR_EVER);
    }
    for (device, tenants) in [(0, &firsts), (1, &seconds)] {
        wait_for(&format!("half and half of device {device}"), || {
            let did = window(&scene, tenants, device);
            let part = did[0] / (did[0] + did[1]);
            (0.4..0.6).contains(&part).then_some(())
        });
    }
    let turns = scene.client.turns().unwrap().devices;
    assert!(turns.iter().all(|device| device.mode == "exclusive"), "{turns:?}");
}
