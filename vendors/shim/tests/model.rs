//! The gate in every order that a memory model allows: loom tries them all.
//!
//! A locked exchange is an exchange and a full fence here, which is what the processors give.
//! The variant without the fence must fail, or the model proves nothing.

use std::sync::Arc;

use accelpool_shim::gate::{self, Grant, Mark, Word};
use loom::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread,
};

struct ModelMark {
    entering: AtomicU32,
    fenced: bool,
}

impl Mark for ModelMark {
    fn set(&self) {
        if self.fenced {
            self.entering.swap(1, Ordering::AcqRel);
            fence(Ordering::SeqCst);
        } else {
            self.entering.store(1, Ordering::Release);
        }
    }
    fn clear(&self) {
        self.entering.store(0, Ordering::Release);
    }
    fn is_set(&self) -> bool {
        self.entering.load(Ordering::Acquire) != 0
    }
}

struct ModelWord(AtomicU64);

impl Word for ModelWord {
    fn read(&self) -> Grant {
        let grant = self.0.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Grant(grant)
    }
    fn write(&self, grant: Grant) {
        self.0.swap(grant.0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }
}

struct Model {
    marks: [ModelMark; 2],
    grant: ModelWord,
    launches: AtomicU32,
    submitted: AtomicU32,
    completed: AtomicU32,
}

/// `clients` threads launch once each, while one thread closes and drains.
fn explore(clients: usize, fenced: bool) {
    let mut builder = loom::model::Builder::new();
    // Every order with at most three forced switches: more finds nothing new in a protocol of
    // two words, and takes minutes.
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let mark = || ModelMark { entering: AtomicU32::new(0), fenced };
        let model = Arc::new(Model {
            marks: [mark(), mark()],
            grant: ModelWord(AtomicU64::new(Grant::new(1, Grant::OPEN).0)),
            launches: AtomicU32::new(0),
            submitted: AtomicU32::new(0),
            completed: AtomicU32::new(0),
        });
        let threads: Vec<_> = (0..clients)
            .map(|index| {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    let mark = &model.marks[index];
                    if gate::enter(mark, &model.grant).is_ok() {
                        model.launches.fetch_add(1, Ordering::Relaxed);
                        model.submitted.fetch_add(1, Ordering::Release);
                        mark.clear();
                        // The device is done with it some time later.
                        model.completed.fetch_add(1, Ordering::Release);
                    }
                })
            })
            .collect();
        gate::close(&model.grant);
        while model.marks[..clients].iter().any(Mark::is_set) {
            thread::yield_now();
        }
        let closed = model.launches.load(Ordering::Acquire);
        // Drained: what was submitted before the close is complete.
        let submitted = model.submitted.load(Ordering::Acquire);
        while model.completed.load(Ordering::Acquire) < submitted {
            thread::yield_now();
        }
        for thread in threads {
            thread.join().expect("no thread of the model panics");
        }
        let after = model.launches.load(Ordering::Acquire);
        assert_eq!(closed, after, "a launch slipped past the close");
        assert_eq!(submitted, after, "a submission was not waited for");
    });
}

#[test]
fn a_close_holds_against_one_thread() {
    explore(1, true);
}

#[test]
fn a_close_holds_against_two_threads() {
    explore(2, true);
}

#[test]
#[should_panic(expected = "a launch slipped past the close")]
fn without_the_fence_it_does_not() {
    explore(1, false);
}
