//! The compatibility page against the exporter that it stands in for.

use std::collections::BTreeMap;

use super::*;

/// Names, types and labels of the compatibility page, and the labels' order, are those of the
/// exporter that it stands in for, and none of ours is missing from the page of a node that has everything.
#[test]
fn the_compatibility_page_says_nothing_that_dcgm_exporter_does_not() {
    let listed: Vec<(&str, &str)> = include_str!("../dcgm-fields.csv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(',').unwrap())
        .collect();
    let known: BTreeMap<&str, &str> = listed.iter().copied().collect();
    let page = compat::page(&node(), "worker-1");
    let mut types = 0;
    for line in page.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            assert_eq!(known.get(name), Some(&kind), "{line}");
            types += 1;
        } else if let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            assert!(known.contains_key(name), "{line}");
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            // No value of the golden node has a comma in it.
            let mut place = 0;
            for label in labels.split(',') {
                let (key, value) = label.split_once('=').unwrap();
                let of_key = |it: &(&str, &str)| it.0 == key && matches!(it.1, "label" | "ours");
                let found = listed.iter().position(of_key);
                let found = found.unwrap_or_else(|| panic!("{key}: {line}"));
                assert!(found >= place, "{key} is not in its place: {line}");
                assert_ne!(value, "\"\"", "{line}");
                place = found;
            }
        }
    }
    assert!(types >= 8, "{page}");
}

#[test]
fn a_bus_is_named_as_nvml_does() {
    let mut metrics = node();
    metrics.devices[0].pci_address = "0001:c3:00.0".to_owned();
    metrics.devices[1].vendor = "amd".to_owned();
    metrics.devices[1].memory_used_bytes = Some(GIB);
    let page = compat::page(&metrics, "worker-1");
    assert!(page.contains("pci_bus_id=\"00000001:C3:00.0\",device=\"nvidia0\""), "{page}");
    assert!(page.contains("device=\"gpu-0000-43-00-0\""), "{page}");
}
