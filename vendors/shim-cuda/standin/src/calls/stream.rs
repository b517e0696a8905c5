//! Streams, waiting for them, and capture.

use std::ffi::{c_int, c_uint};

use accelpool_cuda_engine::FaultAt;

use crate::{
    abi::{
        CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, Code, Device, Handle, ILLEGAL_STATE, INVALID_VALUE,
        NOT_READY, Out,
    },
    exports::{Variant, exports, stream_exports},
    graph::Graph,
    state::{StreamKind, exchange_capture_mode, state},
};

exports! {
    fn cuStreamCreate(stream: Out<Handle>, flags: c_uint) { create(stream, flags, 0) }
    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: c_uint, priority: c_int) {
        create(stream, flags, priority.clamp(-5, 0))
    }
    fn cuStreamDestroy(stream: Handle) { state()?.close_stream(stream) }
    fn cuStreamDestroy_v2(stream: Handle) { state()?.close_stream(stream) }
    fn cuThreadExchangeStreamCaptureMode(mode: Out<c_uint>) {
        let new = mode.get()?;
        if new > 2 {
            return Err(INVALID_VALUE);
        }
        mode.put(exchange_capture_mode(new))
    }
}

stream_exports! { variant;
    fn cuStreamSynchronize/cuStreamSynchronize_ptsz(stream: Handle) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        if state.stream(stream)?.capture.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        state.fault(FaultAt::Synchronize)?;
        let pending = state.pending(stream)?;
        state.trim_pools()?;
        drop(state);
        pending.wait()
    }
    fn cuStreamQuery/cuStreamQuery_ptsz(stream: Handle) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        if state.stream(stream)?.capture.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        let pending = state.pending(stream)?;
        pending.error()?;
        if pending.is_done() { Ok(()) } else { Err(NOT_READY) }
    }
    fn cuStreamGetCtx/cuStreamGetCtx_ptsz(stream: Handle, context: Out<Handle>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        context.put(state.stream(stream)?.context)
    }
    fn cuStreamGetCtx_v2/cuStreamGetCtx_v2_ptsz(stream: Handle, context: Out<Handle>, green: Out<Handle>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        green.put_if(0);
        context.put(state.stream(stream)?.context)
    }
    fn cuStreamGetDevice/cuStreamGetDevice_ptsz(stream: Handle, device: Out<Device>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        let context = state.stream(stream)?.context;
        device.put(state.context(context)?.device)
    }
    fn cuStreamGetFlags/cuStreamGetFlags_ptsz(stream: Handle, flags: Out<c_uint>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        flags.put(state.stream(stream)?.flags)
    }
    fn cuStreamGetPriority/cuStreamGetPriority_ptsz(stream: Handle, priority: Out<c_int>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        priority.put(state.stream(stream)?.priority)
    }
    fn cuStreamGetId/cuStreamGetId_ptsz(stream: Handle, id: Out<u64>) {
        let mut state = state()?;
        id.put(state.resolve(stream, variant)? as u64)
    }
    fn cuStreamBeginCapture/cuStreamBeginCapture_ptsz(stream: Handle) {
        begin(stream, None, CAPTURE_GLOBAL, variant)
    }
    fn cuStreamBeginCapture_v2/cuStreamBeginCapture_v2_ptsz(stream: Handle, mode: c_uint) {
        begin(stream, None, mode, variant)
    }
    fn cuStreamBeginCaptureToGraph/cuStreamBeginCaptureToGraph_ptsz(
        stream: Handle, graph: Handle, _after: *const Handle, _edges: *const u8, _count: usize, mode: c_uint,
    ) { begin(stream, Some(graph), mode, variant) }
    fn cuStreamEndCapture/cuStreamEndCapture_ptsz(stream: Handle, graph: Out<Handle>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        let captured = state.stream(stream)?.capture.ok_or(CAPTURE_UNMATCHED)?;
        for other in state.streams.values_mut().filter(|other| other.capture == Some(captured)) {
            other.capture = None;
        }
        state.graphs.captures.remove(&captured);
        graph.put(captured)
    }
    fn cuStreamIsCapturing/cuStreamIsCapturing_ptsz(stream: Handle, status: Out<c_uint>) {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        status.put(c_uint::from(state.stream(stream)?.capture.is_some()))
    }
    fn cuStreamGetCaptureInfo/cuStreamGetCaptureInfo_ptsz(stream: Handle, status: Out<c_uint>, id: Out<u64>) {
        put_capture(stream, status, id, variant).map(|_| ())
    }
    fn cuStreamGetCaptureInfo_v2/cuStreamGetCaptureInfo_v2_ptsz(
        stream: Handle, status: Out<c_uint>, id: Out<u64>, graph: Out<Handle>,
        nodes: Out<*const Handle>, count: Out<usize>,
    ) {
        graph.put_if(put_capture(stream, status, id, variant)?);
        nodes.put_if(std::ptr::null());
        count.put_if(0);
        Ok(())
    }
    fn cuStreamGetCaptureInfo_v3/cuStreamGetCaptureInfo_v3_ptsz(
        stream: Handle, status: Out<c_uint>, id: Out<u64>, graph: Out<Handle>,
        nodes: Out<*const Handle>, edges: Out<*const u8>, count: Out<usize>,
    ) {
        graph.put_if(put_capture(stream, status, id, variant)?);
        nodes.put_if(std::ptr::null());
        edges.put_if(std::ptr::null());
        count.put_if(0);
        Ok(())
    }
}

const CAPTURE_GLOBAL: c_uint = 0;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

fn create(out: Out<Handle>, flags: c_uint, priority: i32) -> Result<(), Code> {
    if flags > NON_BLOCKING || out.is_null() {
        return Err(INVALID_VALUE);
    }
    let mut state = state()?;
    let context = state.current()?;
    let kind = if flags == NON_BLOCKING { StreamKind::NonBlocking } else { StreamKind::Blocking };
    let handle = state.open_stream(context, kind, priority)?;
    out.put(handle)
}

fn begin(
    stream: Handle,
    graph: Option<Handle>,
    mode: c_uint,
    variant: Variant,
) -> Result<(), Code> {
    let mut state = state()?;
    // The legacy default stream cannot be captured.
    if mode > 2 || stream == 1 || (stream == 0 && variant == Variant::Legacy) {
        return Err(CAPTURE_UNSUPPORTED);
    }
    let stream = state.resolve(stream, variant)?;
    if state.stream(stream)?.capture.is_some() {
        return Err(ILLEGAL_STATE);
    }
    let graph = graph.unwrap_or_else(|| {
        let handle = state.handle();
        state.graphs.all.insert(handle, Graph::default());
        handle
    });
    state.graphs.graph(graph)?;
    state.graphs.captures.insert(graph, mode);
    state.stream_mut(stream)?.capture = Some(graph);
    Ok(())
}

/// Says whether a stream is captured, and into which graph.
fn put_capture(
    stream: Handle,
    status: Out<c_uint>,
    id: Out<u64>,
    variant: Variant,
) -> Result<Handle, Code> {
    let mut state = state()?;
    let stream = state.resolve(stream, variant)?;
    let capture = state.stream(stream)?.capture;
    status.put(c_uint::from(capture.is_some()))?;
    id.put_if(capture.unwrap_or(0) as u64);
    Ok(capture.unwrap_or(0))
}
