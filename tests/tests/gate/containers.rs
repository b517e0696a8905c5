//! Real containers, as tenants start them: podman with runc, granted a device by its CDI id or
//! not, plain or privileged.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use accelpool_proto::node::VerifyClaimsRequest;
use accelpool_tests::{CDI_DIR, Cgroups, Home, Podman, wait_for};

use crate::scene::{PROFILE, Scene, workload};

/// A node of what a device's path leads to, made inside the container and opened there.
fn made(node: &Path) -> String {
    let number = std::fs::metadata(node).expect("it is there").rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    format!("mknod /made c {major} {minor} || exit 9; exec 3<>/made")
}

struct Node {
    // Containers go before the cgroups that they are in, and the turn last.
    scene: Scene,
    podman: Podman,
}

impl Node {
    fn new(mode: &str) -> Self {
        let podman = Podman::take_turn();
        let cgroups = Cgroups::new();
        let home = Home::with_gate(PROFILE, &cgroups.config(mode));
        home.write_specs_to(CDI_DIR);
        Self { scene: Scene { daemon: home.start(), home, cgroups }, podman }
    }

    /// podman's arguments for a container of a pod.
    fn of_pod(&self, pod: &str) -> String {
        let cgroup = self.scene.cgroups.make(pod);
        format!("--cgroup-parent={}", self.scene.cgroups.path(&cgroup))
    }

    /// What becomes of an open at the end of `script`, in a container of `pod`.
    fn open(&self, pod: &str, arguments: &[&str], devices: &[&str], script: &str) -> &'static str {
        let parent = self.of_pod(pod);
        let arguments = [&[parent.as_str()], arguments].concat();
        let output = self.podman.run_with(&arguments, devices, script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_ne!(output.status.code(), Some(9), "no node can be made: {said}");
        match () {
            () if said.contains("Operation not permitted") => "refused",
            () if said.contains("No such device or address") => "admitted",
            () => panic!("nobody expected this: {output:?}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its spec is not for the next one who takes a turn.
        let _ = self.scene.daemon.client().release("a");
    }
}

#[test]
fn a_container_opens_what_its_pod_was_granted_whatever_it_asks_for() {
    let node = Node::new("enforce");
    let (own, other) = (made(&node.scene.node(0)), made(&node.scene.node(1)));
    let privileged: &[&str] = &["--privileged", "--env=NVIDIA_VISIBLE_DEVICES=all"];
    // The runtime's own device program lets these pass: it is the gate that refuses.
    let plain: &[&str] = &["--cap-add=mknod", "--device-cgroup-rule=c *:* rwm"];
    for arguments in [privileged, plain] {
        assert_eq!(node.open("poda", arguments, &[], &own), "refused", "{arguments:?}");
    }
    let request = crate::scene::whole("a", vec![workload("a")]);
    let lease = node.scene.daemon.client().prepare(request).expect("it is free");
    let id = lease.allocations[0].cdi_id.as_str();
    for arguments in [privileged, plain, &["--cap-add=mknod"]] {
        let by_cdi = node.open("poda", arguments, &[id], "exec 3<>/dev/nvidia0");
        assert_eq!(by_cdi, "admitted", "{arguments:?}, the node of the grant");
        assert_eq!(node.open("poda", arguments, &[id], &own), "admitted", "{arguments:?}, its own");
    }
    for arguments in [privileged, plain] {
        assert_eq!(node.open("poda", arguments, &[id], &other), "refused", "another device");
        assert_eq!(node.open("podb", arguments, &[], &own), "refused", "another pod");
        // Who knows the id of somebody's grant has the node, and not the right.
        let stolen = node.open("podb", arguments, &[id], "exec 3<>/dev/nvidia0");
        assert_eq!(stolen, "refused", "another pod's grant");
    }
    assert!(node.scene.daemon.client().release("a").expect("it answers"));
    assert_eq!(node.open("poda", privileged, &[], &own), "refused", "after its claim");
    let denied: u64 = node.scene.gate().counts.iter().map(|it| it.denied).sum();
    assert_eq!(denied, 9, "{:?}", node.scene.gate().counts);
}

/// What a container has is compared with what it was given: environment, nodes and their numbers,
/// mounts.
#[test]
fn what_a_container_lost_is_told() {
    let node = Node::new("enforce");
    let request = crate::scene::whole("a", vec![workload("a")]);
    let lease = node.scene.daemon.client().prepare(request).expect("it is free");
    let parent = node.of_pod("poda");
    let arguments = [parent.as_str(), "--privileged"];
    let container = node.podman.start_with(&arguments, &[&lease.allocations[0].cdi_id]);
    let found = || {
        let request = VerifyClaimsRequest { claim: "a".to_owned() };
        let client = node.scene.daemon.client();
        let found = client.call(async |mut node| node.verify_claims(request).await);
        found.expect("it answers").claims.remove(0).found.expect("it is told")
    };
    let told = |what: &str, words: &str| {
        wait_for(what, || {
            let found = found();
            let told = found.deviations.iter().any(|it| it.contains(words));
            (found.state == "drifted" && told).then_some(())
        });
    };
    wait_for("a container as it should be", || (found().state == "verified").then_some(()));
    // As after a module was loaded anew: the number that the node had is another device's.
    let _ = container.read("umount /dev/nvidia0; rm -f /dev/nvidia0; mknod /dev/nvidia0 c 1 3");
    told("a foreign number", "`/dev/nvidia0` is c 1:3, the device is c ");
    let _ = container.read("rm /dev/nvidia0");
    told("a lost node", "`/dev/nvidia0` is nothing, the device is c ");
    drop(container);
}
