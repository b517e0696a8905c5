//! A tenant that means harm, with everything that a container of its claim has: the folder and
//! the socket. Its neighbours get what they are owed.

use std::{
    ffi::CString,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    process::{Child, Command},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use accelpool_cuda_engine::suite;
use accelpool_proto::node::ExplainClaimRequest;
use accelpool_shim::{
    CONTROL_FILE, SOCKET_FILE,
    gate::Grant,
    layout::{ControlPage, LAYOUT_HASH, LedgerPage, ProcessPage},
    mapping::{Access, Mapping},
    socket::Connection,
    sys::now_ns,
    wire::{Hello, Record, Refusal},
};
use nix::sys::signal::Signal;

use accelpool_tests::{
    Cgroups, Client, Home,
    tenants::{of_pod, pod_uid},
    wait_for,
};

use crate::scene::{DEVICE, Scene, ask};

const SECOND_NS: u64 = 1_000_000_000;

fn connect(folder: &Path) -> Option<Connection> {
    let folder = CString::new(folder.as_os_str().as_bytes()).unwrap();
    Connection::connect(folder.as_bytes_with_nul(), SOCKET_FILE).ok()
}

fn hello(layout_hash: u64) -> Record {
    Record::Hello(Hello {
        layout_hash,
        shim_version: 1,
        api_version: 13000,
        process_id: std::process::id(),
        monotonic_ns: now_ns(),
        returns: None,
    })
}

/// A client of the claim `hostile` without a shim: its connection, and the pages it was given.
fn register(scene: &Scene) -> (Connection, Mapping<ProcessPage>, Mapping<LedgerPage>) {
    let connection = connect(&scene.home.turns().join("hostile")).unwrap();
    connection.send(&hello(LAYOUT_HASH), None).unwrap();
    let mut answer = connection.receive(60 * SECOND_NS).unwrap();
    assert!(matches!(answer.record, Record::Welcome(_)), "{:?}", answer.record);
    let (_bell, process, ledger) = (
        answer.descriptors.pop().unwrap(),
        answer.descriptors.pop().unwrap(),
        answer.descriptors.pop().unwrap(),
    );
    let process = Mapping::of_sealed(process).unwrap();
    (connection, process, Mapping::of_sealed(ledger).unwrap())
}

/// A scene in which a neighbour shares the device with the claim `hostile`, and works.
fn beside_a_neighbour() -> (Scene, suite::Tenant) {
    let scene = Scene::new();
    scene.share("hostile", 4, 250);
    scene.share("neighbour", 4, 250);
    let mut neighbour = scene.tenant("neighbour");
    neighbour.send("burn 200 600000");
    check_neighbour(&scene);
    (scene, neighbour)
}

/// A neighbour works, and is told to have worked as much as it is owed.
fn check_neighbour(scene: &Scene) {
    check_neighbour_of(scene, "neighbour");
}

fn check_neighbour_of(scene: &Scene, claim: &str) {
    let before = scene.turns_of(claim).unwrap().used_ns;
    scene.until("the neighbour works", claim, |told| told.used_ns > before + 100_000_000);
}

#[test]
fn connections_by_the_thousand_are_bounded() {
    let (mut scene, _neighbour) = beside_a_neighbour();
    let folder = scene.home.turns().join("hostile");
    let files = || {
        let listed = std::fs::read_dir(format!("/proc/{}/fd", scene.daemon.id())).unwrap();
        listed.count()
    };
    let before = files();
    let mut held = Vec::new();
    for number in 0..1000 {
        let Some(connection) = connect(&folder) else { continue };
        // Some say nothing, some what is no record of any version.
        if number % 2 == 0 {
            let _ = connection.send(&hello(0), None);
        }
        held.push(connection);
    }
    check_neighbour(&scene);
    assert!(files() < before + 100, "a tenant fills the daemon's table of files");
    assert!(scene.daemon.is_running());
    drop(held);
    // A process of the same claim that behaves is served again.
    let mut honest = scene.tenant("hostile");
    honest.must("launch 10 1");
    scene.until("it is registered", "hostile", |told| told.pids == [honest.pid()]);
}

#[test]
fn another_layout_is_refused_by_name() {
    let scene = Scene::new();
    scene.share("hostile", 4, 250);
    let connection = connect(&scene.home.turns().join("hostile")).unwrap();
    connection.send(&hello(LAYOUT_HASH ^ 1), None).unwrap();
    let answer = connection.receive(60 * SECOND_NS).unwrap();
    assert_eq!(answer.record, Record::Refused(Refusal::Layout));
}

#[test]
fn scribbling_hurts_the_scribbler_alone() {
    let (mut scene, _neighbour) = beside_a_neighbour();

    let (connection, process, ledger) = register(&scene);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let until = Instant::now() + std::time::Duration::from_secs(3);
    while Instant::now() < until {
        let progress = &process.devices[0];
        for line in &progress.lines {
            line.entering.store(u32::try_from(random() >> 63).unwrap(), Ordering::SeqCst);
            line.submitted.store(random(), Ordering::SeqCst);
            line.submitted_us.store(random(), Ordering::SeqCst);
        }
        progress.drained_epoch.store(u32::try_from(random() >> 32).unwrap(), Ordering::SeqCst);
        progress.lines_len.store(u32::try_from(random() >> 32).unwrap(), Ordering::SeqCst);
        progress.want.store(u32::try_from(random() >> 32).unwrap(), Ordering::SeqCst);
        let words: [&AtomicU64; 4] =
            [&progress.completed, &progress.completed_us, &progress.waited_ns, &progress.came_ns];
        let row = &ledger.devices[0];
        for word in words.into_iter().chain([&row.used, &row.peak, &row.denied]) {
            word.store(random(), Ordering::SeqCst);
        }
        // Rows of all the claim's processes, also of those that there are none of.
        for row in &ledger.rows {
            let marks = [&row.begun, &row.done, &row.process_id];
            for word in marks.into_iter().chain(&row.bytes) {
                word.store(random(), Ordering::SeqCst);
            }
        }
    }
    check_neighbour(&scene);
    assert!(scene.daemon.is_running());
    assert_eq!(scene.turns_of("neighbour").unwrap().memory_denied, 0);
    // Nothing of it outlives the process.
    drop((connection, process, ledger));
    scene.until("it is gone", "hostile", |told| told.pids.is_empty());
    check_neighbour(&scene);
}

/// What the claim's story says of its first violation.
fn violation(client: &Client, claim: &str) -> Option<String> {
    let request = ExplainClaimRequest { claim: claim.to_owned() };
    let answer = client.call(async |mut node| node.explain_claim(request).await).unwrap();
    let event = answer.events.into_iter().find(|event| event.kind == "violated")?;
    Some(event.message)
}

#[test]
fn who_says_to_have_drained_and_always_to_want_gains_nothing() {
    let (mut scene, _neighbour) = beside_a_neighbour();
    let (connection, process, _ledger) = register(&scene);
    let progress = &process.devices[0];
    // A thread that always waits, all work always done, whatever the epoch: it does nothing and
    // would have every turn.
    progress.want.store(1, Ordering::SeqCst);
    let before = scene.turns_of("neighbour").unwrap().used_ns;
    let begin = now_ns();
    let mut epoch = 0_u32;
    let used = loop {
        for _ in 0..1000 {
            epoch = epoch.wrapping_add(1);
            progress.drained_epoch.store(epoch, Ordering::SeqCst);
            progress.completed.store(u64::MAX / 2, Ordering::SeqCst);
        }
        let told = scene.turns_of("neighbour").unwrap();
        let passed_ns = now_ns() - begin;
        if told.used_ns - before > 300_000_000 || passed_ns > 60 * SECOND_NS {
            break told.used_ns - before;
        }
    };
    assert!(used > 300_000_000, "the neighbour got {used} ns in a minute");
    // What it pretended to do was charged to it as turns: it is owed no more than others.
    let told = scene.turns_of("hostile").unwrap();
    assert!(told.turns > 0 && told.used_ns > 0, "its turns are paid for: {told:?}");
    assert!(scene.daemon.is_running());
    drop((connection, process));
    scene.until("it is gone", "hostile", |told| told.pids.is_empty());
}

#[test]
fn a_holder_killed_while_its_gate_closes_holds_up_nobody() {
    let mut scene = Scene::new();
    scene.share("holder", 4, 250);
    scene.share("neighbour", 4, 250);
    let mut neighbour = scene.tenant("neighbour");
    neighbour.send("burn 200 600000");
    let page = std::fs::File::open(scene.home.turns().join("holder").join(CONTROL_FILE)).unwrap();
    let page = Mapping::<ControlPage>::of_file(page.as_raw_fd(), Access::Read).unwrap();
    let is_open = || Grant(page.devices[0].grant.load(Ordering::SeqCst)).may_submit();
    for _ in 0..3 {
        let mut holder = scene.tenant("holder");
        holder.must("alloc 1000000");
        // At the end of a turn the device has one of these to do, which is then nobody's.
        holder.send("burn 15000 600000");
        scene.until("turns of it", "holder", |told| told.turns > 0 && told.used_ns > 0);
        let until = Instant::now() + std::time::Duration::from_mins(1);
        for wanted in [true, false] {
            while is_open() != wanted {
                assert!(Instant::now() < until, "its gate does not move");
                std::thread::yield_now();
            }
        }
        holder.signal(Signal::SIGKILL);
        holder.child.wait().unwrap();
        check_neighbour(&scene);
        scene.until("nothing of it is left", "holder", |told| {
            told.pids.is_empty() && told.memory_used_bytes == 0 && told.state == "idle"
        });
    }
    assert!(scene.daemon.is_running());
}

#[test]
fn a_throttled_holder_holds_up_nobody() {
    let mut scene = Scene::new();
    scene.share("throttled", 4, 500);
    scene.share("neighbour", 4, 250);
    let (mut throttled, mut neighbour) = (scene.tenant("throttled"), scene.tenant("neighbour"));
    throttled.send("burn 200 600000");
    neighbour.send("burn 200 600000");
    scene.until("turns of both", "neighbour", |told| told.turns > 3);
    // As a processor quota does it: it stands for a part of each period, wherever it is then.
    for _ in 0..10 {
        let used = |claim| scene.turns_of(claim).unwrap().used_ns;
        throttled.signal(Signal::SIGSTOP);
        let before = used("neighbour");
        scene.until("the neighbour goes on while it stands", "neighbour", |told| {
            told.used_ns > before + 30_000_000
        });
        let before = used("throttled");
        throttled.signal(Signal::SIGCONT);
        scene.until("it goes on where it was", "throttled", |told| {
            told.used_ns > before + 1_000_000
        });
    }
    assert!(scene.daemon.is_running());
}

/// A process of a claim's pod that uses the device and takes part in no turns: `on_violation` is
/// what becomes of it.
#[track_caller]
fn check_unregistered(on_violation: &str, is_done: impl Fn(&Path, &mut Child) -> bool) {
    let cgroups = Cgroups::new();
    let pod = cgroups.make(&format!("burstable/pod{}/main", pod_uid(1)));
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(pod.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    // Right behind the vendor's own keys.
    let pools =
        format!("[[pool]]\nname = \"all\"\ngate = \"off\"\non_violation = {on_violation:?}\n");
    let home = Home::with_gate("dgx-h100", &format!("turns = true\n\n{pools}"));
    home.sample_every(100, Path::new("/proc"));
    home.script(&format!(
        "[[process]]\npid = {}\ndevice = {DEVICE:?}\nmemory = \"1Gi\"\ncompute_permille = 100\n",
        stranger.id()
    ));
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(of_pod(ask("a", 8, 250), 1)).unwrap();
    let told = wait_for("the violation in the claim's story", || violation(&client, "a"));
    assert!(told.contains("takes no turns"), "{told}");
    let done = || is_done(&pod, &mut stranger).then_some(());
    wait_for(on_violation, done);
    drop(daemon);
    let _ = std::fs::write(pod.join("cgroup.freeze"), "0");
    let _ = stranger.kill();
    stranger.wait().unwrap();
}

#[test]
fn who_takes_no_turns_is_reported_frozen_or_killed() {
    check_unregistered("report", |_, stranger| stranger.try_wait().unwrap().is_none());
    check_unregistered("freeze", |pod, _| {
        std::fs::read_to_string(pod.join("cgroup.events")).unwrap().contains("frozen 1")
    });
    check_unregistered("kill", |_, stranger| stranger.try_wait().unwrap().is_some());
}

/// A registered process that uses the device without passing the gate, as the vendor's figures
/// show, beside one that the vendor sees as busy and that had its turns for it.
#[track_caller]
fn check_out_of_turn(on_violation: &str, is_done: impl Fn(&Path, &mut Child) -> bool) {
    let cgroups = Cgroups::new();
    let pod = cgroups.make(&format!("burstable/pod{}/main", pod_uid(1)));
    let pool = format!("gate = \"off\"\non_violation = {on_violation:?}");
    let home = Home::with_turns_in("dgx-h100", &pool);
    home.sample_every(100, Path::new("/proc"));
    let scene = Scene::of(home, &[DEVICE]);
    scene.client.prepare(of_pod(ask("rogue", 8, 250), 1)).unwrap();
    scene.share("honest", 8, 250);
    let (mut rogue, mut honest) = (scene.tenant("rogue"), scene.tenant("honest"));
    std::fs::write(pod.join("cgroup.procs"), rogue.pid().to_string()).unwrap();
    honest.send("burn 200 600000");
    check_neighbour_of(&scene, "honest");
    let process = |pid, permille| {
        format!(
            "[[process]]\npid = {pid}\ndevice = {DEVICE:?}\nmemory = \"1Gi\"\n\
             compute_permille = {permille}\n"
        )
    };
    scene.home.script(&(process(rogue.pid(), 450) + &process(honest.pid(), 550)));
    let told = wait_for("the violation", || violation(&scene.client, "rogue"));
    assert!(told.contains("they go round the gate"), "{told}");
    wait_for(on_violation, || is_done(&pod, &mut rogue.child).then_some(()));
    assert_eq!(violation(&scene.client, "honest"), None);
    check_neighbour_of(&scene, "honest");
    let _ = std::fs::write(pod.join("cgroup.freeze"), "0");
}

#[test]
fn who_works_outside_of_its_turns_is_reported() {
    check_out_of_turn("report", |_, rogue| rogue.try_wait().unwrap().is_none());
}

#[test]
fn who_works_outside_of_its_turns_is_frozen() {
    check_out_of_turn("freeze", |pod, _| {
        std::fs::read_to_string(pod.join("cgroup.events")).unwrap().contains("frozen 1")
    });
}

#[test]
fn who_works_outside_of_its_turns_is_killed() {
    check_out_of_turn("kill", |_, rogue| rogue.try_wait().unwrap().is_some());
}
