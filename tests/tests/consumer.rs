//! A real consumer: podman and runc start containers by the CDI ids of prepared claims.
//!
//! Each test has a daemon of its own, which writes its specs where podman reads them; the
//! tests take turns for that. What a container should see is written out in each test, and
//! compared with a container that was granted nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use accelpool_proto::node::{Lease, PrepareClaimRequest, Request};
use accelpool_tests::{
    CDI_DIR, Client, Daemon, Home, Podman, page,
    requests::{claim, named, share},
};
use nix::sys::stat::{major, minor};

const GIB: u64 = 1 << 30;

/// Two GPUs of `dgx-h100`.
const GPU: &str = "gpu-0000-1b-00-0";
const OTHER_GPU: &str = "gpu-0000-43-00-0";

/// The nodes of [`GPU`], from the profile.
const GPU_NODES: [&str; 4] = ["nvidia0", "nvidia-uvm", "nvidia-uvm-tools", "nvidiactl"];

/// Lists every device node as `name type major:minor`, the numbers in hexadecimal.
const NODES: &str = "find /dev -type c -exec stat -c '%n char %t:%T' {} + \
                     -o -type b -exec stat -c '%n block %t:%T' {} +";

/// Opening a node that was passed reaches the kernel, which finds no driver: ENXIO.
const NO_DRIVER: &str = "No such device or address";

/// A simulated node whose specs podman reads. Its claims are released at the end.
struct Node {
    podman: Podman,
    home: Home,
    daemon: Option<Daemon>,
}

impl Node {
    fn start(profile: &str) -> Self {
        let podman = Podman::take_turn();
        let home = Home::new(profile);
        home.write_specs_to(CDI_DIR);
        let daemon = Some(home.start());
        Self { podman, home, daemon }
    }

    fn client(&self) -> Client {
        self.daemon.as_ref().expect("the daemon runs").client()
    }

    #[track_caller]
    fn prepare(&self, name: &str, requests: Vec<Request>) -> Vec<String> {
        ids(&self.client().prepare(claim(name, requests)).expect("the claim is prepared"))
    }

    /// The code of the page on why `request` is refused.
    #[track_caller]
    fn refusal(&self, request: PrepareClaimRequest) -> String {
        let refused = self.client().prepare(request).expect_err("the claim is refused");
        page(&refused).expect("a refusal has a page").to_owned()
    }

    fn kill_daemon(&mut self) {
        self.daemon.take().expect("the daemon runs").kill();
    }

    fn restart_daemon(&mut self) {
        self.daemon = Some(self.home.start());
    }

    /// Device nodes that a container with `ids` has and one without has not, as
    /// `name type major:minor`.
    #[track_caller]
    fn nodes_of(&self, ids: &[String]) -> BTreeSet<String> {
        let plain = lines(&self.podman.read(&[], NODES));
        let granted = lines(&self.podman.read(&borrowed(ids), NODES));
        assert!(granted.is_superset(&plain), "a grant takes nothing away: {granted:?}");
        granted.difference(&plain).cloned().collect()
    }

    /// The same lines for nodes of the simulated hardware, as the kernel has them now.
    #[track_caller]
    fn hardware(&self, nodes: &[&str]) -> BTreeSet<String> {
        let line = |node: &&str| {
            let found = fs::metadata(self.home.sim().join("dev").join(node));
            let number = found.expect("the hardware has the node").rdev();
            format!("/dev/{node} char {:x}:{:x}", major(number), minor(number))
        };
        nodes.iter().map(line).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The next daemon would remove what stays behind; a runtime may look before.
        self.daemon = None;
        for spec in specs() {
            let _ = fs::remove_file(spec);
        }
    }
}

/// The specs in the folder that podman reads.
fn specs() -> Vec<PathBuf> {
    let entries = fs::read_dir(CDI_DIR).expect("the CDI folder can be read");
    let paths = entries.map(|entry| entry.expect("the CDI folder can be read").path());
    let ours = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("accelpool.dev-"))
    };
    paths.filter(|path| ours(path)).collect()
}

fn ids(lease: &Lease) -> Vec<String> {
    lease.allocations.iter().map(|allocation| allocation.cdi_id.clone()).collect()
}

fn borrowed(ids: &[String]) -> Vec<&str> {
    ids.iter().map(String::as_str).collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// The variables that a container with `ids` has and one without has not.
fn variables(text: &str) -> BTreeMap<&str, &str> {
    let ours = |(name, _): &(&str, &str)| name.starts_with("ACCELPOOL_");
    text.lines().filter_map(|line| line.split_once('=')).filter(ours).collect()
}

#[test]
fn a_whole_device_is_all_that_a_container_sees() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    assert_eq!(ids, ["accelpool.dev/claim=whole-gpu-gpu-0000-1b-00-0"]);
    assert_eq!(node.nodes_of(&ids), node.hardware(&GPU_NODES));

    let seen = node.podman.read(&borrowed(&ids), "env");
    let uuid = "GPU-5a1f0001-1b00-4c6e-9d10-ac0e1b000000";
    let expected = [
        ("ACCELPOOL_GRANT_WHOLE_GPU_GPU_0000_1B_00_0", format!("portion=whole,uuid={uuid}")),
        ("ACCELPOOL_SIM_PROFILE", "dgx-h100".to_owned()),
    ];
    let expected = expected.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(variables(&seen), expected);
}

#[test]
fn what_is_granted_opens_and_nothing_else_does() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    let number = |path: &str| {
        let number = fs::metadata(node.home.sim().join("dev").join(path)).expect("it is there");
        format!("{} {}", major(number.rdev()), minor(number.rdev()))
    };
    let open = |path: &str| {
        // The shell's own words for the error, on one line.
        node.podman.read(&borrowed(&ids), &format!("({path}) 2>&1 | tail -n 1"))
    };
    let said = open(": </dev/nvidia0");
    assert!(said.contains(NO_DRIVER), "the granted node: {said}");
    let said = open(": </dev/nvidia1");
    assert!(said.contains("no such file"), "another GPU's node: {said}");
    let own = number("nvidia0");
    let said = open(&format!("mknod /dev/again c {own}; : </dev/again"));
    assert!(said.contains(NO_DRIVER), "a node of one's own for the granted device: {said}");
    let others = number("nvidia1");
    let said = open(&format!("mknod /dev/others c {others}; : </dev/others"));
    assert!(said.contains("Operation not permitted"), "a node made for another GPU: {said}");
}

#[test]
fn mounts_are_there_and_cannot_be_written() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    let library = "/usr/lib/accelpool-sim/libsim.so";
    let seen = node.podman.read(&borrowed(&ids), &format!("cat {library}"));
    let on_host = fs::read_to_string(node.home.sim().join("lib/libsim.so")).expect("a text");
    assert_eq!(seen, on_host);
    let script = format!("(: >>{library}) 2>&1; mount -o remount,rw,bind {library} 2>&1; true");
    let said = node.podman.read(&borrowed(&ids), &script);
    assert!(said.contains("Read-only file system"), "writing: {said}");
    assert!(said.contains("denied") || said.contains("not permitted"), "remounting: {said}");
    let absent = node.podman.run(&[], &format!("test -e {library}"));
    assert!(!absent.status.success(), "a container without a grant has no library");
}

#[test]
fn a_partition_brings_its_capabilities() {
    let node = Node::start("dgx-h100");
    let name = format!("{OTHER_GPU}-mig-1g-10gb-6");
    let ids = node.prepare("small", vec![named("mig", &name)]);
    assert_eq!(ids, [format!("accelpool.dev/claim=small-mig-{name}")]);
    let mut expected =
        GPU_NODES.map(|node| if node == "nvidia0" { "nvidia1" } else { node }).to_vec();
    // Those of profile 0 at its seventh place, from the profile's count.
    let capabilities: Vec<_> = capabilities_of(&node, &ids);
    assert_eq!(capabilities.len(), 2, "a GPU instance and a compute instance: {capabilities:?}");
    expected.extend(capabilities.iter().map(String::as_str));
    assert_eq!(node.nodes_of(&ids), node.hardware(&expected));

    let neighbour = format!("{OTHER_GPU}-mig-1g-10gb-5");
    let other = node.prepare("next", vec![named("mig", &neighbour)]);
    let others: BTreeSet<_> = capabilities_of(&node, &other).into_iter().collect();
    let own = capabilities.into_iter().collect();
    assert!(others.is_disjoint(&own), "two partitions share no capability: {own:?}, {others:?}");
}

/// The capability nodes in a container with `ids`.
fn capabilities_of(node: &Node, ids: &[String]) -> Vec<String> {
    let listed = node.podman.read(&borrowed(ids), "cd /dev && find nvidia-caps -type c");
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn two_shares_of_one_device_run_side_by_side() {
    let node = Node::start("dgx-h100");
    let left = node.prepare("left", vec![share("gpu", GPU, 20 * GIB, 250)]);
    let right = node.prepare("right", vec![share("gpu", GPU, 40 * GIB, 500)]);
    let containers = [node.podman.start(&borrowed(&left)), node.podman.start(&borrowed(&right))];
    let expected = node.hardware(&GPU_NODES);
    let words = [
        ("ACCELPOOL_GRANT_LEFT_GPU_GPU_0000_1B_00_0", 20 * GIB, 250),
        ("ACCELPOOL_GRANT_RIGHT_GPU_GPU_0000_1B_00_0", 40 * GIB, 500),
    ];
    for (container, (variable, memory_bytes, permille)) in containers.iter().zip(words) {
        assert!(lines(&container.read(NODES)).is_superset(&expected));
        let seen = container.read("tr '\\0' '\\n' </proc/1/environ");
        let grants = variables(&seen);
        let grant = grants.get(variable).unwrap_or_else(|| panic!("no {variable} in {grants:?}"));
        let limits = format!("memory_bytes={memory_bytes},compute_permille={permille}");
        assert!(grant.contains(&limits), "{grant}");
        let granted = grants.keys().filter(|name| name.starts_with("ACCELPOOL_GRANT_")).count();
        assert_eq!(granted, 1, "one's own grant alone: {grants:?}");
    }
    let held = node.refusal(claim("all", vec![named("gpu", GPU)]));
    assert_eq!(held, "AP0103", "the whole device while it is shared");
}

#[test]
fn a_whole_device_excludes_a_share() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    let container = node.podman.start(&borrowed(&ids));
    let held = node.refusal(claim("share", vec![share("gpu", GPU, GIB, 100)]));
    assert_eq!(held, "AP0103");
    let unknown = node.podman.run(&["accelpool.dev/claim=share-gpu-gpu-0000-1b-00-0"], "true");
    check_unresolved(&unknown);
    assert!(lines(&container.read(NODES)).is_superset(&node.hardware(&GPU_NODES)));
}

#[test]
fn several_devices_come_into_one_container() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("pair", vec![named("a", GPU), named("b", OTHER_GPU)]);
    assert_eq!(ids.len(), 2);
    let mut expected = GPU_NODES.to_vec();
    expected.push("nvidia1");
    assert_eq!(node.nodes_of(&ids), node.hardware(&expected));
    let seen = node.podman.read(&borrowed(&ids), "env");
    let names: Vec<_> = variables(&seen).into_keys().collect();
    let expected = [
        "ACCELPOOL_GRANT_PAIR_A_GPU_0000_1B_00_0",
        "ACCELPOOL_GRANT_PAIR_B_GPU_0000_43_00_0",
        "ACCELPOOL_SIM_PROFILE",
    ];
    assert_eq!(names, expected);
}

/// podman refused a container for want of a device, rather than for anything else.
#[track_caller]
fn check_unresolved(output: &std::process::Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "the container started");
    assert!(said.contains("unresolvable CDI devices"), "{said}");
}

#[test]
fn a_released_id_no_longer_resolves() {
    let node = Node::start("dgx-h100");
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    assert!(node.podman.run(&borrowed(&ids), "true").status.success());
    assert!(node.client().release("whole").expect("a release is answered"));
    check_unresolved(&node.podman.run(&borrowed(&ids), "true"));
    assert_eq!(specs(), Vec::<PathBuf>::new());
}

#[test]
fn a_container_does_not_notice_that_the_daemon_was_killed() {
    let mut node = Node::start("dgx-h100");
    let name = format!("{OTHER_GPU}-mig-1g-10gb-6");
    let ids = node.prepare("kept", vec![named("gpu", GPU), named("mig", &name)]);
    let before = node.client().claims().expect("claims are listed");
    let container = node.podman.start(&borrowed(&ids));
    let seen = container.read(NODES);

    node.kill_daemon();
    let open = "(: </dev/nvidia0) 2>&1 | tail -n 1";
    assert!(container.read(open).contains(NO_DRIVER), "while no daemon runs");
    assert!(node.podman.run(&borrowed(&ids), "true").status.success(), "specs need no daemon");

    node.restart_daemon();
    assert_eq!(container.read(NODES), seen);
    assert!(container.read(open).contains(NO_DRIVER), "after the restart");
    assert_eq!(node.client().claims().expect("claims are listed"), before);
    assert_eq!(node.refusal(claim("more", vec![named("gpu", GPU)])), "AP0103");
    assert!(node.podman.run(&borrowed(&ids), "true").status.success(), "the ids still resolve");
}

#[test]
fn an_emptied_folder_is_repaired_before_the_node_is_ready() {
    let mut node = Node::start("dgx-h100");
    let name = format!("{OTHER_GPU}-mig-2g-20gb-0");
    let whole = node.prepare("whole", vec![named("gpu", GPU)]);
    let part = node.prepare("part", vec![named("mig", &name)]);
    node.kill_daemon();
    for spec in specs() {
        fs::remove_file(spec).expect("a spec can be removed");
    }
    check_unresolved(&node.podman.run(&borrowed(&whole), "true"));
    node.restart_daemon();
    // The daemon says that it is ready: nothing more is waited for.
    let both: Vec<_> = whole.iter().chain(&part).map(String::as_str).collect();
    let output = node.podman.run(&both, "true");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nodes_whose_numbers_changed_are_repaired() {
    // A driver that is loaded anew may get another major number.
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let profile = folder.path().join("profile.toml");
    let text = include_str!("../../vendors/sim/profiles/dgx-h100.toml");
    fs::write(&profile, text).expect("the folder takes files");
    let mut node = Node::start(&profile.display().to_string());
    let ids = node.prepare("whole", vec![named("gpu", GPU)]);
    let before = node.nodes_of(&ids);

    node.kill_daemon();
    assert!(text.contains("major = 240"), "the profile has this major");
    fs::write(&profile, text.replace("major = 240", "major = 241")).expect("it can be rewritten");
    fs::remove_file(node.home.sim().join("state.json")).expect("the machine has a state");
    node.restart_daemon();
    let after = node.nodes_of(&ids);
    assert_eq!(after, node.hardware(&GPU_NODES));
    assert!(after.is_disjoint(&before), "the numbers changed: {before:?}, {after:?}");
}

#[test]
fn every_vendors_devices_reach_a_container() {
    for profile in ["dgx-h100", "mi300x", "atlas-910b", "mixed-edge"] {
        let node = Node::start(profile);
        let devices = node.client().devices().expect("devices are listed");
        let wanted: Vec<_> = devices.iter().map(|device| named("r", &device.name)).collect();
        let ids = node.prepare("all", wanted);
        let found = node.podman.read(&borrowed(&ids), NODES);
        let plain = lines(&node.podman.read(&[], NODES));
        let nodes: BTreeSet<_> = lines(&found).difference(&plain).cloned().collect();
        let names: Vec<_> =
            nodes.iter().filter_map(|line| line.strip_prefix("/dev/")?.split(' ').next()).collect();
        assert!(names.len() >= devices.len(), "{profile}: {names:?}");
        assert_eq!(nodes, node.hardware(&names), "{profile}");
    }
}
