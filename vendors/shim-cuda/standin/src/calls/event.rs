//! Events.

use std::{ffi::c_uint, sync::atomic::Ordering};

use accelpool_cuda_engine::{
    FaultAt,
    wire::{Op, Request},
};

use crate::{
    abi::{Code, Handle, ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Out},
    exports::{Variant, exports, stream_exports},
    link::Link,
    state::state,
};

exports! {
    fn cuEventCreate(event: Out<Handle>, flags: c_uint) {
        let mut state = state()?;
        state.current()?;
        let handle = state.create_event(flags & DISABLE_TIMING == 0)?;
        event.put(handle)
    }
    fn cuEventDestroy(event: Handle) { state()?.destroy_event(event) }
    fn cuEventDestroy_v2(event: Handle) { state()?.destroy_event(event) }
    fn cuEventQuery(event: Handle) {
        let state = state()?;
        let event = state.event(event)?;
        if reached(&state.link, event.number, event.seq) { Ok(()) } else { Err(NOT_READY) }
    }
    fn cuEventSynchronize(event: Handle) {
        let state = state()?;
        state.fault(FaultAt::Synchronize)?;
        let (number, seq) = (state.event(event)?.number, state.event(event)?.seq);
        let (page, context) = (state.link.page.clone(), state.current()?);
        let stuck = state.context(context)?.number;
        drop(state);
        let error = || page.layout().errors[stuck].load(Ordering::SeqCst);
        page.wait_until(
            |layout| layout.events[number].seq.load(Ordering::SeqCst) >= seq || error() != 0,
            || crate::state::state().map_or(true, |state| state.link.gone()),
        );
        match error() {
            0 => Ok(()),
            code => Err(code),
        }
    }
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}

stream_exports! { variant;
    fn cuEventRecord/cuEventRecord_ptsz(event: Handle, stream: Handle) { record(event, stream, variant) }
    fn cuEventRecordWithFlags/cuEventRecordWithFlags_ptsz(event: Handle, stream: Handle, _flags: c_uint) {
        record(event, stream, variant)
    }
    fn cuStreamWaitEvent/cuStreamWaitEvent_ptsz(stream: Handle, event: Handle, _flags: c_uint) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        let (number, seq, capture) = {
            let event = state.event(event)?;
            (event.number as u64, event.seq, event.capture)
        };
        if let Some(graph) = capture {
            // The stream joins the capture that the event is of.
            state.stream_mut(stream)?.capture = Some(graph);
            return Ok(());
        }
        if seq == 0 {
            return Ok(());
        }
        state.submit(stream, Request { b: number, c: seq, ..Request::new(Op::Wait) }).map(|_| ())
    }
}

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;

fn reached(link: &Link, number: usize, seq: u64) -> bool {
    link.page.layout().events[number].seq.load(Ordering::SeqCst) >= seq
}

fn record(event: Handle, stream: Handle, variant: Variant) -> Result<(), Code> {
    let mut state = state()?;
    let stream = state.resolve(stream, variant)?;
    let number = state.event(event)?.number as u64;
    let capture = state.stream(stream)?.capture;
    let seq = match capture {
        Some(_) => 0,
        None => state.submit(stream, Request { b: number, ..Request::new(Op::Record) })?,
    };
    let event = state.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
    event.capture = capture;
    if capture.is_none() {
        event.seq = seq;
    }
    Ok(())
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Result<(), Code> {
    let state = state()?;
    let mut times = [0; 2];
    for (time, handle) in times.iter_mut().zip([start, end]) {
        let event = state.event(handle)?;
        if !event.timing || event.seq == 0 {
            return Err(if event.timing { ILLEGAL_STATE } else { INVALID_VALUE });
        }
        if !reached(&state.link, event.number, event.seq) {
            return Err(NOT_READY);
        }
        *time = state.link.page.layout().events[event.number].time_ns.load(Ordering::SeqCst);
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "CUDA's answer is a float too"
    )]
    milliseconds.put((times[1].wrapping_sub(times[0]).cast_signed() as f64 / 1e6) as f32)
}
