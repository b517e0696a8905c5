//! The quota with several processes at once, and with processes that are killed within a change.

mod support;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use accelpool_shim::{
    layout::{LedgerPage, PROCESSES_MAX},
    mapping::Mapping,
    quota::OverQuota,
};
use proptest::prelude::*;

use crate::support::{Child, Shared};

const QUOTA: u64 = 1 << 30;

fn page() -> Mapping<LedgerPage> {
    Mapping::sealed(c"ledger").expect("a page can be made").0
}

/// A cheap sequence that differs from process to process.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Allocates and frees at random, forever or `rounds` times; holds what it holds when it ends.
/// `device` is what a device of that size would say: never beyond the quota.
fn churn(page: &LedgerPage, device: &AtomicU64, over: &AtomicU64, process: usize, rounds: u64) {
    let account = page.account(process, 0).expect("the index is in the page");
    let mut next = numbers(process as u64 + 1);
    let mut held = [0_u64; 8];
    for _ in 0..rounds {
        let place = usize::try_from(next() % 8).expect("below eight");
        let bytes = held[place];
        if bytes != 0 {
            device.fetch_sub(bytes, Ordering::SeqCst);
            account.release(bytes);
            held[place] = 0;
        } else {
            let bytes = next() % (QUOTA / 16) + 1;
            if let Ok(reservation) = account.reserve(bytes, QUOTA) {
                // One in eight allocations fails in the driver.
                if next().is_multiple_of(8) {
                    continue;
                }
                let total = device.fetch_add(bytes, Ordering::SeqCst) + bytes;
                over.fetch_max(total, Ordering::SeqCst);
                held[place] = reservation.commit();
            }
        }
    }
}

#[test]
fn eight_processes_never_exceed_it_and_lose_no_byte() {
    let page = page();
    #[expect(unsafe_code, reason = "shares memory with children")]
    // SAFETY: atomics, for which zero is a value.
    let device: Shared<[AtomicU64; 2]> = unsafe { Shared::new() };
    let children: Vec<Child> = (0..8)
        .map(|process| Child::run(|| churn(&page, &device[0], &device[1], process, 20_000)))
        .collect();
    for child in children {
        assert!(child.join(), "a process ran to its end");
    }
    let used = page.devices[0].used.load(Ordering::SeqCst);
    assert_eq!(used, device[0].load(Ordering::SeqCst), "the counter is what the device holds");
    assert!(device[1].load(Ordering::SeqCst) <= QUOTA, "the device never held more");
    assert!(page.devices[0].peak.load(Ordering::SeqCst) <= QUOTA);
    for process in 0..8 {
        assert!(page.end(process).is_exact);
    }
    assert_eq!(page.devices[0].used.load(Ordering::SeqCst), 0);
}

#[test]
fn killed_processes_leave_nothing_behind() {
    let page = page();
    #[expect(unsafe_code, reason = "shares memory with children")]
    // SAFETY: atomics, for which zero is a value.
    let device: Shared<[AtomicU64; 2]> = unsafe { Shared::new() };
    // One survivor all along, which makes the sum of the rows move.
    let survivor = Child::run(|| churn(&page, &device[0], &device[1], 0, u64::MAX));
    for round in 1..60 {
        let process = round % 7 + 1;
        let victim = Child::run(|| churn(&page, &device[0], &device[1], process, u64::MAX));
        while page.rows[process].begun.load(Ordering::SeqCst) < 20 * round as u64 {
            thread::yield_now();
        }
        victim.kill();
        if !page.end(process).is_exact {
            // The survivor is seldom at rest; the daemon asks with each heartbeat.
            while page.reconcile(0, |it| it == 0).is_none() {
                thread::yield_now();
            }
        }
    }
    survivor.kill();
    page.end(0);
    while page.reconcile(0, |_| false).is_none() {}
    assert_eq!(page.devices[0].used.load(Ordering::SeqCst), 0);
}

#[test]
fn the_last_byte_is_granted_and_the_next_is_not() {
    let page = page();
    let account = page.account(PROCESSES_MAX - 1, 15).expect("the last of both");
    let most = account.reserve(QUOTA - 1, QUOTA).expect("within the quota").commit();
    assert_eq!(account.reserve(2, QUOTA).expect_err("one too many"), OverQuota);
    let last = account.reserve(1, QUOTA).expect("the last byte");
    assert_eq!(account.reserve(1, QUOTA).expect_err("full"), OverQuota);
    drop(last);
    assert_eq!(account.used(), most, "rolled back");
    assert_eq!(page.devices[15].denied.load(Ordering::Relaxed), 2);
    assert_eq!(account.reserve(u64::MAX, u64::MAX).expect_err("overflows"), OverQuota);
    account.release(most);
    account.release(1);
    assert_eq!((account.used(), account.held()), (0, 0), "never below nothing");
}

#[test]
fn indices_beyond_the_page_have_no_account() {
    let page = page();
    assert!(page.account(PROCESSES_MAX, 0).is_none());
    assert!(page.account(0, 16).is_none());
    assert!(page.end(PROCESSES_MAX).is_exact);
    assert_eq!(page.reconcile(16, |_| true), None);
}

proptest! {
    #[test]
    fn any_history_adds_up(history in prop::collection::vec((0_usize..4, 0_u64..400, 0_u8..4), 0..200)) {
        let page = page();
        let quota = 1000;
        let mut held: HashMap<usize, Vec<u64>> = HashMap::new();
        for (process, bytes, action) in history {
            let account = page.account(process, 3).expect("in the page");
            let own = held.entry(process).or_default();
            match action {
                0 | 1 => {
                    let fits = account.used() + bytes <= quota;
                    let outcome = account.reserve(bytes, quota);
                    prop_assert_eq!(outcome.is_ok(), fits);
                    if let Ok(reservation) = outcome && action == 0 {
                        own.push(reservation.commit());
                    }
                }
                2 => if let Some(bytes) = own.pop() { account.release(bytes) },
                _ => {
                    let ended = page.end(process);
                    prop_assert_eq!(ended.bytes[3], own.drain(..).sum::<u64>());
                }
            }
            let sum = held.values().flatten().sum::<u64>();
            prop_assert_eq!(page.devices[3].used.load(Ordering::SeqCst), sum);
            prop_assert!(sum <= quota);
        }
    }
}

#[test]
fn what_is_pinned_is_counted_beside_the_devices() {
    let page = page();
    let (one, other) = (page.host_account(1).expect("a row"), page.host_account(2).expect("a row"));
    assert!(page.host_account(PROCESSES_MAX).is_none());
    let kept = one.reserve(QUOTA / 2, QUOTA).expect("within the limit").commit();
    assert_eq!(other.reserve(QUOTA / 2 + 1, QUOTA).expect_err("too much"), OverQuota);
    let _ = other.reserve(QUOTA / 2, QUOTA).expect("all of it").commit();
    let host = |it: &AtomicU64| it.load(Ordering::SeqCst);
    let counted = [&page.host_used, &page.host_peak, &page.host_denied].map(host);
    assert_eq!((counted, host(&page.devices[0].used)), ([QUOTA, QUOTA, 1], 0));
    one.release(kept);
    // The other is killed within a change: its row goes, and the sum of the rows is the truth.
    page.rows[2].begun.fetch_add(1, Ordering::SeqCst);
    assert!(!page.end(2).is_exact);
    assert_eq!(host(&page.host_used), QUOTA / 2);
    assert_eq!(page.reconcile_host(|row| row == 1), Some(QUOTA / 2));
    assert_eq!(host(&page.host_used), 0);
    // One that ends in good order takes what it had along.
    let _ = one.reserve(4096, QUOTA).expect("within the limit").commit();
    assert!(page.end(1).is_exact);
    assert_eq!((host(&page.host_used), host(&page.rows[1].host_bytes)), (0, 0));
}
