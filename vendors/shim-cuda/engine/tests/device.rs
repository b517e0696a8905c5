//! The device in virtual time: who runs when, whatever the moments at which it is looked at.

use accelpool_cuda_engine::device::{
    ClientId, Device, Item, Place, StreamClass, Value, Work, World,
};
use proptest::prelude::*;

const SLICE: u64 = 1_000_000;
const SWITCH: u64 = 50_000;

/// Notes what was completed, and when.
#[derive(Default)]
struct Notes {
    done: Vec<(u64, u32, u64, u64)>,
    events: Vec<(u64, u64)>,
}

impl World for Notes {
    fn event_reached(&self, _client: ClientId, event: u64, seq: u64) -> bool {
        self.events.iter().any(|(other, reached)| *other == event && *reached >= seq)
    }
    fn value_holds(&mut self, _client: ClientId, _value: Value, _flags: u64) -> bool {
        true
    }
    fn call_host(&mut self, _client: ClientId, _token: u64) {}
    fn complete(&mut self, place: Place, item: &Item, at_ns: u64) {
        if let Work::Record { event } = item.work {
            self.events.push((event, item.seq));
        }
        self.done.push((place.context, place.stream, item.seq, at_ns));
    }
    fn trap(&mut self, _place: Place, _last_seq: u64) {}
}

fn run(seq: u64, at_ns: u64, ns: u64) -> Item {
    Item { seq, at_ns, work: Work::Run { left_ns: ns, traps: false } }
}

fn device(contexts: u64) -> Device {
    let mut device = Device::new(SLICE, SWITCH, 0);
    for context in 1..=contexts {
        device.add_context(context, context);
        device.open_stream(context, 0, StreamClass::NonBlocking, 0);
    }
    device
}

/// When each submission is over, looked at once at the end.
fn check(items: &[(u64, u32, Item)], expected: &[(u64, u64)]) {
    let mut device = device(2);
    device.open_stream(1, 1, StreamClass::Legacy, 0);
    device.open_stream(1, 2, StreamClass::Blocking, 0);
    device.open_stream(1, 3, StreamClass::NonBlocking, -1);
    for (context, stream, item) in items {
        assert!(device.push(*context, *stream, *item));
    }
    let mut notes = Notes::default();
    device.advance(u64::MAX / 2, &mut notes);
    let done: Vec<(u64, u64)> = notes.done.iter().map(|(_, _, seq, at)| (*seq, *at)).collect();
    assert_eq!(done, expected);
}

#[test]
fn one_context_runs_in_order_without_gaps() {
    check(&[(1, 0, run(1, 0, 100)), (1, 0, run(2, 50, 100))], &[(1, 100), (2, 200)]);
    check(&[(1, 0, run(1, 0, 100)), (1, 0, run(2, 500, 100))], &[(1, 100), (2, 600)]);
}

#[test]
fn two_contexts_alternate_by_slices_and_pay_for_it() {
    let items = [(1, 0, run(1, 0, 2 * SLICE)), (2, 0, run(1, 0, SLICE / 2))];
    let second = SLICE + SWITCH + SLICE / 2;
    check(&items, &[(1, second), (1, second + SWITCH + SLICE)]);
}

#[test]
fn the_default_stream_is_a_barrier_for_blocking_streams_alone() {
    let items = [(1, 2, run(1, 0, 100)), (1, 1, run(2, 0, 100)), (1, 2, run(3, 0, 100))];
    check(&items, &[(1, 100), (2, 200), (3, 300)]);
    let items = [(1, 1, run(1, 0, 100)), (1, 3, run(2, 0, 10))];
    check(&items, &[(2, 10), (1, 110)]);
}

#[test]
fn an_event_holds_up_whoever_waits_for_it() {
    let record = Item { seq: 2, at_ns: 0, work: Work::Record { event: 9 } };
    let wait = Item { seq: 3, at_ns: 0, work: Work::Wait { event: 9, seq: 2 } };
    let items = [(1, 0, run(1, 0, 100)), (1, 0, record), (1, 3, wait), (1, 3, run(4, 0, 10))];
    check(&items, &[(1, 100), (2, 100), (3, 100), (4, 110)]);
}

#[test]
fn what_never_ends_leaves_the_others_their_slices() {
    let mut device = device(2);
    device.push(
        1,
        0,
        Item { seq: 1, at_ns: 0, work: Work::Run { left_ns: u64::MAX, traps: false } },
    );
    device.push(2, 0, run(1, 0, 3 * SLICE));
    let mut notes = Notes::default();
    device.advance(8 * (SLICE + SWITCH), &mut notes);
    assert_eq!(notes.done.len(), 1);
    assert_eq!(device.busy_ns(2), 3 * SLICE);
    device.remove_context(1);
    assert!(!device.has_work(1));
}

proptest! {
    /// The result does not hang on when it was looked at, and no time is lost or made.
    #[test]
    fn looking_changes_nothing(
        work in prop::collection::vec((1_u64..4, 0_u64..5_000_000, 1_u64..3_000_000), 1..40),
        looks in prop::collection::vec(0_u64..100_000_000, 0..60),
    ) {
        let end = 1_000_000_000;
        let play = |looks: &[u64]| {
            let mut device = device(3);
            let mut notes = Notes::default();
            let mut seqs = [0; 4];
            for (context, at_ns, ns) in &work {
                let seq = &mut seqs[usize::try_from(*context).unwrap_or(0)];
                *seq += 1;
                device.push(*context, 0, run(*seq, *at_ns, *ns));
            }
            for at in looks {
                device.advance(*at, &mut notes);
            }
            device.advance(end, &mut notes);
            (notes.done, device.spent())
        };
        let mut looks = looks;
        looks.sort_unstable();
        let (often, spent) = play(&looks);
        prop_assert_eq!(&often, &play(&[]).0);
        prop_assert_eq!(often.len(), work.len());
        prop_assert_eq!(spent.busy_ns, work.iter().map(|(_, _, ns)| ns).sum::<u64>());
    }
}
