//! A simulated node as its workers see it: device nodes, partitions, scripts, restarts.
//!
//! Needs root, since device nodes are real.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    env,
    error::Error,
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    slice,
    sync::mpsc,
    thread,
    time::Duration,
};

use accelpool_model::{DeviceUuid, Partition, ProfileName, RecoveryAction};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use accelpool_vendor_sim::{Profile, Sim};
use tempfile::TempDir;

/// Longer than any event takes; a test that passes never waits as long.
const LONG: Duration = Duration::from_mins(1);

struct Node {
    dir: TempDir,
    sim: Sim,
    device: DeviceUuid,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sim = open("dgx-h100", dir.path());
        let device = sim.discover().unwrap().remove(0).uuid;
        Self { dir, sim, device }
    }

    /// The same hardware, seen by the worker that comes after a kill.
    fn restart(self) -> Self {
        let sim = open("dgx-h100", self.dir.path());
        Self { sim, ..self }
    }

    fn script(&self, text: &str) {
        let new = self.dir.path().join("script.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join("script.toml")).unwrap();
    }

    fn create(&self, profile: &str, start: u32) -> Result<Partition, VendorError> {
        self.sim.create_partition(&self.device, &named(profile), start)
    }

    fn destroy(&self, profile: &str, start: u32) -> Result<(), VendorError> {
        self.sim.destroy_partition(&self.device, &named(profile), start)
    }

    /// Partitions of the first device, in few words.
    fn partitions(&self) -> Vec<String> {
        let listed = self.sim.partitions(&self.device).unwrap();
        let word = |one: &Partition| {
            let state = if one.complete { "" } else { " half-created" };
            format!("{} at {}{state}", one.profile, one.start)
        };
        listed.iter().map(word).collect()
    }

    /// Events that are due, in few words, until there is none.
    fn events(&self) -> Vec<String> {
        std::iter::from_fn(|| self.sim.next_event(Duration::ZERO).unwrap()).map(word).collect()
    }
}

fn open(profile: &str, dir: &Path) -> Sim {
    Sim::open(Profile::embedded(profile).unwrap(), dir).unwrap()
}

fn named(profile: &str) -> ProfileName {
    profile.parse().unwrap()
}

fn word(event: VendorEvent) -> String {
    match event {
        VendorEvent::Fault(fault) => format!("{} {}", fault.class, fault.code),
        VendorEvent::DevicesChanged => "devices changed".to_owned(),
    }
}

fn fault(id: &str, code: &str) -> String {
    format!(
        "[[fault]]\nid = \"{id}\"\ndevice = \"gpu-0000-1b-00-0\"\nclass = \"throttled\"\n\
         code = \"{code}\"\nmessage = \"hot\"\n"
    )
}

fn step(id: &str, rest: &str) -> String {
    format!("[[call]]\nid = \"{id}\"\n{rest}\n")
}

#[test]
fn device_nodes_are_real_and_kept() {
    let node = Node::new();
    let mut numbers = Vec::new();
    for device in node.sim.discover().unwrap() {
        for wanted in &device.injection.nodes {
            let found = fs::metadata(&wanted.host_path).unwrap();
            assert!(found.file_type().is_char_device(), "{wanted:?}");
            assert_eq!(found.mode() & 0o777, 0o666, "{wanted:?}");
            assert!((240..=254).contains(&nix::sys::stat::major(found.rdev())), "{wanted:?}");
            numbers.push((wanted.host_path.clone(), found.rdev(), found.ino()));
        }
        assert_eq!(device.injection.nodes[0].container_path.rsplit('/').nth(1), Some("dev"));
        assert!(fs::read(&device.injection.mounts[0].host_path).is_ok_and(|text| !text.is_empty()));
        assert_eq!(
            device.injection.env,
            [("ACCELPOOL_SIM_PROFILE".to_owned(), "dgx-h100".to_owned())]
        );
    }
    let node = node.restart();
    for (path, rdev, ino) in &numbers {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.rdev(), found.ino()), (*rdev, *ino), "{path} was made anew");
    }
    drop(node);
}

#[test]
fn wrong_nodes_are_replaced() {
    let node = Node::new();
    let path = |name: &str| node.dir.path().join("dev").join(name);
    let before = fs::metadata(path("nvidia0")).unwrap().rdev();
    fs::remove_file(path("nvidia0")).unwrap();
    fs::write(path("nvidia0"), "a file").unwrap();
    fs::remove_file(path("nvidia1")).unwrap();
    fs::rename(path("nvidia2"), path("nvidia1")).unwrap();
    let node = node.restart();
    let rdev = |name: &str| fs::metadata(node.dir.path().join("dev").join(name)).unwrap().rdev();
    assert_eq!(rdev("nvidia0"), before);
    assert_ne!(rdev("nvidia1"), rdev("nvidia2"));
}

#[test]
fn partitions_and_their_nodes_outlive_the_worker() {
    let node = Node::new();
    let made = node.create("3g.40gb", 4).unwrap();
    let node = node.restart();
    assert_eq!(node.sim.partitions(&node.device).unwrap(), slice::from_ref(&made));
    let paths: Vec<PathBuf> = made.injection.nodes.iter().map(|n| (&n.host_path).into()).collect();
    assert!(paths.len() == 6 && paths.iter().all(|path| path.exists()), "{paths:?}");
    node.destroy("3g.40gb", 4).unwrap();
    let left: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
    assert_eq!(left, [true, true, true, true, false, false], "only its own two go: {paths:?}");
    let again = node.create("3g.40gb", 4).unwrap();
    assert_ne!(again.uuid, made.uuid, "an identity is never used again");
}

#[test]
fn a_lost_state_is_a_power_cycle_and_a_damaged_one_an_error() {
    let node = Node::new();
    let made = node.create("1g.10gb", 0).unwrap();
    let state = node.dir.path().join("state.json");
    fs::write(&state, "{").unwrap();
    let refused = node.sim.discover().unwrap_err().to_string();
    assert!(refused.contains("is damaged") && refused.contains("delete the file"), "{refused}");
    let profile = Profile::embedded("dgx-h100").unwrap();
    assert!(Sim::open(profile, node.dir.path()).is_err());
    fs::remove_file(&state).unwrap();
    assert_eq!(node.partitions(), Vec::<String>::new());
    let own = &made.injection.nodes.last().unwrap().host_path;
    assert!(!Path::new(own).exists(), "{own} is left of an earlier life");
    let other = Profile::embedded("mi300x").unwrap();
    let refused = format!("{:?}", Sim::open(other, node.dir.path()).unwrap_err());
    assert!(refused.contains("OtherProfile"), "{refused}");
}

/// Tells this program that it runs without rights, and on which folder.
const FOLDER: &str = "ACCELPOOL_SIM_UNPRIVILEGED_TEST_FOLDER";

/// The child of the test below. A plain run has nothing to do.
#[test]
fn unprivileged() {
    let Some(dir) = env::var_os(FOLDER) else { return };
    let profile = Profile::embedded("dgx-h100").unwrap();
    let refused = Sim::open(profile, Path::new(&dir)).unwrap_err();
    println!("refused: {}", refused.source().unwrap());
}

#[test]
fn without_the_right_to_make_nodes_the_remedy_is_told() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program"); // where everybody can read it
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    for path in [dir.path(), &program] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let ended = Command::new(program)
        .args(["unprivileged", "--exact", "--nocapture"])
        .env(FOLDER, dir.path().join("node"))
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(said.contains("nvidia0` may not be created: run as root with CAP_MKNOD"), "{said}");
}

#[test]
fn the_root_folder_is_refused() {
    let profile = Profile::embedded("dgx-h100").unwrap();
    let refused = format!("{:?}", Sim::open(profile, Path::new("/")).unwrap_err());
    assert!(refused.contains("NotOwn"), "{refused}");
}

#[test]
fn a_fault_is_told_once_whatever_happens_to_workers_and_script() {
    let node = Node::new();
    node.script(&fault("a", "xid-1"));
    assert_eq!(node.events(), ["throttled xid-1"]);
    let node = node.restart();
    assert_eq!(node.events(), Vec::<String>::new());
    node.script(&(fault("b", "xid-2") + &fault("a", "xid-1") + &fault("c", "xid-1")));
    assert_eq!(node.events(), ["throttled xid-2", "throttled xid-1"]);
    let node = node.restart();
    assert_eq!(node.events(), Vec::<String>::new());
}

#[test]
fn a_fault_that_did_not_arrive_is_told_again() {
    let node = Node::new();
    node.script(&fault("a", "xid-1"));
    assert!(node.sim.next_event(LONG).unwrap().is_some());
    let node = node.restart(); // before it was seen to arrive
    assert_eq!(node.events(), ["throttled xid-1"]);
}

#[test]
fn a_waiting_call_sees_a_changed_script() {
    let node = Node::new();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| node.sim.next_event(LONG).unwrap().map(word));
        node.script(&fault("a", "xid-1"));
        assert_eq!(waiting.join().unwrap(), Some("throttled xid-1".to_owned()));
    });
}

#[test]
fn devices_leave_the_bus_and_return() {
    let node = Node::new();
    node.create("1g.10gb", 0).unwrap();
    node.script("absent = [\"gpu-0000-1b-00-0\"]");
    let devices = node.sim.discover().unwrap();
    assert_eq!(devices.len(), 7);
    assert!(devices.iter().all(|device| device.uuid != node.device));
    assert_eq!(node.sim.links().unwrap().len(), 21);
    let gone = VendorError::UnknownDevice(node.device.clone());
    assert_eq!(node.sim.partitions(&node.device), Err(gone.clone()));
    assert_eq!(node.sim.sample(&node.device), Err(gone.clone()));
    assert_eq!(node.sim.probe(&node.device), Err(gone.clone()));
    assert_eq!(node.create("1g.10gb", 1), Err(gone));
    assert_eq!(node.events(), ["devices changed"]);
    let node = node.restart();
    assert_eq!(node.events(), Vec::<String>::new());
    node.script("");
    assert_eq!(node.events(), ["devices changed"]);
    assert_eq!(node.partitions(), ["1g.10gb at 0"]);
}

#[test]
fn the_nth_call_fails_and_no_other() {
    let node = Node::new();
    let every = "method = \"probe\"\nnth = 2\ntimes = 2\nerror = \"failed\"\nmessage = \"no\"";
    node.script(&step("a", every));
    let probe = |node: &Node| node.sim.probe(&node.device).map_err(|error| error.to_string());
    assert_eq!(probe(&node), Ok(()));
    assert_eq!(probe(&node), Err("probe failed: no".to_owned()));
    let node = node.restart();
    assert_eq!(probe(&node), Err("probe failed: no".to_owned()));
    assert_eq!(probe(&node), Ok(()));
    let other = "device = \"gpu-0000-43-00-0\"\nmethod = \"probe\"\nerror = \"library\"";
    node.script(&step("b", other));
    assert_eq!(probe(&node), Ok(()));
}

#[test]
fn a_creation_can_stop_half_way() {
    let node = Node::new();
    let half = "method = \"create_partition\"\nat = \"half-way\"\nerror = \"failed\"";
    node.script(&step("a", half));
    assert!(matches!(node.create("2g.20gb", 2), Err(VendorError::Failed { .. })));
    assert_eq!(node.partitions(), ["2g.20gb at 2 half-created"]);
    let occupied = VendorError::Occupied(node.device.clone());
    assert_eq!(node.create("2g.20gb", 2), Err(occupied.clone()));
    let node = node.restart();
    assert_eq!(node.create("1g.10gb", 3), Err(occupied), "its slices are taken");
    node.destroy("2g.20gb", 2).unwrap();
    assert_eq!(node.partitions(), Vec::<String>::new());
    node.create("2g.20gb", 2).unwrap();
}

#[test]
fn an_answer_can_be_lost_after_all_is_done() {
    let node = Node::new();
    node.script(&step("a", "method = \"create_partition\"\nat = \"after\"\nerror = \"failed\""));
    assert!(node.create("7g.80gb", 0).is_err());
    assert_eq!(node.partitions(), ["7g.80gb at 0"]);
}

#[test]
fn a_call_that_hangs_stops_no_other() {
    let node = Node::new();
    node.script(&step("a", "method = \"create_partition\"\nat = \"half-way\"\nhang = true"));
    let Node { dir, sim, device } = node;
    let sim: &'static Sim = Box::leak(Box::new(sim)); // its thread never ends
    let hung = device.clone();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let answer = sim.create_partition(&hung, &named("1g.10gb"), 0);
        ended.send(answer.is_ok()).ok();
    });
    let listed = || sim.partitions(&device).unwrap();
    while listed().is_empty() {
        thread::yield_now(); // until it is half-way
    }
    assert!(!listed()[0].complete);
    assert_eq!(sim.discover().unwrap().len(), 8);
    sim.create_partition(&device, &named("1g.10gb"), 1).unwrap();
    assert_eq!(end.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(dir);
}

#[test]
fn a_slow_call_ends() {
    let node = Node::new();
    node.script(&step("a", "method = \"discover\"\ndelay_ms = 5"));
    assert_eq!(node.sim.discover().unwrap().len(), 8);
}

#[test]
fn partitions_of_others_appear_once() {
    let node = Node::new();
    node.script(
        "[[partition]]\nid = \"a\"\ndevice = \"gpu-0000-1b-00-0\"\nprofile = \"1g.10gb\"\nstart = 3\n\
         [[partition]]\nid = \"b\"\ndevice = \"gpu-0000-1b-00-0\"\nprofile = \"1g.20gb\"\nstart = 6\n\
         complete = false\n",
    );
    assert_eq!(node.partitions(), ["1g.10gb at 3", "1g.20gb at 6 half-created"]);
    assert_eq!(node.events(), ["devices changed"]);
    node.destroy("1g.10gb", 3).unwrap();
    let node = node.restart();
    assert_eq!(node.partitions(), ["1g.20gb at 6 half-created"]);
}

#[test]
fn processes_are_sampled_where_they_run() {
    let node = Node::new();
    let process = |pid: u32, rest: &str| {
        format!(
            "[[process]]\npid = {pid}\ndevice = \"gpu-0000-1b-00-0\"\nmemory = \"1Gi\"\n{rest}\n"
        )
    };
    let place = "partition = { profile = \"1g.10gb\", start = 0 }\ncompute_permille = 100";
    let text = process(7, place) + &process(8, place) + &process(9, "");
    node.script(&text);
    let pids = || -> Vec<u32> {
        node.sim.sample(&node.device).unwrap().iter().map(|sample| sample.pid).collect()
    };
    assert_eq!(pids(), [9], "the others have no partition to run in");
    let held = node.create("1g.10gb", 0).unwrap_err().to_string();
    assert!(held.ends_with("is in use: process 9"), "{held}");
    node.script(&(process(7, place) + &process(8, place)));
    let made = node.create("1g.10gb", 0).unwrap();
    let samples = node.sim.sample(&node.device).unwrap();
    assert!(samples.iter().all(|sample| sample.partition.as_ref() == Some(&made.uuid)));
    let busy: Vec<_> = samples.iter().map(|sample| sample.compute_busy.unwrap()).collect();
    assert!(busy[0] == busy[1] && busy[0] > Duration::ZERO, "{busy:?}");
    let held = node.destroy("1g.10gb", 0).unwrap_err().to_string();
    assert!(held.ends_with("is in use: process 7"), "{held}");
    node.script("");
    node.destroy("1g.10gb", 0).unwrap();
}

#[test]
fn health_is_what_the_script_says() {
    let node = Node::new();
    node.script(
        "[[health]]\ndevice = \"gpu-0000-1b-00-0\"\nrecovery_action = \"reboot-node\"\n\
         probe_error = \"dead\"\n",
    );
    assert_eq!(node.sim.recovery_action(&node.device), Ok(RecoveryAction::RebootNode));
    let refused = node.sim.probe(&node.device).unwrap_err().to_string();
    assert_eq!(refused, "probe failed: dead");
    node.script("");
    assert_eq!(node.sim.recovery_action(&node.device), Ok(RecoveryAction::None));
    assert_eq!(node.sim.probe(&node.device), Ok(()));
}

#[test]
fn a_broken_script_fails_every_call_until_it_is_mended() {
    let node = Node::new();
    for text in ["absent = [\"gpu-9\"]", "[[fault]]", "\u{0}", "x"] {
        node.script(text);
        let refused = node.sim.discover().unwrap_err();
        assert!(matches!(refused, VendorError::Library(_)), "{refused:?}");
        assert!(refused.to_string().contains("script.toml` is not usable"), "{refused}");
        assert!(node.sim.next_event(LONG).is_err());
    }
    node.script("");
    assert_eq!(node.sim.discover().unwrap().len(), 8);
}
