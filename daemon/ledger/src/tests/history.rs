//! Random histories of commits and restarts against a map in memory.

use std::collections::BTreeMap;

use accelpool_model::{ClaimId, DeviceUuid, Lease, OwedPartition, Portion, Taint};
use proptest::prelude::*;

use super::{allocation, boot, lease, owed, place, put_taints, remove, taint};
use crate::{Ledger, Replayed, Write};

#[derive(Debug, Clone)]
enum Event {
    Commit(Vec<Write>),
    Restart,
}

#[derive(Default)]
struct Expected {
    leases: BTreeMap<ClaimId, Lease>,
    taints: BTreeMap<DeviceUuid, Vec<Taint>>,
    owed: BTreeMap<DeviceUuid, Vec<OwedPartition>>,
}

impl Expected {
    fn apply(&mut self, write: Write) {
        match write {
            Write::PutLease(lease) => {
                self.leases.insert(lease.claim.id.clone(), lease);
            }
            Write::RemoveLease(claim) => {
                self.leases.remove(&claim);
            }
            Write::PutTaints(device, taints) if taints.is_empty() => {
                self.taints.remove(&device);
            }
            Write::PutTaints(device, taints) => {
                self.taints.insert(device, taints);
            }
            Write::PutOwed(device, owed) if owed.is_empty() => {
                self.owed.remove(&device);
            }
            Write::PutOwed(device, owed) => {
                self.owed.insert(device, owed);
            }
        }
    }

    fn replayed(&self, previous: &str) -> Replayed {
        Replayed {
            leases: self.leases.values().cloned().collect(),
            taints: self.taints.clone().into_iter().collect(),
            owed: self.owed.clone().into_iter().collect(),
            previous_boot: Some(boot(previous)),
        }
    }
}

/// A lease that also looks at a device which others hold.
fn watcher(claim: &str, number: u32) -> Lease {
    let mut lease = lease(claim, number);
    let named = "gpu-0000-3b-00-0-mig-1g-10gb-4".parse().expect("a valid name");
    let partition = number.is_multiple_of(2).then_some(named);
    lease.claim.requests[1].admin = true;
    lease.allocations.push(allocation("look", Portion::Admin { partition }));
    lease
}

fn write() -> impl Strategy<Value = Write> {
    let claim = |number: u32| format!("claim-{number}");
    let device = |number: u32| format!("GPU-{number}");
    prop_oneof![
        4 => (0..6u32, 0..2000u32)
            .prop_map(move |(id, number)| Write::PutLease(lease(&claim(id), number))),
        1 => (0..6u32, 0..2000u32)
            .prop_map(move |(id, number)| Write::PutLease(watcher(&claim(id), number))),
        2 => (0..6u32).prop_map(move |id| remove(&claim(id))),
        2 => (0..3u32, 0..3u32).prop_map(move |(id, count)| {
            let told = |number: u32| (number % 2 == 1).then(|| format!("boot 1, driver {number}"));
            let taint = |number: u32| Taint { incarnation: told(number), ..taint("link", number) };
            put_taints(&device(id), (0..count).map(taint).collect())
        }),
        1 => (0..3u32, 0..3u32).prop_map(move |(id, count)| {
            let uuid: DeviceUuid = device(id).parse().expect("a valid UUID");
            Write::PutOwed(uuid.clone(), (0..count).map(|start| owed(&uuid, start)).collect())
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => prop::collection::vec(write(), 0..5).prop_map(Event::Commit),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_committed_is_replayed(history in prop::collection::vec(event(), 0..24)) {
        let (_folder, path) = place();
        let mut expected = Expected::default();
        let mut starts = 0;
        let mut open = || {
            starts += 1;
            let opened = Ledger::open(&path, &boot(&format!("boot-{starts}")));
            (opened.expect("a sound ledger opens"), format!("boot-{}", starts - 1))
        };
        let ((mut ledger, first), _) = open();
        prop_assert_eq!(first, Replayed::default());
        for event in history.into_iter().chain([Event::Restart]) {
            match event {
                Event::Commit(writes) => {
                    ledger.commit(&writes).expect("a small commit succeeds");
                    for write in writes {
 expected.apply(write);
 }
                }
                Event::Restart => {
                    drop(ledger);
                    let ((again, replayed), previous) = open();
                    ledger = again;
                    prop_assert_eq!(replayed, expected.replayed(&previous));
                }
            }
        }
    }
}
