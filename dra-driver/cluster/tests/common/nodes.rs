//! Nodes as the daemon describes them.

use accelpool_proto::node as wire;

const GIB: u64 = 1 << 30;

/// A profile: name, GiB, thousandths, size, starts, most instances.
type Profile = (&'static str, u64, u32, u32, &'static [u32], u32);

/// An H100 of 80 GB: NVIDIA's MIG user guide, table of profiles and placements.
const H100: [Profile; 7] = [
    ("1g.10gb", 10, 142, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
    ("1g.10gb+me", 10, 142, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
    ("1g.20gb", 20, 142, 2, &[0, 2, 4, 6], 4),
    ("2g.20gb", 20, 285, 2, &[0, 2, 4], 3),
    ("3g.40gb", 40, 428, 4, &[0, 4], 2),
    ("4g.40gb", 40, 571, 4, &[0], 1),
    ("7g.80gb", 80, 1000, 8, &[0], 1),
];

/// An MI300X: eight XCDs, one mode at a time.
const MI300X: [Profile; 5] = [
    ("spx-nps1", 192, 1000, 8, &[0], 1),
    ("dpx-nps2", 96, 500, 4, &[0, 4], 2),
    ("qpx-nps4", 48, 250, 2, &[0, 2, 4, 6], 4),
    ("cpx-nps1", 24, 125, 1, &[0, 1, 2, 3, 4, 5, 6, 7], 8),
    ("cpx-nps4", 24, 125, 1, &[0, 1, 2, 3, 4, 5, 6, 7], 8),
];

/// A 910B: 24 AI cores, anywhere.
const ATLAS_910B: [Profile; 2] =
    [("vir06_1c_16g", 16, 250, 6, &[], 4), ("vir12_3c_32g", 32, 500, 12, &[], 2)];

fn profiles(profiles: &[Profile]) -> Vec<wire::Profile> {
    let profile = |(name, gib, compute, size, starts, instances): &Profile| wire::Profile {
        name: (*name).to_owned(),
        memory_bytes: gib * GIB,
        compute_permille: *compute,
        size: *size,
        starts: starts.to_vec(),
        counted: starts.is_empty(),
        instances_max: *instances,
    };
    profiles.iter().map(profile).collect()
}

fn device(index: u32) -> wire::Device {
    wire::Device {
        kind: "gpu".to_owned(),
        pci_address: format!("0000:{:02x}:00.0", 0x18 + index),
        numa_node: Some(index / 4),
        pcie_root: Some(format!("pci0000:{:02x}", 0x16 + index)),
        pool: "all".to_owned(),
        present: true,
        share_enforcement: Some(wire::Enforcements {
            memory: "library".to_owned(),
            compute: "library".to_owned(),
            ..wire::Enforcements::default()
        }),
        ..wire::Device::default()
    }
}

fn state(devices: Vec<wire::Device>) -> wire::WatchNodeResponse {
    let pool = wire::Pool {
        name: "all".to_owned(),
        exposure: "dra".to_owned(),
        sharing: "any".to_owned(),
        devices: devices.iter().map(|device| device.name.clone()).collect(),
        ..wire::Pool::default()
    };
    wire::WatchNodeResponse {
        revision: 1,
        devices,
        partitions: Vec::new(),
        pools: vec![pool],
        leases: Vec::new(),
        complete: true,
    }
}

pub(crate) fn dgx_h100(count: u32) -> wire::WatchNodeResponse {
    let h100 = |index| wire::Device {
        name: format!("gpu-0000-{:02x}-00-0", 0x18 + index),
        uuid: format!("GPU-00000000-0000-0000-0000-{index:012}"),
        vendor: "nvidia".to_owned(),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        architecture: "Hopper".to_owned(),
        driver_version: "580.159.04".to_owned(),
        memory_bytes: 81_559 << 20,
        fabric_clique: Some("6a3c.0".to_owned()),
        traits: Some(wire::DeviceTraits {
            compute_capability: Some("9.0".to_owned()),
            runtime_version: Some("13.0".to_owned()),
            ..wire::DeviceTraits::default()
        }),
        partitioning: Some(wire::Partitioning {
            scheme: "mig".to_owned(),
            slices: 8,
            uniform: false,
            profiles: profiles(&H100),
        }),
        ..device(index)
    };
    state((0..count).map(h100).collect())
}

pub(crate) fn mi300x(count: u32) -> wire::WatchNodeResponse {
    let mi300x = |index| wire::Device {
        name: format!("gpu-0000-{:02x}-00-0", 0x18 + index),
        uuid: format!("a0ff{index:04x}-0000-1000-80bc"),
        vendor: "amd".to_owned(),
        model: "AMD Instinct MI300X".to_owned(),
        architecture: "gfx942".to_owned(),
        driver_version: "6.12.12".to_owned(),
        memory_bytes: 192 * GIB,
        partitioning: Some(wire::Partitioning {
            scheme: "xcp".to_owned(),
            slices: 8,
            uniform: true,
            profiles: profiles(&MI300X),
        }),
        ..device(index)
    };
    state((0..count).map(mi300x).collect())
}

pub(crate) fn atlas_910b(count: u32) -> wire::WatchNodeResponse {
    let atlas = |index| wire::Device {
        name: format!("npu-0000-{:02x}-00-0", 0x18 + index),
        uuid: format!("18D0E1B4-{index:08}"),
        vendor: "ascend".to_owned(),
        kind: "npu".to_owned(),
        model: "Ascend 910B3".to_owned(),
        architecture: "DaVinci".to_owned(),
        driver_version: "25.0.rc1".to_owned(),
        memory_bytes: 64 * GIB,
        numa_node: None,
        pcie_root: None,
        partitioning: Some(wire::Partitioning {
            scheme: "vnpu".to_owned(),
            slices: 24,
            uniform: false,
            profiles: profiles(&ATLAS_910B),
        }),
        ..device(index)
    };
    state((0..count).map(atlas).collect())
}

pub(crate) fn taint(state: &mut wire::WatchNodeResponse, device: usize, key: &str, effect: &str) {
    state.revision += 1;
    state.devices[device].taints.push(wire::Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        reason: "XID 79: GPU has fallen off the bus".to_owned(),
        since_unix_ms: 1_700_000_000_500,
    });
}

/// One of each kind in one node.
pub(crate) fn mixed() -> wire::WatchNodeResponse {
    let mut state = dgx_h100(1);
    let mut more = [mi300x(2).devices.remove(1), atlas_910b(3).devices.remove(2)];
    let fpga = wire::Device {
        name: "fpga-0000-90-00-0".to_owned(),
        uuid: "fpga-1".to_owned(),
        vendor: "amd".to_owned(),
        kind: "fpga".to_owned(),
        memory_bytes: 100 << 20,
        ..device(0x78)
    };
    more[0].pool = "all".into();
    state.devices.extend(more);
    state.devices.push(fpga);
    state
}

/// What a confused daemon might say.
pub(crate) fn hostile() -> wire::WatchNodeResponse {
    let mut state = dgx_h100(4);
    state.devices[0].name = "NOT A NAME".into();
    state.devices[0].model = "x".repeat(5000);
    state.devices[1].model = "\u{e9}".repeat(100);
    state.devices[1].driver_version = format!("1.{}", "9".repeat(400));
    taint(&mut state, 1, "\u{1b}[31m", "NoSchedule");
    state.devices[1].taints[0].reason = "\u{e9}\n".repeat(200);
    let many = state.devices[2].partitioning.as_mut().expect("an H100 has partitions");
    many.slices = u32::MAX;
    many.profiles[0].starts = (0..100).collect();
    many.profiles[1].instances_max = u32::MAX;
    let mut huge = state.devices[2].clone();
    huge.name = "gpu-0000-ff-00-0".into();
    let cut = huge.partitioning.as_mut().expect("an H100 has partitions");
    cut.profiles[0].counted = true;
    cut.profiles[0].instances_max = u32::MAX;
    state.devices.push(huge);
    let twin = state.devices[3].clone();
    state.devices.push(twin);
    let counted = state.devices[3].partitioning.as_mut().expect("an H100 has partitions");
    counted.profiles[0].counted = true;
    counted.profiles[0].instances_max = 200;
    counted.profiles[0].memory_bytes = u64::MAX;
    counted.profiles[1].name = "n".repeat(60);
    counted.profiles[2].name = "3G.40GB".into(); // the label of another profile's name
    state.partitions.push(wire::Partition {
        name: "p".to_owned(),
        device: state.devices[3].name.clone(),
        profile: "\0".to_owned(),
        state: "exists".to_owned(),
        ..wire::Partition::default()
    });
    state
}
