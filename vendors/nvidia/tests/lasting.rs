//! Conditions that last hold a taint, also for a worker that was started anew, and go with their
//! cause.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use std::{fs, time::Duration};

use accelpool_model::FaultClass;
use accelpool_vendor_api::{Vendor, VendorEvent};
use accelpool_vendor_nvidia::Nvidia;
use serde_json::json;

use crate::machine::{DGX_H100, Machine, uuid};

/// Nothing is left to tell.
#[track_caller]
fn check_quiet(vendor: &Nvidia) {
    assert_eq!(vendor.next_event(Duration::ZERO).unwrap(), None);
}

/// Has the next wait look at all there is: who closes the library forgets when he looked last.
fn look_anew(vendor: &Nvidia) {
    vendor.quiesce(None).unwrap();
    vendor.discover().unwrap();
}

/// Where the driver does not say what recovery a memory error takes, only the reset ends it: the
/// count since the driver was loaded says so to every worker, also one that saw no error happen.
#[test]
fn memory_errors_last_until_the_driver_says_otherwise_or_a_reset() {
    let machine = Machine::new(DGX_H100);
    let ecc = |count: u64| {
        machine.change(|it| it["figures"]["h100"]["fields"]["4"] = count.into());
    };
    let action = |action: serde_json::Value| {
        machine.change(|described| {
            let devices = described["devices"].as_array_mut().unwrap();
            devices.truncate(1);
            devices[0]["recovery_action"] = action;
        });
    };
    let sound = |vendor: &Nvidia| {
        look_anew(vendor);
        let told = vendor.next_event(Duration::ZERO).unwrap();
        (vendor.probe(&uuid(1)).is_ok(), told)
    };
    for bus in ["43", "52", "61", "9d", "c3", "d1", "df"] {
        fs::remove_dir_all(machine.path(&format!("proc/driver/nvidia/gpus/0000:{bus}:00.0")))
            .unwrap();
    }
    action(json!(null));
    ecc(1);
    let vendor = machine.vendor();
    let (is_sound, told) = sound(&vendor);
    let Some(VendorEvent::Fault(told)) = told else { panic!("{told:?}") };
    assert!(!is_sound);
    assert_eq!((told.class, &*told.code), (FaultClass::MemoryUncorrectable, "ecc-uncorrected"));
    // A worker that is started anew finds it too, as often as it is asked.
    let fresh = machine.vendor();
    for _ in 0..4 {
        assert!(!sound(&fresh).0);
    }
    // A driver with field 230 knows better: an error that was contained asks for nothing.
    action(json!(0));
    assert!(sound(&fresh).0);
    action(json!(null));
    assert!(!sound(&fresh).0);
    ecc(0);
    assert!(sound(&fresh).0);
}

/// Links of a device as `(how many are up, of all 18)`.
fn set_links(machine: &Machine, device: usize, up: u32) {
    let end = "switch 0000:05:00.0";
    machine.change(|described| {
        described["devices"][device]["links"] = json!([
            { "count": up, "end": end, "version": 6 },
            { "count": 18 - up, "end": end, "version": 6, "down": true }
        ]);
    });
}

/// A device that was behind its like before anybody looked is found, but only held to it while it
/// is tainted for something: links come up one by one when the fabric is set up.
#[test]
fn a_device_with_fewer_links_than_its_like_is_not_sound() {
    let machine = Machine::new(DGX_H100);
    for device in 0..8 {
        set_links(&machine, device, if device == 2 { 14 } else { 18 });
    }
    let vendor = machine.vendor();
    check_quiet(&vendor);
    let error = vendor.probe(&uuid(3)).unwrap_err();
    assert!(error.to_string().contains("14 NVLinks are up, of others like it 18"), "{error}");
    vendor.probe(&uuid(1)).unwrap();
    set_links(&machine, 2, 18);
    look_anew(&vendor);
    check_quiet(&vendor);
    vendor.probe(&uuid(3)).unwrap();
}

#[test]
fn a_device_in_mig_mode_may_have_its_links_off() {
    let machine = Machine::new(DGX_H100);
    machine.change(|it| it["figures"]["h100"]["fields"]["59"] = 0.into());
    let look = |vendor: &Nvidia| {
        look_anew(vendor);
        check_quiet(vendor);
        vendor.probe(&uuid(1)).unwrap();
    };
    let vendor = machine.vendor();
    look(&vendor);
    vendor.switch_mode(&uuid(1), true).unwrap();
    set_links(&machine, 0, 0);
    look(&vendor);
    vendor.switch_mode(&uuid(1), false).unwrap();
    set_links(&machine, 0, 18);
    machine.change(|it| it["figures"]["h100"]["fields"]["59"] = 18.into());
    // The others share the figure, and did not change their mode: theirs is a fault.
    look_anew(&vendor);
    let mut told = Vec::new();
    while let Some(VendorEvent::Fault(fault)) = vendor.next_event(Duration::ZERO).unwrap() {
        told.push(fault.device);
    }
    assert_eq!(told, (2..=8).map(uuid).collect::<Vec<_>>());
}
