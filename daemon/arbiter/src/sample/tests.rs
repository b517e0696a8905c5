//! Which turns are told, and what of them.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use accelpool_model::MemoryBytes;
use accelpool_turns::Settings;

use super::*;
use crate::arming::ArmedDevice;

const KEY: ClaimKey = ClaimKey(1);
const MS: u64 = 1_000_000;

#[derive(Default)]
struct Kept {
    /// How often it may be asked before it wants none.
    wanted: AtomicUsize,
    asked: AtomicUsize,
    turns: Mutex<Vec<Turn>>,
}

impl Witness for Kept {
    fn wants(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) < self.wanted.load(Ordering::Relaxed)
    }

    fn take(&self, turn: Turn) {
        self.turns.lock().unwrap().push(turn);
    }
}

fn arming() -> Arming {
    let device = |device: u32| ArmedDevice {
        uuid: format!("GPU-00000000-0000-4000-8000-{device:012}").parse().unwrap(),
        quota: MemoryBytes::ZERO,
        reserve: MemoryBytes::ZERO,
    };
    Arming {
        claim: "a".parse().unwrap(),
        devices: vec![device(1), device(2)],
        class: ShareClass::Normal,
        weight: 1.try_into().unwrap(),
        host: None,
        cap: None,
    }
}

struct Bench {
    kept: Arc<Kept>,
    samples: Samples,
    turns: Turns,
    arming: Arming,
}

impl Bench {
    fn new(wanted: usize) -> Self {
        let kept = Arc::new(Kept { wanted: wanted.into(), ..Kept::default() });
        let samples = Samples::new(Some(kept.clone()));
        Self { kept, samples, turns: Turns::new(Settings::default()), arming: arming() }
    }

    /// So many turns, one after the other, each as long as it is apart from the next.
    fn give(&mut self, count: u64, apart_ns: u64) {
        for turn in 0..count {
            self.grant(turn * apart_ns);
            self.samples.close(KEY, turn * apart_ns);
            self.samples.end(KEY, &self.turns, (turn + 1) * apart_ns);
        }
    }

    fn grant(&mut self, now: u64) {
        let terms = (Access::Exclusive, Some(now + 5 * MS));
        self.samples.grant(KEY, &self.arming, terms, &self.turns, now);
    }

    /// Brings it to a turn that is told, which begins then.
    fn open(&mut self, now: u64) {
        for _ in 0..TURNS_EACH {
            self.grant(now);
        }
    }

    fn told(&self) -> Vec<Turn> {
        std::mem::take(&mut self.kept.turns.lock().unwrap())
    }
}

#[test]
fn one_turn_of_many_is_told_and_not_too_many_a_second() {
    let each = u64::from(TURNS_EACH);
    let mut bench = Bench::new(usize::MAX);
    bench.give(10 * each + each / 2, 5 * MS);
    assert_eq!(bench.told().len(), 10);
    // Ten thousand a second, for ten seconds.
    let mut bench = Bench::new(usize::MAX);
    bench.give(100_000, MS / 10);
    let told = bench.told().len();
    assert!((80..=100).contains(&told), "{told}");
}

#[test]
fn nobody_who_wants_none_is_told_of_any() {
    let each = u64::from(TURNS_EACH);
    let mut bench = Bench::new(0);
    bench.give(10 * each, 5 * MS);
    assert_eq!(bench.told(), []);
    // It is not even asked about most turns.
    assert_eq!(bench.kept.asked.load(Ordering::Relaxed), 10);
    bench.samples = Samples::new(None);
    bench.give(each, 5 * MS);
    assert_eq!(bench.told(), []);
}

#[test]
fn a_turn_is_told_as_it_went() {
    let mut bench = Bench::new(usize::MAX);
    bench.open(10 * MS);
    bench.samples.hand_over(KEY, MS / 4);
    bench.samples.extend(KEY, Some(17 * MS));
    // Others' turns are not its own.
    let other = ClaimKey(2);
    bench.samples.hand_over(other, MS);
    bench.samples.extend(other, None);
    bench.samples.end(other, &bench.turns, 11 * MS);
    bench.samples.close(KEY, 16 * MS);
    bench.samples.end(KEY, &bench.turns, 18 * MS);
    let [turn] = <[Turn; 1]>::try_from(bench.told()).unwrap();
    let expected = Turn {
        claim: "a".parse().unwrap(),
        devices: bench.arming.devices.iter().map(|device| device.uuid.clone()).collect(),
        class: ShareClass::Normal,
        took: Duration::from_millis(8),
        granted: Some(Duration::from_millis(7)),
        measured: Duration::ZERO,
        hand_over: Some(Duration::from_micros(250)),
        drain: Duration::from_millis(2),
        stuck: false,
    };
    assert_eq!(turn, expected);
    // It is told once.
    bench.samples.end(KEY, &bench.turns, 19 * MS);
    assert_eq!(bench.told(), []);
    // Who may go on beside others has no turn any more.
    bench.open(200 * MS);
    let open = (Access::Open, None);
    bench.samples.grant(KEY, &bench.arming, open, &bench.turns, 203 * MS);
    let [turn] = <[Turn; 1]>::try_from(bench.told()).unwrap();
    assert_eq!((turn.took, turn.drain), (Duration::from_millis(3), Duration::ZERO));
}

#[test]
fn one_that_does_not_drain_is_told_at_once_and_one_that_is_over_is_not() {
    let mut bench = Bench::new(usize::MAX);
    bench.open(0);
    bench.samples.close(KEY, MS);
    bench.samples.stick(KEY, &bench.turns, 21 * MS);
    let [turn] = <[Turn; 1]>::try_from(bench.told()).unwrap();
    assert!(turn.stuck);
    assert_eq!(turn.drain, Duration::from_millis(20));
    bench.open(200 * MS);
    bench.samples.forget(KEY);
    bench.samples.end(KEY, &bench.turns, 201 * MS);
    assert_eq!(bench.told(), []);
}
