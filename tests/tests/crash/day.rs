//! A day's work of the daemon, and what its callers know of it.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_proto::node::{Lease, PrepareClaimRequest, Request};
use accelpool_tests::{
    Client, Home, page,
    requests::{any, claim, named, share},
    rules::Picture,
};
use tonic::{Code, Status};

pub(crate) const WHOLE: &str = "gpu-0000-1b-00-0";
pub(crate) const SHARED: &str = "gpu-0000-43-00-0";
pub(crate) const CUT: &str = "gpu-0000-52-00-0";
pub(crate) const CUT_TWICE: &str = "gpu-0000-61-00-0";
pub(crate) const STUBBORN: &str = "gpu-0000-9d-00-0";
pub(crate) const TAINTED: &str = "gpu-0000-df-00-0";

/// The second partition on `STUBBORN` is left half-created.
pub(crate) const TROUBLE: &str = r#"
[[call]]
id = "half-created"
method = "create_partition"
device = "gpu-0000-9d-00-0"
nth = 2
at = "half-way"
error = "failed"
message = "scripted"
"#;

/// One call of the day.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Prepare(PrepareClaimRequest),
    Release(&'static str),
    Taint,
    Untaint,
}

/// A day's work: everything that writes, in the order of the issue.
pub(crate) fn day() -> Vec<Call> {
    let partition = |device: &str, place: &str| format!("{device}-mig-{place}");
    let cut = claim("cut", vec![named("part", &partition(CUT, "1g-10gb-4"))]);
    let twice = vec![
        named("left", &partition(CUT_TWICE, "3g-40gb-0")),
        named("right", &partition(CUT_TWICE, "3g-40gb-4")),
    ];
    let stubborn = vec![
        named("first", &partition(STUBBORN, "2g-20gb-0")),
        named("second", &partition(STUBBORN, "2g-20gb-2")),
    ];
    vec![
        Call::Prepare(claim("whole", vec![named("gpu", WHOLE)])),
        Call::Prepare(claim("look", vec![Request { admin: true, ..named("gpu", WHOLE) }])),
        Call::Prepare(claim("share-a", vec![share("gpu", SHARED, 8 << 30, 250)])),
        Call::Prepare(cut.clone()),
        Call::Prepare(claim("twice", twice)),
        Call::Prepare(cut),
        Call::Taint,
        Call::Prepare(claim("share-b", vec![share("gpu", SHARED, 16 << 30, 500)])),
        Call::Prepare(claim("stubborn", stubborn)),
        Call::Prepare(claim("mixed", vec![any("gpu", "", 1), any("part", "1g.10gb", 2)])),
        Call::Untaint,
        Call::Release("whole"),
        Call::Release("nobody"),
        Call::Release("twice"),
        Call::Release("share-a"),
        Call::Release("cut"),
        Call::Release("stubborn"),
        Call::Release("mixed"),
        Call::Release("look"),
        Call::Release("share-b"),
    ]
}

/// What the callers know: what they were promised and nobody took back.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) promised: BTreeMap<String, Lease>,
    /// Claims whose last call was cut short: either state is right.
    pub(crate) doubtful: BTreeSet<String>,
    pub(crate) tainted: Option<bool>,
}

/// How one call ended.
pub(crate) enum Ended {
    Answered,
    /// The daemon died.
    CutShort,
}

impl Known {
    /// Makes one call, and remembers what it promised.
    fn make(&mut self, client: &Client, call: &Call) -> Ended {
        match call {
            Call::Prepare(request) => {
                let claim = request.claim.clone();
                match client.prepare(request.clone()) {
                    Ok(lease) => {
                        if let Some(before) = self.promised.insert(claim.clone(), lease.clone()) {
                            assert_eq!(before, lease, "the answer to a repeated claim");
                        }
                        self.doubtful.remove(&claim);
                        Ended::Answered
                    }
                    Err(status) => self.failed(&claim, &status),
                }
            }
            Call::Release(claim) => match client.release(claim) {
                Ok(_) => {
                    self.promised.remove(*claim);
                    self.doubtful.remove(*claim);
                    Ended::Answered
                }
                Err(status) => {
                    self.promised.remove(*claim);
                    self.failed(claim, &status)
                }
            },
            Call::Taint | Call::Untaint => {
                let tainted = matches!(call, Call::Taint);
                let ended = if tainted {
                    client.taint(TAINTED, "a fan is loud")
                } else {
                    client.untaint(TAINTED)
                };
                match ended {
                    Ok(()) => self.tainted = Some(tainted),
                    // Untainted, and killed before the answer.
                    Err(status) if page(&status) == Some("AP0118") => self.tainted = Some(false),
                    Err(status) => {
                        assert_eq!(page(&status), None, "{status}");
                        self.tainted = None;
                        return Ended::CutShort;
                    }
                }
                Ended::Answered
            }
        }
    }

    /// Either the hardware failed as it was told to, or the daemon is gone.
    fn failed(&mut self, claim: &str, status: &Status) -> Ended {
        self.doubtful.insert(claim.to_owned());
        match page(status) {
            None => Ended::CutShort,
            Some(page) => {
                assert_eq!((page, status.code()), ("AP0114", Code::Unavailable), "{status}");
                Ended::Answered
            }
        }
    }

    /// Checks a node at rest against what the callers know.
    #[track_caller]
    pub(crate) fn check(&self, home: &Home, client: &Client, when: &str) {
        let picture = Picture::take(home, client);
        assert_eq!(picture.faults(), Vec::<String>::new(), "{when}");
        for (claim, promised) in &self.promised {
            assert_eq!(picture.lease(claim), Some(promised), "{when}: claim {claim}");
        }
        for lease in &picture.leases {
            let expected =
                self.promised.contains_key(&lease.claim) || self.doubtful.contains(&lease.claim);
            assert!(expected, "{when}: nobody holds {lease:?}");
        }
        if let Some(tainted) = self.tainted {
            let device = picture.devices.iter().find(|device| device.name == TAINTED).unwrap();
            assert_eq!(!device.taints.is_empty(), tainted, "{when}");
        }
    }
}

/// Works until the daemon dies or the day is over; the first call that was not answered.
pub(crate) fn work(known: &mut Known, client: &Client, day: &[Call]) -> usize {
    for (index, call) in day.iter().enumerate() {
        if matches!(known.make(client, call), Ended::CutShort) {
            return index;
        }
    }
    day.len()
}
