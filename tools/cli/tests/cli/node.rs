//! A node with eight GPUs, each in another state, and an empty one.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use accelpool_proto::node::{
    AdminPortion, Agent, Allocation, Binding, ClaimTurns, Device, DeviceTraits, DeviceTurns,
    DriverSettings, Enforcements, Event, ExplainClaimResponse, Finding, GetNodeResponse,
    GetTopologyResponse, GetTurnsResponse, GetUsageResponse, Lease, Link, NumaNode, Partition,
    PartitionPortion, Partitioning, PcieNode, Peer, Pool, Profile, SharePortion, Taint, Usage,
    UsageBucket, UsageEntry, VendorStatus, Verification, Whole, allocation::Portion,
    binding::Subject, usage_entry::Who,
};

const GIB: u64 = 1 << 30;
pub(crate) const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

/// The buses of a DGX H100's GPUs; the first four are on the first socket.
const BUSES: [&str; 8] = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];

/// What the made-up daemon answers.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) node: GetNodeResponse,
    pub(crate) devices: Vec<Device>,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) stories: HashMap<String, ExplainClaimResponse>,
    pub(crate) topology: GetTopologyResponse,
    pub(crate) findings: Vec<Finding>,
    pub(crate) usage: GetUsageResponse,
    pub(crate) turns: GetTurnsResponse,
}

/// Milliseconds since 1970, so long ago that the age is the same for the whole test.
pub(crate) fn ago(seconds: u64) -> u64 {
    let then = SystemTime::now() - Duration::from_secs(seconds + MINUTE / 2);
    let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(then.as_millis()).unwrap()
}

pub(crate) fn name(bus: &str) -> String {
    format!("gpu-0000-{bus}-00-0")
}

fn enforcements(memory: &str, compute: &str) -> Enforcements {
    Enforcements { memory: memory.into(), compute: compute.into(), ..Default::default() }
}

fn device(index: usize) -> Device {
    let bus = BUSES[index];
    let profile = |name: &str, gib, compute_permille, size| Profile {
        name: name.into(),
        memory_bytes: gib * GIB,
        compute_permille,
        size,
        starts: (0..8 / size * size).step_by(size as usize).collect(),
        counted: false,
        instances_max: 7,
    };
    Device {
        name: name(bus),
        uuid: format!("GPU-5a1b7e2c-0000-4000-8000-0000000000{bus}"),
        vendor: "sim".into(),
        kind: "gpu".into(),
        model: "NVIDIA H100 80GB HBM3".into(),
        architecture: "hopper".into(),
        pci_address: format!("0000:{bus}:00.0"),
        driver_version: "550.54.15".into(),
        memory_bytes: 80 * GIB,
        numa_node: Some(u32::from(index >= 4)),
        pcie_root: None,
        fabric_clique: Some("nvswitch-0".into()),
        partitioning: Some(Partitioning {
            scheme: "mig".into(),
            slices: 8,
            uniform: false,
            profiles: vec![profile("1g.10gb", 10, 142, 1), profile("3g.40gb", 40, 428, 4)],
        }),
        share_enforcement: Some(enforcements("library", "none")),
        pool: "default".into(),
        present: true,
        taints: Vec::new(),
        usage: Some(Usage { mode: "free".into(), ..Usage::default() }),
        parts_only: false,
        partitioning_mode: String::new(),
        traits: Some(DeviceTraits {
            compute_capability: Some("9.0".into()),
            runtime_version: Some("12.4".into()),
            peers: vec![Peer {
                device: "gpu-0000-df-00-0".into(),
                path: "switch".into(),
                status: "ok".into(),
            }],
            settings: Some(DriverSettings {
                compute_mode: Some("default".into()),
                persistence: Some(true),
                accounting: None,
            }),
        }),
    }
}

fn usage(mode: &str, gib: u64, compute_permille: u32, claims: &[&str]) -> Usage {
    let claims = claims.iter().map(|claim| (*claim).to_owned()).collect();
    Usage { mode: mode.into(), memory_bytes: gib * GIB, compute_permille, claims }
}

fn taint(key: &str, effect: &str, reason: &str, age: u64) -> Taint {
    Taint { key: key.into(), effect: effect.into(), reason: reason.into(), since_unix_ms: ago(age) }
}

fn devices() -> Vec<Device> {
    let mut devices: Vec<Device> = (0..8).map(device).collect();
    devices[0].usage = Some(usage("whole", 80, 1000, &["train"]));
    devices[1].usage =
        Some(usage("shared", 30, 750, &["dev-a", "dev-b", "notebook-of-somebody-else"]));
    devices[2].usage = Some(usage("partitioned", 10, 142, &[UID]));
    devices[3].taints =
        vec![taint("operator", "NoSchedule", "fan of slot 4 rattles, ticket 4711", HOUR * 3)];
    devices[5].usage = Some(usage("whole", 80, 1000, &["train"]));
    devices[5].present = false;
    devices[5].taints = vec![
        taint("fell-off-bus", "NoExecute", "xid-79: GPU has fallen off the bus", MINUTE * 4),
        taint("link", "None", "nvlink 3 is down", MINUTE * 5),
    ];
    devices[6].usage = Some(usage("foreign", 10, 142, &[]));
    devices
}

/// A claim as Kubernetes names it.
pub(crate) const UID: &str = "7d3f9f0e-8a4b-4c1d-9b53-2f0c6c1f7a11";

fn allocation(claim: &str, request: &str, bus: &str, portion: Portion) -> Allocation {
    let target = match &portion {
        Portion::Partition(part) => part.name.clone(),
        Portion::Whole(_) | Portion::Share(_) | Portion::Admin(_) => name(bus),
    };
    let enforcement = match &portion {
        Portion::Share(_) => enforcements("library", "none"),
        Portion::Admin(_) => enforcements("none", "none"),
        Portion::Whole(_) | Portion::Partition(_) => enforcements("hardware", "hardware"),
    };
    Allocation {
        request: request.into(),
        device: name(bus),
        device_uuid: format!("GPU-5a1b7e2c-0000-4000-8000-0000000000{bus}"),
        portion: Some(portion),
        share_id: None,
        enforcement: Some(enforcement),
        cdi_id: format!("accelpool.dev/claim={claim}-{request}-{target}"),
    }
}

fn share(claim: &str, gib: u64, compute_permille: u32) -> Allocation {
    let share = SharePortion {
        memory_bytes: gib * GIB,
        compute_permille,
        weight: 100,
        class: "normal".into(),
    };
    allocation(claim, "r0", "43", Portion::Share(share))
}

pub(crate) fn lease(claim: &str, allocations: Vec<Allocation>, age: u64) -> Lease {
    Lease {
        claim: claim.into(),
        state: "prepared".into(),
        since_unix_ms: ago(age),
        allocations,
        labels: HashMap::new(),
        trouble: String::new(),
        boot_id: "3c8d1f0a-6a0e-4c55-8a6d-5c8f3f2f9b10".into(),
        bindings: Vec::new(),
        verification: None,
    }
}

pub(crate) fn whole(claim: &str, request: &str, bus: &str) -> Allocation {
    allocation(claim, request, bus, Portion::Whole(Whole {}))
}

fn labels(words: &[(&str, &str)]) -> HashMap<String, String> {
    words.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn leases() -> Vec<Lease> {
    let mut train =
        lease("train", vec![whole("train", "r0", "1b"), whole("train", "r0", "c3")], HOUR * 26);
    train.labels = labels(&[("team", "vision"), ("owner", "ada@example.org")]);
    train.trouble = "device gpu-0000-c3-00-0 fell off the bus while held".into();
    train.bindings = vec![Binding {
        subject: Some(Subject::Workload("6b1f0c9e-1d7c-4c56-9c2e-0d7f3a4b5c6d".into())),
        state: "armed".into(),
        cgroup_path: "/kubepods/pod6b1f0c9e-1d7c-4c56-9c2e-0d7f3a4b5c6d".into(),
    }];
    train.verification = Some(Verification {
        state: "drifted".into(),
        deviations: vec!["`/kubepods/pod6/0a`: c 195:0 (/dev/nvidia0) is refused".into()],
        unix_ms: ago(MINUTE),
    });
    let mut dev_a = lease("dev-a", vec![share("dev-a", 10, 250)], MINUTE * 12);
    dev_a.labels = labels(&[("pod", "dev/agent-a-0"), ("\u{1b}[31mred", "a\nb")]);
    let dev_b = lease("dev-b", vec![share("dev-b", 10, 250)], MINUTE * 3);
    let mut notebook =
        lease("notebook-of-somebody-else", vec![share("notebook-of-somebody-else", 10, 250)], 40);
    notebook.state = "preparing".into();
    notebook.since_unix_ms = ago(HOUR * 24 * 5);
    let part = PartitionPortion {
        name: format!("{}-mig-1g-10gb-4", name("52")),
        profile: "1g.10gb".into(),
        start: 4,
        adopted: false,
    };
    let infer = lease(UID, vec![allocation(UID, "gpu", "52", Portion::Partition(part))], HOUR * 2);
    let look = allocation("watcher", "r0", "43", Portion::Admin(AdminPortion {}));
    let watcher = lease("watcher", vec![look], HOUR * 50);
    vec![train, dev_a, dev_b, notebook, infer, watcher]
}

fn event(age: u64, kind: &str, message: &str, error_code: &str) -> Event {
    Event {
        unix_ms: ago(age),
        kind: kind.into(),
        message: message.into(),
        error_code: error_code.into(),
    }
}

fn stories(leases: &[Lease], devices: &[Device]) -> HashMap<String, ExplainClaimResponse> {
    let too_much = "memory of a share of device gpu-0000-43-00-0 must be 1 to 80Gi, not 90Gi";
    let story = |claim: &str, events: Vec<Event>| {
        let lease = leases.iter().find(|lease| lease.claim == claim).cloned();
        let is_held = |device: &&Device| {
            lease.iter().flat_map(|lease| &lease.allocations).any(|held| held.device == device.name)
        };
        let devices = devices.iter().filter(is_held).cloned().collect();
        (claim.to_owned(), ExplainClaimResponse { lease, events, devices })
    };
    HashMap::from([
        story(
            "dev-a",
            vec![
                event(MINUTE * 20, "refused", too_much, "AP0105"),
                event(MINUTE * 12, "prepared", "share of gpu-0000-43-00-0", ""),
                event(MINUTE * 2, "repaired", "CDI spec was gone and is written anew", ""),
            ],
        ),
        story("train", Vec::new()),
        story("watcher", vec![event(HOUR * 50, "prepared", "granted gpu-0000-43-00-0", "")]),
        story(UID, vec![event(HOUR * 2, "prepared", "made partition 1g.10gb at 4", "")]),
        story(
            "greedy",
            vec![
                event(
                    MINUTE * 9,
                    "refused",
                    "no whole device is free: 2 match, 8 are asked for",
                    "AP0109",
                ),
                event(MINUTE * 5, "refused", too_much, "AP0105"),
            ],
        ),
    ])
}

fn partitions() -> Vec<Partition> {
    let partition = |bus: &str, start: u32, state: &str, claim: &str, reason: &str| Partition {
        name: format!("{}-mig-1g-10gb-{start}", name(bus)),
        device: name(bus),
        profile: "1g.10gb".into(),
        start,
        size: 1,
        memory_bytes: 10 * GIB,
        compute_permille: 142,
        state: state.into(),
        uuid: String::new(),
        claim: claim.into(),
        reason: reason.into(),
    };
    vec![
        partition("52", 4, "exists", UID, ""),
        partition("52", 5, "free", "", ""),
        partition("d1", 0, "half-created", "", "its compute part is missing, it will be destroyed"),
        partition("1b", 0, "blocked", "", "gpu-0000-1b-00-0 is held whole by claim train"),
    ]
}

fn topology(devices: &[Device]) -> GetTopologyResponse {
    let numa_node = |id: u32| NumaNode {
        id,
        cpus: (id * 56..id * 56 + 56).chain(id * 56 + 112..id * 56 + 168).collect(),
        memory_bytes: 1024 * GIB,
        distances: HashMap::from([(id, 10), (1 - id, 21)]),
    };
    let mut pcie_nodes = Vec::new();
    let mut add = |pci_address: String, label: String, parent| {
        pcie_nodes.push(PcieNode { pci_address, label, parent, numa_node: None });
        Some(u32::try_from(pcie_nodes.len() - 1).unwrap())
    };
    for bus in &BUSES[..6] {
        let root = add(String::new(), format!("pci0000:{bus}"), None);
        add(format!("0000:{bus}:00.0"), String::new(), root);
    }
    let root = add(String::new(), "pci0000:d0".into(), None);
    let switch = add("0000:d0:01.0".into(), String::new(), root);
    for bus in &BUSES[6..] {
        add(format!("0000:{bus}:00.0"), String::new(), switch);
    }
    let pairs = (0..8).flat_map(|a| (a + 1..8).map(move |b| (a, b)));
    let link = |(a, b): (usize, usize)| Link {
        a: name(BUSES[a]),
        b: name(BUSES[b]),
        kind: "nvlink".into(),
        bandwidth_bytes_per_second: 450_000_000_000,
        strands: 18,
        switched: true,
        switches: [5, 6, 7, 8].map(|bus| format!("0000:{bus:02x}:00.0")).into(),
    };
    GetTopologyResponse {
        source: "host".into(),
        numa_nodes: vec![numa_node(0), numa_node(1)],
        pcie_nodes,
        devices: devices.to_vec(),
        links: pairs.map(link).collect(),
    }
}

/// Three agents over the last five minutes of fifteen that are remembered. The moments are
/// fixed, since a table of them has rows for each; so is what "now" is for the daemon.
fn turns() -> GetTurnsResponse {
    let claim =
        |name: &str, class: &str, state: &str, granted: u32, measured: Option<u32>| ClaimTurns {
            claim: name.into(),
            class: class.into(),
            state: state.into(),
            granted_permille: granted,
            measured_permille: measured,
            used_ns: 7_499_000_000,
            throttled_ns: 2_501_000_000,
            turns: 1501,
            memory_quota_bytes: 10 << 30,
            memory_used_bytes: 3 << 29,
            memory_peak_bytes: 10 << 30,
            pids: vec![4711, 4712],
            ..ClaimTurns::default()
        };
    let mut refused = claim("dev-b", "normal", "stuck", 250, Some(251));
    (refused.stuck, refused.memory_denied) = (3, 1);
    let shared = DeviceTurns {
        device: name("43"),
        uuid: "GPU-43".into(),
        mode: "exclusive".into(),
        hand_over_ns: 54_321,
        claims: vec![
            claim("dev-a", "realtime", "running", 750, Some(749)),
            refused,
            claim("notebook-of-somebody-else", "idle", "idle", 1000, None),
        ],
    };
    GetTurnsResponse {
        devices: vec![shared],
        shim: "/var/lib/accelpool/shim/0/libaccelpool_cuda.so".into(),
        folder: "/run/accelpool/turns".into(),
    }
}

fn usage_over_time() -> GetUsageResponse {
    let end = 1_700_000_100_000 / 60_000 * 60_000;
    let agent =
        |name: &str, namespace: &str| Agent { name: name.into(), namespace: namespace.into() };
    let entry = |who, busy_ms, gib: u64, energy_mj| UsageEntry {
        who: Some(who),
        busy_ms,
        memory_bytes: gib * GIB,
        energy_mj,
    };
    let bucket = |minute: u64| UsageBucket {
        start_unix_ms: end - minute * 60_000,
        entries: vec![
            entry(Who::Agent(0), 200_000, 300, 60_000_000),
            entry(Who::Agent(1), 30_000 + 1_000 * minute, 10, 9_000_000),
            entry(Who::Agent(2), 5_000, 4, 1_500_000),
            entry(Who::Unattributed(true), 600, 1, 200_000),
        ],
    };
    GetUsageResponse {
        unix_ms: end + 30_000,
        since_unix_ms: end - 15 * 60_000,
        bucket_ms: 60_000,
        devices: 8,
        agents: vec![agent("train-0", "vision"), agent("dev <a>", ""), agent("notebook", "team-b")],
        buckets: (1..=5).rev().map(bucket).collect(),
    }
}

/// The node with eight GPUs.
pub(crate) fn eight_gpus() -> State {
    let devices = devices();
    let leases = leases();
    let pool = |name: &str, exposure: &str, sharing: &str, buses: &[&str]| Pool {
        name: name.into(),
        exposure: exposure.into(),
        sharing: sharing.into(),
        devices: buses.iter().map(|bus| self::name(bus)).collect(),
        gate: if sharing == "any" { "enforce" } else { "audit" }.into(),
        on_stale_holder: "report".into(),
        compute: if sharing == "shares" { "cap" } else { "guarantee" }.into(),
        on_violation: if sharing == "shares" { "kill" } else { "report" }.into(),
        mps: sharing == "any",
        host_memory_bytes: (sharing == "any").then_some(2 << 30),
        ..Pool::default()
    };
    let vendor = |name: &str, state: &str, restarts, last_error: &str, devices| VendorStatus {
        name: name.into(),
        state: state.into(),
        restarts,
        last_error: last_error.into(),
        devices,
        paused_until_unix_ms: 0,
    };
    let finding = |severity: &str, check: &str, message: &str, remedy: &str| Finding {
        severity: severity.into(),
        check: check.into(),
        message: message.into(),
        remedy: remedy.into(),
    };
    State {
        node: GetNodeResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: "3c8d1f0a-6a0e-4c55-8a6d-5c8f3f2f9b10".into(),
            state: "ready".into(),
            started_unix_ms: ago(HOUR * 30),
            ledger_schema: 1,
            vendors: vec![
                vendor("sim", "running", 0, "", 8),
                vendor("amd", "restarting", 3, "the library did not answer `discover` in 5 s", 0),
            ],
            revision: 42,
        },
        partitions: partitions(),
        pools: vec![
            pool("training", "dra", "exclusive", &["1b", "c3"]),
            pool("default", "both", "any", &["43", "52", "61", "9d", "d1", "df"]),
            pool("empty", "device-plugin", "shares", &[]),
        ],
        stories: stories(&leases, &devices),
        topology: topology(&devices),
        findings: vec![
            finding("ok", "ledger", "schema 1, 5 leases", ""),
            finding(
                "warning",
                "vendor-amd",
                "the worker was started 3 times in 10 minutes",
                "look at journalctl -u accelpoold for why the library hangs, or remove the vendor \
                 from the configuration",
            ),
        ],
        devices,
        leases,
        usage: usage_over_time(),
        turns: turns(),
    }
}

/// A daemon that has found nothing yet.
pub(crate) fn empty() -> State {
    State {
        node: GetNodeResponse {
            version: "9.9.9".into(),
            state: "starting".into(),
            started_unix_ms: ago(HOUR * 2),
            ..GetNodeResponse::default()
        },
        ..State::default()
    }
}
