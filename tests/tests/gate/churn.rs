//! Many pods, one after the other and all at once: what they had goes with them, and what does
//! not fit is refused in words.

use std::{fs, thread};

use accelpool_proto::node::Binding;
use accelpool_tests::{
    page,
    requests::{claim, named, share},
    wait_for,
    walk::resident_kib,
};

use crate::scene::{GPU, OTHER, Scene, bind, cgroup, whole, workload};

/// Pods that come and go, and how many at a time.
const PODS: usize = 1000;
const AT_ONCE: usize = 8;

/// What the daemon may keep of 800 pods: no more than noise of its allocator.
const GROWTH_KIB_MAX: u64 = 6 * 1024;

fn churn(scene: &Scene, devices: &[String], pods: std::ops::Range<usize>) {
    thread::scope(|scope| {
        for (part, device) in devices.iter().enumerate() {
            let pods = pods.clone();
            scope.spawn(move || {
                let client = scene.daemon.client();
                for pod in pods.filter(|pod| pod % AT_ONCE == part) {
                    let name = format!("c-{pod}");
                    let folder = scene.cgroups.make(&format!("pod{name}"));
                    let mut request = claim(&name, vec![named("gpu", device)]);
                    request.bindings = vec![workload(&name)];
                    let lease = client.prepare(request).expect("it is free");
                    assert_eq!(lease.bindings[0].state, "armed", "{lease:?}");
                    if pod % 100 == part {
                        assert_eq!(
                            accelpool_tests::Tenant::open(&folder, &scene.node(part)),
                            "admitted"
                        );
                    }
                    assert!(client.release(&name).expect("it answers"));
                    fs::remove_dir(&folder).expect("nobody is in it");
                }
            });
        }
    });
}

#[test]
fn a_thousand_pods_leave_nothing_behind() {
    let scene = Scene::new("enforce");
    let devices = scene.daemon.client().devices().expect("it answers");
    let devices: Vec<String> = devices.into_iter().map(|device| device.name).collect();
    assert_eq!(devices.len(), AT_ONCE);
    let first = PODS / 5;
    churn(&scene, &devices, 0..first);
    let before = resident_kib(scene.daemon.id()).expect("it runs");
    churn(&scene, &devices, first..PODS);
    let after = resident_kib(scene.daemon.id()).expect("it runs");
    assert!(after <= before + GROWTH_KIB_MAX, "{before} KiB became {after}");
    assert_eq!(scene.daemon.client().claims().expect("it answers"), []);
    scene.wait("no grants", |gate| gate.grants == 0 && gate.defects.is_empty());
    let specs = fs::read_dir(scene.home.cdi()).expect("it is there").count();
    assert_eq!(specs, 0, "CDI specs");
    let kernel = accelpool_gate::Gate::open(&accelpool_gate::GateConfig {
        root: scene.cgroups.root(),
        pins: scene.cgroups.pins(),
    });
    let rules = kernel.expect("it is up").rules().expect("it can be read");
    assert_eq!(rules.grants().count(), 0, "in the kernel");
}

/// A claim that outlives its pods has room for the next ones, on disk too.
#[test]
fn bindings_of_pods_that_are_gone_leave_their_claim() {
    let scene = Scene::new("enforce");
    scene.prepare("a", vec![]);
    let lasting = scene.cgroups.make("podlasting");
    scene.bind("a", vec![workload("lasting"), workload("to-come")]).expect("there is room");
    for round in 0..5 {
        let names: Vec<String> = (0..60).map(|number| format!("p-{round}-{number}")).collect();
        let folders: Vec<_> =
            names.iter().map(|name| scene.cgroups.make(&format!("pod{name}"))).collect();
        let bindings = names.iter().map(|name| workload(name)).collect();
        scene.bind("a", bindings).expect("there is room for all that are there");
        assert_eq!(scene.open(&folders[0]), "admitted");
        for folder in &folders {
            fs::remove_dir(folder).expect("nobody is in it");
        }
        wait_for("their end in the lease", || (count(&scene) == 2).then_some(()));
    }
    assert_eq!(scene.open(&lasting), "admitted");
    // In the kernel nothing is left for the number of a cgroup that is gone: whoever should get
    // it again, inherits nothing.
    scene.wait("one pod's grants", |gate| gate.grants > 0 && gate.grants < 10);
    let Scene { daemon, home, cgroups } = scene;
    daemon.kill();
    let scene = Scene { daemon: home.start(), home, cgroups };
    assert_eq!(count(&scene), 2, "on disk");
    assert_eq!(scene.open(&lasting), "admitted");
    let late = scene.cgroups.make("podto-come");
    wait_for("the one that was to come", || (scene.open(&late) == "admitted").then_some(()));
}

fn count(scene: &Scene) -> usize {
    scene.daemon.client().claims().expect("it answers")[0].bindings.len()
}

#[test]
fn a_full_gate_refuses_in_words_and_loses_nothing() {
    let scene = Scene::new("enforce");
    let client = scene.daemon.client();
    let first = scene.cgroups.make("podfirst");
    let mut request = claim("first", vec![named("gpu", OTHER)]);
    request.bindings = vec![workload("first")];
    client.prepare(request).expect("it is free");
    // Each claim as many cgroups as it may have, until the kernel has no room.
    let mut claims = 0;
    let refused = loop {
        let name = format!("c-{claims}");
        let request = claim(&name, vec![share("gpu", GPU, 1 << 30, 10)]);
        client.prepare(request).expect("there is room for a share");
        claims += 1;
        let paths: Vec<Binding> = (0..256)
            .map(|number| {
                let folder = scene.cgroups.make(&format!("full/{name}-{number}"));
                cgroup(&scene.cgroups.path(&folder))
            })
            .collect();
        let bound =
            paths.chunks(64).try_for_each(|some| bind(&client, &name, some.to_vec()).map(drop));
        if let Err(refused) = bound {
            break refused;
        }
        assert!(claims < 40, "the kernel takes more than it says");
    };
    assert_eq!(page(&refused), Some("AP0114"), "{refused}");
    let words = refused.message();
    assert!(words.contains("the gate has no room for more grants: it holds 16384"), "{words}");
    let gate = scene.gate();
    assert_eq!(gate.grants_max, 16_384);
    // Nobody lost anything, also when all is looked at again.
    scene.wait("a defect in words", |gate| gate.defects.iter().any(|it| it.contains("no room")));
    assert_eq!(accelpool_tests::Tenant::open(&first, &scene.node(1)), "admitted");
    let early = scene.cgroups.root().join("full/c-0-0");
    assert_eq!(scene.open(&early), "admitted");
    // A claim that comes now is refused as a whole, and is on no record.
    let late = scene.cgroups.make("podlate");
    let mut request = whole("late", vec![workload("late")]);
    request.requests = vec![share("gpu", GPU, 1 << 30, 10)];
    let refused = client.prepare(request.clone()).expect_err("there is no room");
    assert!(refused.message().contains("no room"), "{refused}");
    assert!(client.claims().expect("it answers").iter().all(|lease| lease.claim != "late"));
    assert_eq!(scene.open(&late), "refused");
    // Room comes with the end of a claim.
    assert!(client.release("c-0").expect("it answers"));
    client.prepare(request).expect("there is room again");
    assert_eq!(scene.open(&late), "admitted");
    scene.wait("agreement", |gate| gate.defects.is_empty());
}
