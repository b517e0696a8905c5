//! Faults: each is told with its class, one that is over is not told again, and the library is
//! let go of when asked.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{fs, os::fd::AsRawFd, thread, time::Duration};

use accelpool_model::{Fault, FaultClass, RecoveryAction};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use accelpool_vendor_nvidia::Nvidia;
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
    },
};
use serde_json::json;

use crate::machine::{DGX_H100, Machine, uuid};

/// Far above what the slowest detector takes; a test that passes never waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

fn event(vendor: &Nvidia) -> VendorEvent {
    vendor.next_event(PATIENCE).unwrap().expect("something happened")
}

fn fault(vendor: &Nvidia) -> Fault {
    match event(vendor) {
        VendorEvent::Fault(fault) => fault,
        VendorEvent::DevicesChanged => panic!("no fault, but devices changed"),
    }
}

/// Nothing is left to tell.
#[track_caller]
fn check_quiet(vendor: &Nvidia) {
    assert_eq!(vendor.next_event(Duration::ZERO).unwrap(), None);
}

#[track_caller]
fn check_event(event: &serde_json::Value, expected: Option<(FaultClass, &str)>) {
    let machine = Machine::new(DGX_H100);
    // A known fault after it shows that the event was passed over, not waited for.
    let after = json!({ "device": 1, "kind": 8, "value": 48 });
    machine.change(|described| described["events"] = vec![event.clone(), after].into());
    let vendor = machine.vendor();
    if let Some((class, code)) = expected {
        let told = fault(&vendor);
        assert_eq!((told.class, told.code.as_str()), (class, code), "{event}");
        assert_eq!(told.device, uuid(1));
    }
    assert_eq!(fault(&vendor).code, "xid-48");
}

#[test]
fn events_become_faults_of_their_class() {
    let xid = |value: u64| json!({ "device": 0, "kind": 8, "value": value });
    let other = |kind: u64| json!({ "device": 0, "kind": kind });
    check_event(&xid(31), Some((FaultClass::Application, "xid-31")));
    check_event(&xid(79), Some((FaultClass::FellOffBus, "xid-79")));
    check_event(&xid(74), Some((FaultClass::Link, "xid-74")));
    check_event(&xid(u64::MAX), Some((FaultClass::ResetRequired, "xid-18446744073709551615")));
    check_event(&other(0x2), Some((FaultClass::MemoryUncorrectable, "ecc-double-bit")));
    check_event(&other(0x2000), Some((FaultClass::MemoryUncorrectable, "poison-fatal")));
    check_event(&other(0x4000), Some((FaultClass::FellOffBus, "unavailable")));
    // A clock change is not asked for, and no recovery is asked of anybody.
    check_event(&other(0x10), None);
    check_event(&other(0x8000), None);
}

#[test]
fn an_event_says_which_part_it_is_about() {
    let check = |is_cut, expected: &str| {
        let machine = Machine::new(DGX_H100);
        machine.vendor().switch_mode(&uuid(1), is_cut).unwrap();
        machine.change(|described| {
            described["events"] = json!([
                { "device": 0, "kind": 8, "value": 31, "gpu_instance": 3, "compute_instance": 0,
                  "by_part": true }
            ]);
        });
        let told = fault(&machine.vendor());
        assert_eq!((told.device, told.message.as_str()), (uuid(1), expected));
    };
    check(true, "memory page fault of an application (GPU instance 3, compute instance 0)");
    // Libraries have been seen that tell of instance 0 where there are none.
    check(false, "memory page fault of an application");
}

#[test]
fn a_change_of_partitions_is_told() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| described["events"] = json!([{ "device": 0, "kind": 0x100 }]));
    assert_eq!(event(&machine.vendor()), VendorEvent::DevicesChanged);
}

#[test]
fn the_bus_tells_of_a_device_that_fell_off_it_once_until_it_is_back() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    machine.unplug("0000:1b:00.0");
    let told = fault(&vendor);
    assert_eq!((told.device, told.class), (uuid(1), FaultClass::FellOffBus));
    assert_eq!(told.code, "bus-read");
    assert!(vendor.probe(&uuid(1)).is_err());
    vendor.probe(&uuid(2)).unwrap();
    machine.plug("0000:1b:00.0");
    vendor.probe(&uuid(1)).unwrap();
}

#[test]
fn the_library_tells_of_a_device_that_it_lost() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    machine.change(|described| described["devices"][2]["lost"] = true.into());
    let told = fault(&vendor);
    assert_eq!((told.device, told.class), (uuid(3), FaultClass::FellOffBus));
    // It stays listed as the driver describes it, and is no unknown device.
    let devices = vendor.discover().unwrap();
    assert_eq!(devices.len(), 8);
    for error in [
        vendor.probe(&uuid(3)).unwrap_err(),
        vendor.recovery_action(&uuid(3)).unwrap_err(),
        vendor.sample(&uuid(3)).unwrap_err(),
    ] {
        assert!(matches!(error, VendorError::Failed { .. }), "{error}");
    }
}

/// A device that is gone no longer says who it is; the XID that told of it is the reason.
#[test]
fn a_lost_device_is_told_by_its_xid() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    machine.change(|described| {
        described["devices"][2]["lost"] = true.into();
        described["events"] = json!([{ "device": 2, "kind": 8, "value": 79 }]);
    });
    let told = fault(&vendor);
    assert_eq!((told.device, told.class), (uuid(3), FaultClass::FellOffBus));
    assert_eq!(
        (told.code.as_str(), told.message.as_str()),
        ("xid-79", "the GPU has fallen off the bus")
    );
}

#[test]
fn the_kernel_log_tells_too() {
    let machine = Machine::new(DGX_H100);
    machine.write("dev/kmsg", "4,1,1,-;NVRM: GPU 0000:43:00.0: GPU has fallen off the bus.\n");
    let vendor = machine.vendor();
    // What was logged before is history.
    check_quiet(&vendor);
    machine.append("dev/kmsg", "4,2,2,-;NVRM: The NVIDIA GPU 0000:52:00.0\n");
    machine.append("dev/kmsg", "4,3,3,-;NVRM: (PCI ID: 10de:2330) installed in this system has\n");
    machine.append("dev/kmsg", "4,4,4,-;NVRM: fallen off the bus and is not responding\n");
    let told = fault(&vendor);
    assert_eq!((told.device, told.code.as_str()), (uuid(3), "kernel-log"));
}

#[test]
fn a_device_that_came_is_told() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    // It comes without a word of the library, which knows it once it is loaded anew.
    machine.change(|described| {
        let devices = described["devices"].as_array_mut().unwrap();
        let mut gpu = devices[0].clone();
        (gpu["uuid"], gpu["pci"], gpu["minor"]) = ("GPU-9".into(), "0000:e1:00.0".into(), 8.into());
        machine.add_device(&gpu);
        devices.push(gpu);
    });
    assert_eq!(event(&vendor), VendorEvent::DevicesChanged);
    assert_eq!(vendor.discover().unwrap().len(), 9);
}

/// What the kernel sends when something happens to a PCI device, sent by the kernel itself to
/// all who listen in this thread's network namespace.
fn send_uevent(action: &str, maker: &str) {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .unwrap();
    let path = "/devices/pci0000:15/0000:1b:00.0";
    let text = format!("{action}@{path}\0ACTION={action}\0SUBSYSTEM=pci\0PCI_ID={maker}:2330\0");
    // `nlmsghdr`: length, type (the first that is no control), NLM_F_REQUEST, number, sender.
    let mut message = u32::try_from(16 + text.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(16_u16.to_ne_bytes());
    message.extend(1_u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(text.as_bytes());
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty()).unwrap();
}

#[test]
fn the_kernel_tells_at_once_of_a_device_that_is_bound_anew() {
    // In a namespace of its own no daemon of this machine hears it.
    unshare(CloneFlags::CLONE_NEWNET).expect("namespaces need CAP_SYS_ADMIN");
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    for action in ["unbind", "bind", "remove", "add"] {
        send_uevent("change", "10DE");
        send_uevent(action, "8086");
        check_quiet(&vendor);
        assert!(is_loaded(&machine));
        send_uevent(action, "10DE");
        assert_eq!(vendor.next_event(Duration::ZERO).unwrap(), Some(VendorEvent::DevicesChanged));
        // The library that was loaded before does not know devices that came.
        assert!(!is_loaded(&machine), "{action}");
        check_quiet(&vendor);
    }
}

#[test]
fn the_library_tells_of_a_driver_that_leaves_a_device() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    check_quiet(&vendor);
    for events in [json!([1]), json!([1, 2])] {
        machine.change(|described| described["system_events"] = events);
        assert_eq!(event(&vendor), VendorEvent::DevicesChanged);
        check_quiet(&vendor);
    }
}

/// A change to the machine that no event tells of is found, holds a taint while it lasts, and is
/// told once.
#[track_caller]
fn check_found(
    change: impl Fn(&mut serde_json::Value),
    expected: (FaultClass, &str, &str),
    lasts: bool,
) {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| described["figures"]["h100"]["fields"]["4"] = 7.into());
    machine.change(|described| described["figures"]["h100"]["fields"]["59"] = 0.into());
    machine.change(|described| described["devices"].as_array_mut().unwrap().truncate(1));
    for bus in ["43", "52", "61", "9d", "c3", "d1", "df"] {
        fs::remove_dir_all(machine.path(&format!("proc/driver/nvidia/gpus/0000:{bus}:00.0")))
            .unwrap();
    }
    let vendor = machine.vendor();
    check_quiet(&vendor);
    vendor.probe(&uuid(1)).unwrap();
    machine.change(&change);
    let told = fault(&vendor);
    assert_eq!((told.class, told.code.as_str(), told.message.as_str()), expected);
    assert_eq!(told.device, uuid(1));
    assert_eq!(vendor.probe(&uuid(1)).is_err(), lasts, "{expected:?}");
}

#[test]
fn conditions_that_no_event_tells_of_are_found() {
    let memory = FaultClass::MemoryUncorrectable;
    let field = |id: &'static str, value: u64| {
        move |described: &mut serde_json::Value| {
            described["figures"]["h100"]["fields"][id] = value.into();
        }
    };
    let of_device = |key: &'static str, value: serde_json::Value| {
        move |described: &mut serde_json::Value| described["devices"][0][key] = value.clone()
    };
    let failed = "faulty memory could not be remapped";
    let pending = "faulty memory rows are replaced at the next reset";
    let asks = "the driver asks for recovery: reset-device";
    let retired = "faulty memory pages are retired at the next reset";
    let (throttled, reset) = (FaultClass::Throttled, FaultClass::ResetRequired);
    thread::scope(|scope| {
        scope.spawn(|| {
            let expected = (memory, "row-remap-failed", failed);
            check_found(of_device("row_remap", "failed".into()), expected, true);
        });
        scope.spawn(|| {
            let expected = (throttled, "row-remap-pending", pending);
            check_found(of_device("row_remap", "pending".into()), expected, true);
        });
        scope.spawn(|| {
            let expected = (throttled, "page-retirement-pending", retired);
            check_found(field("31", 1), expected, true);
        });
        scope.spawn(|| {
            let expected = (reset, "recovery-action", asks);
            check_found(of_device("recovery_action", 1.into()), expected, true);
        });
        scope.spawn(|| {
            let expected = (memory, "ecc-uncorrected", "uncorrectable ECC errors were counted");
            check_found(field("4", 8), expected, false);
        });
        scope.spawn(|| {
            // Degraded bandwidth, a route that is not healthy; the rest is false.
            let sick = |described: &mut serde_json::Value| {
                described["devices"][0]["fabric"]["health"] = (1 | 2 << 2 | 1 << 4 | 2 << 6).into();
            };
            let words = "the NVLink fabric: less bandwidth than there should be, \
                         a route is not healthy";
            check_found(sick, (FaultClass::Link, "fabric-unhealthy", words), true);
        });
        scope.spawn(|| {
            let words = "an NVLink failed and was trained anew";
            check_found(field("59", 1), (FaultClass::Link, "nvlink-recovery", words), false);
        });
        scope.spawn(|| {
            let down = |described: &mut serde_json::Value| {
                let links = &mut described["devices"][0]["links"];
                let mut lost = links[0].clone();
                let count = lost["count"].as_u64().unwrap();
                links[0]["count"] = (count - 1).into();
                (lost["count"], lost["down"]) = (1.into(), true.into());
                links.as_array_mut().unwrap().insert(1, lost);
            };
            check_found(down, (FaultClass::Link, "nvlink-down", "NVLink 3 is down"), true);
        });
    });
}

/// What an event told of is not told of again by its traces, so that one fault has one reason.
#[test]
fn the_traces_of_a_fault_are_no_second_fault() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| described["figures"]["h100"]["fields"]["4"] = 0.into());
    let vendor = machine.vendor();
    check_quiet(&vendor);
    machine.change(|described| {
        described["events"] = json!([{ "device": 0, "kind": 8, "value": 79 }]);
    });
    assert_eq!(fault(&vendor).code, "xid-79");
    machine.change(|described| described["devices"][0]["recovery_action"] = 1.into());
    // Another device's own condition shows that all were looked at since.
    machine.change(|described| described["devices"][1]["row_remap"] = "pending".into());
    let told = fault(&vendor);
    assert_eq!((told.device, told.code.as_str()), (uuid(2), "row-remap-pending"));
    // Once the driver asked for nothing, what it asks for is news.
    machine.change(|described| described["devices"][0]["recovery_action"] = 0.into());
    machine.change(|described| described["devices"][2]["row_remap"] = "pending".into());
    assert_eq!(fault(&vendor).device, uuid(3));
    machine.change(|described| described["devices"][0]["recovery_action"] = 2.into());
    assert_eq!(fault(&vendor).message, "the driver asks for recovery: reboot-node");
}

#[test]
fn a_library_out_of_use_is_told_once_of_each_device() {
    let machine = Machine::new(DGX_H100);
    machine.change(|described| described["devices"].as_array_mut().unwrap().truncate(2));
    for bus in ["52", "61", "9d", "c3", "d1", "df"] {
        fs::remove_dir_all(machine.path(&format!("proc/driver/nvidia/gpus/0000:{bus}:00.0")))
            .unwrap();
    }
    machine.break_library();
    let vendor = machine.vendor();
    let told: Vec<_> = (0..2).map(|_| fault(&vendor)).collect();
    assert_eq!([&told[0].device, &told[1].device], [&uuid(1), &uuid(2)]);
    assert!(told.iter().all(|it| it.class == FaultClass::Unobserved));
    assert!(matches!(vendor.next_event(PATIENCE), Err(VendorError::Library(_))));
}

#[test]
fn the_driver_says_what_recovery_takes() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    let check = |value: serde_json::Value, expected: Result<RecoveryAction, &str>| {
        machine.change(|described| described["devices"][0]["recovery_action"] = value);
        let found = vendor.recovery_action(&uuid(1));
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            _ => panic!("{found:?} is not {expected:?}"),
        }
    };
    for (number, action) in RecoveryAction::ALL.into_iter().enumerate() {
        check(number.into(), Ok(action));
    }
    check(6.into(), Err("action 6 is not known"));
    check(json!(null), Err("not supported"));
}

#[test]
fn a_probe_finds_memory_that_cannot_be_repaired() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    vendor.probe(&uuid(1)).unwrap();
    machine.change(|described| described["devices"][0]["row_remap"] = "failed".into());
    assert!(vendor.probe(&uuid(1)).unwrap_err().to_string().contains("remapped"));
}

/// The files that this process has mapped; the library is among them while it is loaded.
fn is_loaded(machine: &Machine) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.contains(machine.path("driver").to_str().unwrap())
}

#[test]
fn the_library_is_gone_after_quiesce_while_somebody_waits() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    vendor.discover().unwrap();
    assert!(is_loaded(&machine));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| vendor.next_event(Duration::from_secs(2)));
        vendor.quiesce(None).unwrap();
        assert!(!is_loaded(&machine));
        // The wait goes on without opening it again.
        assert_eq!(waiting.join().unwrap().unwrap(), None);
    });
    assert!(!is_loaded(&machine));
    assert_eq!(vendor.discover().unwrap().len(), 8);
    assert!(is_loaded(&machine));
    vendor.quiesce(Some(&uuid(1))).unwrap();
    assert!(!is_loaded(&machine));
}
