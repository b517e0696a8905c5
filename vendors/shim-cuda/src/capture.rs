//! Streams that capture: what they are given becomes part of a graph and runs later, if ever.
//! It passes no gate, is charged nothing, and no event of ours is recorded among it.
#![expect(unsafe_code, reason = "asks the driver")]

use core::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    fence::Stream,
    map::{Map, Value},
    pass,
    surface::{self, SUCCESS},
    timing::ESTIMATES,
};

/// Graphs that were instantiated, with the number of their nodes.
static GRAPHS: Map = Map::new();

/// Captures that began and have not ended. While there are none, nobody is asked.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// A capture begins; to be said before the driver begins it.
pub(crate) fn begins() {
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    pass::forget_all();
}

/// A capture has ended, or did not begin.
pub(crate) fn ends() {
    let less = |count: u32| count.checked_sub(1);
    // An end without a beginning is the driver's to refuse.
    let _ = UNDER_WAY.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
}

/// Whether any stream of the process captures.
#[inline]
pub(crate) fn is_any() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) != 0
}

/// Whether a stream captures; also one that was drawn into another's capture.
#[inline]
pub(crate) fn is_capturing(stream: Stream) -> bool {
    is_any() && ask(stream)
}

#[cold]
fn ask(stream: Stream) -> bool {
    const NONE: c_int = 0;
    let mut status = NONE;
    let there = (&raw mut status).cast();
    // SAFETY: a stream of the caller's, and a status to write.
    let outcome = unsafe {
        if stream.per_thread {
            surface::cuStreamIsCapturing_ptsz(stream.handle, there)
        } else {
            surface::cuStreamIsCapturing(stream.handle, there)
        }
    };
    // Where the driver cannot even say, as for the legacy stream beside a capture, the call
    // itself will fail: nothing of ours may come before it.
    outcome != SUCCESS || status != NONE
}

/// A graph was instantiated: so many nodes it has.
pub(crate) fn instantiated(graph: *mut c_void, exec: u64) {
    let mut nodes = 0_usize;
    // SAFETY: a graph that the driver has just used, and a number to write.
    let outcome = unsafe { surface::cuGraphGetNodes(graph, null_mut(), (&raw mut nodes).cast()) };
    if outcome == SUCCESS {
        GRAPHS.insert(exec, Value { other: nodes as u64, ..Value::default() });
    }
}

/// The nodes of a graph; 0 for one that is not known.
pub(crate) fn nodes(exec: u64) -> u64 {
    GRAPHS.get(exec).map_or(0, |it| it.other)
}

pub(crate) fn destroyed(exec: u64) {
    // The next graph may get the same handle.
    ESTIMATES.forget(exec, 0);
    GRAPHS.remove(exec);
}

/// In the child of a fork.
pub(crate) fn forget() {
    UNDER_WAY.store(0, Ordering::Relaxed);
    GRAPHS.forget();
}
