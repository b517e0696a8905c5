//! The wrappers that are written by hand: each has the name and the contract of the driver's
//! function that it stands in for, and says which rule of which module applies.
#![expect(unsafe_code, reason = "stands in for C functions")]
#![allow(
    non_snake_case,
    clippy::too_many_arguments,
    reason = "names and parameters are the driver's"
)]

pub(crate) mod context;
pub(crate) mod memory;
pub(crate) mod work;

/// Functions with the driver's names, exported by the library alone.
macro_rules! wrap {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[cfg_attr(accelpool_library, unsafe(no_mangle))]
        pub(crate) unsafe extern "C" fn $name($($argument: $type),*) -> core::ffi::c_int {
            // SAFETY: the contract is that of the driver's function. The arguments are passed
            // on as they came; outputs are read where the driver has reported success, and
            // inputs where the driver would read them too.
            unsafe { $body }
        }
    )*};
}
use wrap;

/// Where the driver writes a result, or reads a structure.
type Pointer = *mut core::ffi::c_void;

/// Reads what the driver has written there.
///
/// # Safety
///
/// The driver has written a `T`.
unsafe fn written<T: Copy>(there: Pointer) -> T {
    // SAFETY: as the caller says.
    unsafe { there.cast::<T>().read_unaligned() }
}

/// Reads an argument that may be missing, which is the driver's to refuse.
///
/// # Safety
///
/// Null, or a `T`.
unsafe fn given<T: Copy>(there: Pointer) -> Option<T> {
    // SAFETY: as the caller says.
    (!there.is_null()).then(|| unsafe { there.cast::<T>().read_unaligned() })
}
