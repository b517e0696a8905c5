//! Grants follow leases: for cgroups of every layout, at once, and over the daemon's death.

use std::fs;

use accelpool_proto::node::Enforcements;
use accelpool_tests::{Tenant, page, requests::any};

use crate::scene::{Scene, cgroup, process, whole, workload};

const POD: &str = "1d2f0e5a-9a0f-4c11-8d0f-8d3c4b5a6978";

#[test]
fn cgroups_of_every_layout_open_what_their_pod_was_granted_and_nothing_else() {
    let scene = Scene::new("enforce");
    let systemd = POD.replace('-', "_");
    let layouts = [
        format!("pod{POD}"),
        format!("besteffort/pod{POD}"),
        format!("burstable/pod{POD}"),
        format!("kubepods-pod{systemd}.slice"),
        format!("kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice"),
        format!("kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice"),
    ];
    let stranger = scene.cgroups.make("burstable/pod7/container");
    for layout in layouts {
        let pod = scene.cgroups.make(&layout);
        let container = scene.cgroups.make(&format!("{layout}/cri-1.scope/init.scope"));
        assert_eq!(scene.open(&container), "refused", "{layout} before its claim");
        scene.prepare("a", vec![workload(POD)]);
        for (held, expected) in
            [(&pod, "admitted"), (&container, "admitted"), (&stranger, "refused")]
        {
            assert_eq!(scene.open(held), expected, "{layout}");
        }
        assert_eq!(Tenant::open(&container, &scene.node(1)), "refused", "another device");
        assert!(scene.daemon.client().release("a").expect("it answers"));
        assert_eq!(scene.open(&container), "refused", "{layout} after its claim");
        fs::remove_dir(container).expect("nobody is in it");
        fs::remove_dir(pod.join("cri-1.scope")).expect("nobody is in it");
        fs::remove_dir(pod).expect("nobody is in it");
    }
    let unrelated = Tenant::open(&stranger, "/dev/null".as_ref());
    assert_eq!(unrelated, "admitted", "what is no accelerator");
}

#[test]
fn pods_of_a_shared_claim_come_one_after_the_other() {
    let scene = Scene::new("enforce");
    let first = scene.cgroups.make("podfirst");
    scene.prepare("a", vec![workload("first"), workload("later")]);
    assert_eq!(scene.open(&first), "admitted");
    // A cgroup that is not there at prepare is armed as soon as it appears.
    let later = scene.cgroups.make("burstable/podlater");
    scene.wait("a grant for the later pod", |gate| gate.grants == 2 * grants_of_one(&scene));
    assert_eq!(scene.open(&later), "admitted");
    // The kubelet prepares a claim once; who comes after that is bound.
    let third = scene.cgroups.make("podthird/container");
    let by_path = scene.cgroups.path(third.parent().expect("it has one"));
    let fourth = scene.cgroups.make("job-4");
    let tenant = Tenant::start(&fourth, "exec sleep 1000");
    let bound = scene.bind("a", vec![cgroup(&by_path), process(tenant.id())]).expect("it is there");
    let states: Vec<&str> = bound.iter().map(|it| it.state.as_str()).collect();
    assert_eq!(states, ["armed"; 4], "{bound:?}");
    for pod in [&first, &later, &third, &fourth] {
        assert_eq!(scene.open(pod), "admitted");
    }
    // Asked for again, with one more: the others stay.
    let fifth = scene.cgroups.make("podfifth");
    scene.prepare("a", vec![workload("fifth")]);
    for pod in [&first, &fourth, &fifth] {
        assert_eq!(scene.open(pod), "admitted");
    }
    // A cgroup that is made anew under its old path is another, where it was meant itself.
    drop(tenant);
    accelpool_tests::wait_for("an empty cgroup", || fs::remove_dir(&fourth).ok());
    let fourth = scene.cgroups.make("job-4");
    assert_eq!(scene.open(&fourth), "refused");
    assert!(scene.daemon.client().release("a").expect("it answers"));
    for pod in [&first, &later, &third, &fourth, &fifth] {
        assert_eq!(scene.open(pod), "refused");
    }
    scene.wait("no grants", |gate| gate.grants == 0);
}

fn grants_of_one(scene: &Scene) -> u32 {
    let lease = scene.daemon.client().claims().expect("it answers");
    let lease = lease.first().expect("there is one");
    let armed = u32::try_from(lease.bindings.iter().filter(|it| it.state == "armed").count());
    scene.gate().grants.checked_div(armed.expect("few")).unwrap_or(0)
}

#[test]
fn a_claim_is_bound_only_to_what_can_be() {
    let scene = Scene::new("enforce");
    let page = |bindings| {
        let refused = scene.bind("a", bindings).expect_err("it cannot be");
        accelpool_tests::page(&refused).map(str::to_owned)
    };
    assert_eq!(page(vec![workload("x")]).as_deref(), Some("AP0117"), "no such claim");
    scene.prepare("a", vec![]);
    assert_eq!(page(vec![process(u32::MAX)]).as_deref(), Some("AP0121"), "no such process");
    assert_eq!(page(vec![cgroup("/../etc")]).as_deref(), Some("AP0121"), "no path of a cgroup");
    assert_eq!(page(vec![workload("../x")]).as_deref(), Some("AP0100"), "no id");
    let many = (0..257).map(|number| workload(&number.to_string())).collect();
    assert_eq!(page(many).as_deref(), Some("AP0100"), "too many at once");
    for part in 0..4 {
        let some = (0..64).map(|number| workload(&format!("w-{part}-{number}"))).collect();
        scene.bind("a", some).expect("there is room");
    }
    assert_eq!(page(vec![workload("one-more")]).as_deref(), Some("AP0112"), "too many in all");
    // Not held, so nothing to arm: this test itself runs there.
    let outside = scene.cgroups.path(scene.cgroups.root().parent().expect("it has one"));
    let lease = scene.daemon.client().release("a");
    lease.expect("it answers");
    scene.prepare("a", vec![]);
    let bound =
        scene.bind("a", vec![cgroup(&outside), cgroup(&format!("{outside}/kubepods/later"))]);
    let states: Vec<String> = bound.expect("it is there").into_iter().map(|it| it.state).collect();
    assert_eq!(states, ["outside", "waiting"]);
}

#[test]
fn a_daemon_that_dies_leaves_the_gate_as_it_was() {
    let scene = Scene::new("enforce");
    let (granted, stranger) = (scene.cgroups.make("poda"), scene.cgroups.make("podb"));
    let unmeant = scene.cgroups.make("job");
    scene.prepare("a", vec![workload("a")]);
    let tenant = Tenant::start(&unmeant, "exec sleep 1000");
    scene.bind("a", vec![process(tenant.id())]).expect("it is there");
    let held = |scene: &Scene, when: &str| {
        assert_eq!(scene.open(&granted), "admitted", "{when}");
        assert_eq!(scene.open(&unmeant), "admitted", "{when}");
        assert_eq!(scene.open(&stranger), "refused", "{when}");
    };
    let Scene { daemon, home, cgroups } = scene;
    daemon.kill();
    for (pod, expected) in [(&granted, "admitted"), (&stranger, "refused")] {
        let node = home.sim().join("dev/nvidia0");
        assert_eq!(Tenant::open(pod, &node), expected, "without a daemon");
    }
    let scene = Scene { daemon: home.start(), home, cgroups };
    held(&scene, "after a restart");
    scene.wait("a gate that agrees", |gate| gate.state == "up" && gate.grants > 0);
    held(&scene, "after it was looked at");
    // Another mode comes with another configuration, and nobody notices who holds a grant.
    let scene = scene.restart("audit");
    scene.wait("the mode", |gate| gate.guarded.iter().all(|it| it.mode == "audit"));
    assert_eq!(scene.open(&stranger), "admitted", "in audit mode");
    let scene = scene.restart("enforce");
    scene.wait("the mode", |gate| gate.guarded.iter().all(|it| it.mode == "enforce"));
    held(&scene, "in enforce mode again");
    assert!(scene.daemon.client().release("a").expect("it answers"));
    assert_eq!(scene.open(&granted), "refused");
    // Off in every pool takes it down.
    let scene = scene.restart("off");
    assert_eq!(scene.open(&stranger), "admitted", "without a gate");
    assert_eq!(scene.gate().state, "off");
    assert_eq!(scene.gate().guarded, []);
    drop(tenant);
}

#[test]
fn a_node_without_a_place_for_the_gate_serves_and_says_so() {
    let scene = Scene::new("enforce");
    let Scene { daemon, home, cgroups } = scene;
    daemon.kill();
    home.set_gate(
        crate::scene::PROFILE,
        &cgroups.config("enforce").replace("pins = \"", "pins = \"/tmp"),
    );
    let scene = Scene { daemon: home.start(), home, cgroups };
    let gate = scene.gate();
    assert_eq!(gate.state, "impossible");
    assert!(gate.reason.contains("BPF file system"), "{}", gate.reason);
    let lease = scene.daemon.client().prepare(whole("a", vec![workload("a")])).expect("it is free");
    assert_eq!(lease.bindings[0].state, "ungated");
    let enforcement = lease.allocations[0].enforcement.as_ref().expect("it is told");
    assert_eq!(enforcement.access, "none");
    // The kubelet may come after the daemon.
    let Scene { daemon, home, cgroups } = scene;
    daemon.kill();
    home.set_gate(crate::scene::PROFILE, &cgroups.config("enforce"));
    fs::remove_dir(cgroups.root()).expect("nobody is in it");
    let scene = Scene { daemon: home.start(), home, cgroups };
    assert_eq!(scene.gate().state, "waiting");
    let pod = scene.cgroups.make("poda");
    scene.wait("a gate", |gate| gate.state == "up");
    let lease = scene.daemon.client().claims().expect("it answers").remove(0);
    assert_eq!(lease.allocations[0].enforcement.as_ref().expect("it is told").access, "kernel");
    scene.wait("a grant", |gate| gate.grants > 0);
    assert_eq!(scene.open(&pod), "admitted");
    let stranger = scene.cgroups.make("podb");
    assert_eq!(scene.open(&stranger), "refused");
}

/// Who must know that nobody else opens the device demands it, and is not given it quietly.
#[test]
fn a_claim_can_demand_that_the_gate_enforces() {
    let scene = Scene::new("audit");
    let demanding = |name: &str, access: &str| {
        let mut request = whole(name, vec![]);
        let demand = Enforcements { access: access.to_owned(), ..Enforcements::default() };
        request.requests[0].demand = Some(demand);
        request
    };
    let by_any = |name: &str| {
        let mut request = demanding(name, "kernel");
        let demand = request.requests[0].demand.clone();
        request.requests[0] = any("gpu", "", 1);
        request.requests[0].demand = demand;
        request
    };
    let refusal = |scene: &Scene, request| {
        let refused = scene.daemon.client().prepare(request).expect_err("it demands too much");
        (page(&refused).map(str::to_owned), refused.message().to_owned())
    };
    for request in [demanding("a", "kernel"), by_any("a")] {
        let (code, words) = refusal(&scene, request);
        assert_eq!(code.as_deref(), Some("AP0107"), "{words}");
        assert!(words.contains("can be held by `none`, `kernel` is demanded"), "{words}");
    }
    assert_eq!(refusal(&scene, demanding("a", "steel")).0.as_deref(), Some("AP0100"));
    assert_eq!(scene.daemon.client().claims().expect("it answers"), []);
    let scene = scene.restart("enforce");
    scene.wait("the gate", |gate| gate.state == "up");
    for request in [demanding("a", "kernel"), by_any("b"), demanding("a", "kernel")] {
        let lease = scene.daemon.client().prepare(request).expect("the gate enforces");
        let enforcement = lease.allocations[0].enforcement.clone().unwrap_or_default();
        assert_eq!(enforcement.access, "kernel");
    }
    assert_eq!(refusal(&scene, demanding("c", "hardware")).0.as_deref(), Some("AP0107"));
}
