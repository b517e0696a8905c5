//! Ends and beginnings: drained, killed, emptied, hung, damaged; what was promised stays.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    collections::BTreeMap, fs, path::Path, process::Output, sync::Arc, thread, time::Duration,
};

use accelpool_daemon::{
    audit,
    cdi::SpecFolder,
    error::Chain,
    fault_point::FaultPoints,
    gate::Keeper,
    node::{Node, Start},
    worker::{Deadlines, Launch, Worker},
};
use accelpool_ledger::Ledger;
use accelpool_model::{
    Claim, ComputeRule, Enforcements, Exposure, GateMode, OnStaleHolder, OnViolation, Pool,
    Selector, Sharing, Topology, Wanted,
};
use accelpool_proto::node::{GetMetricsRequest, PrepareClaimRequest};
use accelpool_tests::{
    Client, Daemon, Home, page, program,
    requests::{claim, named, share},
    rules::Picture,
    wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

const WHOLE: &str = "gpu-0000-1b-00-0";
const SHARED: &str = "gpu-0000-43-00-0";
const OTHER: &str = "gpu-0000-61-00-0";
const PART: &str = "gpu-0000-52-00-0-mig-1g-10gb-4";

fn requests() -> [PrepareClaimRequest; 3] {
    [
        claim("whole", vec![named("gpu", WHOLE)]),
        claim("share", vec![share("gpu", SHARED, 1 << 30, 100)]),
        claim("part", vec![named("part", PART)]),
    ]
}

/// A node with one claim of each kind.
fn busy_node() -> (Home, Daemon, Picture) {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    for request in requests() {
        client.prepare(request).unwrap();
    }
    client.taint(OTHER, "a fan is loud").unwrap();
    let picture = Picture::take(&home, &client);
    assert_eq!(picture.faults(), Vec::<String>::new());
    assert_eq!(picture.leases.len(), 3);
    (home, daemon, picture)
}

/// The hardware has begun call `id` of its script.
fn in_hand(home: &Home, id: &str) {
    wait_for("a call in hand", || {
        let state = fs::read_to_string(home.sim().join("state.json")).ok()?;
        let state: serde_json::Value = serde_json::from_str(&state).ok()?;
        state["calls"][id].as_u64().filter(|count| *count > 0)
    });
}

#[test]
fn a_restart_changes_nothing() {
    let (home, mut daemon, before) = busy_node();
    daemon.terminate();
    assert!(daemon.wait().success());
    assert!(!home.socket().exists(), "the socket goes with the daemon");
    let daemon = home.start();
    assert_eq!(Picture::take(&home, &daemon.client()), before);
    daemon.kill();
    let daemon = home.start();
    assert_eq!(Picture::take(&home, &daemon.client()), before);
    for (request, lease) in requests().into_iter().zip(["whole", "share", "part"]) {
        assert_eq!(Some(&daemon.client().prepare(request).unwrap()), before.lease(lease));
    }
}

#[test]
fn a_drain_finishes_what_is_in_hand_and_takes_nothing_new() {
    let (home, mut daemon, _) = busy_node();
    home.script(
        "[[call]]\nid = \"slow\"\nmethod = \"create_partition\"\nat = \"half-way\"\n\
         delay_ms = 1000\n",
    );
    let request = claim("late", vec![named("part", &format!("{OTHER}-mig-3g-40gb-4"))]);
    let (socket, asked) = (home.socket(), request.clone());
    let asking = thread::spawn(move || Client::connect(&socket).prepare(asked));
    in_hand(&home, "slow");
    let client = daemon.client();
    client.claims().unwrap();
    daemon.terminate();
    wait_for("a draining daemon", || match client.node() {
        Ok(node) => (node.state == "draining").then_some(()),
        Err(_) => Some(()), // a slow test finds the drain over
    });
    let refused = client.prepare(claim("new", vec![share("gpu", SHARED, 1, 1)])).unwrap_err();
    assert!(matches!(page(&refused), Some("AP0115") | None), "{refused}");
    let lease = asking.join().unwrap().unwrap();
    assert!(daemon.wait().success());

    let daemon = home.start();
    let picture = Picture::take(&home, &daemon.client());
    assert_eq!(picture.faults(), Vec::<String>::new());
    assert_eq!(picture.lease("late"), Some(&lease));
    assert_eq!(picture.leases.len(), 4);
}

#[test]
fn specs_are_right_before_anybody_can_ask() {
    let (home, daemon, before) = busy_node();
    daemon.kill();
    // As after a boot.
    fs::remove_dir_all(home.cdi()).unwrap();
    let daemon = home.start();
    assert_eq!(Picture::take(&home, &daemon.client()), before);
    daemon.kill();
    // As after a driver was loaded again, with leftovers and somebody else's files besides.
    let spec = home.cdi().join("accelpool.dev-claim_whole.json");
    let text = fs::read_to_string(&spec).unwrap().replace("\"major\": ", "\"major\": 1");
    fs::write(&spec, text).unwrap();
    fs::copy(&spec, home.cdi().join("accelpool.dev-claim_gone.json")).unwrap();
    fs::write(home.cdi().join("accelpool.dev-claim_whole.json.tmp"), "{").unwrap();
    fs::write(home.cdi().join("other.json"), "theirs").unwrap();
    let daemon = home.start();
    let mut after = Picture::take(&home, &daemon.client());
    assert_eq!(after.specs.remove("other.json").as_deref(), Some("theirs"));
    assert_eq!(after, before);
}

#[test]
fn a_worker_that_dies_is_started_again() {
    let (home, daemon, before) = busy_node();
    let client = daemon.client();
    let workers = daemon.workers();
    assert_eq!(workers.len(), 1);
    for worker in workers {
        kill(Pid::from_raw(i32::try_from(worker).unwrap()), Signal::SIGKILL).unwrap();
    }
    assert_eq!(Picture::take(&home, &client), before);
    let request = claim("next", vec![named("part", &format!("{OTHER}-mig-1g-10gb-0"))]);
    wait_for("a worker that answers", || match client.prepare(request.clone()) {
        Ok(lease) => Some(lease),
        Err(status) => {
            // Its partition may still be cleared away by the time of the next try.
            assert!(matches!(page(&status), Some("AP0114" | "AP0111")), "{status}");
            None
        }
    });
    let picture = Picture::take(&home, &client);
    assert_eq!(picture.faults(), Vec::<String>::new());
    assert_eq!(picture.leases.len(), 4);
    assert!(client.node().unwrap().vendors[0].restarts >= 1);
}

#[test]
fn a_vendor_that_hangs_holds_up_nobody_else() {
    let (home, daemon, _) = busy_node();
    // A device leaves, so that the vendor is asked what there is; it does not answer.
    home.script(
        "absent = [\"gpu-0000-df-00-0\"]\n\n\
         [[call]]\nid = \"stuck\"\nmethod = \"discover\"\nhang = true\n",
    );
    in_hand(&home, "stuck");
    let client = daemon.client();
    assert_eq!(client.claims().unwrap().len(), 3);
    client.prepare(claim("more", vec![share("gpu", SHARED, 1, 1)])).unwrap();
    client.prepare(claim("another", vec![named("gpu", OTHER)])).unwrap();
    assert!(client.release("whole").unwrap());
    assert_eq!(client.claims().unwrap().len(), 4);
}

/// The node inside this process, with the worker outside it and little patience with it.
async fn impatient_node(home: &Home) -> Node {
    let boot: accelpool_model::BootId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
    fs::create_dir_all(home.ledger().parent().unwrap()).unwrap();
    let (ledger, replayed) = Ledger::open(&home.ledger(), &boot).unwrap();
    let arguments = ["vendor-worker", "sim", "--profile", "dgx-h100", "--dir"];
    let arguments = arguments.into_iter().map(Into::into);
    let launch = Launch::Process {
        program: program().to_owned(),
        arguments: arguments.chain([home.sim().into()]).collect(),
    };
    // Reading may take as long as it takes on a loaded machine.
    let deadlines = Deadlines { read: Duration::from_mins(1), change: Duration::from_secs(1) };
    let pool = Pool {
        name: "default".parse().unwrap(),
        selector: Selector::default(),
        exposure: Exposure::default(),
        sharing: Sharing::default(),
        switch_mode: false,
        mps: false,
        settings: accelpool_model::Settings::default(),
        gate: GateMode::default(),
        on_stale_holder: OnStaleHolder::default(),
        compute: ComputeRule::default(),
        host_memory: None,
        on_violation: OnViolation::default(),
        align_cpus: false,
    };
    let start = Start {
        boot,
        pools: vec![pool],
        topology: Topology::default(),
        workers: vec![Worker::new("sim".parse().unwrap(), launch, deadlines)],
        observe_interval: Duration::from_secs(1),
        ledger,
        replayed,
        specs: SpecFolder::open(&home.cdi()).unwrap(),
        gate: Keeper::without_gate(),
        turns: accelpool_daemon::turns::Keeper::off(),
        spans: accelpool_daemon::trace::Spans::new(),
        mps: None,
        audit: audit::Log::open(&home.ledger().with_file_name("audit"), audit::Limits::default())
            .unwrap(),
        faults: FaultPoints::default(),
    };
    start.run().await.unwrap().0
}

fn claim_of(name: &str, device: &str) -> Claim {
    let request = accelpool_model::Request {
        name: "gpu".parse().unwrap(),
        wanted: Wanted::Named(device.to_owned()),
        share: None,
        demand: Enforcements::default(),
        share_id: None,
        admin: false,
    };
    Claim { id: name.parse().unwrap(), requests: vec![request], labels: BTreeMap::default() }
}

#[tokio::test]
async fn a_partition_that_hangs_fails_and_is_cleared_away() {
    let home = Home::new("dgx-h100");
    home.script(
        "[[call]]\nid = \"stuck\"\nmethod = \"create_partition\"\nat = \"half-way\"\n\
         hang = true\n",
    );
    let node = impatient_node(&home).await;
    let asked = node.clone();
    let hanging = tokio::spawn(async move { asked.prepare(claim_of("part", PART)).await });
    let home = Arc::new(home);
    let looking = Arc::clone(&home);
    tokio::task::spawn_blocking(move || in_hand(&looking, "stuck")).await.unwrap();
    node.prepare(claim_of("whole", WHOLE)).await.unwrap();
    node.prepare(claim_of("other", OTHER)).await.unwrap();
    let failed = hanging.await.unwrap().unwrap_err();
    let words = Chain(&failed).to_string();
    assert!(words.contains("took longer than 1s, its worker was killed"), "{words}");
    // Its half of a partition goes as soon as a fresh worker answers.
    let mut revisions = node.revisions();
    let cleared = async {
        while node.read(None).await.unwrap().leases.len() > 2 {
            revisions.changed().await.unwrap();
        }
    };
    tokio::time::timeout(accelpool_tests::LONG, cleared).await.unwrap();
    assert_eq!(accelpool_tests::rules::hardware(&home), []);
    node.prepare(claim_of("part", PART)).await.unwrap();
}

/// The code that a daemon ended with.
#[track_caller]
fn code(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let code = said.split("error[").nth(1).and_then(|rest| rest.split(']').next());
    let code = code.unwrap_or_else(|| panic!("no code in {said}")).to_owned();
    assert!(said.contains(&format!("help: see docs/errors/{code}.md")), "{said}");
    code
}

fn run(home: &Home) -> Output {
    home.run_program(&["run", "--config", home.config().to_str().unwrap()])
}

#[test]
fn a_second_daemon_is_refused_and_the_first_undisturbed() {
    let (home, daemon, before) = busy_node();
    assert_eq!(code(&run(&home)), "AP0005");
    assert_eq!(Picture::take(&home, &daemon.client()), before);
    // With a ledger of its own it must not take the socket either.
    let config = fs::read_to_string(home.config()).unwrap();
    let elsewhere = config.replace("/state\"", "/state-2\"").replace("/cdi\"", "/cdi-2\"");
    assert_ne!(elsewhere, config);
    fs::write(home.config(), elsewhere).unwrap();
    assert_eq!(code(&run(&home)), "AP0011");
    assert_eq!(Picture::take(&home, &daemon.client()), before);
}

#[test]
fn without_a_place_for_turns_it_does_not_start() {
    let home = Home::with_turns("dgx-h100");
    // A file where the folder of the library, or of the claims, must be.
    let shim = home.config().parent().unwrap().join("state/shim");
    fs::create_dir_all(shim.parent().unwrap()).unwrap();
    for place in [shim, home.turns()] {
        fs::write(&place, "in the way").unwrap();
        let refused = run(&home);
        assert_eq!(code(&refused), "AP0015");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(place.to_str().unwrap()), "it says which: {said}");
        fs::remove_file(&place).unwrap();
    }
    let daemon = home.start();
    assert!(!daemon.client().turns().unwrap().shim.is_empty());
}

/// A ledger of two claims, of a daemon that was stopped.
fn closed_ledger() -> (Home, Vec<u8>) {
    let home = Home::new("dgx-h100");
    let mut daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("precious", vec![named("gpu", WHOLE)])).unwrap();
    client.prepare(claim("fragile", vec![named("gpu", SHARED)])).unwrap();
    daemon.terminate();
    assert!(daemon.wait().success());
    let bytes = fs::read(home.ledger()).unwrap();
    (home, bytes)
}

/// Flips one bit of each place where the claim `name` is written.
fn flipped(bytes: &[u8], name: &str) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let places: Vec<_> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| *window == name.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        flipped[at + 1] ^= 1;
    }
    flipped
}

#[test]
fn a_ledger_that_cannot_be_read_stops_the_daemon_and_stays_as_it_is() {
    let (home, good) = closed_ledger();
    let newer = {
        let mut bytes = good.clone();
        bytes[16..20].copy_from_slice(&2_u32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let cases = [
        ("AP0001", Vec::new()),
        ("AP0001", good[..100].to_vec()),
        ("AP0001", good[..good.len() / 2].to_vec()),
        ("AP0001", flipped(&good, "precious")),
        ("AP0002", newer),
        ("AP0003", b"SQLite format 3\0 and so on, for more than one page".repeat(200)),
        ("AP0003", vec![0; good.len()]),
    ];
    for (expected, bytes) in cases {
        fs::write(home.ledger(), &bytes).unwrap();
        let output = run(&home);
        assert_eq!(code(&output), expected, "a file of {} bytes", bytes.len());
        assert_eq!(fs::read(home.ledger()).unwrap(), bytes, "{expected}: the file is as it was");
        assert!(!home.socket().exists(), "{expected}: nobody serves");
        assert!(home.cdi().join("accelpool.dev-claim_precious.json").exists());
    }
    fs::remove_file(home.ledger()).unwrap();
    fs::create_dir(home.ledger()).unwrap();
    assert_eq!(code(&run(&home)), "AP0003");
    fs::remove_dir(home.ledger()).unwrap();
    // The good one is still good.
    fs::write(home.ledger(), &good).unwrap();
    assert_eq!(home.start().client().claims().unwrap().len(), 2);
}

#[test]
fn the_way_out_of_a_damaged_ledger_works() {
    let (home, good) = closed_ledger();
    let (ledger, json) = (home.ledger(), home.ledger().with_extension("json"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (ledger_text, json_text) = (text(&ledger), text(&json));
    fs::write(&ledger, flipped(&good, "fragile")).unwrap();
    assert_eq!(code(&run(&home)), "AP0001");
    assert_eq!(code(&home.run_program(&["ledger", "export", &ledger_text])), "AP0001");

    let output = home.run_program(&["ledger", "export", "--salvage", &ledger_text]);
    assert!(output.status.success(), "{output:?}");
    let mut export: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(export["unreadable"], serde_json::json!([]), "the loss is told");
    fs::rename(&ledger, ledger.with_extension("damaged")).unwrap();
    fs::write(&json, export.to_string()).unwrap();
    let import = || home.run_program(&["ledger", "import", &json_text, &ledger_text]);
    let refused = import();
    assert!(!refused.status.success(), "losses are dealt with by a person first");
    assert!(!ledger.exists());

    export["unreadable"] = serde_json::json!([]);
    fs::write(&json, export.to_string()).unwrap();
    let made = import();
    assert!(made.status.success(), "{made:?}");
    assert!(!import().status.success(), "a ledger is never overwritten");
    let daemon = home.start();
    let picture = Picture::take(&home, &daemon.client());
    assert_eq!(picture.faults(), Vec::<String>::new());
    let held: Vec<_> = picture.leases.iter().map(|lease| lease.claim.as_str()).collect();
    assert_eq!(held, ["precious"]);
    let taken = daemon.client().prepare(claim("x", vec![named("gpu", WHOLE)])).unwrap_err();
    assert_eq!(taken.code(), Code::FailedPrecondition);
}

/// How often the vendor was asked what it sees.
fn looks(client: &Client) -> u64 {
    let metrics =
        client.call(async |mut node| node.get_metrics(GetMetricsRequest::default()).await).unwrap();
    let calls = metrics.vendors.iter().flat_map(|vendor| &vendor.calls);
    let discoveries = calls.filter(|call| call.word == "discover");
    discoveries.filter_map(|call| call.timing.as_ref()).map(|timing| timing.count).sum()
}

/// Whoever watches the node is told all of it whenever it changes: so it must not seem to.
#[test]
fn looking_at_a_node_does_not_change_it() {
    let (home, daemon, _) = busy_node();
    daemon.kill();
    let config = fs::read_to_string(home.config()).unwrap();
    let often = config.replace("observe_interval_ms = 600000", "observe_interval_ms = 100");
    assert_ne!(often, config);
    fs::write(home.config(), often).unwrap();
    let daemon = home.start();
    let client = daemon.client();
    let before = client.node().unwrap().revision;
    let asked = looks(&client);
    wait_for("a few looks", || (looks(&client) > asked + 3).then_some(()));
    assert_eq!(client.node().unwrap().revision, before);

    // The same look finds what is wrong.
    let spec = fs::read_dir(home.cdi()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&spec).unwrap();
    wait_for("the spec to be written anew", || spec.exists().then_some(()));
}

#[test]
fn the_audit_log_tells_who_was_granted_what_over_a_crash() {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("first", vec![named("gpu", WHOLE)])).unwrap();
    client.prepare(claim("second", vec![named("gpu", WHOLE)])).unwrap_err();
    daemon.kill();
    let daemon = home.start();
    assert!(daemon.client().release("first").unwrap());
    let dir = home.ledger().with_file_name("audit");
    let dir = dir.to_str().unwrap();
    let shown = home.run_program(&["audit", "show", dir, "-o", "json"]);
    assert!(shown.status.success(), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap();
    let own = format!("\"by\":{{\"uid\":{},", nix::unistd::Uid::effective());
    let told: Vec<(bool, &str)> = text
        .lines()
        .filter(|line| line.contains("\"claim\":"))
        .map(|line| (line.contains(&own), line))
        .collect();
    let expected = [
        (true, "first", "prepared"),
        (true, "second", "refused"),
        (false, "first", "held"),
        (true, "first", "released"),
    ];
    assert_eq!(told.len(), expected.len(), "{text}");
    for ((by, line), (own, claim, kind)) in told.into_iter().zip(expected) {
        assert!(line.contains(&format!("\"kind\":\"{kind}\",\"claim\":\"{claim}\"")), "{line}");
        assert_eq!(by, own, "{line}");
    }
    let verified = home.run_program(&["audit", "verify", dir]);
    assert!(verified.status.success(), "{verified:?}");
    let file = home.ledger().with_file_name("audit").join("audit-00000000000000000001.log");
    let edited = fs::read_to_string(&file).unwrap().replace("refused", "granted");
    fs::write(&file, edited).unwrap();
    let verified = home.run_program(&["audit", "verify", dir]);
    assert!(!verified.status.success());
    assert!(String::from_utf8_lossy(&verified.stderr).contains("AP0017"), "{verified:?}");
}
