//! `/metrics?compat=dcgm`: what devices of every vendor use, under the names of NVIDIA's
//! dcgm-exporter, so that dashboards made for it show them too.
//!
//! A device that somebody holds has a series for each holder, with the holder's own figures:
//! nobody's are copied to another. What nobody holds, and what belongs to nobody, stands in
//! a series without a pod. MiB, percent and millijoules are that exporter's units.

use std::fmt::Write;

use accelpool_proto::node::{AllocationMetrics, DeviceMetrics, GetMetricsResponse};

use accelpool_cluster::{DRIVER_NAME, SURFACE_DRA, SURFACE_LABEL};

use super::page::rounded;
use crate::labels;

const MIB: f64 = 1_048_576.0;

/// A name of the other exporter, and what it says of a device.
struct Field {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    device: fn(&DeviceMetrics) -> Option<f64>,
    /// What of it a holder has; the rest is the device's own. None where it is of the device
    /// as a whole.
    holder: Option<fn(&AllocationMetrics) -> Option<f64>>,
}

const FIELDS: [Field; 18] = [
    Field {
        name: "DCGM_FI_DEV_GPU_UTIL",
        kind: "gauge",
        help: "GPU utilization (in %).",
        device: |device| device.compute_ratio.map(|ratio| ratio * 100.0),
        holder: Some(|allocation| allocation.compute_ratio.map(|ratio| ratio * 100.0)),
    },
    Field {
        name: "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        kind: "gauge",
        help: "Ratio of time the graphics engine is active.",
        device: |device| device.compute_ratio,
        holder: Some(|allocation| allocation.compute_ratio),
    },
    Field {
        name: "DCGM_FI_DEV_FB_USED",
        kind: "gauge",
        help: "Framebuffer memory used (in MiB).",
        device: |device| device.memory_used_bytes.map(|bytes| rounded(bytes) / MIB),
        holder: Some(|allocation| allocation.memory_used_bytes.map(|bytes| rounded(bytes) / MIB)),
    },
    Field {
        name: "DCGM_FI_DEV_FB_FREE",
        kind: "gauge",
        help: "Framebuffer memory free (in MiB).",
        device: |device| {
            let told = device.readings.as_ref().and_then(|readings| readings.memory_free_bytes);
            let rest = || Some(device.memory_bytes.saturating_sub(device.memory_used_bytes?));
            told.or_else(rest).map(|bytes| rounded(bytes) / MIB)
        },
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_POWER_USAGE",
        kind: "gauge",
        help: "Power draw (in W).",
        device: |device| Some(rounded(device.readings.as_ref()?.power_mw?) / 1e3),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        kind: "counter",
        help: "Total energy consumption since boot (in mJ).",
        device: |device| device.energy_mj.map(rounded),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_GPU_TEMP",
        kind: "gauge",
        help: "GPU temperature (in C).",
        device: |device| temperature(device, "core"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_MEMORY_TEMP",
        kind: "gauge",
        help: "Memory temperature (in C).",
        device: |device| temperature(device, "memory"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_SM_CLOCK",
        kind: "gauge",
        help: "SM clock frequency (in MHz).",
        device: |device| clock(device, "compute"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_MEM_CLOCK",
        kind: "gauge",
        help: "Memory clock frequency (in MHz).",
        device: |device| clock(device, "memory"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_MEM_COPY_UTIL",
        kind: "gauge",
        help: "Memory utilization (in %).",
        device: |device| engine(device, "memory-interface"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_ENC_UTIL",
        kind: "gauge",
        help: "Encoder utilization (in %).",
        device: |device| engine(device, "encoder"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_DEC_UTIL",
        kind: "gauge",
        help: "Decoder utilization (in %).",
        device: |device| engine(device, "decoder"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_FB_RESERVED",
        kind: "gauge",
        help: "Framebuffer memory reserved (in MiB).",
        device: |device| Some(rounded(device.readings.as_ref()?.memory_reserved_bytes?) / MIB),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        kind: "counter",
        help: "Total number of PCIe retries.",
        device: |device| errors(device, "pcie-replay"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        kind: "counter",
        help: "Number of remapped rows for uncorrectable errors",
        device: |device| errors(device, "rows-remapped-uncorrected"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        kind: "counter",
        help: "Number of remapped rows for correctable errors",
        device: |device| errors(device, "rows-remapped-corrected"),
        holder: None,
    },
    Field {
        name: "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        kind: "gauge",
        help: "Whether remapping of rows has failed",
        device: |device| Some(f64::from(u8::from(device.readings.as_ref()?.retirement_failed?))),
        holder: None,
    },
];

fn errors(device: &DeviceMetrics, kind: &str) -> Option<f64> {
    Some(rounded(*device.readings.as_ref()?.errors.get(kind)?))
}

fn temperature(device: &DeviceMetrics, sensor: &str) -> Option<f64> {
    let millidegrees = device.readings.as_ref()?.temperature_mc.get(sensor)?;
    Some(rounded(u64::try_from(*millidegrees).ok()?) / 1e3)
}

fn clock(device: &DeviceMetrics, domain: &str) -> Option<f64> {
    Some(rounded(*device.readings.as_ref()?.clock_hz.get(domain)?) / 1e6)
}

fn engine(device: &DeviceMetrics, engine: &str) -> Option<f64> {
    Some(f64::from(*device.readings.as_ref()?.engine_permille.get(engine)?) / 10.0)
}

/// The page, in Prometheus' text format.
pub(super) fn page(metrics: &GetMetricsResponse, node: &str) -> String {
    let mut text = String::new();
    for field in &FIELDS {
        let mut lines = String::new();
        for (index, device) in metrics.devices.iter().enumerate() {
            device_lines(&mut lines, field, (index, device), metrics, node);
        }
        if !lines.is_empty() {
            let Field { name, kind, help, .. } = field;
            let head = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            head.expect("a String takes any text");
            text.push_str(&lines);
        }
    }
    text
}

fn device_lines(
    text: &mut String,
    field: &Field,
    (index, device): (usize, &DeviceMetrics),
    metrics: &GetMetricsResponse,
    node: &str,
) {
    let Some(value) = (field.device)(device) else { return };
    let mut rest = value;
    let held = metrics.allocations.iter().filter(|held| held.device == device.device);
    let mut holders = 0;
    if let Some(part) = field.holder {
        for allocation in held {
            let Some(value) = part(allocation) else { continue };
            rest -= value;
            holders += 1;
            line(text, field.name, &labels_of(index, device, Some(allocation), node), value);
        }
    }
    // Rounding must not make up a rest.
    if holders == 0 || rest > 1e-6 {
        line(text, field.name, &labels_of(index, device, None, node), rest);
    }
}

fn line(text: &mut String, name: &str, labels: &[(&str, String)], value: f64) {
    let labels: Vec<String> = labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
        .collect();
    writeln!(text, "{name}{{{}}} {value}", labels.join(",")).expect("a String takes any text");
}

fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// The labels of the exporter that this stands in for, in its order. `hostname` was `Hostname`
/// before its 4.5.3: both are there. `container` is not: containers of one pod are not told apart.
fn labels_of(
    index: usize,
    device: &DeviceMetrics,
    held: Option<&AllocationMetrics>,
    node: &str,
) -> Vec<(&'static str, String)> {
    let word = |key: &str| held.and_then(|held| held.labels.get(key)).cloned().unwrap_or_default();
    let mut labels = vec![
        ("gpu", index.to_string()),
        ("UUID", device.uuid.clone()),
        ("pci_bus_id", bus_id(&device.pci_address)),
        ("device", device_of(index, device)),
        ("modelName", device.model.clone()),
        ("hostname", node.to_owned()),
        ("Hostname", node.to_owned()),
        ("DCGM_FI_DRIVER_VERSION", device.driver_version.clone()),
    ];
    let Some(held) = held else { return labels };
    labels.push(("claim_uid", held.claim.clone()));
    if word(SURFACE_LABEL) == SURFACE_DRA {
        let entry = Some(&held.partition).filter(|partition| !partition.is_empty());
        labels.extend([
            ("dra_claim_name", word(labels::NAME)),
            ("dra_claim_namespace", word(labels::NAMESPACE)),
            ("dra_device_name", entry.unwrap_or(&held.device).clone()),
            ("dra_driver_name", DRIVER_NAME.to_owned()),
            ("dra_pool_name", format!("{DRIVER_NAME}/{node}")),
        ]);
    }
    labels.extend([
        ("namespace", word(labels::NAMESPACE)),
        ("pod", word(labels::POD)),
        ("pod_uid", word(labels::POD_UID)),
    ]);
    labels
}

/// A PCI address as NVML writes it: eight digits of a domain, in capitals.
fn bus_id(address: &str) -> String {
    address.split_once(':').map_or_else(String::new, |(domain, rest)| {
        format!("{domain:0>8}:{rest}").to_ascii_uppercase()
    })
}

/// The exporter knows NVIDIA's devices by their nodes; others have none of that name.
fn device_of(index: usize, device: &DeviceMetrics) -> String {
    if device.vendor == "nvidia" { format!("nvidia{index}") } else { device.device.clone() }
}
