//! The CPUs and the memory that are near to devices, as cpusets have them. Pure.

use std::collections::BTreeSet;

use accelpool_proto::{node::NumaNode, nri::LinuxCpu};

/// More CPUs than any node has; the kernel's own limit is 8192.
const CPUS_MAX: usize = 8192;

/// The cpuset of containers with devices on these NUMA nodes. None if the host has no CPUs
/// there, or but one node: then there is nothing to choose.
pub(super) fn cpuset(devices_at: &BTreeSet<u32>, host: &[NumaNode]) -> Option<LinuxCpu> {
    if host.len() < 2 {
        return None;
    }
    let near = || host.iter().filter(|node| devices_at.contains(&node.id));
    let cpus: BTreeSet<u32> = near().flat_map(|node| &node.cpus).copied().take(CPUS_MAX).collect();
    if cpus.is_empty() {
        return None;
    }
    // A node without memory of its own may not be in the list: nothing could be allocated.
    let mems = near().filter(|node| node.memory_bytes > 0).map(|node| node.id).collect();
    Some(LinuxCpu { cpus: list(&cpus), mems: list(&mems) })
}

/// The numbers as the kernel lists them: `0-3,8`.
fn list(numbers: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let words =
        runs.iter().map(
            |(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            },
        );
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, cpus: impl IntoIterator<Item = u32>, memory_bytes: u64) -> NumaNode {
        let cpus = cpus.into_iter().collect();
        NumaNode { id, cpus, memory_bytes, ..NumaNode::default() }
    }

    /// The CPUs and nodes for devices at `at`.
    #[track_caller]
    fn check(host: &[NumaNode], at: &[u32], expected: Option<(&str, &str)>) {
        let actual = cpuset(&at.iter().copied().collect(), host);
        let actual = actual.as_ref().map(|cpu| (cpu.cpus.as_str(), cpu.mems.as_str()));
        assert_eq!(actual, expected);
    }

    #[test]
    fn the_nodes_of_all_devices() {
        let host = [
            node(0, (0..8).chain(16..24), 1 << 30),
            node(1, (8..16).chain(24..32), 1 << 30),
            node(2, [40], 0),
            node(3, [], 1 << 30),
        ];
        check(&host, &[1], Some(("8-15,24-31", "1")));
        check(&host, &[0, 1], Some(("0-31", "0-1")));
        check(&host, &[2], Some(("40", "")));
        check(&host, &[1, 3], Some(("8-15,24-31", "1,3")));
        check(&host, &[3], None);
        check(&host, &[9], None);
        check(&host, &[], None);
    }

    #[test]
    fn one_node_is_no_choice() {
        check(&[node(0, 0..8, 1)], &[0], None);
        check(&[], &[0], None);
    }
}
