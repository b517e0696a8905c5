//! The driver's own settings: told, and changed where that is asked for.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod machine;

use accelpool_model::{ComputeMode, Settings};
use accelpool_vendor_api::{Vendor, VendorError};
use accelpool_vendor_nvidia::Nvidia;

use crate::machine::{DGX_H100, Machine, uuid};

const WANTED: Settings = Settings {
    compute_mode: Some(ComputeMode::ExclusiveProcess),
    persistence: Some(false),
    accounting: Some(true),
};

fn settings(vendor: &Nvidia, number: usize) -> String {
    let devices = vendor.discover().unwrap();
    devices.iter().find(|it| it.uuid == uuid(number)).unwrap().traits.settings.to_string()
}

#[test]
fn what_is_asked_for_is_set_on_that_device_and_outlives_the_worker() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    let before = "compute mode default, persistence on, accounting off";
    assert_eq!(settings(&vendor, 1), before);
    vendor.configure(&uuid(1), WANTED).unwrap();
    let after = "compute mode exclusive-process, persistence off, accounting on";
    assert_eq!(settings(&vendor, 1), after);
    assert_eq!(settings(&vendor, 2), before);
    assert_eq!(settings(&machine.vendor(), 1), after);
    // What is absent stays.
    vendor.configure(&uuid(1), Settings::default()).unwrap();
    let back = Settings { compute_mode: Some(ComputeMode::Default), ..Settings::default() };
    vendor.configure(&uuid(1), back).unwrap();
    assert_eq!(settings(&vendor, 1), "compute mode default, persistence off, accounting on");
}

#[test]
fn what_the_driver_does_not_do_is_an_error() {
    let machine = Machine::new(DGX_H100);
    let vendor = machine.vendor();
    machine.change(|described| described["devices"][0]["stubborn"] = true.into());
    let error = vendor.configure(&uuid(1), WANTED).unwrap_err().to_string();
    assert!(error.contains("compute mode exclusive-process"), "{error}");
    machine.change(|described| {
        described["devices"][1]["errors"] = serde_json::json!({ "nvmlDeviceSetComputeMode": 4 });
        described["devices"][2]["errors"] = serde_json::json!({ "nvmlDeviceSetComputeMode": 3 });
    });
    let refused = vendor.configure(&uuid(2), WANTED).unwrap_err();
    assert!(matches!(refused, VendorError::Failed { .. }), "{refused}");
    let unsupported = vendor.configure(&uuid(3), WANTED).unwrap_err();
    assert!(matches!(unsupported, VendorError::Unsupported(_)), "{unsupported}");
    let nobody = "GPU-none".parse().unwrap();
    assert_eq!(vendor.configure(&nobody, WANTED), Err(VendorError::UnknownDevice(nobody.clone())));
}
