//! Launches: how long a kernel takes is in its name, its grid or its first argument.

use std::ffi::{c_int, c_uint, c_void};

use accelpool_cuda_engine::{
    FaultAt, RUN_TRAPS,
    wire::{Op, Request},
};

use crate::{
    abi::{Code, Handle, INVALID_HANDLE, INVALID_VALUE, LaunchConfig, LaunchParams, Out},
    exports::{Variant, exports, stream_exports},
    graph::{Length, Node},
    state::{State, state},
};

exports! {
    fn cuLaunchCooperativeKernelMultiDevice(launches: Out<LaunchParams>, count: c_uint, _flags: c_uint) {
        for index in 0..count as usize {
            let one = launches.get_at(index)?;
            launch(one.function, one.grid, one.params, one.stream, Variant::Legacy)?;
        }
        Ok(())
    }
    fn cuFuncSetBlockShape(function: Handle, _x: c_int, _y: c_int, _z: c_int) { old(function, |_| ()) }
    fn cuFuncSetSharedSize(function: Handle, _bytes: c_uint) { old(function, |_| ()) }
    fn cuParamSetSize(function: Handle, bytes: c_uint) { old(function, |all| resize(all, bytes as usize)) }
    fn cuParamSeti(function: Handle, at: c_int, value: c_uint) {
        old(function, |all| put(all, at, &value.to_le_bytes()))
    }
    fn cuParamSetf(function: Handle, at: c_int, value: f32) {
        old(function, |all| put(all, at, &value.to_le_bytes()))
    }
    fn cuParamSetv(function: Handle, at: c_int, value: Out<u8>, count: c_uint) {
        let bytes: Result<Vec<u8>, Code> = (0..count as usize).map(|index| value.get_at(index)).collect();
        let bytes = bytes?;
        old(function, |all| put(all, at, &bytes))
    }
    fn cuLaunch(function: Handle) { launch_old(function, 1, 1, 0) }
    fn cuLaunchGrid(function: Handle, width: c_int, height: c_int) { launch_old(function, width, height, 0) }
    fn cuLaunchGridAsync(function: Handle, width: c_int, height: c_int, stream: Handle) {
        launch_old(function, width, height, stream)
    }
}

stream_exports! { variant;
    fn cuLaunchKernel/cuLaunchKernel_ptsz(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        _block_x: c_uint, _block_y: c_uint, _block_z: c_uint,
        _shared: c_uint, stream: Handle, params: Out<*const c_void>, _extra: *mut c_void,
    ) { launch(function, [grid_x, grid_y, grid_z], params, stream, variant) }
    fn cuLaunchCooperativeKernel/cuLaunchCooperativeKernel_ptsz(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        _block_x: c_uint, _block_y: c_uint, _block_z: c_uint,
        _shared: c_uint, stream: Handle, params: Out<*const c_void>,
    ) { launch(function, [grid_x, grid_y, grid_z], params, stream, variant) }
    fn cuLaunchKernelEx/cuLaunchKernelEx_ptsz(
        config: Out<LaunchConfig>, function: Handle, params: Out<*const c_void>, _extra: *mut c_void,
    ) {
        let config = config.get()?;
        launch(function, config.grid, params, config.stream, variant)
    }
}

impl State {
    /// How long a kernel takes with this grid and these arguments.
    pub(crate) fn length(
        &self,
        function: Handle,
        grid: [c_uint; 3],
        params: Out<*const c_void>,
    ) -> Result<Length, Code> {
        let kernel = self.kernels.get(&function).ok_or(INVALID_HANDLE)?;
        if grid.contains(&0) {
            return Err(INVALID_VALUE);
        }
        let blocks = grid.into_iter().fold(1_u64, |all, one| all.saturating_mul(u64::from(one)));
        let plain = |ns| Length { ns, traps: false };
        Ok(match kernel.name.as_str() {
            "grid_us" => plain(blocks.saturating_mul(1000)),
            "sleep_ns" => plain(first_argument(params)?),
            "hang" => plain(u64::MAX),
            "trap" | "traps" => Length { ns: 1000, traps: true },
            // About what an empty kernel takes.
            _ => plain(2000),
        })
    }
}

/// The first argument, which is 64 bits wide.
fn first_argument(params: Out<*const c_void>) -> Result<u64, Code> {
    let at = params.get()?.cast::<u64>();
    if at.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null; the caller points to an argument of the kernel's type, as `cuda.h` asks.
    Ok(unsafe { at.read_unaligned() })
}

fn launch(
    function: Handle,
    grid: [c_uint; 3],
    params: Out<*const c_void>,
    stream: Handle,
    variant: Variant,
) -> Result<(), Code> {
    let length = state()?.length(function, grid, params)?;
    run(length, stream, variant, NODE_KERNEL)
}

/// `CU_GRAPH_NODE_TYPE_KERNEL`.
pub(crate) const NODE_KERNEL: u32 = 0;

/// Runs for a time on a stream, or captures that.
pub(crate) fn run(length: Length, stream: Handle, variant: Variant, kind: u32) -> Result<(), Code> {
    loop {
        let mut state = state()?;
        let stream = state.resolve(stream, variant)?;
        if let Some(graph) = state.stream(stream)?.capture {
            let node = state.handle();
            state.graphs.graph(graph)?.nodes.push((node, Node { length, kind }));
            return Ok(());
        }
        if let Some(full) = state.room(stream)? {
            drop(state);
            full.wait()?;
            continue;
        }
        state.fault(FaultAt::Launch)?;
        let c = if length.traps { RUN_TRAPS } else { 0 };
        state.submit(stream, Request { b: length.ns, c, ..Request::new(Op::Run) })?;
        return Ok(());
    }
}

/// Notes something for a launch of the old kind.
fn old(function: Handle, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Code> {
    let mut state = state()?;
    if !state.kernels.contains_key(&function) {
        return Err(INVALID_HANDLE);
    }
    change(state.old_launch.entry(function).or_default());
    Ok(())
}

/// CUDA's limit on arguments of a kernel.
const ARGUMENTS_MAX: usize = 4096;

fn resize(all: &mut Vec<u8>, len: usize) {
    all.resize(len.min(ARGUMENTS_MAX), 0);
}

fn put(all: &mut Vec<u8>, at: c_int, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap_or(0);
    let end = at.saturating_add(bytes.len());
    if end <= ARGUMENTS_MAX {
        let len = all.len().max(end);
        resize(all, len);
        all[at..end].copy_from_slice(bytes);
    }
}

fn launch_old(function: Handle, width: c_int, height: c_int, stream: Handle) -> Result<(), Code> {
    let width = c_uint::try_from(width).map_err(|_| INVALID_VALUE)?;
    let height = c_uint::try_from(height).map_err(|_| INVALID_VALUE)?;
    let length = {
        let state = state()?;
        let mut first = [0_u8; 8];
        let noted = state.old_launch.get(&function).map(Vec::as_slice).unwrap_or_default();
        let len = noted.len().min(8);
        first[..len].copy_from_slice(&noted[..len]);
        let at: *const c_void = first.as_ptr().cast();
        let mut params = [at];
        let params = Out::of(params.as_mut_ptr());
        state.length(function, [width, height, 1], params)?
    };
    run(length, stream, Variant::Legacy, NODE_KERNEL)
}
