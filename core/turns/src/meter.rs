//! Charges the time that passes to whoever occupies the devices.

use crate::{
    Turns,
    claim::{Claim, Parked},
};

/// A real-time claim that used up its budget is served first again once this much is back: as
/// long as the shortest turn, so that it does not get crumbs.
const REFILL_NS: u64 = 2_000_000;

impl Turns {
    /// Brings everything to `now_ns`. A time that lies behind counts as no time.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.now_ns);
        if passed == 0 {
            return;
        }
        let first = self.now_ns == 0;
        self.now_ns = now_ns;
        if first {
            return;
        }
        for claim in self.claims.values_mut() {
            fill(claim, now_ns);
            if claim.is_kept_waiting() {
                claim.throttled_ns = claim.throttled_ns.saturating_add(passed);
            }
        }
        for key in self.devices.keys() {
            let on_it = |claim: &Claim| claim.terms.devices.contains(key) && claim.occupies();
            let count = self.claims.values().filter(|claim| on_it(claim)).count();
            // Beside others, the hardware gives each the same: nothing better is known.
            let each = passed / (count.max(1) as u64);
            self.claims.values_mut().filter(|claim| on_it(claim)).for_each(|it| it.charge(each));
        }
        self.move_clocks();
    }

    /// A device's clock is the least virtual time of those who want it, and never goes back.
    /// Real-time work within its budget is served by another rule and moves no clock.
    fn move_clocks(&mut self) {
        for (key, device) in &mut self.devices {
            for (index, clock) in device.clocks.iter_mut().enumerate() {
                let competing = self.claims.values().filter(|claim| {
                    claim.backlogged
                        && claim.parked == Parked::No
                        && claim.clock() == index
                        && claim.rank() != 0
                        && claim.terms.devices.contains(key)
                });
                if let Some(least) = competing.map(|claim| claim.virtual_time).min() {
                    *clock = least.max(*clock);
                }
            }
        }
    }
}

fn fill(claim: &mut Claim, now_ns: u64) {
    for bucket in claim.cap.iter_mut().chain(&mut claim.budget) {
        bucket.fill(now_ns);
    }
    if let Some(budget) = &claim.budget {
        let left = budget.left_ns();
        claim.within_budget = if claim.within_budget { left > 0 } else { left >= REFILL_NS };
    }
}
