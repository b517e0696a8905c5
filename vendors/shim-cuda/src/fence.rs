//! What of the submitted work is complete. Events on the streams that were used, recorded and
//! asked for while turns are given; in an open gate nothing but a mark on each stream.
//!
//! A checkpoint is a count of submissions and an event on each stream that has any of them.
//! One is under way at a time. The helper makes and follows them; a thread that waits for its
//! stream anyhow proves by that what it would. Never a wait for a whole context, never an
//! event on a stream that captures.
#![expect(unsafe_code, reason = "calls the driver")]

use core::{
    ffi::c_void,
    ptr::{null_mut, with_exposed_provenance_mut},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use accelpool_shim::layout::Progress;

use crate::{
    capture, context,
    lock::Lock,
    pass,
    surface::{self, NOT_READY, SUCCESS},
    thread::Thread,
};

/// Streams of a device that are told apart. A framework has some dozen.
const ROWS: usize = 128;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// Keys of per-thread streams carry the thread's line above this bit; handles are aligned.
const LINE_SHIFT: u32 = 8;

/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMING: u32 = 2;

/// A stream as a caller names it, and by which entry point.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) handle: *mut c_void,
    pub(crate) per_thread: bool,
}

impl Stream {
    #[inline]
    pub(crate) fn new(handle: *mut c_void, per_thread: bool) -> Self {
        Self { handle, per_thread }
    }

    /// As it was named, by which handle and which entry point: handles are aligned, or 0 to 2.
    #[inline]
    pub(crate) fn name(self) -> usize {
        self.handle.addr().wrapping_add(if self.per_thread { 4 } else { 0 })
    }

    /// One number for each stream: 0 is one of two streams, by the entry point.
    #[inline]
    fn key(self, thread: &Thread) -> usize {
        let own = PER_THREAD | (thread.line.get() as usize) << LINE_SHIFT;
        match self.handle.addr() {
            0 if self.per_thread => own,
            0 => LEGACY,
            PER_THREAD => own,
            handle => handle,
        }
    }
}

fn is_per_thread(key: usize) -> bool {
    key & 0xff == PER_THREAD && key >> LINE_SHIFT != 0 && key >> LINE_SHIFT <= 0xffff
}

/// A stream that was used.
struct Row {
    /// 0 for free.
    key: AtomicUsize,
    context: AtomicUsize,
    /// Made when the stream is first in a checkpoint.
    event: AtomicUsize,
    /// It was used since it was last in a checkpoint.
    dirty: AtomicU32,
}

struct Checkpoint {
    is_under_way: bool,
    submitted: (u64, u64),
    /// Rows whose event is still to come.
    pending: [bool; ROWS],
    /// Threads that wait for a stream whose completion they will note.
    waiting: u32,
}

pub(crate) struct Fences {
    rows: [Row; ROWS],
    checkpoint: Lock<Checkpoint>,
}

impl Fences {
    pub(crate) const fn new() -> Self {
        Self {
            rows: [const {
                Row {
                    key: AtomicUsize::new(0),
                    context: AtomicUsize::new(0),
                    event: AtomicUsize::new(0),
                    dirty: AtomicU32::new(0),
                }
            }; ROWS],
            checkpoint: Lock::new(Checkpoint {
                is_under_way: false,
                submitted: (0, 0),
                pending: [false; ROWS],
                waiting: 0,
            }),
        }
    }

    /// In the child of a fork.
    pub(crate) fn forget(&self) {
        self.checkpoint.forget_holder();
        let mut checkpoint = self.checkpoint.lock();
        checkpoint.is_under_way = false;
        checkpoint.pending = [false; ROWS];
        checkpoint.waiting = 0;
        for row in &self.rows {
            row.key.store(0, Ordering::Relaxed);
            row.event.store(0, Ordering::Relaxed);
            row.dirty.store(0, Ordering::Relaxed);
        }
    }

    /// The stream was given something, which is not counted yet.
    #[inline]
    pub(crate) fn mark(&self, thread: &Thread, stream: Stream) {
        let key = stream.key(thread);
        let row = if thread.stream.get() == key && thread.row.get() < ROWS {
            &self.rows[thread.row.get()]
        } else {
            let Some(row) = self.find(thread, key) else { return };
            row
        };
        // The row may have been taken by another stream since: then it is searched again.
        if row.key.load(Ordering::Relaxed) != key {
            if let Some(row) = self.find(thread, key) {
                row.dirty.store(1, Ordering::Release);
            }
            return;
        }
        if row.dirty.load(Ordering::Relaxed) == 0 {
            row.dirty.store(1, Ordering::Release);
        }
    }

    /// The mark of the stream that the thread used last, while that is this one.
    pub(crate) fn mark_of(&self, thread: &Thread, stream: Stream) -> Option<&AtomicU32> {
        let key = stream.key(thread);
        let row = self.rows.get(thread.row.get()).filter(|_| thread.stream.get() == key)?;
        (row.key.load(Ordering::Acquire) == key).then_some(&row.dirty)
    }

    /// The row of a stream, a new one if need be; `None` where all are taken. What such a
    /// stream does is not waited for: the daemon's limit on a drain bounds that.
    #[cold]
    fn find(&self, thread: &Thread, key: usize) -> Option<&Row> {
        let known = self.rows.iter().position(|it| it.key.load(Ordering::Acquire) == key);
        let place = known.or_else(|| {
            let checkpoint = self.checkpoint.lock();
            // Between the search and the lock another thread may have come.
            let free = |it: &Row| [0, key].contains(&it.key.load(Ordering::Relaxed));
            let place = self.rows.iter().position(free)?;
            let row = &self.rows[place];
            if row.key.load(Ordering::Relaxed) == 0 {
                let mut context: *mut c_void = null_mut();
                // SAFETY: the context is written.
                thread.inside(|| unsafe { surface::cuCtxGetCurrent((&raw mut context).cast()) });
                row.context.store(context.expose_provenance(), Ordering::Relaxed);
                row.dirty.store(0, Ordering::Relaxed);
                row.key.store(key, Ordering::Release);
            }
            drop(checkpoint);
            Some(place)
        })?;
        thread.stream.set(key);
        thread.row.set(place);
        Some(&self.rows[place])
    }

    /// Records the calling thread's own default stream, which nobody else can.
    pub(crate) fn record_own(&self, thread: &Thread, stream: Stream) {
        let key = stream.key(thread);
        if !is_per_thread(key) {
            return;
        }
        let Some(row) = self.find(thread, key) else { return };
        let checkpoint = self.checkpoint.lock();
        thread.inside(|| row.record(with_exposed_provenance_mut(PER_THREAD)));
        drop(checkpoint);
    }

    /// Follows the checkpoint under way and begins the next one; whether work is left. Called
    /// by the helper, whose current context it changes.
    pub(crate) fn advance(&self, progress: &Progress) -> bool {
        let mut checkpoint = self.checkpoint.lock();
        if checkpoint.is_under_way {
            for (row, pending) in self.rows.iter().zip(&mut checkpoint.pending) {
                *pending = *pending && !row.is_reached();
            }
            if checkpoint.pending.contains(&true) {
                return true;
            }
            checkpoint.is_under_way = false;
            progress.complete(checkpoint.submitted);
        }
        let submitted = progress.submitted();
        if submitted.0 <= progress.completed.load(Ordering::Acquire) {
            return false;
        }
        if checkpoint.waiting != 0 {
            // What it proves comes first; its own marks are gone already.
            return true;
        }
        // A launch marks its stream before it is counted: whose mark is gone here was in a
        // checkpoint that is complete.
        let mut left_out = false;
        let mut any = false;
        for (row, pending) in self.rows.iter().zip(&mut checkpoint.pending) {
            if row.key.load(Ordering::Acquire) == 0 || row.dirty.swap(0, Ordering::AcqRel) == 0 {
                continue;
            }
            if row.fence() {
                *pending = true;
                any = true;
            } else {
                row.dirty.store(1, Ordering::Release);
                left_out = true;
            }
        }
        if left_out {
            // The count waits for the rest: what was recorded is so again, with it.
            for (row, pending) in self.rows.iter().zip(&mut checkpoint.pending) {
                if core::mem::take(pending) {
                    row.dirty.store(1, Ordering::Release);
                }
            }
            return true;
        }
        if !any {
            progress.complete(submitted);
            return false;
        }
        checkpoint.submitted = submitted;
        checkpoint.is_under_way = true;
        true
    }

    /// Runs a wait for a stream, or with `None` for a context, which is the current one. If
    /// nothing else was under way, all that was submitted before is complete when it succeeds.
    pub(crate) fn prove(
        &self,
        thread: &Thread,
        progress: &Progress,
        stream: Option<Stream>,
        wait: impl FnOnce() -> i32,
    ) -> i32 {
        let key = stream.map(|it| it.key(thread));
        let current = if key.is_none() { context::current(thread) } else { 0 };
        let is_waited_for = |row: &Row| match key {
            Some(key) => row.key.load(Ordering::Acquire) == key,
            None => row.context.load(Ordering::Relaxed) as u64 == current,
        };
        let proof = self.begin_proof(progress, is_waited_for);
        let outcome = thread.inside(wait);
        if let Some((submitted, marked)) = proof {
            let mut checkpoint = self.checkpoint.lock();
            checkpoint.waiting = checkpoint.waiting.saturating_sub(1);
            if outcome == SUCCESS {
                progress.complete(submitted);
            } else {
                for (row, marked) in self.rows.iter().zip(marked) {
                    if marked {
                        row.dirty.store(1, Ordering::Release);
                    }
                }
            }
        }
        outcome
    }

    /// What will be proven: the count, and the rows whose marks were taken. Nothing, if other
    /// streams have work.
    fn begin_proof(
        &self,
        progress: &Progress,
        is_waited_for: impl Fn(&Row) -> bool,
    ) -> Option<((u64, u64), [bool; ROWS])> {
        let mut checkpoint = self.checkpoint.lock();
        if checkpoint.is_under_way || checkpoint.waiting != 0 {
            return None;
        }
        // The count before the marks: what is counted has set its mark already.
        let submitted = progress.submitted();
        if submitted.0 <= progress.completed.load(Ordering::Acquire) {
            return None;
        }
        let mut marked = [false; ROWS];
        for (row, marked) in self.rows.iter().zip(&mut marked) {
            if row.key.load(Ordering::Acquire) == 0 || row.dirty.load(Ordering::Acquire) == 0 {
                continue;
            }
            if !is_waited_for(row) {
                return None;
            }
            *marked = true;
        }
        for (row, _) in self.rows.iter().zip(marked).filter(|(_, marked)| *marked) {
            row.dirty.store(0, Ordering::Release);
        }
        checkpoint.waiting += 1;
        Some((submitted, marked))
    }

    /// A stream goes away: its work is still to be followed. `destroy` is the driver's call.
    pub(crate) fn destroy(
        &self,
        thread: &Thread,
        stream: Stream,
        destroy: impl FnOnce() -> i32,
    ) -> i32 {
        let key = stream.key(thread);
        let checkpoint = self.checkpoint.lock();
        let row = self.rows.iter().find(|it| it.key.load(Ordering::Acquire) == key);
        if let Some(row) = row {
            if row.dirty.load(Ordering::Acquire) != 0 && !capture::is_any() {
                thread.inside(|| row.record(stream.handle));
            }
            // The row keeps its event and its mark, under a key that no stream has.
            row.key.store(GONE, Ordering::Release);
            pass::forget_all();
        }
        drop(checkpoint);
        thread.inside(destroy)
    }
}

/// The key of a row whose stream was destroyed.
const GONE: usize = usize::MAX;

impl Row {
    /// Records the stream's event; whether there is one to wait for.
    fn record(&self, stream: *mut c_void) -> bool {
        let mut event: *mut c_void =
            with_exposed_provenance_mut(self.event.load(Ordering::Relaxed));
        if event.is_null() {
            // SAFETY: the event is written.
            let made = unsafe { surface::cuEventCreate((&raw mut event).cast(), WITHOUT_TIMING) };
            if made != SUCCESS || event.is_null() {
                return false;
            }
            self.event.store(event.expose_provenance(), Ordering::Relaxed);
        }
        // SAFETY: an event of the row's own, and a stream that is not destroyed: that takes
        // the lock which our caller holds.
        unsafe { surface::cuEventRecord(event, stream) == SUCCESS }
    }

    /// Sees to it that the event stands behind what the stream was given.
    fn fence(&self) -> bool {
        let key = self.key.load(Ordering::Acquire);
        if key == GONE || is_per_thread(key) {
            // Recorded by who destroyed it, or by the thread that it belongs to.
            return self.event.load(Ordering::Relaxed) != 0;
        }
        let stream = with_exposed_provenance_mut(if key == LEGACY { 0 } else { key });
        let context = with_exposed_provenance_mut(self.context.load(Ordering::Relaxed));
        // SAFETY: the context that was current when the stream was first used. One that is
        // gone is refused, and its work with it.
        if unsafe { surface::cuCtxSetCurrent(context) } != SUCCESS {
            return true;
        }
        if capture::is_capturing(Stream::new(stream, false)) {
            return false;
        }
        self.record(stream)
    }

    /// Whether the device has come to the event. One that cannot be asked any more belongs to
    /// a context that is broken or gone, whose work has ended.
    fn is_reached(&self) -> bool {
        let event = with_exposed_provenance_mut(self.event.load(Ordering::Relaxed));
        // SAFETY: null, or an event of the row's own.
        let outcome = unsafe { surface::cuEventQuery(event) };
        if outcome == NOT_READY {
            return false;
        }
        // A destroyed stream's row is free again, once it has nothing more to tell.
        let gone = self.key.compare_exchange(GONE, 0, Ordering::AcqRel, Ordering::Relaxed);
        if gone.is_ok() || outcome != SUCCESS {
            self.event.store(0, Ordering::Relaxed);
            // SAFETY: as above; nobody has it any more.
            unsafe { surface::cuEventDestroy_v2(event) };
        }
        true
    }
}
