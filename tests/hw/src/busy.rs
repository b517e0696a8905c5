//! Whether a machine may be touched at all: nobody uses its GPUs, and all is as it came.

use std::{fs, path::Path};

use serde_json::Value;

/// It holds devices open to keep the driver's state, and computes nothing.
const KEEPER: &str = "nvidia-persiste";

/// What stands against it, by what NVML says.
pub(crate) fn reasons(machine: &Value) -> Vec<String> {
    let devices = machine["devices"].as_array().map_or(&[][..], Vec::as_slice);
    devices.iter().flat_map(of_device).collect()
}

fn of_device(device: &Value) -> Vec<String> {
    let mut reasons = Vec::new();
    let name = device["pci"].as_str().unwrap_or("a device");
    for process in device["processes"].as_array().into_iter().flatten() {
        reasons.push(format!("{name}: process {} uses it", process["pid"]));
    }
    if let Some(code) = device["errors"]["nvmlDeviceGetComputeRunningProcesses_v3"].as_u64() {
        reasons.push(format!("{name}: it does not say who uses it (NVML error {code})"));
    }
    if device["mig"] == true {
        reasons.push(format!("{name}: it is in MIG mode, whose instances others may hold"));
    }
    if device["mig_needs_reset"] == true {
        reasons.push(format!("{name}: MIG mode changes at its next reset"));
    }
    match device["compute_mode"].as_u64() {
        None | Some(0) => {}
        Some(mode) => reasons.push(format!("{name}: compute mode is {mode}, not 0 (default)")),
    }
    match device["recovery_action"].as_u64() {
        None | Some(0) => {}
        Some(action) => reasons.push(format!("{name}: the driver asks for recovery ({action})")),
    }
    reasons
}

/// Processes that have a device node open, and what they are called.
pub(crate) fn holders(proc: &Path) -> Vec<String> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().into_string() else { continue };
        if pid == me || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let opened = files.filter_map(|file| fs::read_link(file.path()).ok());
        let Some(node) = opened.into_iter().find(|path| is_device(path)) else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let name = name.trim_end();
        if name != KEEPER {
            found.push(format!("process {pid} ({name}) has `{}` open", node.display()));
        }
    }
    found
}

/// `/dev/nvidia0` and the like; `nvidiactl` alone is what NVML itself opens.
fn is_device(path: &Path) -> bool {
    let number = path.to_str().and_then(|path| path.strip_prefix("/dev/nvidia"));
    number.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|it| it.is_ascii_digit()))
        || path.starts_with("/dev/nvidia-uvm")
        || path.starts_with("/dev/nvidia-caps")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(device: &Value, expected: &[&str]) {
        let machine = json!({ "devices": [device] });
        assert_eq!(reasons(&machine), expected);
    }

    #[test]
    fn an_idle_device_as_it_came_may_be_touched() {
        check(&json!({ "pci": "a", "mig": false, "compute_mode": 0, "recovery_action": 0 }), &[]);
        check(&json!({ "pci": "a" }), &[]);
        assert_eq!(reasons(&json!({})), Vec::<String>::new());
    }

    #[test]
    fn anything_else_may_not() {
        check(&json!({ "pci": "a", "processes": [{ "pid": 7 }] }), &["a: process 7 uses it"]);
        check(
            &json!({ "pci": "a", "errors": { "nvmlDeviceGetComputeRunningProcesses_v3": 3 } }),
            &["a: it does not say who uses it (NVML error 3)"],
        );
        check(
            &json!({ "pci": "a", "mig": true }),
            &["a: it is in MIG mode, whose instances others may hold"],
        );
        check(
            &json!({ "pci": "a", "mig": false, "mig_needs_reset": true }),
            &["a: MIG mode changes at its next reset"],
        );
        check(
            &json!({ "pci": "a", "compute_mode": 3 }),
            &["a: compute mode is 3, not 0 (default)"],
        );
        check(
            &json!({ "pci": "a", "recovery_action": 1 }),
            &["a: the driver asks for recovery (1)"],
        );
    }

    #[test]
    fn nodes_of_devices_are_told_from_the_drivers_own() {
        for (path, expected) in [
            ("/dev/nvidia0", true),
            ("/dev/nvidia12", true),
            ("/dev/nvidia-uvm", true),
            ("/dev/nvidia-caps/nvidia-cap3", true),
            ("/dev/nvidiactl", false),
            ("/dev/null", false),
        ] {
            assert_eq!(is_device(Path::new(path)), expected, "{path}");
        }
    }
}
