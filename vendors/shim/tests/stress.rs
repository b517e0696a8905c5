//! The gate between two processes on two processors, with stores pending before it.
//!
//! A launch that slips past a completed close is what the gate exists to prevent. The same
//! test with a plain store in place of the locked exchange must find such launches: so it is
//! known to be able to.

mod support;

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use accelpool_shim::gate::{self, Grant, Mark, OwnMark, Word};

use crate::support::{Child, Shared, pin, processors};

/// Enough for the broken gate to fail thousands of times, in about a second.
const CLOSES: u32 = 100_000;

/// Until when the broken gate must have failed on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_mins(2);

/// A cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

#[repr(C)]
struct Arena {
    entering: Line<AtomicU32>,
    grant: Line<AtomicU64>,
    launches: Line<AtomicU64>,
    /// What a launching thread has just written elsewhere: these stores are still under way
    /// when it comes to the gate.
    pending: [Line<AtomicU64>; 16],
}

/// A mark without the exchange.
struct PlainMark<'a>(&'a AtomicU32);

impl Mark for PlainMark<'_> {
    fn set(&self) {
        self.0.store(1, Ordering::Relaxed);
    }
    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// Launches until it is killed.
fn launch(arena: &Arena, mark: &impl Mark) {
    let mut count = 0_u64;
    loop {
        for line in &arena.pending {
            line.0.store(count, Ordering::Relaxed);
        }
        if gate::enter(mark, &arena.grant.0).is_ok() {
            count += 1;
            arena.launches.0.store(count, Ordering::Relaxed);
            mark.clear();
        }
    }
}

/// Opens and closes; gives the closes that a launch slipped past.
fn close_often(arena: &Arena, enough: impl Fn(u32, u32) -> bool) -> (u32, u32) {
    let (mut closes, mut slipped) = (0, 0);
    while !enough(closes, slipped) {
        let before = arena.launches.0.load(Ordering::Relaxed);
        arena.grant.0.write(Grant::new(closes, Grant::OPEN));
        // The other process may be off its processor: let it come back.
        let mut looks = 0_u32;
        while arena.launches.0.load(Ordering::Relaxed) == before {
            looks += 1;
            if looks.is_multiple_of(4096) { thread::yield_now() } else { spin_loop() }
        }
        // It takes the lines of the pending stores away, so that they take their time.
        for line in &arena.pending {
            line.0.store(u64::from(closes), Ordering::Relaxed);
        }
        gate::close(&arena.grant.0);
        while OwnMark(&arena.entering.0).is_set() {
            spin_loop();
        }
        let at_close = arena.launches.0.load(Ordering::Acquire);
        for _ in 0..200 {
            spin_loop();
        }
        slipped += u32::from(arena.launches.0.load(Ordering::Acquire) != at_close);
        closes += 1;
    }
    (closes, slipped)
}

/// The gate with one mark or the other; `None` on a machine with one processor, where nothing
/// of this can happen.
fn check(broken: bool, enough: impl Fn(u32, u32) -> bool + Send) -> Option<(u32, u32)> {
    let [one, other, ..] = processors()[..] else { return None };
    #[expect(unsafe_code, reason = "shares memory with a child")]
    // SAFETY: the arena is made of atomics, for which zero is a value.
    let arena: Shared<Arena> = unsafe { Shared::new() };
    let child = Child::run(|| {
        pin(other);
        let entering = &arena.entering.0;
        if broken {
            launch(&arena, &PlainMark(entering));
        } else {
            launch(&arena, &OwnMark(entering));
        }
    });
    // On a thread of its own, so that the pinning ends with it.
    let outcome = thread::scope(|scope| {
        let closer = scope.spawn(|| {
            pin(one);
            close_often(&arena, enough)
        });
        closer.join().expect("the closer does not panic")
    });
    child.kill();
    Some(outcome)
}

#[test]
fn no_launch_slips_past_a_close() {
    if let Some((closes, slipped)) = check(false, |closes, _| closes == CLOSES) {
        assert_eq!(slipped, 0, "launches slipped past {closes} closes");
    }
}

#[test]
fn without_the_exchange_launches_slip_past() {
    let start = Instant::now();
    let enough = |_, slipped| slipped >= 10 || start.elapsed() > PATIENCE;
    if let Some((closes, slipped)) = check(true, enough) {
        assert!(slipped >= 10, "{slipped} of {closes} closes failed: this test cannot fail");
    }
}
