//! Claims that tie devices together, rows of processes, and pages that come back to another
//! arbiter: with connections as a shim makes them, and no device behind.

use std::{
    ffi::CString,
    io::{BufRead, BufReader},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use accelpool_arbiter::{Arbiter, ArmError, ArmedDevice, Arming, Report, Settings};
use accelpool_model::{ClaimId, DeviceUuid, MemoryBytes, ShareClass};
use accelpool_shim::{
    CONTROL_FILE, SOCKET_FILE,
    gate::{Grant, Word},
    layout::{ControlPage, LAYOUT_HASH, LedgerPage, PROCESSES_MAX},
    mapping::{Access, Mapping},
    socket::{Connection, Received},
    sys::{self, now_ns},
    wire::{Hello, Record, Refusal, Returns, Welcome},
};
use tempfile::TempDir;

/// Reached only by a defect.
const PATIENCE: Duration = Duration::from_mins(1);
const PATIENCE_NS: u64 = 60_000_000_000;

fn start(folder: &TempDir) -> Arbiter {
    let policy = accelpool_turns::Settings::default();
    Arbiter::start(folder.path(), Settings { policy, admit: Arc::new(|_, _| true), witness: None })
        .expect("the folder can be used")
}

fn uuid(device: u32) -> DeviceUuid {
    format!("GPU-00000000-0000-4000-8000-{device:012}").parse().expect("an identity")
}

fn arming(claim: &str, devices: &[u32]) -> Arming {
    let device = |device: &u32| ArmedDevice {
        uuid: uuid(*device),
        quota: MemoryBytes::from_gib(1),
        reserve: MemoryBytes::ZERO,
    };
    Arming {
        host: None,
        claim: claim.parse().expect("a claim"),
        devices: devices.iter().map(device).collect(),
        class: ShareClass::Normal,
        weight: 250.try_into().expect("a weight"),
        cap: None,
    }
}

fn connect(folder: &Path) -> Connection {
    let folder = CString::new(folder.as_os_str().as_bytes()).expect("no NUL in it");
    Connection::connect(folder.as_bytes_with_nul(), SOCKET_FILE).expect("somebody listens")
}

fn hello(returns: Option<Returns>) -> Record {
    Record::Hello(Hello {
        layout_hash: LAYOUT_HASH,
        shim_version: 1,
        api_version: 0,
        process_id: std::process::id(),
        monotonic_ns: now_ns(),
        returns,
    })
}

/// Registers, and again while it is told to come again.
fn register(folder: &Path) -> (Connection, Received) {
    let start = Instant::now();
    loop {
        let connection = connect(folder);
        connection.send(&hello(None), None).expect("it is read");
        let answer = connection.receive(PATIENCE_NS).expect("it is answered");
        if answer.record != Record::Refused(Refusal::TooFast) {
            return (connection, answer);
        }
        assert!(start.elapsed() < PATIENCE, "refused for ever");
        thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn welcome(answer: &Received) -> Welcome {
    let Record::Welcome(welcome) = answer.record else {
        panic!("not welcomed: {:?}", answer.record);
    };
    welcome
}

/// The claim's page, as its tenants map it.
fn control(folder: &Path) -> Mapping<ControlPage> {
    let path = CString::new(folder.join(CONTROL_FILE).as_os_str().as_bytes()).expect("no NUL");
    let fd = sys::open(path.as_bytes_with_nul(), sys::Open::Read).expect("it is there");
    let page = Mapping::of_file(fd, Access::Read).expect("it is a page");
    sys::close(fd);
    page
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

fn processes(report: &Report, claim: &str) -> usize {
    let claim: ClaimId = claim.parse().expect("a claim");
    report.claims.iter().find(|it| it.claim == claim).map_or(0, |it| it.processes.len())
}

fn is_open(page: &ControlPage, device: usize) -> bool {
    page.devices[device].grant.read().has(Grant::OPEN)
}

#[test]
fn a_claim_of_several_devices_ties_those_who_are_there() {
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folders: Vec<_> = [("one", &[1][..]), ("two", &[2]), ("three", &[3])]
        .map(|(claim, devices)| arbiter.arm(&arming(claim, devices)).expect("armed"))
        .into();
    let tenants: Vec<_> = folders.iter().map(|folder| register(folder)).collect();
    for tenant in &tenants {
        welcome(&tenant.1);
    }
    let gang = arbiter.arm(&arming("gang", &[1, 2, 3])).expect("armed");
    let gang_tenant = register(&gang);
    welcome(&gang_tenant.1);
    // Nobody was lost on the way from three threads to one, and every gate is served.
    until("all are told of", || {
        let report = arbiter.report();
        ["one", "two", "three", "gang"].iter().all(|claim| processes(&report, claim) == 1)
    });
    let (page, one) = (control(&gang), control(&folders[0]));
    until("an idle gang runs beside the others", || {
        (0..3).all(|device| is_open(&page, device)) && is_open(&one, 0)
    });
    assert_eq!(arbiter.report().devices.len(), 3);
    let claim = "gang".parse().expect("a claim");
    arbiter.disarm(&claim).expect("over");
    assert!(page.devices.iter().take(3).all(|it| it.grant.read().has(Grant::REVOKED)));
    assert!(!gang.exists());
    until("the others go on", || {
        let report = arbiter.report();
        processes(&report, "gang") == 0 && processes(&report, "three") == 1
    });
    // A later claim of one of the devices finds its way.
    let late = arbiter.arm(&arming("late", &[2])).expect("armed");
    welcome(&register(&late).1);
}

#[test]
fn rows_are_bounded_and_come_back() {
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folder = arbiter.arm(&arming("claim", &[1])).expect("armed");
    let mut tenants: Vec<_> = (0..PROCESSES_MAX).map(|_| register(&folder)).collect();
    let mut rows: Vec<u32> = tenants.iter().map(|it| welcome(&it.1).process_index).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), PROCESSES_MAX);
    let (_, answer) = register(&folder);
    assert_eq!(answer.record, Record::Refused(Refusal::TooMany));
    tenants.pop();
    // This process is not over, so the row is free once it counts as left.
    until("a row is free", || matches!(register(&folder).1.record, Record::Welcome(_)));
}

#[test]
fn pages_come_back_to_the_next_arbiter() {
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folder = arbiter.arm(&arming("claim", &[1])).expect("armed");
    let page = control(&folder);
    let (connection, mut answer) = register(&folder);
    let first = welcome(&answer);
    let pages = [0, 1, 2].map(|_| answer.descriptors.pop().expect("three descriptors"));
    let [_bell, process, ledger_fd] = pages;
    let ledger = Mapping::<LedgerPage>::of_sealed(ledger_fd).expect("a sealed page");
    let quota = 1 << 30;
    let account = ledger.account(usize::try_from(first.process_index).expect("a row"), 0);
    let held = account.expect("a row").reserve(4096, quota).expect("within the quota").commit();
    assert_eq!(held, 4096);
    until("its gate opens", || is_open(&page, 0));

    drop(arbiter);
    let arbiter = start(&root);
    assert_eq!(arbiter.left_behind().expect("listed"), ["claim".parse().expect("a claim")]);
    arbiter.arm(&arming("claim", &[1])).expect("armed");
    assert!(page.devices[0].grant.read().may_submit(), "who runs is not stopped");
    assert!(page.incarnation.load(Ordering::SeqCst) > first.incarnation);
    // Pages of nobody are refused, and cost the right ones nothing.
    let (_, foreign) = Mapping::<LedgerPage>::sealed(c"foreign").expect("a page");
    let returns = Returns { incarnation: first.incarnation, process_index: first.process_index };
    let stranger = connect(&folder);
    let foreign = std::os::fd::AsRawFd::as_raw_fd(&foreign);
    stranger.send(&hello(Some(returns)), Some([foreign, process])).expect("read");
    let refused = stranger.receive(PATIENCE_NS).expect("answered").record;
    assert_eq!(refused, Record::Refused(Refusal::Pages));

    drop(connection);
    let connection = connect(&folder);
    connection.send(&hello(Some(returns)), Some([ledger_fd, process])).expect("read");
    let answer = connection.receive(PATIENCE_NS).expect("answered");
    let again = welcome(&answer);
    assert!(again.keeps_pages);
    assert_eq!((again.process_index, answer.descriptors.len()), (first.process_index, 1));
    until("its bytes are told", || {
        let report = arbiter.report();
        report.claims.iter().any(|it| it.memory_used.bytes() == 4096 && it.processes.len() == 1)
    });
    // Another process of the claim shares the ledger that came back.
    let (_connection, mut answer) = register(&folder);
    welcome(&answer);
    let pages = [0, 1, 2].map(|_| answer.descriptors.pop().expect("three descriptors"));
    let shared = Mapping::<LedgerPage>::of_sealed(pages[2]).expect("a sealed page");
    assert_eq!(shared.devices[0].used.load(Ordering::SeqCst), 4096);
}

#[test]
fn a_parked_claim_is_off_its_devices_until_it_is_resumed() {
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folders = [("parked", &[1, 2][..]), ("other", &[1])]
        .map(|(claim, devices)| arbiter.arm(&arming(claim, devices)).expect("armed"));
    let tenants = folders.each_ref().map(|folder| register(folder));
    for tenant in &tenants {
        welcome(&tenant.1);
    }
    let [parked, other] = folders.each_ref().map(|folder| control(folder));
    until("all gates are open", || is_open(&parked, 1) && is_open(&other, 0));
    let claim: ClaimId = "parked".parse().expect("a claim");
    arbiter.park(&claim);
    let grants = || [0, 1].map(|device: usize| parked.devices[device].grant.read());
    until("parked", || grants().iter().all(|it| it.has(Grant::PARK) && !it.may_submit()));
    let is_told_parked = || {
        let report = arbiter.report();
        let its = report.claims.iter().filter(|it| it.claim == claim);
        its.filter(|it| it.state == "parked").count() == 2
    };
    until("it is told so", is_told_parked);
    assert!(is_open(&other, 0), "nobody else is held up");
    // With other terms it is parked all the same, and its processes stay registered.
    arbiter
        .arm(&Arming { weight: 500.try_into().expect("a weight"), ..arming("parked", &[1, 2]) })
        .expect("armed");
    until("the new terms", || parked.devices[0].weight.load(Ordering::SeqCst) == 500);
    let beat = parked.heartbeat_ns.load(Ordering::SeqCst);
    until("a look later", || parked.heartbeat_ns.load(Ordering::SeqCst) > beat && is_told_parked());
    assert!(grants().iter().all(|it| !it.may_submit()));
    assert_eq!(processes(&arbiter.report(), "parked"), 1);
    arbiter.resume(&claim);
    until("its gates are open again", || grants().iter().all(|it| it.has(Grant::OPEN)));
}

/// Registers, forks, and has the child keep what it inherits until its input ends.
const FORKS: &str = "use Socket; $| = 1; socket(S, AF_UNIX, SOCK_SEQPACKET, 0) or die $!; \
    connect(S, pack_sockaddr_un($ARGV[0])) or die $!; send(S, pack('C*', split ' ', $ARGV[1]), 0) or die $!; \
    recv(S, $answer, 4096, 0); if (!fork()) { <STDIN>; exit } print \"forked\\n\"; wait";

#[test]
fn who_ends_has_left_although_a_child_holds_its_connection() {
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folder = arbiter.arm(&arming("claim", &[1])).expect("armed");
    let hello = hello(None).encode().map(|byte| byte.to_string()).join(" ");
    let mut command = Command::new("perl");
    command.args(["-e", FORKS]).arg(folder.join(SOCKET_FILE)).arg(hello);
    let mut parent = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("perl");
    let _child_lives = parent.stdin.take();
    let mut line = String::new();
    let said = parent.stdout.take().expect("it is piped");
    BufReader::new(said).read_line(&mut line).expect("it speaks");
    assert_eq!(line, "forked\n");
    until("the parent takes part", || processes(&arbiter.report(), "claim") == 1);
    parent.kill().expect("a child can be killed");
    parent.wait().expect("a child can be waited for");
    until("it has left", || processes(&arbiter.report(), "claim") == 0);
}

#[test]
fn who_is_late_after_a_restart_keeps_its_row_and_its_bytes() {
    // All claims' pages are this one process's here: the name tells this test's own.
    let root = TempDir::new().expect("a folder");
    let arbiter = start(&root);
    let folder = arbiter.arm(&arming("late", &[1])).expect("armed");
    let (connection, mut answer) = register(&folder);
    let first = welcome(&answer);
    let [_bell, process, ledger_fd] = [0, 1, 2].map(|_| answer.descriptors.pop().expect("three"));
    let ledger = Mapping::<LedgerPage>::of_sealed(ledger_fd).expect("a sealed page");
    let account = ledger.account(usize::try_from(first.process_index).expect("a row"), 0);
    let held = account.expect("a row").reserve(4096, 1 << 30).expect("within the quota").commit();
    assert_eq!(held, 4096);
    drop((connection, arbiter));

    let arbiter = start(&root);
    arbiter.arm(&arming("late", &[1])).expect("armed");
    let used = || {
        let report = arbiter.report();
        report.claims.first().map_or(0, |it| it.memory_used.bytes())
    };
    // Another process of the claim comes first, at once, and gets a row of its own.
    let (_other, answer) = register(&folder);
    assert_ne!(welcome(&answer).process_index, first.process_index);
    until("what the absent one holds is told", || used() == 4096);
    // Longer than any shim waits between two tries.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        assert_eq!(used(), 4096, "it lives, and holds what it held");
        thread::sleep(Duration::from_millis(50));
    }
    let returns = Returns { incarnation: first.incarnation, process_index: first.process_index };
    let connection = connect(&folder);
    connection.send(&hello(Some(returns)), Some([ledger_fd, process])).expect("read");
    let again = welcome(&connection.receive(PATIENCE_NS).expect("answered"));
    assert_eq!((again.keeps_pages, again.process_index), (true, first.process_index));
    until("both take part", || processes(&arbiter.report(), "late") == 2 && used() == 4096);
}

#[track_caller]
fn check_refused(devices: &[u32], expected: &str) {
    let root = TempDir::new().expect("a folder");
    let refused: ArmError = start(&root).arm(&arming("claim", devices)).expect_err("refused");
    assert_eq!(refused.to_string(), expected);
    let mut left = root.path().read_dir().expect("a folder");
    assert!(left.next().is_none(), "nothing was changed");
}

#[test]
fn what_cannot_be_is_refused() {
    check_refused(&[], "a claim that takes turns has 1 to 16 devices, not 0");
    let many: Vec<u32> = (0..17).collect();
    check_refused(&many, "a claim that takes turns has 1 to 16 devices, not 17");
    check_refused(&[1, 1], "device GPU-00000000-0000-4000-8000-000000000001 is named twice");
}
