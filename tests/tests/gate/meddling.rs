//! Denials are told to whom they concern, and what others do to the gate is put right.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use accelpool_gate::{Access, DeviceNumber, DeviceType, Gate, GateConfig, Guard, Guards, Mode};
use accelpool_proto::node::{ExplainClaimRequest, WatchDenialsRequest};
use accelpool_tests::wait_for;

use crate::scene::{GPU, OTHER, Scene, workload};

#[test]
fn a_denial_is_counted_told_and_kept() {
    let scene = Scene::new("audit");
    let pod = scene.cgroups.make("poda/container");
    scene.prepare("a", vec![workload("a")]);
    let client = scene.daemon.client();
    // Opened again until the stream, which may begin later, has one: each second tells one.
    let told = client.call(async |mut node| {
        let mut denials = node.watch_denials(WatchDenialsRequest {}).await?.into_inner();
        let seen = async { denials.message().await.expect("it goes on").expect("one comes") };
        let opened = async {
            loop {
                assert_eq!(accelpool_tests::Tenant::open(&pod, &scene.node(1)), "admitted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let denial = tokio::select! {
            denial = seen => denial,
            () = opened => unreachable!("it has no end"),
        };
        Ok(tonic::Response::new(denial))
    });
    let told = told.expect("the daemon serves");
    let path = scene.cgroups.path(&pod);
    assert_eq!(
        (told.device.as_str(), told.denied, told.claims.as_slice()),
        (OTHER, false, &["a".to_owned()][..])
    );
    assert!(told.cgroup == path || told.cgroup.is_empty(), "{told:?}");
    assert_eq!((told.access.as_str(), told.command.as_str()), ("rw", "sh"));
    let gate = scene.gate();
    let count = gate.counts.iter().find(|it| it.device == OTHER).expect("it is counted");
    assert!(count.audited > 0 && count.denied == 0, "{count:?}");
    assert!(gate.recent.contains(&told));
    assert!(gate.counts.iter().all(|it| it.device != GPU), "who was granted is not counted");
    // And in the story of the claim whose process it was.
    wait_for("the story", || {
        let request = ExplainClaimRequest { claim: "a".to_owned() };
        let story = client.call(async |mut node| node.explain_claim(request).await);
        let events = story.expect("it is known").events;
        events
            .iter()
            .any(|event| event.kind == "denied" && event.message.contains(OTHER))
            .then_some(())
    });
}

#[test]
fn what_others_do_to_the_gate_is_put_right() {
    let scene = Scene::new("enforce");
    let (granted, stranger) = (scene.cgroups.make("poda"), scene.cgroups.make("podb"));
    scene.prepare("a", vec![workload("a")]);
    scene.wait("agreement", |gate| gate.grants > 0 && gate.defects.is_empty());
    let pin = fs::read_dir(scene.cgroups.pins()).expect("it is there").next();
    let pin = pin.expect("a pin").expect("it can be read").path();
    fs::remove_file(&pin).expect("it is a pin");
    let repaired = scene.wait("a new pin", |gate| gate.repairs > 0).repairs;
    assert!(pin.exists());
    // The root is removed and made anew, as a kubelet would that was set up anew.
    fs::remove_dir(&granted).expect("nobody is in it");
    fs::remove_dir(&stranger).expect("nobody is in it");
    fs::remove_dir(scene.cgroups.root()).expect("nobody is in it");
    let (granted, stranger) = (scene.cgroups.make("poda"), scene.cgroups.make("podb"));
    scene.wait("the gate at the new root", |gate| gate.repairs > repaired);
    wait_for("grants for the new cgroup", || (scene.open(&granted) == "admitted").then_some(()));
    assert_eq!(scene.open(&stranger), "refused");
}

fn number_of(node: &Path) -> DeviceNumber {
    let number = fs::metadata(node).expect("it is there").rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let part = |part: u64| u32::try_from(part).expect("numbers are small");
    let device = DeviceNumber::new(DeviceType::Character, part(major), part(minor));
    device.expect("a number")
}

/// Whoever has `CAP_SYS_ADMIN` can come to the gate's maps by their numbers, as a privileged
/// container may. What it writes there, in either direction, is taken back.
#[test]
fn what_others_write_into_the_gate_is_put_right() {
    let scene = Scene::new("enforce");
    let (granted, stranger) = (scene.cgroups.make("poda"), scene.cgroups.make("podb"));
    scene.prepare("a", vec![workload("a")]);
    scene.wait("agreement", |gate| gate.grants > 0 && gate.defects.is_empty());
    let config = GateConfig { root: scene.cgroups.root(), pins: scene.cgroups.pins() };
    let open = || Gate::open(&config).expect("it is adopted");
    let of = |gate: &Gate, pod: &Path| gate.cgroup(pod).expect("it lies below the root");
    let device = number_of(&scene.node(0));
    let acts: [(&str, &dyn Fn(Gate)); 6] = [
        ("a grant for itself", &|gate| {
            gate.grant(of(&gate, &stranger), device, Access::READ_WRITE).expect("there is room");
        }),
        ("no grant for another", &|gate| {
            gate.revoke(of(&gate, &granted), device).expect("it is there");
        }),
        ("everything for itself", &|gate| {
            gate.exempt(of(&gate, &stranger)).expect("there is room");
        }),
        ("another mode", &|gate| gate.set_mode(Mode::Audit).expect("there is room")),
        ("no guard", &|gate| gate.guard(&Guards::default()).expect("there is room")),
        ("no gate", &|gate| gate.remove().expect("root may")),
    ];
    for (what, act) in acts {
        let before = scene.gate().repairs;
        act(open());
        scene.wait(what, |gate| gate.repairs > before && gate.defects.is_empty());
        assert_eq!(scene.open(&granted), "admitted", "after {what}");
        assert_eq!(scene.open(&stranger), "refused", "after {what}");
    }
    assert_eq!(scene.daemon.client().claims().expect("it answers")[0].state, "prepared");
}

/// As after `systemctl daemon-reload`, which writes the device programs of a container's cgroup
/// anew: one beside the gate refuses what was granted. The gate cannot help it; it is found and
/// raised by itself, and forgotten when it is over.
#[test]
fn a_program_beside_the_gate_that_refuses_a_grant_is_raised() {
    let scene = Scene::new("enforce");
    let container = scene.cgroups.make("poda/container");
    scene.prepare("a", vec![workload("a")]);
    let spec = fs::read_to_string(scene.home.cdi().join("accelpool.dev-claim_a.json"));
    let spec: serde_json::Value = serde_json::from_str(&spec.expect("it is there")).expect("JSON");
    let variable = spec["devices"][0]["containerEdits"]["env"][0].as_str().expect("a variable");
    let script = format!("export '{variable}'; exec sleep 1000");
    let tenant = accelpool_tests::Tenant::start(&container, &script);
    let verification = || {
        let lease = scene.daemon.client().claims().expect("it answers").remove(0);
        lease.verification.unwrap_or_default()
    };
    // What somebody attaches is news for the daemon only if it knew what was there before.
    wait_for("a look at it", || (verification().state == "verified").then_some(()));

    let foreign = Gate::open(&GateConfig {
        root: container.clone(),
        pins: scene.cgroups.pins().with_file_name("foreign"),
    });
    let foreign = foreign.expect("this kernel takes several programs");
    let guard = Guard { devices: number_of(&scene.node(0)).into(), mode: Mode::Enforce };
    foreign.guard(&Guards::new([guard]).expect("one")).expect("there is room");
    assert_eq!(scene.open(&container), "refused", "all programs must admit");
    let found = wait_for("the daemon's word", || {
        let found = verification();
        (found.state == "drifted").then_some(found)
    });
    let words =
        "is refused by a device program beside the gate: the container must be started anew";
    assert!(found.deviations.iter().any(|it| it.contains(words)), "{found:?}");
    let request = ExplainClaimRequest { claim: "a".to_owned() };
    let story = scene.daemon.client().call(async |mut node| node.explain_claim(request).await);
    let events = story.expect("it is known").events;
    assert!(events.iter().any(|event| event.kind == "drifted" && event.message.contains(words)));
    assert_eq!(scene.gate().defects, [""; 0], "the gate itself is as it should be");

    foreign.remove().expect("it is ours");
    assert_eq!(scene.open(&container), "admitted");
    wait_for("its end", || (verification().state == "verified").then_some(()));
    drop(tenant);
}
