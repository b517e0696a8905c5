//! Why there can be no gate, in the words of the error.

use std::{os::fd::AsFd, path::Path};

use super::{opener::Opener, scene::Scene};
use crate::{Gate, GateConfig, GateError, root::Cgroup, sys};

#[track_caller]
fn check(root: &Path, pins: &Path, expected: &str, lasting: bool) {
    let config = GateConfig { root: root.to_owned(), pins: pins.to_owned() };
    let error = Gate::check(&config).expect_err("it cannot stand");
    assert_eq!((error.to_string().as_str(), error.is_lasting()), (expected, lasting));
    let error = Gate::open(&config).expect_err("it cannot stand");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_the_machine_lacks_is_said() {
    let scene = Scene::new();
    let GateConfig { root, pins } = scene.config();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().canonicalize().expect("it exists");
    let gone = scene.cgroup.join("gone");
    let no_cgroup = format!("`{}` is not a cgroup of version 2", folder.display());
    check(&folder, &pins, &no_cgroup, true);
    check(&gone, &pins, &format!("failed to open the cgroup `{}`", gone.display()), false);
    // Neither a plain folder nor one that would have to be made, with its parents.
    for pins in [folder.clone(), folder.join("a/b"), scene.bpffs().join("a/b")] {
        let expected = format!(
            "`{}` is not in a BPF file system, and a gate that is not pinned ends with its daemon",
            pins.display()
        );
        check(&root, &pins, &expected, true);
    }
}

#[test]
fn a_check_leaves_nothing_behind() {
    let scene = Scene::new();
    Gate::check(&scene.config()).expect("this kernel can have a gate");
    assert!(!scene.config().pins.exists());
    let root = Cgroup::open(&scene.config().root).expect("it exists");
    let attached = sys::attached_programs(root.as_fd(), false);
    assert_eq!(attached.expect("it can be asked"), [0_u32; 0]);
}

#[test]
fn a_process_without_the_capability_is_told_so() {
    let scene = Scene::new();
    let GateConfig { root, pins } = scene.config();
    let mut opener = Opener::start();
    assert_eq!(opener.ask("become 65534"), "ok");
    let answer = opener.ask(&format!("check {} {}", root.display(), pins.display()));
    let expected = "the process may not make a BPF map: it lacks CAP_BPF, CAP_NET_ADMIN or \
                    CAP_SYS_ADMIN, or the kernel is locked down";
    assert_eq!(answer, expected);
}

#[test]
fn a_program_that_is_to_be_alone_is_respected() {
    let scene = Scene::new();
    let root = Cgroup::open(&scene.config().root).expect("it exists");
    sys::others::attach_alone(root.as_fd()).expect("the kernel takes it");
    let error = Gate::open(&scene.config()).expect_err("there is no room beside it");
    assert!(matches!(&error, GateError::RootHeld(path) if *path == root.path()), "{error}");
    assert!(error.is_lasting());
}

#[test]
fn cgroups_elsewhere_get_no_grant() {
    let scene = Scene::new();
    let gate = scene.gate(crate::Mode::Audit);
    let error = gate.cgroup(&scene.cgroup).expect_err("it lies above the root");
    assert!(matches!(error, GateError::Outside { .. }), "{error}");
    let error = gate.cgroup(&scene.cgroup.join("root/..")).expect_err("it lies above the root");
    assert!(matches!(error, GateError::Outside { .. }), "{error}");
    let error = gate.cgroup(Path::new("/proc")).expect_err("it is no cgroup");
    assert!(matches!(error, GateError::NotCgroup2(_)), "{error}");
    assert!(gate.cgroup(&scene.config().root).is_ok());
}
