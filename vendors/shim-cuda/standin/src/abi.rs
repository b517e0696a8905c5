//! Layouts and codes of `cuda.h` (13.x), as far as the stand-in reads or writes them.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `CUresult`.
pub(crate) type Code = c_uint;

pub(crate) const SUCCESS: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NOT_INITIALIZED: Code = 3;
pub(crate) const NO_DEVICE: Code = 100;
pub(crate) const INVALID_DEVICE: Code = 101;
pub(crate) const INVALID_CONTEXT: Code = 201;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const ILLEGAL_STATE: Code = 401;
pub(crate) const NOT_FOUND: Code = 500;
pub(crate) const NOT_READY: Code = 600;
pub(crate) const PRIMARY_CONTEXT_ACTIVE: Code = 708;
pub(crate) const NOT_SUPPORTED: Code = 801;
pub(crate) const CAPTURE_UNSUPPORTED: Code = 900;
pub(crate) const CAPTURE_UNMATCHED: Code = 903;
pub(crate) const UNKNOWN: Code = 999;

/// An opaque handle: a number here.
pub(crate) type Handle = usize;
/// `CUdeviceptr`.
pub(crate) type DevicePtr = u64;
/// `CUdevice`.
pub(crate) type Device = c_int;

/// A pointer through which a call answers, or reads.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T: Copy> Out<T> {
    pub(crate) fn put(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: `cuda.h` asks for null, which was ruled out, or room for one `T`. Nothing is
        // assumed about its alignment.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Answers where the caller wants to know.
    pub(crate) fn put_if(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `put`.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    pub(crate) fn get(self) -> Result<T, Code> {
        self.get_at(0)
    }

    pub(crate) fn get_at(self, index: usize) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null; the caller set so many values, as `cuda.h` asks.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    pub(crate) fn put_at(self, index: usize, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null; the caller has room for so many values, as `cuda.h` asks.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn address(self) -> *mut T {
        self.0
    }
}

/// Puts a text with its NUL into a buffer of the caller.
pub(crate) fn put_text(at: Out<c_char>, room: c_int, text: &str) -> Result<(), Code> {
    let room = usize::try_from(room).map_err(|_| INVALID_VALUE)?;
    for (index, byte) in text.bytes().take(room.saturating_sub(1)).chain([0]).enumerate() {
        at.put_at(index, c_char::from_ne_bytes([byte]))?;
    }
    Ok(())
}

/// `CUuuid`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Uuid(pub(crate) [u8; 16]);

/// `CUipcMemHandle` and `CUmemFabricHandle`: 64 bytes of ours.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Opaque(pub(crate) [u8; 64]);

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut c_void,
    pub(crate) attributes_count: c_uint,
}

/// `CUDA_LAUNCH_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LaunchParams {
    pub(crate) function: Handle,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) params: Out<*const c_void>,
}

/// `CUDA_KERNEL_NODE_PARAMS`; version 2 has more behind it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KernelNode {
    pub(crate) function: Handle,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) params: Out<*const c_void>,
    pub(crate) extra: *const c_void,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct InstantiateParams {
    pub(crate) flags: u64,
    pub(crate) upload_stream: Handle,
    pub(crate) error_node: Handle,
    pub(crate) result: c_uint,
}

/// `CUDA_ARRAY_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ArrayShape {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: c_uint,
    pub(crate) channels: c_uint,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Array3dShape {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: c_uint,
    pub(crate) channels: c_uint,
    pub(crate) flags: c_uint,
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Location {
    pub(crate) kind: c_int,
    pub(crate) id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AllocationProp {
    pub(crate) kind: c_int,
    pub(crate) handle_types: c_int,
    pub(crate) location: Location,
    pub(crate) windows: *mut c_void,
    pub(crate) flags: [u8; 8],
}

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PoolProps {
    pub(crate) kind: c_int,
    pub(crate) handle_types: c_int,
    pub(crate) location: Location,
    pub(crate) windows: *mut c_void,
    pub(crate) bytes_max: usize,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 54],
}

/// `CUstreamBatchMemOpParams`, its members of value operations.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BatchOp {
    pub(crate) operation: c_uint,
    pub(crate) address: DevicePtr,
    pub(crate) value: u64,
    pub(crate) flags: c_uint,
    pub(crate) alias: DevicePtr,
    pub(crate) rest: u64,
}

impl<T> Out<T> {
    /// A place of our own.
    pub(crate) fn of(at: *mut T) -> Self {
        Self(at)
    }
}
