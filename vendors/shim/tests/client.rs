//! How a process tells its clock from the daemon's.

use accelpool_shim::client::clock_offset_ns;

#[track_caller]
fn check_offset([asked, daemon, answered]: [u64; 3], expected: i64) {
    assert_eq!(clock_offset_ns(asked, daemon, answered), expected);
}

#[test]
fn clocks_are_told_apart_whatever_lies_between_them() {
    check_offset([1000, 1500, 2000], 0);
    check_offset([1000, 1000, 1000], 0);
    // Less than a second, in either direction: a time namespace may have any offset.
    check_offset([1000, 500, 2000], 1000);
    check_offset([1000, 900_000_000, 2000], 1500 - 900_000_000);
    check_offset([u64::MAX, 0, u64::MAX], i64::MAX);
    check_offset([0, u64::MAX, 0], -i64::MAX);
}
