//! How pools are guarded changes while the daemon runs and somebody opens devices all the time.

use std::{
    fs,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use accelpool_proto::node::{ReloadConfigRequest, ReloadConfigResponse};
use accelpool_tests::{Cgroups, Home, page, requests::claim, requests::named, wait_for};

use crate::scene::{GPU, OTHER, PROFILE, Scene, workload};

const OPENS: u32 = 50_000;

/// A process that opens a node again and again.
struct Opener(Child);

impl Opener {
    fn start(cgroup: &Path, node: &Path, opens: u32) -> Self {
        let mut command = Command::new("sh");
        let script = format!("echo 0 >{}/cgroup.procs; exec \"$@\"", cgroup.display());
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_opener")]);
        command.arg(node).arg(opens.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        // It ends by itself, soon.
        Self(command.process_group(0).spawn().expect("a shell can be run"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_none()
    }

    /// How often it was refused, and admitted.
    fn counts(mut self) -> (u32, u32) {
        let mut said = String::new();
        let output = self.0.stdout.as_mut().expect("it is a pipe");
        output.read_to_string(&mut said).expect("it is text");
        assert!(self.0.wait().expect("it ends").success());
        let (refused, admitted) = said.trim().split_once(' ').expect("two numbers");
        (refused.parse().expect("a number"), admitted.parse().expect("a number"))
    }
}

/// Two pools, guarded so: the first device alone, and all others.
fn config(cgroups: &Cgroups, first: &str, rest: &str) -> String {
    let gate = cgroups.config(first);
    let (gate, _) = gate.split_once("[[pool]]").expect("it has one");
    format!(
        "{gate}[[pool]]\nname = \"first\"\ndevices = [\"{GPU}\"]\ngate = \"{first}\"\n\
         [[pool]]\nname = \"rest\"\ngate = \"{rest}\"\n"
    )
}

fn reload(scene: &Scene) -> ReloadConfigResponse {
    let client = scene.daemon.client();
    let reloaded = client.call(async |mut node| node.reload_config(ReloadConfigRequest {}).await);
    reloaded.expect("the file is valid")
}

#[test]
fn modes_change_under_100_000_opens_without_a_gap_or_a_false_denial() {
    let cgroups = Cgroups::new();
    let home = Home::with_gate(PROFILE, &config(&cgroups, "enforce", "enforce"));
    let scene = Scene { daemon: home.start(), home, cgroups };
    let pod = scene.cgroups.make("poda/container");
    let mut request = claim("a", vec![named("gpu", OTHER)]);
    request.bindings = vec![workload("a")];
    scene.daemon.client().prepare(request).expect("it is free");
    let before = scene.gate();

    // The same process, granted one device and not the other.
    let mut granted = Opener::start(&pod, &scene.node(1), OPENS);
    let mut stranger = Opener::start(&pod, &scene.node(0), OPENS);
    let mut changes = 0;
    let modes = ["audit", "off", "enforce"];
    while granted.is_running() || stranger.is_running() || changes < 6 {
        let mode = modes[changes % modes.len()];
        scene.home.set_gate(PROFILE, &config(&scene.cgroups, "enforce", mode));
        let reloaded = reload(&scene);
        assert_eq!(reloaded.changes.len(), 1, "{reloaded:?}");
        assert!(!reloaded.restart_needed);
        // What was answered holds in the kernel.
        let gate = scene.gate();
        let mode_of = |device: &str| {
            let guards = gate.guarded.iter().find(|it| it.devices.iter().any(|it| it == device));
            guards.map_or("off", |it| it.mode.as_str()).to_owned()
        };
        assert_eq!((mode_of(GPU).as_str(), mode_of(OTHER).as_str()), ("enforce", mode));
        changes += 1;
    }
    assert_eq!(granted.counts(), (0, OPENS), "who holds a grant, in {changes} changes");
    assert_eq!(stranger.counts(), (OPENS, 0), "who holds none, in {changes} changes");

    // Off in every pool takes the gate down, and nobody with a grant notices that it comes back.
    let mut granted = Opener::start(&pod, &scene.node(1), OPENS / 5);
    let mut changes = 0;
    while granted.is_running() || changes < 4 {
        let mode = ["off", "enforce"][changes % 2];
        scene.home.set_gate(PROFILE, &config(&scene.cgroups, mode, mode));
        reload(&scene);
        assert_eq!(scene.gate().state, ["off", "up"][changes % 2]);
        changes += 1;
    }
    assert_eq!(granted.counts(), (0, OPENS / 5), "in {changes} changes");
    scene.home.set_gate(PROFILE, &config(&scene.cgroups, "enforce", "enforce"));
    reload(&scene);
    assert_eq!(scene.open(&pod), "refused", "another device, once more");
    let after = scene.gate();
    assert_eq!((after.grants, after.repairs), (before.grants, before.repairs));
}

#[test]
fn a_configuration_is_read_again_when_told_and_a_bad_one_changes_nothing() {
    let cgroups = Cgroups::new();
    let home = Home::with_gate(PROFILE, &config(&cgroups, "audit", "audit"));
    let scene = Scene { daemon: home.start(), home, cgroups };
    let pod = scene.cgroups.make("poda");
    assert_eq!(scene.open(&pod), "admitted");
    let client = scene.daemon.client();
    let access = || {
        let lease = client.claims().expect("it answers").remove(0);
        lease.allocations[0].enforcement.clone().expect("it is told").access
    };
    scene.prepare("a", vec![]);
    assert_eq!(access(), "none");

    // As `systemctl reload` does it.
    scene.home.set_gate(PROFILE, &config(&scene.cgroups, "enforce", "audit"));
    scene.daemon.hang_up();
    scene.wait("the mode", |gate| gate.guarded.iter().any(|it| it.mode == "enforce"));
    assert_eq!(scene.open(&pod), "refused");
    assert_eq!(access(), "kernel", "the lease tells what holds now");

    // A file that is not valid, and one that differs where only a restart helps.
    let good = fs::read_to_string(scene.home.config()).expect("it is there");
    fs::write(scene.home.config(), good.replace("audit", "adult")).expect("it is a file");
    let refused = client.call(async |mut node| node.reload_config(ReloadConfigRequest {}).await);
    let refused = refused.expect_err("there is no such mode");
    assert_eq!(page(&refused), Some("AP0010"));
    assert!(refused.message().contains("adult"), "{refused}");
    let more = format!("drain_timeout_s = 3\n{}", good.replace("enforce", "audit"));
    fs::write(scene.home.config(), more).expect("it is a file");
    let reloaded = reload(&scene);
    assert_eq!(reloaded.changes, ["pool `first`: gate is audit, was enforce"]);
    assert!(reloaded.restart_needed);
    wait_for("audit", || (scene.open(&pod) == "admitted").then_some(()));

    // Exempt by its path, from now on.
    fs::write(scene.home.config(), &good).expect("it is a file");
    reload(&scene);
    assert_eq!(scene.open(&pod), "refused");
    let exempt = format!("[gate]\nexempt = [{:?}]\n", scene.cgroups.path(&pod));
    fs::write(scene.home.config(), good.replace("[gate]\n", &exempt)).expect("it is a file");
    reload(&scene);
    assert_eq!(scene.open(&pod), "admitted");
}
