//! Each test reads: a node, and what is offered of it; `-` marks what cannot be had.

use accelpool_proto::node as wire;

use super::*;

fn node() -> wire::WatchNodeResponse {
    let device = |name: &str| wire::Device {
        name: name.to_owned(),
        vendor: "sim".to_owned(),
        kind: "gpu".to_owned(),
        memory_bytes: 80 << 30,
        pool: "p".to_owned(),
        present: true,
        ..wire::Device::default()
    };
    wire::WatchNodeResponse {
        devices: vec![device("gpu-0"), device("gpu-1")],
        pools: vec![wire::Pool {
            name: "p".to_owned(),
            exposure: "device-plugin".to_owned(),
            sharing: "any".to_owned(),
            ..wire::Pool::default()
        }],
        ..wire::WatchNodeResponse::default()
    }
}

fn lease(claim: &str, device: &str, portion: Portion) -> wire::Lease {
    let allocation = wire::Allocation {
        device: device.to_owned(),
        portion: Some(portion),
        ..wire::Allocation::default()
    };
    wire::Lease {
        claim: claim.to_owned(),
        state: "prepared".to_owned(),
        allocations: vec![allocation],
        ..wire::Lease::default()
    }
}

fn whole() -> Portion {
    Portion::Whole(wire::Whole {})
}

fn share(gib: u64, compute: u32) -> Portion {
    let memory_bytes = gib << 30;
    Portion::Share(wire::SharePortion {
        memory_bytes,
        compute_permille: compute,
        ..wire::SharePortion::default()
    })
}

#[track_caller]
fn check(node: wire::WatchNodeResponse, replicas: u32, expected: &[&str]) {
    let replicas = match replicas {
        0 => BTreeMap::new(),
        count => [("p".parse().unwrap(), count)].into(),
    };
    let offers = offers(&Snapshot::from(node), &replicas);
    let lines = offers.into_iter().map(|(resource, devices)| {
        let ids = devices
            .into_iter()
            .map(|device| format!(" {}{}", if device.healthy { "" } else { "-" }, device.id));
        format!("{resource}:{}", ids.collect::<String>())
    });
    assert_eq!(lines.collect::<Vec<_>>(), expected);
}

#[test]
fn exposure_decides_what_is_offered() {
    check(node(), 0, &["accelpool.dev/gpu: gpu-0 gpu-1"]);
    let mut dra = node();
    dra.pools[0].exposure = "dra".to_owned();
    check(dra, 4, &[]);
    let mut poolless = node();
    poolless.devices[0].pool = "other".to_owned();
    check(poolless, 0, &["accelpool.dev/gpu: gpu-1"]);
}

#[test]
fn what_others_hold_is_withdrawn_and_what_the_id_holds_is_not() {
    let mut held = node();
    held.leases = vec![lease("dp-gpu-0", "gpu-0", whole()), lease("x", "gpu-1", whole())];
    check(held, 0, &["accelpool.dev/gpu: gpu-0 -gpu-1"]);
    // To look at a device takes nothing away.
    let mut looked_at = node();
    looked_at.leases = vec![lease("x", "gpu-1", Portion::Admin(wire::AdminPortion {}))];
    check(looked_at, 0, &["accelpool.dev/gpu: gpu-0 gpu-1"]);
}

#[test]
fn shares_last_while_memory_and_compute_do() {
    let shares = |zero: &str, one: &str| {
        let ids = |device: &str, marks: &str| {
            let id = |(index, mark): (usize, char)| {
                format!(" {}{device}-share-{index}", if mark == '-' { "-" } else { "" })
            };
            marks.chars().enumerate().map(id).collect::<String>()
        };
        format!("accelpool.dev/gpu-share:{}{}", ids("gpu-0", zero), ids("gpu-1", one))
    };
    let free = "accelpool.dev/gpu: gpu-0 gpu-1";
    check(node(), 2, &[free, &shares("++", "++")]);

    let mut held = node();
    held.leases = vec![
        lease("x", "gpu-0", share(41, 100)),
        lease("dp-gpu-1-share-1", "gpu-1", share(40, 500)),
    ];
    check(held, 2, &["accelpool.dev/gpu: -gpu-0 -gpu-1", &shares("--", "++")]);

    let mut compute = node();
    compute.leases = vec![lease("x", "gpu-0", share(1, 300)), lease("y", "gpu-1", whole())];
    check(compute, 4, &["accelpool.dev/gpu: -gpu-0 -gpu-1", &shares("++--", "----")]);

    let mut exclusive = node();
    exclusive.pools[0].sharing = "exclusive".to_owned();
    check(exclusive, 2, &[free]);
}

#[test]
fn resources_are_named_as_kubernetes_wants_them() {
    let name = |word| resource_name(word).unwrap_or_default();
    assert_eq!(name("gpu"), "accelpool.dev/gpu");
    assert_eq!(name("mig-1g.10gb+me"), "accelpool.dev/mig-1g.10gb.me");
    assert_eq!(name("vnpu-vir05_1c_8g"), "accelpool.dev/vnpu-vir05_1c_8g");
    assert_eq!(name("xcp-DPX"), "accelpool.dev/xcp-dpx");
    assert_eq!(resource_name("mig-+"), None);
    assert_eq!(resource_name(&"x".repeat(64)), None);
}

#[test]
fn an_id_that_is_too_long_for_the_kubelet_is_left_out() {
    let mut long = node();
    long.devices[1].name = "g".repeat(61);
    check(long, 0, &["accelpool.dev/gpu: gpu-0"]);
}

#[test]
fn a_devices_ways_are_counted() {
    let ways = |node: wire::WatchNodeResponse, replicas: bool| -> Vec<usize> {
        let replicas = replicas.then(|| ("p".parse().unwrap(), 2)).into_iter().collect();
        let offers = offers(&Snapshot::from(node), &replicas);
        offers["accelpool.dev/gpu"].iter().map(|offered| offered.ways).collect()
    };
    assert_eq!(ways(node(), false), [1, 1]);
    assert_eq!(ways(node(), true), [2, 2]);
    let mut both = node();
    both.pools[0].exposure = "both".to_owned();
    assert_eq!(ways(both, true), [3, 3]);
    let mut cut = node();
    cut.devices[0].partitioning =
        Some(wire::Partitioning { scheme: "mig".to_owned(), ..wire::Partitioning::default() });
    assert_eq!(ways(cut, false), [2, 1]);
}
