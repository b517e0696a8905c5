//! A small node for the tests of this crate: two H100-like GPUs and the claims on them.

use std::collections::BTreeMap;

use accelpool_model::{
    Allocation, BootId, Claim, ComputePermille, ComputeRule, Device, DeviceKind, Enforcement,
    Enforcements, Exposure, GateMode, Injection, Lease, LeaseState, MemoryBytes, OnStaleHolder,
    OnViolation, Partition, PartitionProfile, Partitioning, Placement, Placements, Pool, Portion,
    Request, Selector, Sharing, Wanted,
};

pub(crate) const GPU: &str = "gpu-0000-1b-00-0";

pub(crate) fn device(pci: &str) -> Device {
    let pci: accelpool_model::PciAddress = pci.parse().unwrap();
    let profile = |name: &str, size: u32, starts: &[u32], instances_max: u32| PartitionProfile {
        name: name.parse().unwrap(),
        memory: MemoryBytes::from_gib(10 * size),
        compute: ComputePermille::try_from(u64::from(1000 * size / 8)).unwrap(),
        size,
        placements: Placements::Fixed(starts.to_vec()),
        instances_max,
    };
    Device {
        name: Device::name_at(DeviceKind::Gpu, pci),
        uuid: format!("GPU-{}", pci.label()).parse().unwrap(),
        vendor: "sim".parse().unwrap(),
        kind: DeviceKind::Gpu,
        model: "H100 80GB".into(),
        architecture: "hopper".into(),
        pci,
        driver_version: "580.0.0".into(),
        memory: MemoryBytes::from_gib(80),
        numa_node: Some(0),
        pcie_root: None,
        fabric_clique: None,
        partitioning: Some(Partitioning {
            scheme: "mig".into(),
            slices: 8,
            uniform: false,
            profiles: vec![
                profile("1g.10gb", 1, &[0, 1, 2, 3, 4, 5, 6], 7),
                profile("1g.10gb+me", 1, &[0, 1, 2, 3, 4, 5, 6], 1),
                profile("3g.40gb", 4, &[0, 4], 2),
                profile("7g.80gb", 8, &[0], 1),
            ],
            mode: None,
        }),
        share_enforcement: Enforcements {
            memory: Enforcement::Library,
            compute: Enforcement::None,
        },
        traits: accelpool_model::DeviceTraits::default(),
        injection: Injection::default(),
    }
}

pub(crate) fn pools() -> Vec<Pool> {
    vec![Pool {
        name: "default".parse().unwrap(),
        selector: Selector::default(),
        exposure: Exposure::Dra,
        sharing: Sharing::Any,
        switch_mode: false,
        mps: false,
        settings: accelpool_model::Settings::default(),
        gate: GateMode::default(),
        on_stale_holder: OnStaleHolder::default(),
        compute: ComputeRule::default(),
        host_memory: None,
        on_violation: OnViolation::default(),
        align_cpus: false,
    }]
}

pub(crate) fn boot() -> BootId {
    "boot-1".parse().unwrap()
}

pub(crate) fn request(name: &str, wanted: Wanted) -> Request {
    Request {
        name: name.parse().unwrap(),
        wanted,
        share: None,
        demand: Enforcements::default(),
        share_id: None,
        admin: false,
    }
}

pub(crate) fn claim(id: &str, requests: Vec<Request>) -> Claim {
    Claim { id: id.parse().unwrap(), requests, labels: BTreeMap::new() }
}

fn lease_of(id: &str, portions: Vec<(String, Portion)>) -> Lease {
    let mut claim = claim(id, Vec::new());
    let mut allocations = Vec::new();
    for (index, (target, portion)) in portions.into_iter().enumerate() {
        let request = request(&format!("r{index}"), Wanted::Named(target));
        allocations.push(Allocation {
            request: request.name.clone(),
            device: GPU.parse().unwrap(),
            uuid: "GPU-0000-1b-00-0".parse().unwrap(),
            portion,
            share_id: None,
            enforcement: Enforcements::HARDWARE,
        });
        claim.requests.push(request);
    }
    Lease {
        claim,
        allocations,
        state: LeaseState::Prepared,
        since_ms: 1,
        boot: boot(),
        bindings: Vec::new(),
    }
}

/// A lease of the whole first device.
pub(crate) fn lease(id: &str) -> Lease {
    lease_of(id, vec![(GPU.to_owned(), Portion::Whole)])
}

/// A lease of a share of the first device.
pub(crate) fn share_lease(id: &str, gib: u32, permille: u64) -> Lease {
    let portion = Portion::Share {
        memory: MemoryBytes::from_gib(gib),
        compute: ComputePermille::try_from(permille).unwrap(),
        weight: accelpool_model::Weight::DEFAULT,
        class: accelpool_model::ShareClass::Normal,
    };
    lease_of(id, vec![(GPU.to_owned(), portion)])
}

/// A lease of partitions of the first device.
pub(crate) fn partition_lease(id: &str, places: &[(&str, u32)], adopted: bool) -> Lease {
    let device = device("0000:1b:00.0");
    let portion = |(profile, start): &(&str, u32)| {
        let profile = profile.parse().unwrap();
        let size = device.profile(&profile).unwrap().size;
        let name = Partition::name_at(&device.name, "mig", &profile, *start).unwrap();
        let placement = Placement::new(*start, size);
        let target = name.to_string();
        (target, Portion::Partition { name, profile, start: *start, size, placement, adopted })
    };
    lease_of(id, places.iter().map(portion).collect())
}

/// A partition that exists on the first device.
pub(crate) fn partition(profile: &str, start: u32, complete: bool) -> Partition {
    Partition {
        uuid: format!("MIG-{}-{start}", profile.replace('+', "-")).parse().unwrap(),
        device: "GPU-0000-1b-00-0".parse().unwrap(),
        profile: profile.parse().unwrap(),
        start,
        complete,
        injection: Injection::default(),
    }
}
