//! A bucket of device time: filled at a rate, emptied by what was used, in debt after an overshoot.

use accelpool_model::ComputePermille;

/// Device time that may be used, in nanoseconds; negative is a debt to be repaid.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    level_ns: i64,
    burst_ns: i64,
    rate: ComputePermille,
    filled_ns: u64,
}

impl Bucket {
    /// A full bucket that fills by `rate` of the time that passes, up to `burst_ns`.
    pub(crate) fn full(rate: ComputePermille, burst_ns: u64, now_ns: u64) -> Self {
        let burst_ns = signed(burst_ns);
        Self { level_ns: burst_ns, burst_ns, rate, filled_ns: now_ns }
    }

    /// Fills it with what the time since the last call brings.
    pub(crate) fn fill(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = self.filled_ns.max(now_ns);
        let gain = u128::from(passed) * u128::from(self.rate.permille()) / 1000;
        let gain = i64::try_from(gain).unwrap_or(i64::MAX);
        self.level_ns = self.level_ns.saturating_add(gain).min(self.burst_ns);
    }

    /// Takes what was used. The debt has an end, so that one endless kernel is repaid in time.
    pub(crate) fn take(&mut self, used_ns: u64) {
        let floor = self.burst_ns.saturating_mul(-DEBT_BURSTS);
        self.level_ns = self.level_ns.saturating_sub(signed(used_ns)).max(floor);
    }

    /// What is left; nothing while in debt.
    pub(crate) fn left_ns(&self) -> u64 {
        u64::try_from(self.level_ns).unwrap_or(0)
    }

    /// When at least `wanted_ns` will be in it, if nothing is taken.
    pub(crate) fn holds_at(&self, wanted_ns: u64) -> u64 {
        let missing = signed(wanted_ns).min(self.burst_ns).saturating_sub(self.level_ns);
        let missing = u64::try_from(missing).unwrap_or(0);
        let wait = missing.saturating_mul(1000).div_ceil(u64::from(self.rate.permille()));
        self.filled_ns.saturating_add(wait)
    }
}

/// The largest debt, in bursts.
const DEBT_BURSTS: i64 = 50;

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_by_its_rate_and_repays_a_debt() {
        let rate = ComputePermille::try_from(250).unwrap();
        let mut bucket = Bucket::full(rate, 20_000, 0);
        bucket.take(25_000);
        assert_eq!((bucket.left_ns(), bucket.holds_at(2_000)), (0, 28_000));
        bucket.fill(28_000);
        assert_eq!(bucket.left_ns(), 2_000);
        bucket.fill(10_000_000);
        assert_eq!(bucket.left_ns(), 20_000);
    }
}
