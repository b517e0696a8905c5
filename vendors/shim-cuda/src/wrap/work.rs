//! Work: launches, captures, and waits.

use core::{ffi::c_int, sync::atomic::Ordering};

use super::{Pointer, given, wrap, written};
use crate::{
    capture, device,
    fence::Stream,
    memory::GRAPHS_ALLOCATE,
    pass::submits,
    process,
    submit::{Cost, submit},
    surface::{self, SUCCESS},
    thread::thread,
};

/// `CUlaunchConfig`, as far as it is read.
#[repr(C)]
#[derive(Clone, Copy)]
struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Pointer,
}

/// `CU_GRAPH_NODE_TYPE_MEM_ALLOC`.
const ALLOCATES: u32 = 10;

fn kernel(function: Pointer, grid: [u32; 3]) -> Cost {
    Cost::Kernel { function: function.addr(), grid }
}

/// Launches a graph; what it allocates is charged by what it then has.
fn graph(stream: Stream, exec: Pointer, call: impl FnOnce() -> c_int) -> c_int {
    let outcome = submit(stream, Cost::Graph { exec: exec.addr() as u64 }, call);
    if outcome == SUCCESS && GRAPHS_ALLOCATE.load(Ordering::Relaxed) {
        let thread = thread();
        if process::is_active()
            && let Some(device) = device::current(thread)
        {
            thread.inside(|| device.true_up_graphs());
        }
    }
    outcome
}

/// Where a launch goes by its configuration.
#[inline]
fn stream_of(config: Pointer, per_thread: bool) -> Option<Stream> {
    // SAFETY: null, or a configuration of the caller's, which the driver reads too.
    let launch = unsafe { given::<Launch>(config) };
    launch.map(|it| Stream::new(it.stream, per_thread))
}

fn begin(call: impl FnOnce() -> c_int) -> c_int {
    capture::begins();
    let outcome = call();
    if outcome != SUCCESS {
        capture::ends();
    }
    outcome
}

fn end(stream: Stream, call: impl FnOnce() -> c_int) -> c_int {
    let did_capture = capture::is_capturing(stream);
    let outcome = call();
    if did_capture {
        capture::ends();
    }
    outcome
}

/// A wait for a stream, or with `None` for the context.
fn wait(stream: Option<Stream>, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() || capture::is_any() {
        return call();
    }
    let device = device::current(thread);
    match device.and_then(|it| Some((it, it.progress()?))) {
        Some((device, progress)) => device.fences.prove(thread, progress, stream, call),
        None => call(),
    }
}

fn destroy(stream: Pointer, call: impl FnOnce() -> c_int) -> c_int {
    let thread = thread();
    if thread.is_inside() || !process::is_active() {
        return call();
    }
    match device::current(thread) {
        Some(device) => device.fences.destroy(thread, Stream::new(stream, false), call),
        None => call(),
    }
}

unsafe fn instantiated(outcome: c_int, exec: Pointer, graph: Pointer) -> c_int {
    if outcome == SUCCESS && process::is_active() {
        // SAFETY: the driver has written the executable graph.
        capture::instantiated(graph, unsafe { written(exec) });
    }
    outcome
}

submits! {
    fn cuLaunchKernel(
        function: Pointer,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_bytes: u32,
        stream: Pointer,
        parameters: Pointer,
        extra: Pointer,
    ) to {
        Some(Stream::new(stream, false))
    } else {
        let cost = kernel(function, [grid_x, grid_y, grid_z]);
        submit(Stream::new(stream, false), cost, move || {
            surface::cuLaunchKernel(
                function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,
                parameters, extra,
            )
        })
    }

    fn cuLaunchKernel_ptsz(
        function: Pointer,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_bytes: u32,
        stream: Pointer,
        parameters: Pointer,
        extra: Pointer,
    ) to {
        Some(Stream::new(stream, true))
    } else {
        let cost = kernel(function, [grid_x, grid_y, grid_z]);
        submit(Stream::new(stream, true), cost, move || {
            surface::cuLaunchKernel_ptsz(
                function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,
                parameters, extra,
            )
        })
    }

    fn cuLaunchKernelEx(
        config: Pointer,
        function: Pointer,
        parameters: Pointer,
        extra: Pointer,
    ) to {
        stream_of(config, false)
    } else {
        let call = move || surface::cuLaunchKernelEx(config, function, parameters, extra);
        match given::<Launch>(config) {
            Some(it) => submit(Stream::new(it.stream, false), kernel(function, it.grid), call),
            None => call(),
        }
    }

    fn cuLaunchKernelEx_ptsz(
        config: Pointer,
        function: Pointer,
        parameters: Pointer,
        extra: Pointer,
    ) to {
        stream_of(config, true)
    } else {
        let call = move || surface::cuLaunchKernelEx_ptsz(config, function, parameters, extra);
        match given::<Launch>(config) {
            Some(it) => submit(Stream::new(it.stream, true), kernel(function, it.grid), call),
            None => call(),
        }
    }

    fn cuGraphLaunch(exec: Pointer, stream: Pointer) to {
        (!GRAPHS_ALLOCATE.load(Ordering::Relaxed)).then(|| Stream::new(stream, false))
    } else {
        graph(Stream::new(stream, false), exec, move || surface::cuGraphLaunch(exec, stream))
    }

    fn cuGraphLaunch_ptsz(exec: Pointer, stream: Pointer) to {
        (!GRAPHS_ALLOCATE.load(Ordering::Relaxed)).then(|| Stream::new(stream, true))
    } else {
        graph(Stream::new(stream, true), exec, move || surface::cuGraphLaunch_ptsz(exec, stream))
    }
}

wrap! {
    fn cuStreamBeginCapture(stream: Pointer) {
        begin(|| surface::cuStreamBeginCapture(stream))
    }

    fn cuStreamBeginCapture_ptsz(stream: Pointer) {
        begin(|| surface::cuStreamBeginCapture_ptsz(stream))
    }

    fn cuStreamBeginCapture_v2(stream: Pointer, mode: u32) {
        begin(|| surface::cuStreamBeginCapture_v2(stream, mode))
    }

    fn cuStreamBeginCapture_v2_ptsz(stream: Pointer, mode: u32) {
        begin(|| surface::cuStreamBeginCapture_v2_ptsz(stream, mode))
    }

    fn cuStreamBeginCaptureToGraph(
        stream: Pointer,
        graph: Pointer,
        nodes: Pointer,
        edges: Pointer,
        len: usize,
        mode: u32,
    ) {
        begin(|| surface::cuStreamBeginCaptureToGraph(stream, graph, nodes, edges, len, mode))
    }

    fn cuStreamBeginCaptureToGraph_ptsz(
        stream: Pointer,
        graph: Pointer,
        nodes: Pointer,
        edges: Pointer,
        len: usize,
        mode: u32,
    ) {
        begin(|| surface::cuStreamBeginCaptureToGraph_ptsz(stream, graph, nodes, edges, len, mode))
    }

    fn cuStreamBeginRecaptureToGraph(
        stream: Pointer,
        mode: u32,
        graph: Pointer,
        callback: Pointer,
        argument: Pointer,
    ) {
        begin(|| surface::cuStreamBeginRecaptureToGraph(stream, mode, graph, callback, argument))
    }

    fn cuStreamBeginRecaptureToGraph_ptsz(
        stream: Pointer,
        mode: u32,
        graph: Pointer,
        callback: Pointer,
        argument: Pointer,
    ) {
        begin(|| {
            surface::cuStreamBeginRecaptureToGraph_ptsz(stream, mode, graph, callback, argument)
        })
    }

    fn cuStreamEndCapture(stream: Pointer, graph: Pointer) {
        end(Stream::new(stream, false), || surface::cuStreamEndCapture(stream, graph))
    }

    fn cuStreamEndCapture_ptsz(stream: Pointer, graph: Pointer) {
        end(Stream::new(stream, true), || surface::cuStreamEndCapture_ptsz(stream, graph))
    }

    fn cuGraphInstantiate(exec: Pointer, graph: Pointer, node: Pointer, log: Pointer, len: usize) {
        instantiated(surface::cuGraphInstantiate(exec, graph, node, log, len), exec, graph)
    }

    fn cuGraphInstantiate_v2(
        exec: Pointer,
        graph: Pointer,
        node: Pointer,
        log: Pointer,
        len: usize,
    ) {
        instantiated(surface::cuGraphInstantiate_v2(exec, graph, node, log, len), exec, graph)
    }

    fn cuGraphInstantiateWithFlags(exec: Pointer, graph: Pointer, flags: u64) {
        instantiated(surface::cuGraphInstantiateWithFlags(exec, graph, flags), exec, graph)
    }

    fn cuGraphInstantiateWithParams(exec: Pointer, graph: Pointer, parameters: Pointer) {
        let outcome = surface::cuGraphInstantiateWithParams(exec, graph, parameters);
        instantiated(outcome, exec, graph)
    }

    fn cuGraphInstantiateWithParams_ptsz(exec: Pointer, graph: Pointer, parameters: Pointer) {
        let outcome = surface::cuGraphInstantiateWithParams_ptsz(exec, graph, parameters);
        instantiated(outcome, exec, graph)
    }

    fn cuGraphExecDestroy(exec: Pointer) {
        let outcome = surface::cuGraphExecDestroy(exec);
        if outcome == SUCCESS {
            capture::destroyed(exec.addr() as u64);
        }
        outcome
    }

    fn cuGraphAddMemAllocNode(
        node: Pointer,
        graph: Pointer,
        before: Pointer,
        len: usize,
        parameters: Pointer,
    ) {
        GRAPHS_ALLOCATE.store(true, Ordering::Relaxed);
        surface::cuGraphAddMemAllocNode(node, graph, before, len, parameters)
    }

    fn cuGraphAddNode(
        node: Pointer,
        graph: Pointer,
        before: Pointer,
        len: usize,
        parameters: Pointer,
    ) {
        if given::<u32>(parameters) == Some(ALLOCATES) {
            GRAPHS_ALLOCATE.store(true, Ordering::Relaxed);
        }
        surface::cuGraphAddNode(node, graph, before, len, parameters)
    }

    fn cuGraphAddNode_v2(
        node: Pointer,
        graph: Pointer,
        before: Pointer,
        edges: Pointer,
        len: usize,
        parameters: Pointer,
    ) {
        if given::<u32>(parameters) == Some(ALLOCATES) {
            GRAPHS_ALLOCATE.store(true, Ordering::Relaxed);
        }
        surface::cuGraphAddNode_v2(node, graph, before, edges, len, parameters)
    }

    fn cuGraphAddNode_v3(
        node: Pointer,
        graph: Pointer,
        before: Pointer,
        edges: Pointer,
        len: usize,
        parameters: Pointer,
    ) {
        if given::<u32>(parameters) == Some(ALLOCATES) {
            GRAPHS_ALLOCATE.store(true, Ordering::Relaxed);
        }
        surface::cuGraphAddNode_v3(node, graph, before, edges, len, parameters)
    }

    fn cuStreamSynchronize(stream: Pointer) {
        wait(Some(Stream::new(stream, false)), || surface::cuStreamSynchronize(stream))
    }

    fn cuStreamSynchronize_ptsz(stream: Pointer) {
        wait(Some(Stream::new(stream, true)), || surface::cuStreamSynchronize_ptsz(stream))
    }

    fn cuStreamQuery(stream: Pointer) {
        wait(Some(Stream::new(stream, false)), || surface::cuStreamQuery(stream))
    }

    fn cuStreamQuery_ptsz(stream: Pointer) {
        wait(Some(Stream::new(stream, true)), || surface::cuStreamQuery_ptsz(stream))
    }

    fn cuCtxSynchronize() {
        wait(None, || surface::cuCtxSynchronize())
    }

    fn cuCtxSynchronize_v2(context: Pointer) {
        let is_current = context.is_null()
            || context.addr() as u64 == crate::context::current(thread());
        if is_current {
            wait(None, || surface::cuCtxSynchronize_v2(context))
        } else {
            surface::cuCtxSynchronize_v2(context)
        }
    }

    fn cuStreamDestroy(stream: Pointer) {
        destroy(stream, || surface::cuStreamDestroy(stream))
    }

    fn cuStreamDestroy_v2(stream: Pointer) {
        destroy(stream, || surface::cuStreamDestroy_v2(stream))
    }
}
