//! How a gate outlives processes, is adopted, verified and repaired.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::{
    opener::Opener,
    scene::{Scene, device},
    switching::other_version,
};
use crate::{
    Access, Defect, Gate, GateError, Mode,
    bpf::assembler::{Assembler, Register},
    root::Cgroup,
    sys::{self, LinkFd, ProgramFd},
};

/// A program of somebody else, such as a container runtime: it says the same to everything.
fn constant(name: &str, verdict: i32) -> ProgramFd {
    let mut assembler = Assembler::default();
    assembler.set(Register::R0, verdict);
    assembler.exit();
    let program = assembler.finish();
    let code: Vec<[u8; 8]> = program.instructions.iter().map(|it| it.encode()).collect();
    ProgramFd::load(name, &code, None).expect("the kernel takes it")
}

fn attach(program: &ProgramFd, cgroup: &Path) -> LinkFd {
    let cgroup = Cgroup::open(cgroup).expect("it exists");
    LinkFd::create(program, cgroup.as_fd()).expect("the kernel takes it")
}

#[test]
fn a_gate_outlives_a_process_that_is_killed() {
    let scene = Scene::new();
    let config = scene.config();
    let mut daemon = Opener::start();
    let stand = format!("stand {} {}", config.root.display(), config.pins.display());
    assert_eq!(daemon.ask(&stand), "ok");
    let pod = scene.make_cgroup("root/pod");
    let gate = scene.gate(Mode::Enforce);
    let id = gate.cgroup(&pod).expect("it lies below the root");
    gate.grant(id, device(0), Access::READ).expect("there is room");
    let rules = gate.rules().expect("it can be read");
    let standing = gate.verify().expect("it can be asked");
    drop(gate);
    drop(daemon); // SIGKILL

    let mut opener = Opener::start_in(&pod);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    assert_eq!(opener.open(&scene.node_of(1), Access::READ), "EPERM");
    let gate = Gate::open(&config).expect("it can be adopted");
    assert_eq!(gate.rules().expect("it can be read"), rules);
    // The same program is still attached: it was adopted, not replaced.
    assert_eq!(gate.verify().expect("it can be asked"), standing);
    assert_eq!(standing.defects, []);
    let [program] = &standing.programs[..] else { panic!("not one program: {standing:?}") };
    assert!(program.is_ours && program.name == "accelpool_gate", "{program}");
}

#[test]
fn a_program_of_another_version_is_replaced() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let link = LinkFd::open(&scene.config().pins.join("gate-1")).expect("it is pinned");
    link.replace_program(&other_version(&gate)).expect("the kernel takes it");
    assert_eq!(gate.verify().expect("it can be asked").defects, [Defect::OtherProgram]);
    let rules = gate.rules().expect("it can be read");
    drop(gate);
    let gate = Gate::open(&scene.config()).expect("it can be adopted");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    assert_eq!(gate.rules().expect("it can be read"), rules);
}

#[test]
fn a_root_made_anew_is_held_again() {
    let scene = Scene::new();
    let mut gate = scene.gate(Mode::Enforce);
    fs::remove_dir(scene.config().root).expect("it is empty");
    let pod = scene.make_cgroup("root/pod");
    let mut opener = Opener::start_in(&pod);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    assert_eq!(gate.verify().expect("it can be asked").defects, [Defect::Detached]);
    gate.repair().expect("it can be attached");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
    drop(gate);
    let gate = Gate::open(&scene.config()).expect("it can be adopted");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    assert_eq!(gate.rules().expect("it can be read").guards().iter().count(), 1);
}

#[test]
fn a_root_made_anew_is_held_after_a_restart() {
    let scene = Scene::new();
    drop(scene.gate(Mode::Enforce));
    fs::remove_dir(scene.config().root).expect("it is empty");
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod"));
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    let gate = Gate::open(&scene.config()).expect("it can be adopted");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
}

#[test]
fn a_gate_that_somebody_detached_is_attached_again() {
    let scene = Scene::new();
    let mut gate = scene.gate(Mode::Enforce);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod"));
    let link = LinkFd::open(&scene.config().pins.join("gate-1")).expect("it is pinned");
    link.detach().expect("root may");
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "ENXIO");
    let standing = gate.verify().expect("it can be asked");
    assert_eq!((standing.defects, standing.programs), (vec![Defect::Detached], vec![]));
    gate.repair().expect("it can be attached");
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
}

#[test]
fn a_lost_pin_is_set_again() {
    let scene = Scene::new();
    let mut gate = scene.gate(Mode::Enforce);
    let pins = scene.config().pins;
    fs::remove_file(pins.join("gate-1")).expect("it is there");
    assert_eq!(gate.verify().expect("it can be asked").defects, [Defect::Unpinned]);
    gate.repair().expect("it can be pinned");
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    // Also where the whole folder went.
    fs::remove_file(pins.join("gate-1")).expect("it is there");
    fs::remove_dir(&pins).expect("it is empty");
    assert_eq!(gate.verify().expect("it can be asked").defects, [Defect::Unpinned]);
    gate.repair().expect("it can be pinned");
    drop(gate);
    let mut opener = Opener::start_in(&scene.make_cgroup("root/pod"));
    assert_eq!(opener.open(&scene.node_of(0), Access::READ), "EPERM");
}

#[test]
fn what_a_crash_left_beside_the_pin_is_cleared() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pins = scene.config().pins;
    drop(gate);
    // It died between the two steps of pinning.
    fs::rename(pins.join("gate-1"), pins.join("gate-1-next")).expect("the kernel renames pins");
    let gate = scene.gate(Mode::Enforce);
    assert_eq!(gate.verify().expect("it can be asked").defects, []);
    let names = fs::read_dir(&pins).expect("it is there").map(|it| it.expect("it is").file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["gate-1"]);
}

#[test]
fn gates_of_other_layouts_are_found_and_removed() {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let link = attach(&constant("accelpool_gate", 1), &scene.config().root);
    // A gate of a layout that is no more, which somebody forgot.
    let old = scene.config().pins.join("gate-0");
    sys::pin(&link, &old).expect("the kernel takes it");
    drop(link);
    let standing = gate.verify().expect("it can be asked");
    assert_eq!(standing.defects, [Defect::Other(old)]);
    assert_eq!(standing.programs.len(), 2);
    assert_eq!(standing.programs.iter().filter(|it| it.is_ours).count(), 1);
    gate.remove_others().expect("it can be removed");
    let standing = gate.verify().expect("it can be asked");
    assert_eq!((standing.defects.len(), standing.programs.len()), (0, 1));
}

/// A gate that enforces, and a container that may read the first device.
fn gate_of_a_container(scene: &Scene) -> (Gate, PathBuf, Opener) {
    let gate = scene.gate(Mode::Enforce);
    let container = scene.make_cgroup("root/pod/container");
    let id = gate.cgroup(&container).expect("it lies below the root");
    gate.grant(id, device(0), Access::READ).expect("there is room");
    let opener = Opener::start_in(&container);
    (gate, container, opener)
}

#[test]
fn it_stands_beside_the_programs_of_the_runtime() {
    let scene = Scene::new();
    let (gate, container, mut opener) = gate_of_a_container(&scene);
    let mut answers =
        || [0, 1].map(|minor| opener.open(&scene.node_of(minor), Access::READ)).join(" ");
    assert_eq!(answers(), "ENXIO EPERM");
    let names = |gate: &Gate| {
        let programs = gate.programs_of(&container).expect("it can be asked");
        programs.into_iter().map(|it| it.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&gate), ["accelpool_gate"]);
    let generous = attach(&constant("generous", 1), &container);
    assert_eq!(answers(), "ENXIO EPERM", "a program that allows opens no gate");
    assert_eq!(names(&gate), ["generous", "accelpool_gate"]);
    // As systemd does on daemon-reload: a new program, then the old one goes.
    let mean = attach(&constant("mean", 0), &container);
    drop(generous);
    assert_eq!(answers(), "EPERM EPERM", "a grant overrules no runtime");
    assert_eq!(names(&gate), ["mean", "accelpool_gate"]);
    drop(mean);
    assert_eq!(answers(), "ENXIO EPERM");
}

/// `systemctl daemon-reload` by hand, as systemd and runc attach: without a link. systemd writes
/// the program of a container's cgroup anew from its unit, which knows nothing of the device.
#[test]
fn a_containers_program_written_anew_by_systemd_is_seen_and_changes_no_rule() {
    let scene = Scene::new();
    let (gate, container, mut opener) = gate_of_a_container(&scene);
    let mut answers =
        || [0, 1].map(|minor| opener.open(&scene.node_of(minor), Access::READ)).join(" ");
    let folder = Cgroup::open(&container).expect("it exists");
    let (runcs, systemds) = (constant("runc", 1), constant("systemd", 0));
    sys::others::attach(&runcs, folder.as_fd()).expect("the kernel takes it");
    let ids = |gate: &Gate| gate.program_ids_of(&container).expect("it can be asked");
    let before = ids(&gate);
    assert_eq!(answers(), "ENXIO EPERM");
    sys::others::attach(&systemds, folder.as_fd()).expect("the kernel takes it");
    assert_eq!(answers(), "EPERM EPERM", "while both are there");
    sys::others::detach(&runcs, folder.as_fd()).expect("it is there");
    assert_eq!(answers(), "EPERM EPERM", "the container has lost its device");
    assert_ne!(ids(&gate), before, "by which the daemon notices");
    assert_eq!(gate.verify().expect("it can be asked").defects, [], "the gate is as it was");
    // As a runtime does that updates the container.
    sys::others::attach(&runcs, folder.as_fd()).expect("the kernel takes it");
    sys::others::detach(&systemds, folder.as_fd()).expect("it is there");
    assert_eq!(answers(), "ENXIO EPERM");
}

#[test]
fn something_else_at_the_pin_is_left_alone() {
    let scene = Scene::new();
    let pins = scene.config().pins;
    fs::create_dir(&pins).expect("a folder");
    let link = attach(&constant("stranger", 1), &scene.cgroup);
    sys::pin(&link, &pins.join("gate-1")).expect("the kernel takes it");
    let error = Gate::open(&scene.config()).expect_err("it is not ours");
    assert!(matches!(error, GateError::ForeignPin(_)), "{error}");
    // Ours by name, but with other maps.
    let other = constant("accelpool_gate", 1);
    link.replace_program(&other).expect("the kernel takes it");
    let error = Gate::open(&scene.config()).expect_err("it has no maps of ours");
    assert!(matches!(error, GateError::ForeignPin(_)), "{error}");
    assert!(pins.join("gate-1").exists());
}
