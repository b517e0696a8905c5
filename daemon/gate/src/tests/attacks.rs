//! What a tenant may try that is root in its container: what of it the gate refuses, and what
//! it does not. `docs/gate.md` has the same list in words.

use std::{
    fs::{self, File},
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    opener::Opener,
    scene::{MAJOR, Scene, device, device_of},
};
use crate::{
    Access, DeviceType, Gate, Guard, Guards, Mode,
    sys::{ProgramFd, others},
};

/// Runs a script in `cgroup` and returns what it printed to its standard error, or nothing.
fn sh(cgroup: &Path, script: &str) -> String {
    let script = format!("echo 0 >{}/cgroup.procs; {script}", cgroup.display());
    let mut shell = Command::new("sh");
    shell.env("LC_ALL", "C").args(["-c", &script]).stdin(Stdio::null());
    let output = shell.output().expect("a shell can be run");
    String::from_utf8(output.stderr).expect("it prints text")
}

/// An open by the shell; behind the nodes is no driver.
#[track_caller]
fn check(cgroup: &Path, script: &str, expected: &str) {
    let said = sh(cgroup, script);
    let words = match expected {
        "refused" => "Operation not permitted",
        _ => "No such device or address",
    };
    assert!(said.trim_end().ends_with(words), "{script}: not {expected}: {said}");
}

/// One scene with a pod that holds a grant of minor 0 and one that does not.
fn scene() -> (Scene, Gate, [PathBuf; 2]) {
    let scene = Scene::new();
    let gate = scene.gate(Mode::Enforce);
    let pods = ["granted", "stranger"].map(|name| scene.make_cgroup(&format!("root/{name}")));
    let id = gate.cgroup(&pods[0]).expect("it lies below the root");
    gate.grant(id, device(0), Access::READ_WRITE).expect("there is room");
    (scene, gate, pods)
}

#[test]
fn cgroups_and_namespaces_of_its_own_change_nothing() {
    let (scene, _gate, [granted, stranger]) = scene();
    let node = scene.node_of(0);
    for (pod, expected) in [(&granted, "admitted"), (&stranger, "refused")] {
        let open = format!("exec 3<>{}", node.display());
        // A cgroup below its own, which it may make where its cgroup is delegated to it.
        let nested = pod.join("a/b/c");
        check(
            pod,
            &format!("mkdir -p {n}; echo 0 >{n}/cgroup.procs; {open}", n = nested.display()),
            expected,
        );
        for namespaces in ["-C", "-m -C", "-p -f -m -C", "-U -r", "-U -r -m -C -n -u -i"] {
            check(pod, &format!("unshare {namespaces} sh -c '{open}'"), expected);
        }
    }
}

/// In a cgroup namespace of its own, a process cannot go where it was not before, though it
/// mounts the hierarchy itself.
#[test]
fn a_cgroup_namespace_cannot_be_left() {
    let (scene, _gate, [granted, stranger]) = scene();
    let place = scene.bpffs().with_file_name("cgroups");
    fs::create_dir(&place).expect("a folder");
    let script = format!(
        "unshare -m -C sh -c 'mount -t cgroup2 none {p} && ls -d {p}/granted {p}/../granted; \
         exec 3<>{node}'",
        p = place.display(),
        node = scene.node_of(0).display()
    );
    let said = sh(&stranger, &script);
    assert_eq!(said.matches("No such file or directory").count(), 2, "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
    // With the host's cgroup files it can, and is then held as who is there.
    let moved = format!(
        "echo 0 >{}/cgroup.procs; exec 3<>{}",
        granted.display(),
        scene.node_of(0).display()
    );
    check(&stranger, &moved, "admitted");
}

#[test]
fn a_node_by_another_name_is_the_same_device() {
    let (scene, _gate, [_, stranger]) = scene();
    let folder = scene.bpffs();
    let beside = |name: &str| folder.with_file_name(name).display().to_string();
    let node = scene.node_of(0).display().to_string();
    let link = beside("link");
    check(&stranger, &format!("ln -s {node} {link}; exec 3<>{link}"), "refused");
    let hard = beside("hard");
    check(&stranger, &format!("ln {node} {hard}; exec 3<>{hard}"), "refused");
    let bound = beside("bound");
    let bind =
        format!("touch {bound}; unshare -m sh -c 'mount --bind {node} {bound}; exec 3<>{bound}'");
    check(&stranger, &bind, "refused");
    // A number that nobody listed, of a driver whose numbers are all guarded.
    let made = beside("made");
    check(&stranger, &format!("mknod {made} c {MAJOR} 99999; exec 3<>{made}"), "refused");
    // A block device of that number is another device.
    let block = beside("block");
    check(&stranger, &format!("mknod {block} b {MAJOR} 0; exec 3<{block}"), "admitted");
}

/// `io_uring` opens on threads of the kernel, which are in the cgroup of their process.
#[test]
fn the_kernels_own_threads_open_for_nobody_else() {
    let (scene, _gate, [granted, stranger]) = scene();
    for (pod, expected) in [(&granted, "ENXIO"), (&stranger, "EPERM")] {
        let mut opener = Opener::start_in(pod);
        let answer = opener.ask(&format!("by-ring {}", scene.node_of(0).display()));
        // Where it is turned off, there is nothing to go round by.
        let off = format!("{:?}", nix::errno::Errno::from_raw(0));
        assert!(answer == expected || answer == off, "{}: {answer}", pod.display());
    }
}

/// What another has open cannot be opened anew through `/proc`; who is handed an open file has
/// it. `holders` finds it (`a_process_that_keeps_a_device_is_found_and_told`).
#[test]
fn an_open_file_can_be_handed_on_and_not_opened_anew() {
    let scene = Scene::new();
    let gate = Gate::open(&scene.config()).expect("this kernel can have a gate");
    let zero = device_of(DeviceType::Character, 1, 5);
    let guards = [Guard { devices: zero.into(), mode: Mode::Enforce }];
    gate.guard(&Guards::new(guards).expect("one guard")).expect("there is room");
    let stranger = scene.make_cgroup("root/stranger");
    let held = File::open("/dev/zero").expect("nobody guards it here");
    let again = format!("exec 3</proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
    check(&stranger, &again, "refused");
    let script = format!("echo 0 >{}/cgroup.procs; exec head -c 3", stranger.display());
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", &script]).stdin(held).stdout(Stdio::piped()).spawn();
    let mut shell = shell.expect("a shell can be run");
    let mut read = Vec::new();
    let output = shell.stdout.as_mut().expect("it is a pipe");
    output.read_to_end(&mut read).expect("it can be read");
    assert!(shell.wait().expect("it is our child").success());
    assert_eq!(read, [0; 3]);
}

/// Maps, programs and links are opened by number, which takes `CAP_SYS_ADMIN`: who has `CAP_BPF`
/// alone has no way to them. Who has all of it can write itself a grant; the daemon takes it back
/// (`what_others_write_into_the_gate_is_put_right`).
#[test]
fn the_gates_parts_are_out_of_reach_without_cap_sys_admin() {
    let (scene, gate, [_, stranger]) = scene();
    let (map, program, link) = gate.numbers();
    let ask = format!("by-number {map} {program} {link}");
    let caps = "-all,+bpf,+perfmon,+net_admin,+dac_override";
    let (bounding, inherited) = (format!("--bounding-set={caps}"), "--inh-caps=-all");
    let mut capable = Opener::start_by(&["setpriv", &bounding, inherited]);
    capable.enter(&stranger);
    assert_eq!(capable.ask(&ask), "EPERM EPERM EPERM");
    assert_eq!(capable.open(&scene.node_of(0), Access::READ), "EPERM");
    let mut root = Opener::start_in(&stranger);
    assert_eq!(root.ask(&ask), "ok ok ok", "by design of the kernel, as the documents say");
    // Without a link's number, only a program that was attached without one can be taken off.
    let folder = File::open(&scene.config().root).expect("it is there");
    let ours = ProgramFd::open(program).expect("it is there");
    others::detach(&ours, folder.as_fd()).expect_err("a link holds it");
}
