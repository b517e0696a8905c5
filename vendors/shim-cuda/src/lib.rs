//! The CUDA shim: a library that a tenant's processes load, and what the daemon needs to
//! install it.
//!
//! The library takes the place of some functions of the CUDA driver API: what submits work
//! passes the gate, what allocates reserves from the quota, what asks for memory is told of
//! the quota. The rest callers get from the driver itself. It is for honest workloads, whom it
//! makes fast and exact; against a hostile tenant stands what is outside of its process.
//! The build script compiles it from these same sources, without the standard library; and once
//! more as the drop-in, a `libcuda.so.1` that passes on what it does not stand in for.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(accelpool_library),
    allow(dead_code, reason = "what is entered from outside is entered in the library alone")
)]

mod capture;
mod context;
mod device;
mod elf;
#[cfg(accelpool_library)]
mod entry;
mod fence;
mod helper;
mod libc;
mod lock;
mod lookup;
mod map;
mod memory;
mod nvml;
mod pass;
mod process;
mod registration;
mod submit;
mod surface;
mod thread;
mod timing;
mod wrap;

/// The name that the library is installed under.
#[cfg(not(accelpool_library))]
pub const FILE_NAME: &str = "libaccelpool_cuda.so";

/// The library itself.
#[cfg(not(accelpool_library))]
pub const LIBRARY: &[u8] = include_bytes!(env!("ACCELPOOL_SHIM_CUDA"));

/// Where this build left the library, for tests that load it.
#[cfg(not(accelpool_library))]
pub const BUILT_AT: &str = env!("ACCELPOOL_SHIM_CUDA");

/// The name that the drop-in is loaded by: the driver's.
#[cfg(not(accelpool_library))]
pub const DROP_IN_FILE_NAME: &str = "libcuda.so.1";

/// The library that stands in the place of the driver's, for programs that the other one does
/// not reach.
#[cfg(not(accelpool_library))]
pub const DROP_IN: &[u8] = include_bytes!(env!("ACCELPOOL_SHIM_CUDA_DROP_IN"));

/// Where this build left the drop-in, for tests that load it.
#[cfg(not(accelpool_library))]
pub const DROP_IN_BUILT_AT: &str = env!("ACCELPOOL_SHIM_CUDA_DROP_IN");

/// Where the drop-in looks for the driver's own library: a container gets it there.
pub const DRIVER_PATH: &core::ffi::CStr = c"/run/accelpool/driver/libcuda.so.1";

/// The first bytes of the SHA-256 of both, in hexadecimal: the folder to install them in.
///
/// A file that a process has mapped must not change, so another library gets another path.
#[cfg(not(accelpool_library))]
pub const DIGEST: &str = env!("ACCELPOOL_SHIM_CUDA_DIGEST");
