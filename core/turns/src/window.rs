//! How much unfinished work a claim may have: a target, scaled by how it really drains.

/// The target while a real-time claim is present: what such a claim waits for at worst.
const TARGET_REALTIME_NS: u64 = 300_000;
/// The target else: a fifth of the first quantum.
const TARGET_NS: u64 = 1_000_000;
/// Drains within the target before the window grows again.
const GOOD_DRAINS: u8 = 8;
/// The scale's bounds, in thousandths of the target.
const SCALE: std::ops::RangeInclusive<u64> = 20..=1000;
/// The new sample's part in the mean drain time: an eighth.
const SMOOTHING: u64 = 8;

/// One claim's window.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    scale: u64,
    good: u8,
    drain_ns: u64,
    bound_us: Option<u32>,
}

impl Default for Window {
    fn default() -> Self {
        Self { scale: *SCALE.end(), good: 0, drain_ns: 0, bound_us: None }
    }
}

impl Window {
    /// The mean of its measured drain times: what is expected to be left at a close.
    pub(crate) fn drain_ns(&self) -> u64 {
        self.drain_ns
    }

    /// Learns from a measured drain: halve when it was long, grow by a tenth after a good run.
    pub(crate) fn drained(&mut self, took_ns: u64, realtime: bool) {
        let target = target_ns(realtime);
        let old = self.drain_ns - self.drain_ns / SMOOTHING;
        self.drain_ns = old.saturating_add(took_ns / SMOOTHING);
        if took_ns > target + target / 2 {
            self.scale /= 2;
            self.good = 0;
        } else if took_ns < target {
            self.good += 1;
            if self.good >= GOOD_DRAINS {
                self.scale += self.scale / 10 + 1;
                self.good = 0;
            }
        }
        self.scale = self.scale.clamp(*SCALE.start(), *SCALE.end());
    }

    /// Sets the bound or takes it away; true if it is another than before.
    pub(crate) fn set(&mut self, bounded: bool, realtime: bool) -> bool {
        let bound_us = target_ns(realtime) * self.scale / 1000 / 1000;
        let bound = bounded.then(|| u32::try_from(bound_us).unwrap_or(u32::MAX));
        std::mem::replace(&mut self.bound_us, bound) != bound
    }

    /// The bound in force.
    pub(crate) fn bound_us(&self) -> Option<u32> {
        self.bound_us
    }
}

fn target_ns(realtime: bool) -> u64 {
    if realtime { TARGET_REALTIME_NS } else { TARGET_NS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_drains_halve_it_and_good_ones_grow_it_slowly() {
        let mut window = Window::default();
        assert!(window.set(true, false));
        assert!(!window.set(true, false));
        assert_eq!(window.bound_us(), Some(1000));
        let mut after = |drains: usize, took_ns| {
            (0..drains).for_each(|_| window.drained(took_ns, false));
            window.set(true, false);
            window.bound_us()
        };
        assert_eq!(after(1, 2_000_000), Some(500));
        assert_eq!(after(8, 100_000), Some(551));
        assert_eq!(after(20, 20_000_000), Some(20));
        assert!(window.set(false, false));
        assert_eq!(window.bound_us(), None);
    }
}
