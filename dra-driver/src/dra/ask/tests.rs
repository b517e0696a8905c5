//! Each test reads: an allocation result, and what the daemon is asked for it.

use accelpool_cluster::{Consumed, PodReference, ShareConfig};
use accelpool_model::{ComputePermille, Enforcement, MemoryBytes};
use accelpool_proto::node::{self as wire, WatchNodeResponse};

use super::*;

const POOL: &str = "accelpool.dev/n";

fn result(request: &str, device: &str) -> AllocationResult {
    AllocationResult {
        request: request.to_owned(),
        driver: "accelpool.dev".to_owned(),
        pool: POOL.to_owned(),
        device: device.to_owned(),
        share_id: None,
        admin_access: false,
        consumed: Consumed::default(),
        config: ShareConfig::default(),
    }
}

fn claim(results: Vec<AllocationResult>) -> ClaimView {
    ClaimView {
        namespace: "team".to_owned(),
        name: "a".to_owned(),
        uid: "uid".to_owned(),
        results,
        pods: vec![PodReference { name: "p".to_owned(), uid: "pod-uid".to_owned() }],
    }
}

fn state() -> NodeState {
    let device = wire::Device {
        name: "gpu-0".to_owned(),
        vendor: "sim".to_owned(),
        kind: "gpu".to_owned(),
        memory_bytes: 80 << 30,
        ..wire::Device::default()
    };
    let state = WatchNodeResponse { devices: vec![device], ..WatchNodeResponse::default() };
    NodeState::from_wire(&state)
}

/// What is asked for one result: request, device, share, share id, demand, admin.
#[track_caller]
fn check(result: AllocationResult, expected: &str) {
    let actual = match request_for(&claim(vec![result]), POOL, &state()) {
        Err(error) => error.to_string(),
        Ok(asked) => {
            let request = &asked.requests[0];
            let Some(Wanted::Device(device)) = &request.wanted else { panic!("{request:?}") };
            let share = request.share.as_ref().map_or("whole".to_owned(), |share| {
                let gib = share.memory_bytes.map(|bytes| bytes >> 30);
                format!("{gib:?} {:?} {} {}", share.compute_permille, share.weight, share.class)
            });
            let demand = request.demand.as_ref().map_or(String::new(), |demand| {
                format!(" demand {}/{}", demand.memory, demand.compute)
            });
            let id = request.share_id.as_ref().map_or(String::new(), |id| format!(" id {id}"));
            let admin = if request.admin { " admin" } else { "" };
            format!("{}: {device} {share}{id}{demand}{admin}", request.name)
        }
    };
    assert_eq!(actual, expected);
}

#[test]
fn a_result_is_asked_for_by_name() {
    check(result("gpu", "gpu-0"), "gpu: gpu-0 whole");
    check(result("gpu/small", "gpu-0-mig-1g-10gb-0"), "gpu: gpu-0-mig-1g-10gb-0 whole");
}

#[test]
fn a_share_carries_its_size_id_and_configuration() {
    let consumed = Consumed {
        memory: Some(MemoryBytes::from_gib(20)),
        compute: Some(ComputePermille::try_from(250).unwrap()),
    };
    let share = AllocationResult {
        share_id: Some("5f".to_owned()),
        consumed,
        config: ShareConfig {
            weight: Some(300.try_into().unwrap()),
            memory_enforcement: Some(Enforcement::Kernel),
            ..ShareConfig::default()
        },
        ..result("s", "gpu-0")
    };
    check(share, "s: gpu-0 Some(20) Some(250) 300 normal id 5f demand kernel/none");
}

#[test]
fn a_fixed_share_is_told_apart_by_its_name() {
    check(
        result("s", "gpu-0-share-2-of-4"),
        "s: gpu-0 Some(20) Some(250) 100 normal id share-2-of-4",
    );
}

#[test]
fn admin_access_is_passed_on() {
    check(
        AllocationResult { admin_access: true, ..result("look", "gpu-0") },
        "look: gpu-0 whole admin",
    );
}

#[test]
fn the_entry_for_who_looks_is_told_apart_and_refused_to_others() {
    let look = AllocationResult { admin_access: true, ..result("look", "gpu-0-admin") };
    check(look, "look: gpu-0 whole id admin admin");
    check(result("gpu", "gpu-0-admin"), "gpu-0-admin is for claims with `adminAccess` alone");
}

#[test]
fn another_nodes_pool_is_refused() {
    check(
        AllocationResult { pool: "accelpool.dev/m".to_owned(), ..result("gpu", "gpu-0") },
        "device gpu-0 of pool `accelpool.dev/m` is not on this node, whose pool is \
         `accelpool.dev/n`",
    );
}

#[test]
fn labels_name_the_owner() {
    let asked = request_for(&claim(vec![result("gpu", "gpu-0")]), POOL, &state()).unwrap();
    let expected = [
        (SURFACE_LABEL, "dra"),
        (labels::NAMESPACE, "team"),
        (labels::NAME, "a"),
        (labels::POD, "p"),
        (labels::POD_UID, "pod-uid"),
    ];
    let expected: HashMap<String, String> =
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!((asked.claim.as_str(), asked.labels), ("uid", expected));
    // The daemon finds the pod's cgroup by the one id that both know.
    let bound: Vec<_> = asked.bindings.into_iter().map(|binding| binding.subject).collect();
    assert_eq!(bound, [Some(Subject::Workload("pod-uid".to_owned()))]);
}

fn allocation(request: &str, share_id: Option<&str>, portion: Portion) -> Allocation {
    Allocation {
        request: request.to_owned(),
        device: "gpu-0".to_owned(),
        share_id: share_id.map(str::to_owned),
        portion: Some(portion),
        cdi_id: "accelpool.dev/claim=x".to_owned(),
        ..Allocation::default()
    }
}

#[test]
fn a_lease_must_answer_the_claim() {
    let view = claim(vec![result("gpu/small", "gpu-0")]);
    let lease = |allocations| Lease { allocations, ..Lease::default() };
    let whole = || Portion::Whole(wire::Whole {});
    let devices = devices_of(&view, &lease(vec![allocation("gpu", None, whole())])).unwrap();
    let expected = PreparedDevice {
        request: "gpu".to_owned(),
        pool: POOL.to_owned(),
        device: "gpu-0".to_owned(),
        share_id: None,
        cdi_id: "accelpool.dev/claim=x".to_owned(),
    };
    assert_eq!(devices, [expected]);

    let none = devices_of(&view, &lease(vec![])).unwrap_err();
    assert_eq!(none, AskError::Count { expected: 1, found: 0 });
    let other = devices_of(&view, &lease(vec![allocation("other", None, whole())])).unwrap_err();
    assert!(matches!(other, AskError::Order { .. }), "{other}");
}

#[test]
fn allocations_are_known_by_their_published_names() {
    let share = || Portion::Share(wire::SharePortion::default());
    let admin = || Portion::Admin(wire::AdminPortion {});
    let partition = Portion::Partition(wire::PartitionPortion {
        name: "gpu-0-mig-1".into(),
        ..Default::default()
    });
    let cases = [
        (allocation("r", Some("5f"), share()), "gpu-0", Some("5f")),
        (allocation("r", Some("share-1-of-4"), share()), "gpu-0-share-1-of-4", None),
        (allocation("r", None, partition), "gpu-0-mig-1", None),
        (allocation("r", Some("admin"), admin()), "gpu-0-admin", None),
        (allocation("r", None, admin()), "gpu-0", None),
        (allocation("r", None, Portion::Whole(wire::Whole {})), "gpu-0", None),
    ];
    for (allocation, name, share_id) in cases {
        assert_eq!(published_name(&allocation), name);
        assert_eq!(scheduled_share_id(&allocation).as_deref(), share_id);
    }
}

#[test]
fn enforced_access_is_demanded_for_a_whole_device_too() {
    let whole = AllocationResult {
        config: ShareConfig {
            access_enforcement: Some(Enforcement::Kernel),
            ..ShareConfig::default()
        },
        ..result("gpu", "gpu-0")
    };
    let asked = request_for(&claim(vec![whole]), POOL, &state()).unwrap();
    let demand = asked.requests[0].demand.clone().unwrap();
    assert_eq!((demand.access.as_str(), demand.memory.as_str()), ("kernel", "none"));
}
