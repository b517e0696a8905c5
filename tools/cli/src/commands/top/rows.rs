//! The figures of `top` in words; both of its forms show these.

use crate::{
    document::{ClaimTurns, DeviceTurns},
    output::memory,
};

/// One claim on one device.
pub(super) struct Row {
    pub(super) share: String,
    pub(super) granted: String,
    pub(super) memory: String,
    pub(super) quota: String,
    pub(super) peak: String,
    pub(super) denied: String,
    pub(super) waited: String,
    pub(super) used: String,
    /// Its work does not end in time.
    pub(super) is_bad: bool,
}

impl Row {
    pub(super) fn of(claim: &ClaimTurns) -> Self {
        Self {
            share: claim.measured_permille.map_or_else(|| "-".to_owned(), percent),
            granted: percent(claim.granted_permille),
            memory: memory(claim.memory_used_bytes),
            quota: memory(claim.memory_quota_bytes),
            peak: memory(claim.memory_peak_bytes),
            denied: claim.memory_denied.to_string(),
            waited: time(claim.throttled_ns),
            used: time(claim.used_ns),
            is_bad: claim.state == "stuck",
        }
    }
}

/// What is said of a device above its claims.
pub(super) fn headline(device: &DeviceTurns) -> String {
    let cost = match device.hand_over_ns {
        0 => "no hand-over yet".to_owned(),
        cost => format!("hand-over {}", time(cost)),
    };
    let claims = match device.claims.len() {
        1 => "1 claim".to_owned(),
        count => format!("{count} claims"),
    };
    format!("{}  {}, {cost}, {claims}", device.device, device.mode)
}

fn percent(permille: u32) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

/// A time in the unit that it has three digits in, or fewer.
fn time(ns: u64) -> String {
    let tenths =
        |unit: u64, name: &str| format!("{}.{} {name}", ns / unit, ns % unit / (unit / 10));
    match ns {
        0 => "0".to_owned(),
        1..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => tenths(1_000, "us"),
        1_000_000..1_000_000_000 => tenths(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => tenths(1_000_000_000, "s"),
        _ => {
            let seconds = ns / 1_000_000_000;
            format!("{}m{:02}s", seconds / 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (ns, words) in [
            (0, "0"),
            (999, "999 ns"),
            (12_345, "12.3 us"),
            (1_999_999, "1.9 ms"),
            (59_999_999_999, "59.9 s"),
            (61_000_000_000, "1m01s"),
            (u64::MAX, "307445734m33s"),
        ] {
            assert_eq!(time(ns), words);
        }
        assert_eq!(percent(1000), "100.0 %");
        assert_eq!(percent(7), "0.7 %");
    }
}
