//! Callers who are wrong, hostile, countless or gone: each gets a clear answer, and nothing has
//! changed.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    process::Command,
    thread,
};

use accelpool_proto::node::{
    AnyDevice, Enforcements, ExplainClaimRequest, ListPartitionsRequest, PrepareClaimRequest,
    QuiesceRequest, Request, Selector, Share, TaintDeviceRequest, UntaintDeviceRequest,
    node_client::NodeClient, request::Wanted,
};
use accelpool_tests::{
    Client, Daemon, Home, page,
    requests::{any, claim, named, share},
    rules::Picture,
    wait_for,
};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

const GPU: &str = "gpu-0000-1b-00-0";
const PART: &str = "gpu-0000-1b-00-0-mig-1g-10gb-0";
const HELD: &str = "gpu-0000-43-00-0";
const MIB: usize = 1 << 20;

/// A node on which one claim holds a device.
fn node() -> (Home, Daemon, Client) {
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("held", vec![named("gpu", HELD)])).unwrap();
    (home, daemon, client)
}

fn one(request: Request) -> PrepareClaimRequest {
    claim("a", vec![request])
}

fn any_of(any: AnyDevice) -> PrepareClaimRequest {
    one(Request { name: "gpu".into(), wanted: Some(Wanted::Any(any)), ..Default::default() })
}

fn share_of(share: Share) -> PrepareClaimRequest {
    one(Request { share: Some(share), ..named("gpu", GPU) })
}

/// Makes each call, expects its refusal, and sees that nothing has changed.
#[track_caller]
fn refused(cases: Vec<(PrepareClaimRequest, Code, &str)>) {
    let (home, _daemon, client) = node();
    let before = Picture::take(&home, &client);
    assert_eq!(before.faults(), Vec::<String>::new());
    for (request, code, expected) in cases {
        let mut words = format!("{request:?}");
        words.truncate(words.char_indices().nth(300).map_or(words.len(), |(at, _)| at));
        let status = client.prepare(request).expect_err(&words);
        assert_eq!((status.code(), page(&status)), (code, Some(expected)), "{words}: {status}");
        assert!(status.message().len() < 500, "{words}: the answer is long");
    }
    assert_eq!(Picture::take(&home, &client), before);
}

#[test]
fn devices_that_cannot_be_had_are_refused() {
    let profile =
        |profile: &str| any_of(AnyDevice { profile: profile.into(), ..Default::default() });
    refused(vec![
        (one(named("gpu", "gpu-0000-00-00-0")), Code::NotFound, "AP0101"),
        (one(named("gpu", "../../dev/sda")), Code::NotFound, "AP0101"),
        (one(named("gpu", "gpu 0\n")), Code::NotFound, "AP0101"),
        (one(named("part", "gpu-0000-1b-00-0-mig-9g-90gb-0")), Code::NotFound, "AP0101"),
        (one(named("part", "gpu-0000-1b-00-0-mig-1g-10gb-7")), Code::NotFound, "AP0101"),
        (profile("9g.90gb"), Code::NotFound, "AP0113"),
        (one(named("gpu", HELD)), Code::FailedPrecondition, "AP0103"),
        (one(share("gpu", HELD, 1, 1)), Code::FailedPrecondition, "AP0103"),
        (one(named("part", "gpu-0000-43-00-0-mig-1g-10gb-0")), Code::FailedPrecondition, "AP0103"),
        (claim("held", vec![named("gpu", GPU)]), Code::AlreadyExists, "AP0108"),
        (one(any("gpu", "", 8)), Code::ResourceExhausted, "AP0109"),
        (one(any("gpu", "", 32)), Code::ResourceExhausted, "AP0109"),
        (claim("a", vec![named("x", GPU), named("y", GPU)]), Code::FailedPrecondition, "AP0103"),
        (claim("a", vec![named("x", GPU), named("y", PART)]), Code::FailedPrecondition, "AP0103"),
    ]);
}

#[test]
fn quotas_out_of_range_are_refused() {
    let compute = |value| Share { compute_permille: Some(value), ..Default::default() };
    let memory = |value| Share { memory_bytes: Some(value), ..Default::default() };
    let device_bytes = 81_559 << 20;
    let demand = |memory: &str| Request {
        demand: Some(Enforcements { memory: memory.into(), ..Default::default() }),
        ..share("gpu", GPU, 1, 1)
    };
    refused(vec![
        (share_of(memory(device_bytes + 1)), Code::InvalidArgument, "AP0105"),
        (share_of(memory(u64::MAX)), Code::InvalidArgument, "AP0105"),
        (share_of(memory(0)), Code::InvalidArgument, "AP0100"),
        (share_of(compute(0)), Code::InvalidArgument, "AP0100"),
        (share_of(compute(1001)), Code::InvalidArgument, "AP0100"),
        // -1, as a client in another language may write it.
        (share_of(compute(u32::MAX)), Code::InvalidArgument, "AP0100"),
        (share_of(Share { weight: 1001, ..compute(1) }), Code::InvalidArgument, "AP0100"),
        (share_of(Share { class: "urgent".into(), ..compute(1) }), Code::InvalidArgument, "AP0100"),
        (one(share("part", PART, 1, 1)), Code::InvalidArgument, "AP0105"),
        (one(demand("kernel")), Code::FailedPrecondition, "AP0107"),
        (one(demand("steel")), Code::InvalidArgument, "AP0100"),
        (one(any("gpu", "", 33)), Code::InvalidArgument, "AP0100"),
        (
            claim("a", vec![share("x", GPU, device_bytes, 1), share("y", GPU, 1, 1)]),
            Code::ResourceExhausted,
            "AP0104",
        ),
        (
            claim("a", vec![share("x", GPU, 1, 600), share("y", GPU, 1, 401)]),
            Code::ResourceExhausted,
            "AP0104",
        ),
    ]);
}

#[test]
fn names_that_break_the_rules_are_refused() {
    let long = "x".repeat(64);
    let mut cases = Vec::new();
    for bad in ["", "-a", "a-", "a b", "a/../b", "a.b", "a_b", "\u{fc}", "a\n", "a=b", &long] {
        let invalid = |request| (request, Code::InvalidArgument, "AP0100");
        cases.push(invalid(claim(bad, vec![named("gpu", GPU)])));
        cases.push(invalid(one(named(bad, GPU))));
        let share_id = Some(bad.to_owned());
        cases.push(invalid(one(Request { share_id, ..share("gpu", GPU, 1, 1) })));
    }
    refused(cases);
}

#[test]
fn lists_and_fields_without_measure_are_refused() {
    let huge = || "x".repeat(MIB);
    let label = |key: String, value: String| PrepareClaimRequest {
        labels: HashMap::from([(key, value)]),
        ..one(named("gpu", GPU))
    };
    let labels = (0..33).map(|n| (n.to_string(), String::new())).collect();
    let many = (0..33).map(|n| named(&format!("r{n}"), GPU)).collect();
    let select = |selector| any_of(AnyDevice { selector: Some(selector), ..Default::default() });
    let selector = Selector::default;
    let requests = vec![
        claim("a", vec![]),
        claim("a", many),
        one(Request { wanted: None, ..named("gpu", GPU) }),
        claim("a", vec![named("gpu", GPU), named("gpu", GPU)]),
        PrepareClaimRequest { labels, ..one(named("gpu", GPU)) },
        claim(&huge(), vec![named("gpu", GPU)]),
        one(named(&huge(), GPU)),
        one(named("gpu", &huge())),
        one(Request { share_id: Some(huge()), ..share("gpu", GPU, 1, 1) }),
        share_of(Share { class: huge(), ..Default::default() }),
        label("pod".into(), huge()),
        label(huge(), "x".into()),
        label("pod".into(), "\u{1b}[2J".into()),
        select(Selector { names: vec![GPU.into(); 65], ..selector() }),
        select(Selector { names: vec![huge()], ..selector() }),
        select(Selector { kind: huge(), ..selector() }),
        select(Selector { vendor: huge(), ..selector() }),
        select(Selector { model: huge(), ..selector() }),
        any_of(AnyDevice { profile: huge(), ..Default::default() }),
    ];
    refused(requests.into_iter().map(|r| (r, Code::InvalidArgument, "AP0100")).collect());
}

#[test]
fn other_calls_refuse_nonsense_too() {
    let (home, _daemon, client) = node();
    let before = Picture::take(&home, &client);
    let taint = |device: &str, effect: &str, reason: &str| {
        let (device, effect, reason) = (device.to_owned(), effect.to_owned(), reason.to_owned());
        let request = TaintDeviceRequest { device, effect, reason };
        client.call(async |mut node| node.taint_device(request).await).unwrap_err()
    };
    let untaint = |device: &str, key: &str| {
        let request = UntaintDeviceRequest { device: device.to_owned(), key: key.to_owned() };
        client.call(async |mut node| node.untaint_device(request).await).unwrap_err()
    };
    let explain = |claim: &str| {
        let request = ExplainClaimRequest { claim: claim.to_owned() };
        client.call(async |mut node| node.explain_claim(request).await).unwrap_err()
    };
    let partitions = |device: &str| {
        let request = ListPartitionsRequest { device: device.to_owned(), possible: true };
        client.call(async |mut node| node.list_partitions(request).await).unwrap_err()
    };
    let quiesce = |vendor: &str| {
        let request = QuiesceRequest { vendor: vendor.to_owned(), for_ms: 0 };
        client.call(async |mut node| node.quiesce(request).await).unwrap_err()
    };
    let huge = "x".repeat(MIB);
    let cases = [
        (taint("gpu-0000-00-00-0", "", "why"), Code::NotFound, "AP0101"),
        (taint(&huge, "", "why"), Code::NotFound, "AP0101"),
        (taint(GPU, "", ""), Code::InvalidArgument, "AP0100"),
        (taint(GPU, "", &huge), Code::InvalidArgument, "AP0100"),
        (taint(GPU, "Explode", "why"), Code::InvalidArgument, "AP0100"),
        (untaint(GPU, ""), Code::NotFound, "AP0118"),
        (untaint(GPU, &huge), Code::NotFound, "AP0118"),
        (untaint(&huge, ""), Code::NotFound, "AP0101"),
        (explain("nobody"), Code::NotFound, "AP0117"),
        (explain(&huge), Code::InvalidArgument, "AP0100"),
        (partitions(&huge), Code::NotFound, "AP0101"),
        (quiesce("acme"), Code::NotFound, "AP0119"),
        (quiesce(&huge), Code::NotFound, "AP0119"),
        (client.release(&huge).unwrap_err(), Code::InvalidArgument, "AP0100"),
    ];
    for (status, code, expected) in cases {
        assert_eq!((status.code(), page(&status)), (code, Some(expected)), "{status}");
        assert!(status.message().len() < 500);
    }
    assert!(!client.release("nobody").unwrap(), "there was nothing to release");
    assert_eq!(Picture::take(&home, &client), before);
}

#[test]
fn a_message_that_no_claim_needs_is_refused_unread() {
    let (home, _daemon, client) = node();
    let before = Picture::take(&home, &client);
    let status = client.prepare(claim(&"x".repeat(5 * MIB), vec![])).unwrap_err();
    assert_eq!((status.code(), page(&status)), (Code::OutOfRange, Some("AP0100")), "{status}");
    assert_eq!(Picture::take(&home, &client), before);
}

/// Prepares all of `requests`, many at a time.
fn prepare_all(client: &Client, requests: Vec<PrepareClaimRequest>) -> Vec<Result<(), Status>> {
    let ended = client.call(async |node: NodeClient<Channel>| {
        let mut calls = JoinSet::new();
        let mut ended = Vec::new();
        for request in requests {
            if calls.len() == 64 {
                ended.extend(calls.join_next().await);
            }
            let mut node = node.clone();
            calls.spawn(async move { node.prepare_claim(request).await.map(drop) });
        }
        ended.extend(calls.join_all().await.into_iter().map(Ok));
        Ok(tonic::Response::new(ended))
    });
    ended.unwrap().into_iter().map(Result::unwrap).collect()
}

#[test]
fn ten_thousand_claims_are_taken_up_to_the_limit() {
    const CLAIMS: usize = 10_000;
    const LEASES_MAX: usize = 4096;
    let home = Home::new("dgx-h100");
    let daemon = home.start();
    let client = daemon.client();
    let devices = client.devices().unwrap();
    let request = |n: usize| {
        let device = &devices[n % devices.len()].name;
        claim(&format!("claim-{n}"), vec![share("gpu", device, 1 << 20, 1)])
    };
    let ended = prepare_all(&client, (0..CLAIMS).map(request).collect());
    assert_eq!(ended.len(), CLAIMS);
    let refused: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), CLAIMS - LEASES_MAX);
    for status in refused {
        assert_eq!((status.code(), page(&status)), (Code::ResourceExhausted, Some("AP0112")));
    }
    let picture = Picture::take(&home, &client);
    assert_eq!(picture.leases.len(), LEASES_MAX);
    assert_eq!(picture.faults(), Vec::<String>::new());
    // A place that is given back can be had again.
    let held = picture.leases[0].claim.clone();
    assert!(client.release(&held).unwrap());
    client.prepare(claim("late", vec![share("gpu", GPU, 1, 1)])).unwrap();
    daemon.kill();
    let daemon = home.start();
    assert_eq!(daemon.client().claims().unwrap().len(), LEASES_MAX);
}

#[test]
fn a_caller_who_hangs_up_leaves_nothing_half_done() {
    let home = Home::new("dgx-h100");
    home.script(
        "[[call]]\nid = \"slow\"\nmethod = \"create_partition\"\nat = \"half-way\"\n\
         delay_ms = 200\n",
    );
    let mut daemon = home.start();
    // While the hardware is at it.
    let partition = claim("part", vec![named("part", PART)]);
    let (hang_up, gone) = tokio::sync::oneshot::channel::<()>();
    let socket = home.socket();
    let caller = thread::spawn(move || {
        let client = Client::connect(&socket);
        let ended = client.call(async |mut node| {
            tokio::select! {
                answered = node.prepare_claim(partition) => answered.map(|_| panic!("too quick")),
                _ = gone => Ok(tonic::Response::new(())),
            }
        });
        ended.unwrap();
    });
    wait_for("a partition in the making", || {
        let state = fs::read_to_string(home.sim().join("state.json")).ok()?;
        state.contains("\"complete\":false").then_some(())
    });
    hang_up.send(()).unwrap();
    caller.join().unwrap();
    // At once, at any moment of the call.
    for patience in 0..40 {
        let request = claim(&format!("share-{patience}"), vec![share("gpu", HELD, 1, 1)]);
        let client = daemon.client();
        let ended = client.call(async |mut node| {
            let hang_up = async {
                for _ in 0..patience {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                answered = node.prepare_claim(request) => drop(answered),
                () = hang_up => {}
            }
            Ok(tonic::Response::new(()))
        });
        ended.unwrap();
    }
    // A drained daemon has nothing in hand.
    daemon.terminate();
    assert!(daemon.wait().success());
    let daemon = home.start();
    let client = daemon.client();
    let picture = Picture::take(&home, &client);
    assert_eq!(picture.faults(), Vec::<String>::new());
    assert!(picture.lease("part").is_some(), "steps in hand are finished");
    for lease in &picture.leases {
        assert!(client.release(&lease.claim).unwrap());
    }
    let picture = Picture::take(&home, &client);
    assert_eq!((picture.leases.len(), picture.hardware, picture.specs.len()), (0, vec![], 0));
}

#[test]
fn garbage_and_idle_connections_disturb_nobody() {
    let (home, _daemon, client) = node();
    let before = Picture::take(&home, &client);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let noise: Vec<u8> =
        (0..65_536_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let garbage: [Vec<u8>; 5] = [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n".to_vec(),
        noise.clone(),
        [preface.clone(), noise].concat(),
        // A frame that says it is 16 MiB long.
        [preface.clone(), vec![0xff; 9]].concat(),
        preface[..10].to_vec(),
    ];
    for bytes in garbage {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        // The daemon may hang up before it has read all of it.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    let idle: Vec<_> = (0..200).map(|_| UnixStream::connect(home.socket()).unwrap()).collect();
    assert_eq!(Picture::take(&home, &Client::connect(&home.socket())), before);
    drop(idle);
    assert_eq!(Picture::take(&home, &client), before);
}

/// What user 65534 hears from the daemon of `home`.
fn as_stranger(home: &Home) -> Vec<String> {
    // The build folder need not be open to everybody.
    let program = home.run().join("stranger");
    fs::copy(env!("CARGO_BIN_EXE_stranger"), &program).unwrap();
    fs::set_permissions(home.run(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    let output = command.arg(home.socket()).uid(65534).gid(65534).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

const READS: [&str; 4] = ["claims", "devices", "node", "topology"];
const CHANGES: [&str; 5] = ["prepare", "release", "taint", "untaint", "quiesce"];

#[test]
fn strangers_are_refused() {
    let (home, _daemon, client) = node();
    let before = Picture::take(&home, &client);
    // The socket is closed to them.
    for line in as_stranger(&home) {
        assert!(line.ends_with("Unavailable -"), "{line}");
    }
    // And if an operator opens it, the daemon still asks the kernel who calls.
    fs::set_permissions(home.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let expected = READS.iter().chain(&CHANGES);
    let expected: Vec<_> = expected.map(|call| format!("{call} PermissionDenied AP0116")).collect();
    assert_eq!(as_stranger(&home), expected);
    assert_eq!(Picture::take(&home, &client), before);
}

#[test]
fn members_of_the_group_read_and_change_nothing() {
    let home = Home::new("dgx-h100");
    let config = fs::read_to_string(home.config()).unwrap();
    let group = nix::unistd::Group::from_gid(65534.into()).unwrap().unwrap().name;
    fs::write(home.config(), config.replace("no-such-group", &group)).unwrap();
    let daemon = home.start();
    let client = daemon.client();
    client.prepare(claim("held", vec![named("gpu", HELD)])).unwrap();
    let before = Picture::take(&home, &client);
    let reads = READS.iter().map(|call| format!("{call} ok"));
    let changes = CHANGES.iter().map(|call| format!("{call} PermissionDenied AP0116"));
    assert_eq!(as_stranger(&home), reads.chain(changes).collect::<Vec<_>>());
    assert_eq!(Picture::take(&home, &client), before);
}
