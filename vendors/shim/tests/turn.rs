//! Waiting for a turn: what the daemon's hint does to a thread that sleeps.

use std::{fs, sync::atomic::Ordering, thread, time::Duration};

use accelpool_shim::{
    gate::{Grant, Word},
    layout::{ControlPage, ProcessPage, Progress},
    mapping::Mapping,
    sys,
    turn::{Heartbeat, Passed, Turn},
};

/// A thread waits at a closed gate, and once it does another one runs `beside`, which gets the
/// daemon's page, the process's part of its own, and which thread waits. Gives how the thread
/// passed, and how often it slept.
fn wait_beside(beside: impl Fn(&ControlPage, &Progress, i32) + Sync) -> (Passed, i64) {
    let (control, _) = Mapping::<ControlPage>::sealed(c"control").expect("a page can be made");
    let (process, _) = Mapping::<ProcessPage>::sealed(c"process").expect("a page can be made");
    let (device, progress) = (&control.devices[0], &process.devices[0]);
    device.grant.write(Grant::new(1, Grant::DRAIN));
    let heartbeat = Heartbeat::new();
    let turn = Turn {
        control: &control,
        device,
        progress,
        heartbeat: &heartbeat,
        line: 0,
        eventfd: None,
        clock_offset_ns: 0,
    };
    let waiting = thread_id();
    thread::scope(|scope| {
        scope.spawn(|| {
            while progress.want.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            beside(&control, progress, waiting);
        });
        let before = sleeps();
        let passed = turn.enter(|_| ()).expect("it is not revoked");
        let slept = sleeps() - before;
        assert_eq!(progress.want.load(Ordering::SeqCst), 0);
        (passed, slept)
    })
}

fn thread_id() -> i32 {
    #[expect(unsafe_code, reason = "asks the kernel")]
    // SAFETY: has no arguments and changes nothing.
    unsafe {
        libc::gettid()
    }
}

/// How often the calling thread has given the processor up by itself.
fn sleeps() -> i64 {
    #[expect(unsafe_code, reason = "asks the kernel")]
    // SAFETY: all zeroes are a usage, which the call writes.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage.ru_nvcsw
    }
}

/// How often a thread sleeps until it takes the daemon for dead, half a second after its last
/// beat; meanwhile the grant is ever again expected within so many milliseconds, 0 for never.
fn sleeps_until_it_gives_up(expected_ms: u64) -> i64 {
    let (passed, slept) = wait_beside(|control, progress, _| {
        while expected_ms != 0 && progress.want.load(Ordering::SeqCst) != 0 {
            let hint_ns = sys::now_ns() + expected_ms * 1_000_000;
            control.devices[0].hint_ns.store(hint_ns, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(passed, Passed::FailedOpen);
    slept
}

#[test]
fn a_thread_looks_up_when_the_grant_is_expected() {
    let without = sleeps_until_it_gives_up(0);
    assert!((1..=6).contains(&without), "each sleep lasts 100 ms: {without}");
    // A hundred on an idle machine; a slow one is late for some of them.
    let with = sleeps_until_it_gives_up(5);
    assert!(with >= without + 4, "the hint was of no use: {with} looks beside {without}");
}

#[test]
fn a_hint_that_makes_no_sense_holds_nobody_up() {
    for hint_ns in [1, u64::MAX, u64::MAX / 2] {
        let (passed, _) = wait_beside(|control, progress, waiting| {
            let device = &control.devices[0];
            device.hint_ns.store(hint_ns, Ordering::SeqCst);
            // It has given up spinning, and sleeps.
            let state = format!("/proc/self/task/{waiting}/stat");
            while !fs::read_to_string(&state).expect("it waits").contains(") S ") {
                control.heartbeat_ns.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
            }
            // Without a wake, as if that was lost; the daemon is alive all the time.
            device.grant.write(Grant::new(2, Grant::OPEN));
            while progress.want.load(Ordering::SeqCst) != 0 {
                control.heartbeat_ns.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(10));
            }
        });
        assert_eq!(passed, Passed::Granted(Grant::new(2, Grant::OPEN)), "{hint_ns}");
    }
}
