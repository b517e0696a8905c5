//! XIDs: the driver's numbers for what went wrong, and whose fault each is.
//!
//! Sources: NVIDIA's catalog, <https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>
//! (its "resolution bucket": what `RESTART_APP` or `IGNORE` settles is the workload's affair),
//! and the list that NVIDIA's own device plugin ignores (`internal/rm/health.go` of
//! NVIDIA/k8s-device-plugin: 13, 31, 43, 45, 68, 109).

use accelpool_model::FaultClass;

/// Whose fault an XID is, and what it says.
pub(crate) fn classify(xid: u64) -> (FaultClass, &'static str) {
    let known = TABLE.binary_search_by_key(&xid, |(xid, ..)| *xid);
    match known {
        Ok(index) => (TABLE[index].1, TABLE[index].2),
        // A number that nobody has told us of is taken seriously. Drivers with new numbers say
        // what recovery they take, so that the taint goes by itself.
        Err(_) => (FaultClass::ResetRequired, "an XID that this version does not know"),
    }
}

const APPLICATION: FaultClass = FaultClass::Application;
const THROTTLED: FaultClass = FaultClass::Throttled;
const MEMORY: FaultClass = FaultClass::MemoryUncorrectable;
const LINK: FaultClass = FaultClass::Link;
const RESET: FaultClass = FaultClass::ResetRequired;

/// In the order of the numbers.
const TABLE: [(u64, FaultClass, &str); 60] = [
    (8, APPLICATION, "the GPU stopped processing a channel"),
    (11, APPLICATION, "invalid or corrupted push buffer stream"),
    (13, APPLICATION, "graphics engine exception"),
    (18, RESET, "bus mastering is disabled"),
    (31, APPLICATION, "memory page fault of an application"),
    (32, APPLICATION, "invalid or corrupted push buffer stream"),
    (38, RESET, "driver firmware error"),
    (39, APPLICATION, "copy engine exception"),
    (40, APPLICATION, "copy engine exception"),
    (41, APPLICATION, "copy engine exception"),
    (42, APPLICATION, "video processor exception"),
    (43, APPLICATION, "a channel was reset after an error of its application"),
    (44, APPLICATION, "graphics engine fault during context switch"),
    (45, APPLICATION, "channels were torn down with their process"),
    (46, RESET, "the GPU stopped processing"),
    (48, MEMORY, "uncorrectable (double bit) ECC error"),
    (54, RESET, "auxiliary power is not connected"),
    (61, RESET, "internal microcontroller breakpoint"),
    (62, RESET, "internal microcontroller halt"),
    // The repair of a memory error that was told on its own (48, 94, 95): no fault by itself.
    (63, THROTTLED, "a memory row or page was retired, active after the next reset"),
    (64, MEMORY, "a memory row or page could not be retired"),
    (65, APPLICATION, "video processor exception"),
    (66, APPLICATION, "illegal access by the driver for an application"),
    (67, APPLICATION, "illegal access by the driver for an application"),
    (68, APPLICATION, "video decoder exception"),
    (69, APPLICATION, "graphics engine class error"),
    (70, APPLICATION, "copy engine exception"),
    (71, APPLICATION, "copy engine exception"),
    (72, APPLICATION, "copy engine exception"),
    (73, APPLICATION, "video encoder exception"),
    (74, LINK, "NVLink error"),
    (75, APPLICATION, "copy engine exception"),
    (76, APPLICATION, "copy engine exception"),
    (77, APPLICATION, "copy engine exception"),
    (78, RESET, "vGPU start error"),
    (79, FaultClass::FellOffBus, "the GPU has fallen off the bus"),
    (92, THROTTLED, "high rate of single bit ECC errors"),
    (94, MEMORY, "uncorrectable memory error, contained to the applications it hit"),
    (95, MEMORY, "uncorrectable memory error, not contained"),
    (109, APPLICATION, "context switch timeout"),
    (110, RESET, "security fault"),
    (119, RESET, "timeout of the GPU system processor"),
    (120, RESET, "error of the GPU system processor"),
    (121, LINK, "corrected error of the chip-to-chip link"),
    (122, RESET, "failure to read the GPU's SPI flash"),
    (123, RESET, "failure of the power management unit"),
    (136, RESET, "event of the GPU's event mechanism"),
    (137, APPLICATION, "privilege error of an NVLink access"),
    (140, MEMORY, "unrecovered ECC error"),
    (143, RESET, "GPU initialization error"),
    (144, LINK, "NVLink error: system address"),
    (145, LINK, "NVLink error: remote link"),
    (146, LINK, "NVLink error: transport link"),
    (147, LINK, "NVLink error: transaction"),
    (148, LINK, "NVLink error: power control"),
    (149, LINK, "NVLink error: network interface"),
    (150, LINK, "NVLink error: switch"),
    (156, MEMORY, "a memory resource was retired"),
    (157, MEMORY, "a memory resource could not be retired"),
    (158, RESET, "fatal timeout of the GPU"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn the_workloads_own_errors_are_told_from_the_devices() {
        // What NVIDIA's own device plugin ignores.
        for xid in [13, 31, 43, 45, 68, 109] {
            assert_eq!(classify(xid).0, FaultClass::Application, "{xid}");
        }
        let check = |xid, class| assert_eq!(classify(xid).0, class, "{xid}");
        check(48, FaultClass::MemoryUncorrectable);
        check(74, FaultClass::Link);
        check(79, FaultClass::FellOffBus);
        check(95, FaultClass::MemoryUncorrectable);
        check(119, FaultClass::ResetRequired);
        check(999, FaultClass::ResetRequired);
        check(u64::MAX, FaultClass::ResetRequired);
    }
}
