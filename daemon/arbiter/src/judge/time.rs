//! Who uses a device outside of its turns: what the vendor measured of a claim's processes beside
//! what the arbiter charged the claim. Neither is of the tenant's making.
//!
//! Both are taken as parts of the same time, over a second at the least, and one second alone
//! is no violation: a vendor's figures lag, and so does the arbiter's report by a heartbeat.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accelpool_model::{ClaimId, DeviceUuid};

use super::What;
use crate::report::Report;

/// Shorter times say little beside a vendor's sampling period of up to a second.
const SPAN_MIN_NS: u64 = 1_000_000_000;
/// How much more than charged is borne, in thousandths of the time: vendors sample, and count
/// what a hand-over costs. In open gates what a claim used is itself an estimate.
const EXCESS: u32 = 125;
const EXCESS_OPEN: u32 = 250;

/// What is kept of a device between readings.
#[derive(Debug, Default)]
pub(super) struct Times {
    since: Option<Since>,
    /// Who was over in the last span.
    over: BTreeSet<ClaimId>,
    /// What was found at its end, and is so until the next one ends.
    standing: Vec<What>,
}

#[derive(Debug)]
struct Since {
    at_ns: u64,
    told_ns: u64,
    /// What each claim was charged until then, and how often it was stuck.
    charged: BTreeMap<ClaimId, (u64, u64)>,
    busy: BTreeMap<ClaimId, Duration>,
}

impl Times {
    pub(super) fn judge(
        &mut self,
        report: &Report,
        device: &DeviceUuid,
        busy: &BTreeMap<&ClaimId, Duration>,
        now_ns: u64,
    ) -> Vec<What> {
        let on_it = || report.claims.iter().filter(|claim| claim.device == *device);
        let mode = report.devices.iter().find(|it| it.uuid == *device).map_or("", |it| it.mode);
        let borne = if mode == "open" { EXCESS_OPEN } else { EXCESS };
        if let Some(since) = &mut self.since {
            for (claim, busy) in busy {
                let sum = since.busy.entry((*claim).clone()).or_default();
                *sum = sum.saturating_add(*busy);
            }
            let told_ns = report.told_ns.saturating_sub(since.told_ns);
            let span_ns = now_ns.saturating_sub(since.at_ns);
            if told_ns.min(span_ns) < SPAN_MIN_NS {
                return self.standing.clone();
            }
            let mut over = BTreeSet::new();
            let mut standing = Vec::new();
            for claim in on_it() {
                let Some((charged, stuck)) = since.charged.get(&claim.claim) else { continue };
                // Armed anew, or passed over by the watchdog, which lets it run beside others.
                if claim.used_ns < *charged || claim.stuck != *stuck || claim.state == "stuck" {
                    continue;
                }
                let busy = since.busy.get(&claim.claim).copied().unwrap_or_default();
                let busy_permille = permille(busy.as_nanos(), span_ns);
                let turns_permille = permille(u128::from(claim.used_ns - charged), told_ns);
                if busy_permille <= turns_permille.saturating_add(borne) {
                    continue;
                }
                if self.over.contains(&claim.claim) {
                    let claim = claim.claim.clone();
                    standing.push(What::OutOfTurn { claim, busy_permille, turns_permille });
                }
                over.insert(claim.claim.clone());
            }
            (self.over, self.standing) = (over, standing);
        }
        self.since = Some(Since {
            at_ns: now_ns,
            told_ns: report.told_ns,
            charged: on_it().map(|it| (it.claim.clone(), (it.used_ns, it.stuck))).collect(),
            busy: BTreeMap::new(),
        });
        self.standing.clone()
    }
}

fn permille(part_ns: u128, of_ns: u64) -> u32 {
    u32::try_from(part_ns * 1000 / u128::from(of_ns.max(1))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{judge::tests::report, report::DeviceTurns};

    /// Seconds in which a claim was charged and seen busy, in thousandths; in which of them it
    /// was over, twice in a row.
    #[track_caller]
    fn check(mode: &'static str, seconds: &[(u64, u64)], expected: &[usize]) {
        let mut times = Times::default();
        let mut told = report();
        let uuid = told.claims[0].device.clone();
        told.devices = vec![DeviceTurns { uuid: uuid.clone(), mode, hand_over_ns: 0 }];
        let name = told.claims[0].claim.clone();
        let busy = |ms| BTreeMap::from([(&name, Duration::from_millis(ms))]);
        let mut found = Vec::new();
        // What was used before the first reading is nobody's fault.
        times.judge(&told, &uuid, &busy(5000), told.told_ns);
        for (second, (charged, seen)) in seconds.iter().enumerate() {
            for half in 0..2 {
                told.told_ns += 500_000_000;
                told.claims[0].used_ns += charged * 500_000;
                let all = times.judge(&told, &uuid, &busy(seen / 2), told.told_ns);
                if half == 1 && !all.is_empty() {
                    found.push(second);
                }
            }
        }
        assert_eq!(found, expected, "{mode}");
    }

    #[test]
    fn who_keeps_to_its_turns_is_left_alone() {
        check("exclusive", &[(500, 500), (250, 300), (0, 100), (1000, 1000)], &[]);
        check("open", &[(300, 500), (300, 540), (0, 240)], &[]);
    }

    #[test]
    fn one_second_is_no_violation() {
        check("exclusive", &[(0, 900), (250, 250), (0, 900)], &[]);
    }

    #[test]
    fn two_in_a_row_are() {
        check("exclusive", &[(250, 400), (250, 400), (250, 400), (250, 250)], &[1, 2]);
        check("open", &[(0, 300), (0, 300)], &[1]);
    }

    #[test]
    fn who_is_passed_over_may_run_beside_others() {
        let mut times = Times::default();
        let mut told = report();
        let (uuid, name) = (told.claims[0].device.clone(), told.claims[0].claim.clone());
        for stuck in 0..4 {
            told.claims[0].stuck = stuck;
            told.told_ns += 1_000_000_000;
            let busy = BTreeMap::from([(&name, Duration::from_secs(1))]);
            assert_eq!(times.judge(&told, &uuid, &busy, told.told_ns), []);
        }
    }
}
