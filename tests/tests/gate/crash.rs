//! The daemon is killed between the steps by which a gate comes, is put in another's place, or
//! changes what it guards: who was let is not refused, one gate stands and no pin is left
//! beside it, and the next daemon makes all as it should be.

use std::{collections::BTreeSet, fs};

use accelpool_tests::{Faults, wait_for};

use crate::scene::{PROFILE, Scene, workload};

/// What the daemon does that is killed, from a node where claim `a` is prepared and the gate
/// enforces, and no daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The root was removed and made anew, as by a kubelet that was set up anew: another link.
    Replace,
    /// Nothing stands, as after a boot.
    Raise,
    /// Another mode for everything.
    Switch,
}

/// The points of the gate that `work` passes, or what is left once it was killed at one.
fn torment(work: Work, kill: Option<&str>) -> BTreeSet<String> {
    let mut scene = Scene::new("enforce");
    scene.prepare("a", vec![workload("a")]);
    let (mut granted, mut stranger) = (scene.cgroups.make("poda"), scene.cgroups.make("podb"));
    wait_for("a grant", || (scene.open(&granted) == "admitted").then_some(()));
    let Scene { daemon, home, cgroups } = scene;
    daemon.kill();
    match work {
        Work::Replace => {
            for folder in [&granted, &stranger, &cgroups.root()] {
                fs::remove_dir(folder).expect("nobody is in it");
            }
            (granted, stranger) = (cgroups.make("poda"), cgroups.make("podb"));
        }
        Work::Raise => {
            for pin in fs::read_dir(cgroups.pins()).expect("it is there") {
                fs::remove_file(pin.expect("it can be read").path()).expect("it is a pin");
            }
        }
        Work::Switch => home.set_gate(PROFILE, &cgroups.config("audit")),
    }
    let Some(point) = kill else {
        let _ = fs::remove_file(home.trace());
        let daemon = home.try_start(&Faults::trace()).expect("it starts");
        scene = Scene { daemon, home, cgroups };
        let mode = if work == Work::Switch { "audit" } else { "enforce" };
        scene.wait("the gate", |gate| {
            !gate.guarded.is_empty() && gate.guarded.iter().all(|it| it.mode == mode)
        });
        let trace = fs::read_to_string(scene.home.trace()).expect("a debug build notes its points");
        let own = trace.lines().filter(|point| point.starts_with("gate.")).map(str::to_owned);
        return own.collect();
    };
    // It may serve a moment before it comes to the point, or never.
    if let Ok(daemon) = home.try_start(&Faults::kill(point, 1)) {
        wait_for("its death", || daemon.client().node().is_err().then_some(()));
    }
    let open =
        |pod: &std::path::Path| accelpool_tests::Tenant::open(pod, &home.sim().join("dev/nvidia0"));
    // Cgroups that were made anew have no grant before the next daemon.
    if work == Work::Switch {
        assert_eq!(open(&granted), "admitted", "{point}: while nobody runs");
    }
    if work == Work::Switch {
        home.set_gate(PROFILE, &cgroups.config("enforce"));
    }
    scene = Scene { daemon: home.start(), home, cgroups };
    scene.wait("a gate that agrees", |gate| {
        let all = gate.guarded.iter().all(|it| it.mode == "enforce");
        gate.state == "up" && !gate.guarded.is_empty() && all && gate.defects.is_empty()
    });
    wait_for("the grant", || (scene.open(&granted) == "admitted").then_some(()));
    assert_eq!(scene.open(&stranger), "refused", "{work:?} {point}");
    let pins = fs::read_dir(scene.cgroups.pins()).expect("it is there").count();
    assert_eq!(pins, 1, "{work:?} {point}: pins");
    BTreeSet::new()
}

#[test]
fn a_daemon_killed_between_the_gates_steps_is_made_good() {
    let guards = ["gate.guards-dropped", "gate.guards-written"];
    let pins = ["gate.pinned", "gate.pinned-beside"];
    let expected = |work: Work| match work {
        Work::Replace => [&["gate.attached"][..], &pins].concat(),
        Work::Raise => [&guards[..], &pins].concat(),
        Work::Switch => guards.to_vec(),
    };
    for work in [Work::Replace, Work::Raise, Work::Switch] {
        let passed = torment(work, None);
        let expected: BTreeSet<String> = expected(work).into_iter().map(str::to_owned).collect();
        assert!(expected.is_subset(&passed), "{work:?} passes {passed:?}");
        for point in &expected {
            torment(work, Some(point));
        }
    }
}
