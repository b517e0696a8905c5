//! The CDI spec file format, as far as grants need it.

use accelpool_model::{Allocation, Injection, Portion};
use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    cdi_version: &'static str,
    kind: &'static str,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) container_edits: ContainerEdits,
}

/// Never empty: runtimes refuse a device without edits, and each has its grant variable.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerEdits {
    pub(super) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: u64,
    pub(super) minor: u64,
    pub(super) permissions: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    host_path: String,
    container_path: String,
    options: [&'static str; 5],
}

impl Mount {
    pub(super) fn read_only(mount: &accelpool_model::Mount) -> Self {
        Self {
            host_path: mount.host_path.clone(),
            container_path: mount.container_path.clone(),
            options: ["ro", "nosuid", "nodev", "rbind", "rprivate"],
        }
    }

    pub(super) fn writable(mount: &accelpool_model::Mount) -> Self {
        Self { options: ["rw", "nosuid", "nodev", "rbind", "rprivate"], ..Self::read_only(mount) }
    }
}

impl Spec {
    pub(super) fn new(kind: &'static str, devices: Vec<Device>) -> Self {
        Self { cdi_version: lowest_version(&devices), kind, devices }
    }
}

/// The lowest `cdiVersion` that admits what the devices use.
fn lowest_version(devices: &[Device]) -> &'static str {
    let needs_5 = |device: &Device| {
        let renamed = |node: &DeviceNode| node.host_path.is_some();
        device.name.starts_with(|c: char| c.is_ascii_digit())
            || device.container_edits.device_nodes.iter().any(renamed)
    };
    if devices.iter().any(needs_5) { "0.5.0" } else { "0.3.0" }
}

/// The container's environment: what the vendor's libraries need, and one variable that says
/// what was granted. Its name is the CDI device's, so that two grants in one container differ.
pub(super) fn environment(
    cdi_name: &str,
    allocation: &Allocation,
    injection: &Injection,
) -> Vec<String> {
    let (variable, value) = grant_variable(cdi_name, allocation);
    let grant = format!("{variable}={value}");
    let vendor = injection.env.iter().map(|(name, value)| format!("{name}={value}"));
    [grant].into_iter().chain(vendor).collect()
}

/// The variable by which a container tells that it was given a part of a claim, and its value.
pub(super) fn grant_variable(cdi_name: &str, allocation: &Allocation) -> (String, String) {
    let name = cdi_name.to_ascii_uppercase().replace(['-', '.'], "_");
    (format!("ACCELPOOL_GRANT_{name}"), grant_words(allocation))
}

/// The grant as `key=value` words, memory in bytes and compute in thousandths.
fn grant_words(allocation: &Allocation) -> String {
    let uuid = &allocation.uuid;
    match &allocation.portion {
        Portion::Whole => format!("portion=whole,uuid={uuid}"),
        Portion::Partition { name, profile, .. } => {
            format!("portion=partition,uuid={uuid},partition={name},profile={profile}")
        }
        Portion::Admin { .. } => format!("portion=admin,uuid={uuid}"),
        Portion::Share { memory, compute, weight, class } => format!(
            "portion=share,uuid={uuid},memory_bytes={},compute_permille={compute},\
             weight={weight},class={class}",
            memory.bytes()
        ),
    }
}
