//! What the vendor says of a device beside what was granted: the pages are the tenants' to
//! write, so they are believed of honest ones only.

mod time;

use std::{collections::BTreeMap, time::Duration};

use accelpool_model::{ClaimId, DeviceUuid};

use crate::report::Report;

/// A process that holds memory of a device, as the vendor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// In the daemon's pid namespace.
    pub pid: i32,
    /// Bytes of device memory.
    pub bytes: u64,
    /// For how long it used the device since it was last judged, where the vendor measures it.
    pub busy: Option<Duration>,
}

/// What a tenant does that it may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The device.
    pub device: DeviceUuid,
    /// What it is.
    pub what: What,
}

/// What a [`Violation`] is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The processes of a claim hold more than it may.
    OverQuota {
        /// The claim.
        claim: ClaimId,
        /// Bytes that they hold.
        held: u64,
        /// Bytes that they may.
        quota: u64,
    },
    /// The processes of a claim use the device outside of its turns.
    OutOfTurn {
        /// The claim.
        claim: ClaimId,
        /// Thousandths of the time for which they used it.
        busy_permille: u32,
        /// Thousandths of the time that the claim was charged for.
        turns_permille: u32,
    },
    /// A process uses a shared device and takes part in no turns.
    Unregistered {
        /// The process.
        pid: i32,
    },
}

/// What was seen once, by device.
#[derive(Debug, Default)]
pub(crate) struct Strikes {
    seen: BTreeMap<DeviceUuid, Vec<Subject>>,
    times: BTreeMap<DeviceUuid, time::Times>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Claim(ClaimId),
    Process(i32),
}

/// Processes of a device that are looked at; hardware knows far fewer contexts.
const HELD_MAX: usize = 4096;

impl Strikes {
    pub(crate) fn judge(
        &mut self,
        report: &Report,
        device: &DeviceUuid,
        held: &[Held],
        now_ns: u64,
    ) -> Vec<Violation> {
        let claims: Vec<_> = report.claims.iter().filter(|it| it.device == *device).collect();
        if claims.is_empty() {
            self.seen.remove(device);
            self.times.remove(device);
            return Vec::new();
        }
        let mut bytes: BTreeMap<&ClaimId, u64> = BTreeMap::new();
        let mut busy: BTreeMap<&ClaimId, Duration> = BTreeMap::new();
        let mut found = Vec::new();
        for process in held.iter().take(HELD_MAX) {
            let owner = claims.iter().find(|claim| claim.processes.contains(&process.pid));
            if let Some(claim) = owner {
                let sum = bytes.entry(&claim.claim).or_default();
                *sum = sum.saturating_add(process.bytes);
                let sum = busy.entry(&claim.claim).or_default();
                *sum = sum.saturating_add(process.busy.unwrap_or_default());
            } else {
                let what = What::Unregistered { pid: process.pid };
                found.push((Subject::Process(process.pid), what));
            }
        }
        for claim in &claims {
            let held = bytes.get(&claim.claim).copied().unwrap_or(0);
            let quota = claim.memory_quota.bytes();
            if held > quota {
                let claim = claim.claim.clone();
                let what = What::OverQuota { claim: claim.clone(), held, quota };
                found.push((Subject::Claim(claim), what));
            }
        }
        let subjects = found.iter().map(|(subject, _)| subject.clone()).collect();
        let before = self.seen.insert(device.clone(), subjects).unwrap_or_default();
        let twice = found.into_iter().filter(|(subject, _)| before.contains(subject));
        let times = self.times.entry(device.clone()).or_default();
        let of_time = times.judge(report, device, &busy, now_ns);
        let all = twice.map(|(_, what)| what).chain(of_time);
        all.map(|what| Violation { device: device.clone(), what }).collect()
    }
}

#[cfg(test)]
mod tests {
    use accelpool_model::{MemoryBytes, ShareClass};

    use super::*;
    use crate::report::ClaimTurns;

    const GPU: &str = "GPU-00000000-0000-0000-0000-000000000001";

    pub(super) fn report() -> Report {
        let claim = ClaimTurns {
            claim: "a".parse().expect("a claim"),
            device: GPU.parse().expect("an identity"),
            class: ShareClass::Normal,
            state: "idle",
            granted_permille: 1000,
            measured_permille: None,
            used_ns: 0,
            throttled_ns: 0,
            turns: 0,
            stuck: 0,
            memory_used: MemoryBytes::ZERO,
            memory_peak: MemoryBytes::ZERO,
            memory_quota: MemoryBytes::new(100),
            memory_denied: 0,
            processes: vec![1, 2],
            unclassified: 0,
        };
        Report { claims: vec![claim], ..Report::default() }
    }

    /// Samples one after the other; the violations after the last.
    #[track_caller]
    fn check(samples: &[&[(i32, u64)]], expected: &[What]) {
        let mut strikes = Strikes::default();
        let device = GPU.parse().expect("an identity");
        let mut last = Vec::new();
        for sample in samples {
            let held = sample.iter().map(|&(pid, bytes)| Held { pid, bytes, busy: None });
            let held: Vec<_> = held.collect();
            last = strikes.judge(&report(), &device, &held, 0);
        }
        let last: Vec<_> = last.into_iter().map(|violation| violation.what).collect();
        assert_eq!(last, expected);
    }

    #[test]
    fn who_keeps_to_the_quota_is_left_alone() {
        check(&[&[(1, 60), (2, 40)], &[(1, 60), (2, 40)]], &[]);
    }

    #[test]
    fn one_sample_is_no_violation() {
        check(&[&[(1, 60), (2, 41), (9, 1)]], &[]);
        check(&[&[(1, 101), (9, 1)], &[(1, 100)], &[(1, 101), (9, 1)]], &[]);
    }

    #[test]
    fn two_in_a_row_are() {
        let claim: ClaimId = "a".parse().expect("a claim");
        check(
            &[&[(1, 60), (2, 41), (9, 1)], &[(1, 102), (9, 5)]],
            &[What::Unregistered { pid: 9 }, What::OverQuota { claim, held: 102, quota: 100 }],
        );
    }

    #[test]
    fn sums_do_not_wrap() {
        let claim: ClaimId = "a".parse().expect("a claim");
        let sample: &[_] = &[(1, u64::MAX), (2, u64::MAX)];
        check(&[sample, sample], &[What::OverQuota { claim, held: u64::MAX, quota: 100 }]);
    }
}
