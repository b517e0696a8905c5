//! Modules, libraries and the kernels in them: any image has a kernel of any name.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::{
    abi::{Code, Device, Handle, INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, Out},
    calls::device::read_text,
    exports::exports,
    state::{Kernel, state},
};

exports! {
    fn cuModuleLoad(module: Out<Handle>, _path: *const c_char) { load(module) }
    fn cuModuleLoadData(module: Out<Handle>, _image: *const c_void) { load(module) }
    fn cuModuleLoadDataEx(
        module: Out<Handle>, _image: *const c_void, _count: c_uint, _options: *mut c_int, _values: *mut c_void,
    ) { load(module) }
    fn cuModuleLoadFatBinary(module: Out<Handle>, _image: *const c_void) { load(module) }
    fn cuModuleUnload(module: Handle) { unload(module) }
    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: *const c_char) {
        find(function, module, name)
    }
    fn cuModuleGetLoadingMode(mode: Out<c_uint>) { mode.put(2) }
    fn cuModuleGetGlobal(_at: Out<c_uint>, _bytes: Out<c_uint>, _module: Handle, _name: *const c_char) {
        Err(NOT_FOUND)
    }
    fn cuModuleGetGlobal_v2(_at: Out<u64>, _bytes: Out<usize>, _module: Handle, _name: *const c_char) {
        Err(NOT_FOUND)
    }
    fn cuLibraryLoadData(
        library: Out<Handle>, _code: *const c_void, _jit: *mut c_void, _values: *mut c_void, _jits: c_uint,
        _options: *mut c_void, _option_values: *mut c_void, _count: c_uint,
    ) {
        let mut state = state()?;
        let handle = state.handle();
        state.modules.insert(handle, None);
        library.put(handle)
    }
    fn cuLibraryUnload(library: Handle) { unload(library) }
    fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: *const c_char) {
        find(kernel, library, name)
    }
    fn cuLibraryGetModule(module: Out<Handle>, library: Handle) {
        let known = state()?.modules.contains_key(&library);
        if known { module.put(library) } else { Err(INVALID_HANDLE) }
    }
    fn cuKernelGetFunction(function: Out<Handle>, kernel: Handle) {
        let known = state()?.kernels.contains_key(&kernel);
        if known { function.put(kernel) } else { Err(INVALID_HANDLE) }
    }
    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        let of = state()?.kernels.get(&function).map(|kernel| kernel.module);
        module.put(of.ok_or(INVALID_HANDLE)?)
    }
    fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: Handle) {
        known(function)?;
        // Threads per block; nothing of the rest.
        value.put(if attribute == 0 { 1024 } else { 0 })
    }
    fn cuFuncSetAttribute(function: Handle, _attribute: c_int, _value: c_int) { known(function) }
    fn cuFuncSetCacheConfig(function: Handle, _config: c_int) { known(function) }
    fn cuFuncLoad(function: Handle) { known(function) }
    fn cuFuncIsLoaded(loaded: Out<c_int>, function: Handle) {
        known(function)?;
        loaded.put(1)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>, function: Handle, _block: c_int, _shared: usize,
    ) {
        known(function)?;
        blocks.put(2)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>, function: Handle, _block: c_int, _shared: usize, _flags: c_uint,
    ) {
        known(function)?;
        blocks.put(2)
    }
    fn cuKernelGetAttribute(value: Out<c_int>, attribute: c_int, kernel: Handle, _device: Device) {
        known(kernel)?;
        value.put(if attribute == 0 { 1024 } else { 0 })
    }
}

fn load(module: Out<Handle>) -> Result<(), Code> {
    let mut state = state()?;
    let context = state.current()?;
    let handle = state.handle();
    state.modules.insert(handle, Some(context));
    module.put(handle)
}

fn unload(module: Handle) -> Result<(), Code> {
    let mut state = state()?;
    state.modules.remove(&module).ok_or(INVALID_HANDLE)?;
    state.kernels.retain(|_, kernel| kernel.module != module);
    Ok(())
}

fn find(out: Out<Handle>, module: Handle, name: *const c_char) -> Result<(), Code> {
    let mut state = state()?;
    let name = read_text(name).ok_or(INVALID_VALUE)?;
    if !state.modules.contains_key(&module) {
        return Err(INVALID_HANDLE);
    }
    let same = |kernel: &Kernel| kernel.module == module && kernel.name == name;
    let known = state.kernels.iter().find(|(_, kernel)| same(kernel)).map(|(handle, _)| *handle);
    let handle = known.unwrap_or_else(|| {
        let handle = state.handle();
        state.kernels.insert(handle, Kernel { name, module });
        handle
    });
    out.put(handle)
}

fn known(function: Handle) -> Result<(), Code> {
    if state()?.kernels.contains_key(&function) { Ok(()) } else { Err(INVALID_HANDLE) }
}
