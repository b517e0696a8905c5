//! Waiting for a turn: what the daemon's hint does to a thread that sleeps.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use accelpool_shim::{
    gate::{Grant, Word},
    layout::{ControlPage, ProcessPage},
    mapping::Mapping,
    sys,
    turn::{Heartbeat, Passed, Turn},
};

/// Waits at a closed gate that is opened after a moment without a wake, as if that was lost;
/// `hint_ns` says for when the grant was expected. Gives how long it took from the opening on.
fn pass_unwoken(hint_ns: impl FnOnce(u64) -> u64) -> Duration {
    let (control, _) = Mapping::<ControlPage>::sealed(c"control").expect("a page can be made");
    let (process, _) = Mapping::<ProcessPage>::sealed(c"process").expect("a page can be made");
    let device = &control.devices[0];
    device.grant.write(Grant::new(1, Grant::DRAIN));
    let (heartbeat, is_done) = (Heartbeat::new(), AtomicBool::new(false));
    let turn = Turn {
        control: &control,
        device,
        progress: &process.devices[0],
        heartbeat: &heartbeat,
        line: 0,
        eventfd: None,
        clock_offset_ns: 0,
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            // However long the machine takes: the daemon is alive.
            while !is_done.load(Ordering::SeqCst) {
                control.heartbeat_ns.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(10));
            }
        });
        let opener = scope.spawn(|| {
            while process.devices[0].want.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            // Long enough that it has given up spinning, and sleeps.
            thread::sleep(Duration::from_millis(5));
            device.grant.write(Grant::new(2, Grant::OPEN));
            Instant::now()
        });
        device.hint_ns.store(hint_ns(sys::now_ns()), Ordering::SeqCst);
        let passed = turn.enter(|_| ()).expect("it is not revoked");
        let end = Instant::now();
        is_done.store(true, Ordering::SeqCst);
        assert_eq!(passed, Passed::Granted(Grant::new(2, Grant::OPEN)));
        assert_eq!(process.devices[0].want.load(Ordering::SeqCst), 0);
        end.saturating_duration_since(opener.join().expect("it ran"))
    })
}

#[test]
fn a_thread_looks_up_when_the_grant_is_expected() {
    // Without a hint it sleeps for 100 ms at a time; the machine may be slow now and then.
    let soon = |now_ns| now_ns + 20_000_000;
    let quickest = (0..20).map(|_| pass_unwoken(soon)).min().expect("some");
    assert!(quickest < Duration::from_millis(60), "the hint was of no use: {quickest:?}");
}

#[test]
fn a_hint_that_makes_no_sense_holds_nobody_up() {
    for hint in [1, u64::MAX, u64::MAX / 2] {
        // It ends: that is all.
        pass_unwoken(|_| hint);
    }
}
