//! Who gets in: the layouts of the kubelet, nested cgroups, nodes made in a container.

use std::{fs, path::Path};

use super::{
    opener::Opener,
    scene::{MAJOR, Scene, device, device_of},
};
use crate::{Access, CgroupId, DeviceType, Gate, GateConfig, GateError, LEVELS_MAX, Mode};

/// Pods as the kubelet lays them out below the root of the hierarchy, by driver and class.
/// Each reads: the gate's root, the pod below it, the cgroup of the container's process below
/// the pod.
const LAYOUTS: [(&str, &str, &str); 9] = [
    ("kubepods", "pod6f1a", "0d3c"),
    ("kubepods", "burstable/pod6f1b", "0d3d"),
    ("kubepods", "besteffort/pod6f1c", "0d3e"),
    ("kubepods.slice", "kubepods-pod6f1a.slice", "cri-containerd-0d3c.scope"),
    (
        "kubepods.slice",
        "kubepods-burstable.slice/kubepods-burstable-pod6f1b.slice",
        "cri-containerd-0d3d.scope",
    ),
    (
        "kubepods.slice",
        "kubepods-besteffort.slice/kubepods-besteffort-pod6f1c.slice",
        "crio-0d3e.scope",
    ),
    // crun puts the processes one level below the scope.
    ("kubepods.slice", "kubepods-pod6f1d.slice", "crio-0d3f.scope/container"),
    // A container that runs systemd, or a container engine, has cgroups of its own.
    ("kubepods.slice", "kubepods-pod6f1e.slice", "cri-containerd-0d40.scope/init.scope"),
    ("kubepods", "burstable/pod6f1f", "0d41/system.slice/docker-0d42.scope/payload/workers"),
];

#[test]
fn a_pod_opens_what_it_was_granted_in_every_layout() {
    let scene = Scene::new();
    for (root, pod, container) in LAYOUTS {
        check_layout(&scene, root, pod, container);
    }
}

#[track_caller]
fn check_layout(scene: &Scene, root: &str, pod: &str, container: &str) {
    let config = GateConfig {
        root: scene.make_cgroup(root),
        pins: scene.bpffs().join(pod.replace(['/', '.'], "-")),
    };
    let gate = Gate::open(&config).expect("this kernel can have a gate");
    gate.guard(&super::scene::whole_major(Mode::Enforce)).expect("there is room");
    let granted = scene.make_cgroup(&format!("{root}/{pod}"));
    let inside = scene.make_cgroup(&format!("{root}/{pod}/{container}"));
    let neighbour = scene.make_cgroup(&format!("{root}/{pod}-neighbour/{container}"));
    let pod_id = gate.cgroup(&granted).expect("it lies below the root");
    gate.grant(pod_id, device(0), Access::READ_WRITE).expect("there is room");

    let answers = |cgroup: &Path| {
        let mut opener = Opener::start_in(cgroup);
        let unrelated = device_of(DeviceType::Character, MAJOR + 1, 0);
        let block = device_of(DeviceType::Block, MAJOR, 0);
        [
            opener.open(&scene.node_of(0), Access::READ_WRITE),
            opener.open(&scene.node_of(1), Access::READ),
            opener.open(&scene.node(unrelated), Access::READ_WRITE),
            opener.open(&scene.node(block), Access::READ),
            opener.open(Path::new("/dev/null"), Access::READ_WRITE),
        ]
        .join(" ")
    };
    // What passes gets as far as the driver, and there is none.
    assert_eq!(answers(&inside), "ENXIO EPERM ENXIO ENXIO ok", "{container}");
    assert_eq!(answers(&neighbour), "EPERM EPERM ENXIO ENXIO ok", "{container}");
    assert_eq!(answers(&scene.cgroup), "ENXIO ENXIO ENXIO ENXIO ok", "outside {root}");
    gate.revoke(pod_id, device(0)).expect("it is there");
    assert_eq!(answers(&inside), "EPERM EPERM ENXIO ENXIO ok", "{container}, revoked");
    gate.remove().expect("it stands");
    assert_eq!(answers(&inside), "ENXIO ENXIO ENXIO ENXIO ok", "{container}, removed");
}

#[test]
fn access_is_granted_by_kind() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pod = scene.make_cgroup("root/pod");
    let container = scene.make_cgroup("root/pod/container");
    let mut opener = Opener::start_in(&container);
    let node = scene.node_of(3);
    let mut answers = || {
        let kinds = [Access::READ, Access::WRITE, Access::READ_WRITE];
        kinds.map(|access| opener.open(&node, access)).join(" ")
    };
    let id = |path| gate.cgroup(path).expect("it lies below the root");
    gate.grant(id(&pod), device(3), Access::READ).expect("there is room");
    assert_eq!(answers(), "ENXIO EPERM EPERM");
    // What several ancestors hold adds up.
    gate.grant(id(&container), device(3), Access::WRITE).expect("there is room");
    assert_eq!(answers(), "ENXIO ENXIO ENXIO");
    // A grant replaces the one before.
    gate.grant(id(&pod), device(3), Access::NONE).expect("there is room");
    assert_eq!(answers(), "EPERM ENXIO EPERM");
}

#[test]
fn a_node_made_in_the_container_opens_nothing() {
    let scene = Scene::new();
    let _gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod/container"));
    let node = scene.bpffs().with_file_name("made");
    let make = format!("make {} {MAJOR} 5", node.display());
    assert_eq!(opener.ask(&make), "ok");
    assert_eq!(opener.open(&node, Access::READ), "EPERM");
}

#[test]
fn an_exempt_cgroup_opens_everything() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let agent = scene.make_cgroup("root/agent");
    let mut opener = Opener::start_in(&scene.make_cgroup("root/agent/a/b"));
    let id = gate.cgroup(&agent).expect("it lies below the root");
    assert_eq!(opener.open(&scene.node_of(1), Access::READ), "EPERM");
    gate.exempt(id).expect("there is room");
    assert_eq!(opener.open(&scene.node_of(1), Access::READ), "ENXIO");
    gate.end_exemption(id).expect("it is there");
    gate.end_exemption(id).expect("to end what has ended succeeds");
    assert_eq!(opener.open(&scene.node_of(1), Access::READ), "EPERM");
}

#[test]
fn a_cgroup_made_anew_inherits_nothing() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pod = scene.make_cgroup("root/pod");
    let first = gate.cgroup(&pod).expect("it lies below the root");
    gate.grant(first, device(0), Access::READ).expect("there is room");
    let mut opener = Opener::start_in(&pod);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    opener.enter(&scene.cgroup);
    fs::remove_dir(&pod).expect("it is empty");
    scene.make_cgroup("root/pod");
    let second = gate.cgroup(&pod).expect("it lies below the root");
    assert_ne!(first, second, "the kernel does not use an id again");
    opener.enter(&pod);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
    // The grant of the one that is gone stays until its lease ends, and admits nobody.
    let holders: Vec<CgroupId> =
        gate.rules().expect("it can be read").grants().map(|it| it.cgroup).collect();
    assert_eq!(holders, [first]);
    gate.revoke(first, device(0)).expect("a grant outlives its cgroup");
    gate.revoke(first, device(0)).expect("to revoke what is gone succeeds");
    assert_eq!(gate.rules().expect("it can be read").grants().count(), 0);
}

/// The kernel's own promise, on which a grant to a number rests: one that is gone never comes
/// back. (What the daemon does if it did: `a_number_that_comes_again_elsewhere_is_nobodys`.)
#[test]
fn numbers_of_cgroups_are_not_used_again() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut last = CgroupId(0);
    for _ in 0..2000 {
        let pod = scene.make_cgroup("root/pod");
        let id = gate.cgroup(&pod).expect("it lies below the root");
        assert!(id > last, "{id:?} after {last:?}");
        last = id;
        fs::remove_dir(&pod).expect("it is empty");
    }
}

#[test]
fn depth_is_limited() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    // The hierarchy's root is level 0, the test's cgroup 1, the gate's root 2.
    let path_of = |level: usize| format!("root{}", "/n".repeat(level - 2));
    let last = scene.make_cgroup(&path_of(LEVELS_MAX - 1));
    let beyond = scene.make_cgroup(&path_of(LEVELS_MAX));
    let error = gate.cgroup(&beyond).expect_err("it is too deep");
    assert!(matches!(error, GateError::TooDeep(_)), "{error}");
    let mut opener = Opener::start_in(&beyond);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
    let id = gate.cgroup(&last).expect("it is just not too deep");
    gate.grant(id, device(0), Access::READ).expect("there is room");
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
}

#[test]
fn a_full_map_refuses_one_more_and_keeps_the_rest() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pod = scene.make_cgroup("root/pod");
    let id = gate.cgroup(&pod).expect("it lies below the root");
    let mut opener = Opener::start_in(&pod);
    gate.grant(id, device(0), Access::READ).expect("there is room");
    let most = u64::from(crate::layout::GRANTS_MAX);
    // Ids beyond any of a cgroup that exists.
    let other = |number: u64| CgroupId(u64::MAX - number);
    for number in 1..most {
        gate.grant(other(number), device(0), Access::READ).expect("there is room");
    }
    let error = gate.grant(other(most), device(0), Access::READ).expect_err("it is full");
    assert_eq!(error.to_string(), "the gate has no room for more grants: it holds 16384");
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    assert_eq!(opener.open(&scene.node_of(1), Access::READ), "EPERM");
    gate.grant(id, device(0), Access::READ_WRITE).expect("what is there can be replaced");
    gate.revoke(other(1), device(0)).expect("it is there");
    gate.grant(other(most), device(0), Access::READ).expect("there is room again");
    assert_eq!(gate.rules().expect("it can be read").grants().count() as u64, most);
}

#[test]
fn a_thousand_pods_come_and_go() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start();
    for number in 0..1000 {
        let path = scene.make_cgroup(&format!("root/pod{number}"));
        let id = gate.cgroup(&path).expect("it lies below the root");
        let minor = number % 12;
        gate.grant(id, device(minor), Access::READ_WRITE).expect("there is room");
        if number % 50 == 0 {
            opener.enter(&path);
            assert_eq!(opener.open(&scene.node_of(minor), Access::READ_WRITE), "ENXIO");
            let other = (minor + 1) % 12;
            assert_eq!(opener.open(&scene.node_of(other), Access::READ), "EPERM");
            opener.enter(&scene.cgroup);
        }
        fs::remove_dir(&path).expect("it is empty");
        gate.revoke(id, device(minor)).expect("it is there");
    }
    assert_eq!(gate.rules().expect("it can be read").grants().count(), 0);
}
