//! Arrays: so many bytes, and no texture.

use std::ffi::c_uint;

use crate::{
    abi::{Array3dShape, ArrayShape, Code, Handle, INVALID_HANDLE, INVALID_VALUE, Out},
    exports::exports,
    state::state,
};

exports! {
    fn cuArrayCreate(array: Out<Handle>, shape: Out<[c_uint; 4]>) {
        let [width, height, format, channels] = shape.get()?;
        create(array, [u64::from(width), u64::from(height), 1], format, channels, 1)
    }
    fn cuArrayCreate_v2(array: Out<Handle>, shape: Out<ArrayShape>) {
        let shape = shape.get()?;
        let sides = [shape.width as u64, shape.height as u64, 1];
        create(array, sides, shape.format, shape.channels, 1)
    }
    fn cuArray3DCreate(array: Out<Handle>, shape: Out<[c_uint; 6]>) {
        let [width, height, depth, format, channels, _] = shape.get()?;
        create(array, [width, height, depth].map(u64::from), format, channels, 1)
    }
    fn cuArray3DCreate_v2(array: Out<Handle>, shape: Out<Array3dShape>) { create_3d(array, shape, 1) }
    fn cuArrayDestroy(array: Handle) { destroy(array) }
    fn cuMipmappedArrayCreate(array: Out<Handle>, shape: Out<Array3dShape>, levels: c_uint) {
        create_3d(array, shape, levels)
    }
    fn cuMipmappedArrayDestroy(array: Handle) { destroy(array) }
}

fn create_3d(array: Out<Handle>, shape: Out<Array3dShape>, levels: c_uint) -> Result<(), Code> {
    let shape = shape.get()?;
    let sides = [shape.width as u64, shape.height as u64, shape.depth as u64];
    create(array, sides, shape.format, shape.channels, levels)
}

fn create(
    array: Out<Handle>,
    sides: [u64; 3],
    format: c_uint,
    channels: c_uint,
    levels: c_uint,
) -> Result<(), Code> {
    let width = match format {
        0x01 | 0x08 => 1_u64,
        0x02 | 0x09 | 0x10 => 2,
        0x03 | 0x0a | 0x20 => 4,
        _ => return Err(INVALID_VALUE),
    };
    if array.is_null() || sides[0] == 0 || channels == 0 || channels > 4 || levels == 0 {
        return Err(INVALID_VALUE);
    }
    let mut whole = 0_u64;
    for level in 0..levels.min(32) {
        let texels = sides.map(|side| (side >> level).max(1));
        let texels = texels.into_iter().try_fold(1_u64, u64::checked_mul);
        let bytes = texels.and_then(|texels| texels.checked_mul(width * u64::from(channels)));
        whole = bytes.and_then(|bytes| whole.checked_add(bytes)).ok_or(INVALID_VALUE)?;
    }
    let mut state = state()?;
    let current = state.current()?;
    let device = state.context(current)?.device;
    let id = state.ask_bytes(device, whole)?;
    let handle = state.handle();
    state.memory.arrays.insert(handle, id);
    array.put(handle)
}

fn destroy(array: Handle) -> Result<(), Code> {
    let mut state = state()?;
    let id = state.memory.arrays.remove(&array).ok_or(INVALID_HANDLE)?;
    state.return_bytes(id)
}
