//! `accelpool doctor` on hosts that are made up, with and without a daemon.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::{
    fake::Fake,
    golden::{Outcome, accelpool, check},
    node,
};

/// A host with all that is needed, but for a folder of CDI specs: only root could make one
/// that is right.
fn furnish(root: &Path) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
    write(
        "proc/1/mounts",
        "tmpfs /run tmpfs rw 0 0\n\
         cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n\
         bpf /sys/fs/bpf bpf rw 0 0\n",
    );
    write("boot/config-6.1.0-18-amd64", "CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\n");
    write("sys/module/nvidia/version", "550.54.15\n");
}

/// Runs the doctor in the root folder, so that no path of this machine is in its words.
fn doctor(root: &Path, form: &str) -> Outcome {
    let mut command = accelpool("".as_ref());
    command.env_remove("ACCELPOOL_SOCKET").args(["doctor", "-o", form, "--root", "."]);
    command.current_dir(root);
    Outcome::from(command.output().unwrap())
}

#[test]
fn a_good_host_has_its_socket_and_its_daemon() {
    let fake = Fake::start_in(node::eight_gpus(), "run/accelpool/node.sock");
    furnish(fake.folder());
    fs::set_permissions(fake.socket(), fs::Permissions::from_mode(0o660)).unwrap();
    let group = fs::metadata(fake.socket()).unwrap().gid();
    fs::create_dir_all(fake.folder().join("etc")).unwrap();
    fs::write(fake.folder().join("etc/group"), format!("accelpool:x:{group}:\n")).unwrap();
    for form in ["table", "json", "yaml"] {
        let outcome = doctor(fake.folder(), form);
        check(&format!("doctor-good.{form}"), &outcome.text(fake.folder()));
        assert_eq!(outcome.exit, Some(0));
    }
}

#[test]
fn without_a_daemon_the_host_is_still_examined() {
    let root = tempfile::tempdir().unwrap();
    furnish(root.path());
    let outcome = doctor(root.path(), "table");
    check("doctor-down.table", &outcome.text(root.path()));
    assert_eq!(outcome.exit, Some(1));
    for line in outcome.stdout.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn an_empty_root_is_examined_too() {
    let root = tempfile::tempdir().unwrap();
    let outcome = doctor(root.path(), "json");
    check("doctor-empty.json", &outcome.text(root.path()));
    assert_eq!(outcome.exit, Some(1));
}

#[test]
fn this_very_host_is_examined() {
    let outcome = Outcome::of("/nonexistent/node.sock".as_ref(), "doctor -o json");
    assert_eq!(outcome.exit, Some(1));
    let document: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(document["errors"].as_u64().unwrap() >= 1);
}
