//! NVIDIA's MPS for a pool that asks for it, with a stand-in for the driver's control program in a
//! root of its own.
//!
//! Needs root, `CAP_SYS_ADMIN` and Debian's busybox-static.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use accelpool_proto::node::{ExplainClaimRequest, Lease};
use accelpool_tests::{
    Client, Home, page,
    requests::{claim, named, share},
    wait_for,
};

const DEVICE: &str = "gpu-0000-1b-00-0";
const OTHER: &str = "gpu-0000-43-00-0";
const GIB: u64 = 1 << 30;

/// A node whose devices are simulated and whose driver is a busybox with the stand-in.
fn home() -> Home {
    let home = Home::new("dgx-h100");
    let driver = home.sim().join("driver");
    for folder in ["bin", "usr/bin", "run", "dev/shm", "proc"] {
        fs::create_dir_all(driver.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", driver.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "rm"] {
        symlink("busybox", driver.join("bin").join(applet)).unwrap();
    }
    let program = driver.join("usr/bin/nvidia-cuda-mps-control");
    let text = include_str!("../../vendors/nvidia/standin/nvidia-cuda-mps-control");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = fs::read_to_string(home.config()).unwrap();
    let more = format!(
        "\n[[vendor]]\nname = \"nvidia\"\ndriver_root = {:?}\nmachine_root = {:?}\n\
         \n[[pool]]\nname = \"all\"\nmps = true\n",
        driver.to_str().unwrap(),
        home.sim().join("machine").to_str().unwrap(),
    );
    fs::write(home.config(), config + &more).unwrap();
    home
}

fn folder(home: &Home, device: &str) -> PathBuf {
    home.run().join("mps").join(device)
}

fn pid(folder: &Path) -> Option<u32> {
    let pid = fs::read_to_string(folder.join("pipe/pid")).ok()?.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

fn prepare(client: &Client, name: &str, device: &str) -> Result<Lease, tonic::Status> {
    client.prepare(claim(name, vec![share("gpu", device, GIB, 250)]))
}

/// What has happened to a claim.
fn story(client: &Client, name: &str) -> String {
    let request = ExplainClaimRequest { claim: name.to_owned() };
    let answer = client.call(async |mut node| node.explain_claim(request).await).unwrap();
    let words = answer.events.iter().map(|event| format!("{} {}", event.error_code, event.message));
    words.collect::<Vec<_>>().join("\n")
}

fn spec(home: &Home, name: &str) -> String {
    let files = fs::read_dir(home.cdi()).unwrap().flatten();
    let texts = files.map(|file| fs::read_to_string(file.path()).unwrap());
    texts.filter(|text| text.contains(&format!("{name}-gpu"))).collect()
}

/// Ends what a test has started, whatever became of it.
struct Clearing<'a>(&'a Home);

impl Drop for Clearing<'_> {
    fn drop(&mut self) {
        for device in [DEVICE, OTHER] {
            let folder = folder(self.0, device);
            let running = pid(&folder);
            let _ = fs::write(folder.join("pipe/quit"), "");
            // Before its folder goes: it must not be left looking at nothing.
            let ends = |pid: u32| !Path::new(&format!("/proc/{pid}/exe")).exists();
            let mut looks = 0..2000;
            while running.is_some_and(|pid| !ends(pid)) && looks.next().is_some() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let _ = nix::mount::umount2(&folder, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

#[test]
fn a_device_is_served_from_its_first_share_to_its_last() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    let client = daemon.client();
    let lease = prepare(&client, "a", DEVICE).unwrap();
    assert_eq!(lease.allocations[0].enforcement.as_ref().unwrap().memory, "none");
    let (first, other) = (folder(&home, DEVICE), folder(&home, OTHER));
    let running = pid(&first).unwrap();
    let uuid = &lease.allocations[0].device_uuid;
    assert_eq!(fs::read_to_string(first.join("pipe/devices")).unwrap().trim(), uuid);
    // Its shared memory is the folder that clients get.
    assert_eq!(fs::read_to_string(first.join("shm/seen")).unwrap().trim(), running.to_string());
    let spec = spec(&home, "a");
    for words in [
        "CUDA_MPS_PIPE_DIRECTORY=/run/accelpool-mps".to_owned(),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25".to_owned(),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=1024M".to_owned(),
        format!("{}/pipe", first.display()),
        "\"rw\"".to_owned(),
    ] {
        assert!(spec.contains(&words), "{words} is not in {spec}");
    }
    prepare(&client, "b", DEVICE).unwrap();
    assert_eq!(pid(&first), Some(running));
    assert!(!other.exists());
    client.release("a").unwrap();
    assert_eq!(pid(&first), Some(running));
    client.release("b").unwrap();
    wait_for("MPS to be stopped", || (!first.exists()).then_some(()));
    assert!(!Path::new(&format!("/proc/{running}/cwd")).join("x").exists());
    // Whole devices and partitions are none of its business.
    client.prepare(claim("c", vec![named("gpu", DEVICE)])).unwrap();
    assert!(!first.exists());
}

#[test]
fn it_outlives_the_daemon_and_is_taken_over() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    prepare(&daemon.client(), "a", DEVICE).unwrap();
    prepare(&daemon.client(), "b", OTHER).unwrap();
    let (first, other) = (folder(&home, DEVICE), folder(&home, OTHER));
    let running = pid(&first).unwrap();
    daemon.kill();
    assert_eq!(pid(&first), Some(running));
    let daemon = home.start();
    let client = daemon.client();
    prepare(&client, "c", DEVICE).unwrap();
    assert_eq!(pid(&first), Some(running));
    for name in ["a", "b", "c"] {
        client.release(name).unwrap();
    }
    wait_for("MPS to be stopped", || (!first.exists() && !other.exists()).then_some(()));
}

#[test]
fn one_that_dies_is_started_anew_and_told_of_all_it_served() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    let client = daemon.client();
    for (name, device) in [("a", DEVICE), ("b", DEVICE), ("c", OTHER)] {
        prepare(&client, name, device).unwrap();
    }
    let first = folder(&home, DEVICE);
    let running = pid(&first).unwrap();
    let process = nix::unistd::Pid::from_raw(i32::try_from(running).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("a new one", || pid(&first).filter(|pid| *pid != running));
    for name in ["a", "b"] {
        wait_for("the story", || story(&client, name).contains("was gone").then_some(()));
        assert!(story(&client, name).contains("AP0132"), "{}", story(&client, name));
    }
    assert!(!story(&client, "c").contains("AP0132"));
}

#[test]
fn one_that_is_stuck_is_ended_also_by_a_daemon_that_did_not_start_it() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    prepare(&daemon.client(), "a", DEVICE).unwrap();
    let first = folder(&home, DEVICE);
    let running = pid(&first).unwrap();
    daemon.kill();
    // Its pipe does not answer any more, though its process is there.
    fs::remove_file(first.join("pipe/pid")).unwrap();
    let daemon = home.start();
    wait_for("a new one", || pid(&first).filter(|pid| *pid != running));
    let left = Path::new("/proc").join(running.to_string()).join("exe");
    assert!(!left.exists(), "the stuck one is still there");
    daemon.client().release("a").unwrap();
    wait_for("MPS to be stopped", || (!first.exists()).then_some(()));
}

#[test]
fn a_fault_of_one_client_is_told_of_all() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    let client = daemon.client();
    prepare(&client, "a", DEVICE).unwrap();
    prepare(&client, "b", DEVICE).unwrap();
    let pipe = folder(&home, DEVICE).join("pipe");
    fs::write(pipe.join("clients"), "101\n102\n").unwrap();
    fs::write(pipe.join("status"), "FAULT\n").unwrap();
    fs::write(pipe.join("servers"), "77\n").unwrap();
    for name in ["a", "b"] {
        let words = "a fatal fault of one client of MPS server 77";
        wait_for("the story", || story(&client, name).contains(words).then_some(()));
        assert!(story(&client, name).contains("(clients: 101, 102)"));
    }
}

#[test]
fn what_cannot_be_served_is_refused() {
    let home = home();
    let _clearing = Clearing(&home);
    let daemon = home.start();
    let client = daemon.client();
    // One process is a client of one control daemon.
    let two = vec![share("x", DEVICE, GIB, 250), share("y", OTHER, GIB, 250)];
    let refused = client.prepare(claim("two", two)).unwrap_err();
    assert_eq!(page(&refused), Some("AP0105"), "{refused}");
    let program = home.sim().join("driver/usr/bin/nvidia-cuda-mps-control");
    fs::remove_file(&program).unwrap();
    let failed = prepare(&client, "a", DEVICE).unwrap_err();
    assert_eq!(page(&failed), Some("AP0132"), "{failed}");
    assert!(failed.message().contains("nvidia-cuda-mps-control"), "{failed}");
    assert_eq!(client.claims().unwrap(), []);
}
