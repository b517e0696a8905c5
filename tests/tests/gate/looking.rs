//! Who has a device open, and what containers can really do.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
};

use accelpool_proto::node::{
    BindClaimRequest, ClaimVerification, Holder, ListHoldersRequest, TaintDeviceRequest,
    VerifyClaimsRequest,
};
use accelpool_tests::{
    Cgroups, Daemon, Home, Tenant,
    requests::{claim, share},
    wait_for,
};

use crate::scene::{GPU, PROFILE, Scene, workload};

/// A process that has a node open. Behind a simulated one there is no driver to open, so the
/// file stands for the node alone (`O_PATH`).
fn hold(cgroup: &Path, node: &Path) -> Tenant {
    const O_PATH: i32 = 0o10_000_000;
    let file = OpenOptions::new().read(true).custom_flags(O_PATH).open(node);
    Tenant::start_with(cgroup, "exec sleep 1000", Stdio::from(file.expect("it is there")))
}

fn holders(daemon: &Daemon, device: &str) -> Vec<Holder> {
    let request = ListHoldersRequest { device: device.to_owned() };
    let found = daemon.client().call(async |mut node| node.list_holders(request).await);
    let found = found.expect("it answers");
    assert!(found.processes > 1);
    found.holders
}

fn standing(daemon: &Daemon, device: &str, tenant: &Tenant) -> Option<String> {
    let holders = holders(daemon, device).into_iter();
    holders.filter(|it| it.pid == tenant.id()).map(|it| it.standing).next()
}

#[test]
fn a_process_that_keeps_a_device_is_found_and_told() {
    let scene = Scene::new("enforce");
    let (pod, stranger) = (scene.cgroups.make("poda/container"), scene.cgroups.make("podb"));
    scene.prepare("a", vec![workload("a")]);
    let by_right = hold(&pod, &scene.node(0));
    let without = hold(&stranger, &scene.node(0));
    let host = hold(scene.cgroups.root().parent().expect("it has one"), &scene.node(0));
    let is = |tenant: &Tenant| standing(&scene.daemon, GPU, tenant);
    assert_eq!(is(&by_right).as_deref(), Some("granted"));
    assert_eq!(is(&without).as_deref(), Some("stale"));
    assert_eq!(is(&host).as_deref(), Some("host"));
    let held = holders(&scene.daemon, "").into_iter().find(|it| it.pid == by_right.id());
    let held = held.expect("it holds a device");
    assert_eq!((held.claims, held.cgroup), (vec!["a".to_owned()], scene.cgroups.path(&pod)));
    let other = standing(&scene.daemon, crate::scene::OTHER, &by_right);
    assert_eq!(other, None, "another device");
    // The daemon notices by itself, and kills nobody unless it was told to.
    scene.wait("the one without", |gate| gate.stale_holders == 1);
    assert!(scene.daemon.client().release("a").expect("it answers"));
    scene.wait("both", |gate| gate.stale_holders == 2 && gate.stale_holders_killed == 0);
    assert_eq!(is(&by_right).as_deref(), Some("stale"));
    drop((by_right, without, host));
}

#[test]
fn a_pool_can_have_them_killed() {
    let cgroups = Cgroups::new();
    let config = format!("{}on_stale_holder = \"kill\"\n", cgroups.config("enforce"));
    let home = Home::with_gate(PROFILE, &config);
    let scene = Scene { daemon: home.start(), home, cgroups };
    let pod = scene.cgroups.make("poda");
    scene.prepare("a", vec![workload("a")]);
    let mut kept = hold(&pod, &scene.node(0));
    let mut outside = hold(scene.cgroups.root().parent().expect("it has one"), &scene.node(0));
    let mut unrelated = Tenant::start(&pod, "exec sleep 1000");
    assert_eq!(standing(&scene.daemon, GPU, &kept).as_deref(), Some("granted"));
    assert!(scene.daemon.client().release("a").expect("it answers"));
    wait_for("its end", || (!kept.is_running()).then_some(()));
    scene.wait("the count", |gate| gate.stale_holders_killed == 1 && gate.stale_holders == 0);
    assert!(outside.is_running() && unrelated.is_running());
    drop((kept, outside, unrelated));
}

/// Who holds a device that is to be left is told of at once, and killed where the pool says so.
#[test]
fn holders_of_a_device_that_is_to_be_left_are_told_and_killed() {
    for (told, kills) in [("report", false), ("kill", true)] {
        let cgroups = Cgroups::new();
        let config = format!("{}on_stale_holder = \"{told}\"\n", cgroups.config("enforce"));
        let home = Home::with_gate(PROFILE, &config);
        let scene = Scene { daemon: home.start(), home, cgroups };
        let pod = scene.cgroups.make("poda");
        scene.prepare("a", vec![workload("a")]);
        let mut kept = hold(&pod, &scene.node(0));
        let is = || standing(&scene.daemon, GPU, &kept);
        assert_eq!(is().as_deref(), Some("granted"));
        let request = TaintDeviceRequest {
            device: GPU.to_owned(),
            effect: "NoExecute".to_owned(),
            reason: "it burns".to_owned(),
        };
        let client = scene.daemon.client();
        client.call(async |mut node| node.taint_device(request).await).expect("it is there");
        if kills {
            wait_for("its end", || (!kept.is_running()).then_some(()));
            scene.wait("the count", |gate| gate.stale_holders_killed == 1);
        } else {
            wait_for("the word", || (is().as_deref() == Some("tainted")).then_some(()));
            scene.wait("the holder", |gate| gate.stale_holders == 1);
            client.untaint(GPU).expect("it is there");
            wait_for("its right", || (is().as_deref() == Some("granted")).then_some(()));
            scene.wait("no holder", |gate| gate.stale_holders == 0);
            assert!(kept.is_running());
        }
    }
}

fn verify(scene: &Scene) -> ClaimVerification {
    let request = VerifyClaimsRequest { claim: "a".to_owned() };
    let found = scene.daemon.client().call(async |mut node| node.verify_claims(request).await);
    let mut claims = found.expect("it answers").claims;
    assert_eq!(claims.len(), 1);
    claims.remove(0)
}

#[test]
fn containers_are_compared_with_the_ledger() {
    let scene = Scene::new("enforce");
    let pod = scene.cgroups.make("poda/container");
    scene.prepare("a", vec![workload("a")]);
    let state = |scene: &Scene| verify(scene).found.expect("it is told").state;
    assert_eq!(state(&scene), "unused", "nobody runs");
    let bystander = Tenant::start(&scene.cgroups.make("poda/other"), "exec sleep 1000");
    assert_eq!(state(&scene), "unused", "nobody was given it");
    // As a container's runtime gives it: the variable of the claim's CDI spec.
    let spec = fs::read_to_string(scene.home.cdi().join("accelpool.dev-claim_a.json"));
    let spec: serde_json::Value = serde_json::from_str(&spec.expect("it is there")).expect("JSON");
    let variable = spec["devices"][0]["containerEdits"]["env"][0].as_str().expect("a variable");
    let start =
        |variable: &str| Tenant::start(&pod, &format!("export '{variable}'; exec sleep 1000"));
    let right = start(variable);
    wait_for("its environment", || (state(&scene) == "verified").then_some(()));
    let found = verify(&scene);
    let own = found.cgroups.iter().find(|it| it.uses).expect("one uses it");
    assert_eq!(own.cgroup, scene.cgroups.path(&pod));
    for node in &own.nodes {
        let expected = if node.granted { "open" } else { "refused" };
        assert_eq!(node.answer, expected, "{node:?}");
    }
    assert!(own.nodes.iter().any(|it| it.granted) && own.nodes.iter().any(|it| !it.granted));
    // Nothing was opened or refused for the sake of looking.
    assert_eq!(scene.gate().counts, []);
    drop(right);
    let wrong = start(&variable.replace("portion=whole", "portion=share"));
    wait_for("the difference", || {
        let found = verify(&scene).found.expect("it is told");
        let told = found.deviations.iter().any(|it| it.contains("the ledger has"));
        (found.state == "drifted" && told).then_some(())
    });
    // The lease tells, for who watches the node.
    let lease = scene.daemon.client().claims().expect("it answers").remove(0);
    assert_eq!(lease.verification.expect("it was looked at").state, "drifted");
    assert_eq!(scene.gate().drifted_claims, 1);
    drop((bystander, wrong));
}

#[test]
fn a_kernel_without_regions_limits_no_device_memory() {
    let scene = Scene::new("enforce");
    let request = claim("a", vec![share("gpu", GPU, 8 << 30, 250)]);
    scene.daemon.client().prepare(request).expect("it is free");
    let request = BindClaimRequest { claim: "a".to_owned(), bindings: vec![workload("a")] };
    let bound = scene.daemon.client().call(async |mut node| node.bind_claim(request).await);
    assert!(bound.expect("it answers").unified.is_empty(), "no simulated device has a region");
}
