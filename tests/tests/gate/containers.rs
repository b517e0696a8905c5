//! Real containers, as tenants start them: podman with runc, granted a device by its CDI id or
//! not, plain or privileged.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use accelpool_proto::node::{PrepareClaimRequest, Verification, VerifyClaimsRequest};
use accelpool_tests::{
    CDI_DIR, Cgroups, Home, Podman,
    requests::{claim, share},
    wait_for,
};

use crate::scene::{GPU, PROFILE, Scene, workload};

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
        Self::with(mode, "")
    }

    /// One whose vendor says `vendor` besides.
    fn with(mode: &str, vendor: &str) -> Self {
        let podman = Podman::take_turn();
        let cgroups = Cgroups::new();
        let home = Home::with_gate(PROFILE, &format!("{vendor}\n{}", cgroups.config(mode)));
        home.write_specs_to(CDI_DIR);
        Self { scene: Scene { daemon: home.start(), home, cgroups }, podman }
    }

    /// What verification says of claim `a`.
    fn found(&self) -> Verification {
        let request = VerifyClaimsRequest { claim: "a".to_owned() };
        let found =
            self.scene.daemon.client().call(async |mut node| node.verify_claims(request).await);
        found.expect("it answers").claims.remove(0).found.expect("it is told")
    }

    fn wait_verified(&self) {
        wait_for("a container as it should be", || {
            (self.found().state == "verified").then_some(())
        });
    }

    /// Waits until it says `words`.
    fn wait_told(&self, what: &str, words: &str) {
        wait_for(what, || {
            let found = self.found();
            let told = found.deviations.iter().any(|it| it.contains(words));
            (found.state == "drifted" && told).then_some(())
        });
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
        // Its specs are not for the next one who takes a turn.
        for claim in ["a", "b"] {
            let _ = self.scene.daemon.client().release(claim);
        }
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
    node.wait_verified();
    // As after a module was loaded anew: the number that the node had is another device's.
    let _ = container.read("umount /dev/nvidia0; rm -f /dev/nvidia0; mknod /dev/nvidia0 c 1 3");
    node.wait_told("a foreign number", "`/dev/nvidia0` is c 1:3, the device is c ");
    let _ = container.read("rm /dev/nvidia0");
    node.wait_told("a lost node", "`/dev/nvidia0` is nothing, the device is c ");
    drop(container);
}

/// What a claim has mounted is there, is what it was, and can be no more than read; and nothing
/// of another claim is, by whatever path.
#[test]
fn a_container_has_the_mounts_of_its_claim_and_nothing_of_anothers() {
    let node = Node::with("enforce", "turns = true");
    let prepare = |name: &str| {
        let request = claim(name, vec![share("gpu", GPU, 1 << 30, 250)]);
        let request = PrepareClaimRequest { bindings: vec![workload(name)], ..request };
        node.scene.daemon.client().prepare(request).expect("there is room")
    };
    let (own, other) = (prepare("a"), prepare("b"));
    let id = own.allocations[0].cdi_id.as_str();
    let parent = node.of_pod("poda");
    let start = |more: &[&str]| {
        let arguments = [&[parent.as_str(), "--privileged"][..], more].concat();
        node.podman.start_with(&arguments, &[id])
    };
    let turns = node.scene.home.turns().display().to_string();
    let inside = "/run/accelpool/turns/a";
    let container = start(&[]);
    node.wait_verified();
    let _ = container.read(&format!("mount -o remount,bind,rw {inside}"));
    node.wait_told("a mount that can be written to", &format!("`{inside}` is writable"));
    let _ = container.read(&format!("mount --bind /bin {inside}"));
    node.wait_told("something in its place", &format!("`{inside}` shows something else than"));
    let _ = container.read(&format!("umount {inside}; umount {inside}"));
    node.wait_told("a mount that is gone", &format!("`{inside}` is not mounted"));
    drop(container);

    // Another's folder itself, and one that it lies in.
    for (volume, point) in [(format!("{turns}/b:/x:ro"), "/x"), (format!("{turns}:/y"), "/y")] {
        let container = start(&["--volume", &volume]);
        node.wait_told(
            point,
            &format!("`{point}` shows what is claim b's, which is not bound here"),
        );
        drop(container);
    }
    // The variable by which a container says that it was given the other claim.
    let spec = std::fs::read_to_string(Path::new(CDI_DIR).join("accelpool.dev-claim_b.json"));
    let spec: serde_json::Value = serde_json::from_str(&spec.expect("it is there")).expect("JSON");
    let mut env = spec["devices"][0]["containerEdits"]["env"].as_array().expect("a list").iter();
    let variable = env.find_map(|it| it.as_str().filter(|it| it.starts_with("ACCELPOOL_GRANT_")));
    let container = start(&["--env", variable.expect("it has one")]);
    node.wait_told("another's variable", "is claim b's, which is not bound here");
    drop((container, other));
    let _container = start(&[]);
    node.wait_verified();
}

/// The host's own nodes, brought in by a bind mount, are the same devices.
#[test]
fn the_hosts_devices_brought_into_a_container_are_guarded() {
    let node = Node::new("enforce");
    let devices = node.scene.node(0).parent().expect("it has one").display().to_string();
    let volume = format!("{devices}:/hostdev");
    let arguments: &[&str] = &["--privileged", "--volume", &volume];
    let open = || node.open("poda", arguments, &[], "exec 3<>/hostdev/nvidia0");
    assert_eq!(open(), "refused");
    let request = crate::scene::whole("a", vec![workload("a")]);
    node.scene.daemon.client().prepare(request).expect("it is free");
    assert_eq!(open(), "admitted", "once its pod holds it");
    let other = node.open("poda", arguments, &[], "exec 3<>/hostdev/nvidia1");
    assert_eq!(other, "refused", "another device");
}
