//! What the adapter says of whole machines, compared with files kept here.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{fmt::Write, fs, path::Path};

use accelpool_model::{Device, DeviceTraits, Injection, Link, Partition, Peer, PeerPath};
use accelpool_vendor_api::Vendor;

use crate::machine::{DGX_H100, DGX_H100_MIG, Machine, V100_535, uuid};

/// Compares with the golden file of that name, or writes it anew.
#[track_caller]
fn check(machine: &Machine, golden: &str) {
    let vendor = machine.vendor();
    let mut found = String::new();
    for device in vendor.discover().unwrap() {
        describe(&mut found, &device);
        for partition in vendor.partitions(&device.uuid).unwrap() {
            describe_partition(&mut found, &partition);
        }
    }
    for Link { ends: (a, b), kind, bandwidth, strands, route } in vendor.links().unwrap() {
        let switches: Vec<String> = route.switches().map(|it| it.to_string()).collect();
        let through = if route.is_switched() { " through " } else { "" };
        let route = format!("{through}{}", switches.join(" "));
        writeln!(found, "link {a} {b} {strands} {kind} {bandwidth}{route}").unwrap();
    }
    check_golden(&machine.neutral(&found), golden);
}

#[track_caller]
fn check_golden(found: &str, golden: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
    if std::env::var_os("ACCELPOOL_UPDATE").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(found == expected, "`{}` differs; found:\n{found}", path.display());
}

fn describe(out: &mut String, device: &Device) {
    let Device { name, uuid, vendor, model, architecture, pci, driver_version, .. } = device;
    writeln!(out, "{name} {uuid} {vendor} {model}, {architecture}, driver {driver_version}")
        .unwrap();
    let root = device.pcie_root.as_deref().unwrap_or("-");
    let clique = device.fabric_clique.as_deref().unwrap_or("-");
    let numa = device.numa_node;
    let memory = device.memory;
    writeln!(out, "  {pci} root {root} numa {numa:?} memory {memory} clique {clique}").unwrap();
    let DeviceTraits { compute_capability, runtime_version, peers, settings, incarnation: _ } =
        &device.traits;
    let capability = compute_capability.as_deref().unwrap_or("-");
    let runtime = runtime_version.as_deref().unwrap_or("-");
    writeln!(out, "  capability {capability}, CUDA {runtime}, {settings}").unwrap();
    for Peer { device, path, status } in peers {
        let path = path.map_or("-", PeerPath::as_str);
        writeln!(out, "    peer {device} by {path}: {status}").unwrap();
    }
    describe_injection(out, &device.injection);
    if let Some(cut) = &device.partitioning {
        let mode = cut.mode.map(|mode| (mode.on, mode.switchable));
        let (scheme, slices, uniform) = (&cut.scheme, cut.slices, cut.uniform);
        writeln!(out, "  {scheme} of {slices} slices, uniform {uniform}, mode {mode:?}").unwrap();
        for profile in &cut.profiles {
            let (name, size, max) = (&profile.name, profile.size, profile.instances_max);
            let (memory, compute, starts) = (profile.memory, profile.compute, profile.starts());
            writeln!(out, "    {name} {memory} {compute}/1000 {size} slices at {starts:?}, {max}")
                .unwrap();
        }
    }
}

fn describe_partition(out: &mut String, partition: &Partition) {
    let Partition { uuid, profile, start, complete, .. } = partition;
    writeln!(out, "  partition {profile} at {start} {uuid} complete {complete}").unwrap();
    describe_injection(out, &partition.injection);
}

fn describe_injection(out: &mut String, injection: &Injection) {
    for node in &injection.nodes {
        writeln!(out, "    node {} as {}", node.host_path, node.container_path).unwrap();
    }
    for mount in &injection.mounts {
        writeln!(out, "    file {} as {}", mount.host_path, mount.container_path).unwrap();
    }
    for (name, value) in &injection.env {
        writeln!(out, "    {name}={value}").unwrap();
    }
}

#[test]
fn dgx_h100() {
    check(&Machine::new(DGX_H100), "dgx-h100.txt");
}

#[test]
fn dgx_h100_with_two_devices_cut() {
    let machine = Machine::new(DGX_H100_MIG);
    let vendor = machine.vendor();
    for (profile, start) in [("1g.10gb", 0), ("3g.40gb", 4)] {
        vendor.create_partition(&uuid(8), &profile.parse().unwrap(), start).unwrap();
    }
    check(&machine, "dgx-h100-mig.txt");
}

#[test]
fn an_old_driver() {
    check(&Machine::new(V100_535), "v100-535.txt");
}

/// Without a library the driver's own description is all there is.
#[test]
fn devices_stay_listed_without_a_library() {
    let machine = Machine::new(V100_535);
    machine.remove_library();
    let devices = machine.vendor().discover().unwrap();
    let mut found = String::new();
    for device in &devices {
        describe(&mut found, device);
    }
    check_golden(&machine.neutral(&found), "v100-no-library.txt");
}

/// A boot, a driver that is loaded anew and a device that is found anew begin another life, which
/// is told with and without a library; what cannot be read is no life.
#[test]
fn a_device_that_begins_anew_is_another_incarnation() {
    let machine = Machine::new(V100_535);
    let boot = "proc/sys/kernel/random/boot_id";
    let told = || machine.vendor().discover().unwrap().remove(0).traits.incarnation;
    // The old folder stays, so that the new one has another number: the kernel's own numbers in
    // sysfs are never given twice.
    let renew = |folder: &str| {
        let folder = fs::canonicalize(machine.path(folder)).unwrap();
        fs::rename(&folder, folder.with_extension("old")).unwrap();
        fs::create_dir(&folder).unwrap();
    };
    assert_eq!(told(), None);
    machine.write(boot, "11111111-1111-4111-8111-111111111111\n");
    assert_eq!(told(), None);
    fs::create_dir_all(machine.path("sys/module/nvidia")).unwrap();
    let mut lives = vec![told()];
    assert!(lives[0].is_some());
    let next = |lives: &mut Vec<Option<String>>| {
        let now = told();
        assert!(now.is_some() && !lives.contains(&now), "{now:?} of {lives:?}");
        assert_eq!(told(), now);
        lives.push(now);
    };
    renew("sys/module/nvidia");
    next(&mut lives);
    renew("sys/bus/pci/devices/0000:3b:00.0");
    next(&mut lives);
    machine.write(boot, "22222222-2222-4222-8222-222222222222\n");
    next(&mut lives);
    machine.remove_library();
    assert_eq!(Some(&told()), lives.last());
}

/// Links that join two devices without a switch add up, if both ends say that they are up.
#[test]
fn direct_links_are_counted() {
    let machine = Machine::new(DGX_H100);
    let link = |a: &str, b: &str, rate: &str| format!("gpu-0000-{a}-00-0 gpu-0000-{b}-00-0 {rate}");
    machine.change(|described| {
        let end = |count: u32, bus: &str, down: bool| {
            serde_json::json!({
                "count": count, "end": format!("0000:{bus}:00.0"), "version": 4, "down": down
            })
        };
        let devices = described["devices"].as_array_mut().unwrap();
        devices.truncate(3);
        devices[0]["links"] = vec![end(4, "43", false), end(2, "52", false)].into();
        devices[1]["links"] = vec![end(4, "1b", false), end(6, "52", true)].into();
        devices[2]["links"] = vec![end(2, "1b", true), end(6, "43", true)].into();
    });
    let links = machine.vendor().links().unwrap();
    let found: Vec<String> =
        links.iter().map(|it| format!("{} {} {}", it.ends.0, it.ends.1, it.bandwidth)).collect();
    assert_eq!(found, [link("1b", "43", "100.0 GB/s")]);
}

/// Links into switches carry nothing before the fabric manager has set the fabric up.
#[test]
fn an_unjoined_fabric_links_nobody() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| {
        for gpu in described["devices"].as_array_mut().unwrap() {
            gpu["fabric"]["state"] = 2.into();
        }
    });
    assert_eq!(machine.vendor().links().unwrap(), []);
}

/// Only a cluster that more nodes have part in has a name.
#[test]
fn a_clique_is_that_of_the_cluster() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| {
        described["devices"][0]["fabric"]["cluster"] = "00112233445566778899aabbccddeeff".into();
        described["devices"][0]["fabric"]["clique"] = 7.into();
        // A driver that knows version 2 of the structure alone.
        described["errors"] = serde_json::json!({ "nvmlDeviceGetGpuFabricInfoV@3": 25 });
    });
    let cliques = || {
        let devices = machine.vendor().discover().unwrap();
        devices.into_iter().map(|it| it.fabric_clique).take(2).collect::<Vec<_>>()
    };
    let expected = vec![Some("00112233-4455-6677-8899-aabbccddeeff.7".to_owned()), None];
    assert_eq!(cliques(), expected);
    machine.change(|described| {
        described["errors"] = serde_json::json!({ "nvmlDeviceGetGpuFabricInfoV": 13 });
    });
    assert_eq!(cliques(), expected);
}

/// Devices without a link of their own reach each other over the bus, if the driver lets them.
#[test]
fn the_way_to_another_device_is_told_or_why_there_is_none() {
    let machine = Machine::new(DGX_H100);
    let ways = || {
        let devices = machine.vendor().discover().unwrap();
        let first = devices.into_iter().next().unwrap();
        let told = |peer: Peer| (peer.path.map(PeerPath::as_str), peer.status);
        first.traits.peers.into_iter().map(told).take(2).collect::<Vec<_>>()
    };
    let ok = |way| (Some(way), "ok".to_owned());
    assert_eq!(ways(), [ok("switch"), ok("switch")]);
    machine.change(|described| {
        let direct = serde_json::json!([{ "count": 4, "end": "0000:43:00.0", "version": 6 }]);
        described["devices"][0]["links"] = direct;
        described["devices"][2]["peer_status"] = 4.into();
    });
    let refused = (None, "disabled by the driver's configuration".to_owned());
    assert_eq!(ways(), [ok("link"), refused]);
    machine.change(|described| described["devices"][0]["links"] = serde_json::json!([]));
    assert_eq!(ways()[0], ok("pcie"));
}

/// A profile with media engines and one without are two, whose partitions have two names.
#[test]
fn profiles_that_differ_in_one_sign_have_names_of_their_own() {
    let machine = Machine::new(DGX_H100_MIG);
    machine.change(|described| {
        let profiles = described["profiles"]["h100"].as_array_mut().unwrap();
        let mut without = profiles.iter().find(|it| it["name"] == "1g.10gb+me").unwrap().clone();
        (without["kind"], without["id"], without["name"]) =
            (13.into(), 77.into(), "1g.10gb-me".into());
        profiles.push(without);
    });
    let vendor = machine.vendor();
    let devices = vendor.discover().unwrap();
    let cut = devices.iter().find(|it| it.uuid == uuid(8)).unwrap();
    let names: Vec<String> = ["1g.10gb+me", "1g.10gb-no-me"]
        .iter()
        .map(|profile| {
            let profile = profile.parse().unwrap();
            assert!(cut.profile(&profile).is_some(), "{profile}");
            Partition::name_at(&cut.name, "mig", &profile, 0).unwrap().to_string()
        })
        .collect();
    assert_ne!(names[0], names[1]);
    let made = vendor.create_partition(&uuid(8), &"1g.10gb-no-me".parse().unwrap(), 2).unwrap();
    assert_eq!(made.profile.as_str(), "1g.10gb-no-me");
    assert_eq!(vendor.partitions(&uuid(8)).unwrap(), [made]);
}

/// Symbols that came with a driver, by its major version: an older one lacks them.
///
/// From the headers of NVML 12.2 (driver 535), 12.4 (550), 12.5, 12.6 (560), 12.8 (570), 12.9
/// (575) and 13.0 (580) in NVIDIA/go-nvml, and the names that nvidia-ml-py of 12.535, 12.550,
/// 12.560, 12.570, 12.575 and 13.580 looks up. All others that the adapter asks for are in 535.
/// Field 230 (recovery action) is not in the headers before 12.8.
const CAME_WITH: [(u32, &[&str]); 2] = [
    (550, &["nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetProcessesUtilizationInfo"]),
    (
        575,
        &[
            "nvmlSystemEventSetCreate",
            "nvmlSystemEventSetFree",
            "nvmlSystemEventSetWait",
            "nvmlSystemRegisterEvents",
        ],
    ),
];

/// The same program lists the same devices whatever the driver lacks.
#[test]
fn drivers_from_535_to_580_list_the_same_devices() {
    let list = |machine: &Machine| {
        let devices = machine.vendor().discover().unwrap();
        let told = devices.iter().map(|it| {
            let profiles = it.partitioning.as_ref().map(|cut| cut.profiles.len());
            format!("{} {} {} {:?} {profiles:?}", it.name, it.uuid, it.memory, it.mode())
        });
        told.collect::<Vec<_>>()
    };
    let newest = list(&Machine::new(DGX_H100_MIG));
    assert_eq!(newest.len(), 8);
    for driver in [535, 550, 560, 570, 575, 580] {
        let machine = Machine::new(DGX_H100_MIG);
        let lacks = CAME_WITH.iter().filter(|(came, _)| *came > driver);
        let lacks: Vec<&str> = lacks.flat_map(|(_, symbols)| symbols.iter().copied()).collect();
        machine.without_symbols(&lacks);
        assert_eq!(list(&machine), newest, "driver {driver}");
        let told = machine.vendor().counters(&uuid(1)).unwrap();
        assert!(!told.throttles.is_empty(), "driver {driver}");
        assert_eq!(machine.vendor().next_event(std::time::Duration::ZERO).unwrap(), None);
    }
}

/// NVIDIA's own stand-in has MIG mode and no profiles: CUDA finds nothing on such a device as a
/// whole, so that it must not be given to anybody.
#[test]
fn a_device_in_mig_mode_without_profiles_is_not_whole() {
    let check = |change: &dyn Fn(&mut serde_json::Value)| {
        let machine = Machine::new(DGX_H100_MIG);
        machine.change(|described| change(&mut described["devices"][7]));
        let devices = machine.vendor().discover().unwrap();
        let cut = devices.iter().find(|it| it.uuid == uuid(8)).unwrap();
        assert!(cut.mode().is_some_and(|mode| mode.on) && !cut.serves_whole(false), "{cut:?}");
        assert_eq!(cut.partitioning.as_ref().unwrap().profiles, []);
    };
    check(&|gpu| drop(gpu.as_object_mut().unwrap().remove("profiles")));
    check(&|gpu| {
        gpu["errors"] = serde_json::json!({
            "nvmlDeviceGetGpuInstanceProfileInfoV": 999, "nvmlDeviceGetGpuInstanceProfileInfo": 999
        });
    });
}

/// Where sysfs is hidden, as on NVIDIA's own stand-in, the library tells the NUMA node.
#[test]
fn without_sysfs_the_library_tells_the_numa_node() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| {
        described["devices"][0]["numa_node"] = 1.into();
        described["devices"][1]["numa_node"] = 70.into();
    });
    let nodes = || {
        let devices = machine.vendor().discover().unwrap();
        devices.into_iter().map(|it| it.numa_node).take(3).collect::<Vec<_>>()
    };
    assert_eq!(nodes(), [Some(0), Some(0), Some(0)]);
    std::fs::remove_dir_all(machine.path("sys")).unwrap();
    assert_eq!(nodes(), [Some(1), Some(70), None]);
}

/// A library with few symbols, as other stand-ins for NVML have, on a machine whose kernel shows
/// nothing of a driver.
#[test]
fn a_library_with_few_symbols_lists_devices_without_procfs() {
    let machine = Machine::new(DGX_H100);
    machine.without_symbols(&[
        "nvmlInitWithFlags",
        "nvmlDeviceGetArchitecture",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetGpuInstanceProfileInfoV",
        "nvmlDeviceGetGpuInstanceProfileInfo",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMemoryAffinity",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v2",
        "nvmlEventSetCreate",
    ]);
    for path in ["proc/driver", "sys"] {
        std::fs::remove_dir_all(machine.path(path)).unwrap();
    }
    let vendor = machine.vendor();
    let devices = vendor.discover().unwrap();
    assert_eq!(devices.len(), 8);
    assert!(devices.iter().all(|it| it.memory.bytes() > 0 && it.partitioning.is_none()));
    assert_eq!(vendor.links().unwrap(), []);
    for device in &devices {
        assert_eq!(vendor.partitions(&device.uuid).unwrap(), []);
        vendor.counters(&device.uuid).unwrap();
        vendor.probe(&device.uuid).unwrap();
    }
    assert_eq!(vendor.next_event(std::time::Duration::ZERO).unwrap(), None);
}
