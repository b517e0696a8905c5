//! Who puts a gate in another's place is killed between its steps: the old one holds until the
//! new one does, and the next process makes it whole.

use std::{fs, path::PathBuf};

use super::{
    opener::Opener,
    scene::{Scene, device, whole_major},
    switching::other_version,
};
use crate::{Access, Gate, Mode, sys::LinkFd};

/// What becomes of two pods, one that holds a grant of minor 0 and one that does not.
struct Pods {
    granted: Opener,
    stranger: Opener,
    node: PathBuf,
}

impl Pods {
    fn new(scene: &Scene, gate: &Gate) -> Self {
        let pod = scene.make_cgroup("root/pod");
        let id = gate.cgroup(&pod).expect("it lies below the root");
        gate.grant(id, device(0), Access::READ).expect("there is room");
        let granted = Opener::start_in(&pod);
        let stranger = Opener::start_in(&scene.make_cgroup("root/stranger"));
        Self { granted, stranger, node: scene.node_of(0) }
    }

    #[track_caller]
    fn check_held(&mut self) {
        let Self { granted, stranger, node } = self;
        assert_eq!(granted.open(node, Access::READ), "ENXIO", "who holds a grant");
        assert_eq!(stranger.open(node, Access::READ), "EPERM", "who holds none");
    }
}

/// Opens the gate in a process that dies at `point`.
#[track_caller]
fn open_and_die(scene: &Scene, point: &str) {
    let config = scene.config();
    let words = format!("die-at {point} {} {}", config.root.display(), config.pins.display());
    assert_eq!(Opener::start().ask(&words), "", "it comes to {point}");
}

fn pins(scene: &Scene) -> Vec<String> {
    let names = fs::read_dir(scene.config().pins).expect("it is there");
    let mut names: Vec<_> =
        names.map(|it| it.expect("it is").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// Another version of the program goes into the link in one step: there is no moment without one.
#[test]
fn a_program_put_in_anothers_place_is_whole_at_once() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let link = LinkFd::open(&scene.config().pins.join("gate-1")).expect("it is pinned");
    let mut pods = Pods::new(&scene, &gate);
    link.replace_program(&other_version(&gate)).expect("the kernel takes it");
    let rules = gate.rules().expect("it can be read");
    drop((gate, link));
    pods.check_held();
    open_and_die(&scene, "gate.replaced");
    pods.check_held();
    let gate = Gate::open(&scene.config()).expect("it can be adopted");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    assert_eq!(gate.rules().expect("it can be read"), rules);
    pods.check_held();
}

/// A gate of another layout holds until the new one has its rules, whoever dies in between.
#[test]
fn a_gate_of_another_layout_holds_until_the_new_one_does() {
    for point in ["gate.pinned-beside", "gate.pinned"] {
        let scene = Scene::new();
        let old = scene.gate(Mode::Enforce);
        let mut pods = Pods::new(&scene, &old);
        let path = |name: &str| scene.config().pins.join(name);
        fs::rename(path("gate-1"), path("gate-0")).expect("the kernel renames pins");
        let rules = old.rules().expect("it can be read");
        drop(old);
        open_and_die(&scene, point);
        pods.check_held();
        // The next one, which dies by itself once it has written who may.
        let gate = Gate::open(&scene.config()).expect("it can be put up");
        pods.check_held();
        for grant in rules.grants() {
            gate.grant(grant.cgroup, grant.device, grant.access).expect("there is room");
        }
        gate.guard(&whole_major(Mode::Enforce)).expect("there is room");
        pods.check_held();
        drop(gate);
        let gate = Gate::open(&scene.config()).expect("it can be adopted");
        gate.remove_others().expect("they can be removed");
        pods.check_held();
        assert_eq!(pins(&scene), ["gate-1"], "{point}");
        assert_eq!(gate.verify().expect("it can be asked").defects, []);
    }
}
