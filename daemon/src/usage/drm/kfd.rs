//! KFD's folder in sysfs: the processes that compute on AMD's devices. Their queues bypass the
//! DRM scheduler, so `fdinfo` does not know their time; KFD knows their memory and their copies.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use accelpool_model::PciAddress;

use super::{numbers, read};

/// Devices and partitions of them, on any node.
const NODES_MAX: usize = 1024;
/// Processes with a queue or memory of a device.
const PROCESSES_MAX: usize = 32 * 1024;

/// What a process uses of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The device.
    pub device: PciAddress,
    /// Its memory that it holds, in bytes.
    pub memory: u64,
    /// For how long its copy engines worked for it since it came.
    pub copied: Option<Duration>,
}

/// All processes, once for each device; none where there is no KFD.
#[must_use]
pub fn processes(kfd: &Path) -> Vec<(u32, Used)> {
    let devices = devices(kfd);
    let mut found = Vec::new();
    if devices.is_empty() {
        return found;
    }
    for pid in numbers(&kfd.join("proc")).into_iter().take(PROCESSES_MAX) {
        let folder = kfd.join("proc").join(pid.to_string());
        let mut by_device: HashMap<PciAddress, Used> = HashMap::new();
        for (number, device) in &devices {
            let Some(memory) = value(&folder.join(format!("vram_{number}"))) else { continue };
            let copied = value(&folder.join(format!("sdma_{number}"))).map(Duration::from_micros);
            // Partitions of a device have a number each.
            let used = by_device.entry(*device).or_insert_with(|| Used {
                device: *device,
                memory: 0,
                copied: None,
            });
            used.memory = used.memory.saturating_add(memory);
            if let Some(copied) = copied {
                used.copied = Some(used.copied.unwrap_or_default().saturating_add(copied));
            }
        }
        found.extend(by_device.into_values().map(|used| (pid, used)));
    }
    found
}

/// Devices by KFD's numbers for them.
fn devices(kfd: &Path) -> Vec<(u32, PciAddress)> {
    let nodes = kfd.join("topology/nodes");
    let device = |node: u32| {
        let folder = nodes.join(node.to_string());
        let number: u32 = parse_number(&read(&folder.join("gpu_id"))?)?.try_into().ok()?;
        // CPUs have none.
        (number != 0).then_some(())?;
        Some((number, parse_address(&read(&folder.join("properties"))?)?))
    };
    // Most nodes have none of it.
    if fs::metadata(&nodes).is_err() {
        return Vec::new();
    }
    numbers(&nodes).into_iter().take(NODES_MAX).filter_map(device).collect()
}

fn value(path: &Path) -> Option<u64> {
    parse_number(&read(path)?)
}

/// A number and nothing else, but for what the kernel pads with.
#[must_use]
pub fn parse_number(text: &str) -> Option<u64> {
    text.trim_end_matches(['\0', '\n']).parse().ok()
}

/// The PCI address in a node's `properties`, whose lines are `key value`.
#[must_use]
pub fn parse_address(properties: &str) -> Option<PciAddress> {
    let value = |key: &str| {
        let mut lines = properties.trim_end_matches('\0').lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse::<u64>().ok())
    };
    let location = value("location_id").filter(|location| *location <= 0xffff)?;
    let domain = value("domain").unwrap_or(0);
    let (bus, slot, function) = (location >> 8, (location >> 3) & 0x1f, location & 7);
    format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_an_address() {
        let text = "cpu_cores_count 0\nsimd_count 304\nlocation_id 6912\ndomain 1\nunique_id 7\n";
        assert_eq!(parse_address(text).unwrap().to_string(), "0001:1b:00.0");
        let text = "location_id 787\n";
        assert_eq!(parse_address(text).unwrap().to_string(), "0000:03:02.3");
        for text in
            ["", "location_id\n", "location_id -1\n", "location_id 65536\n", "location_idx 1\n"]
        {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }

    #[test]
    fn a_number_is_a_number() {
        assert_eq!(parse_number("51200\n\0\0"), Some(51200));
        for text in ["", "\n", "-1", "1 2", "0x10", "99999999999999999999"] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }
}
