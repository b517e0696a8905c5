//! The driver's functions: the table that the build script makes out of
//! `surface/functions.tsv`, the driver's own by name, and the wrappers that only gate or deny.
#![expect(unsafe_code, reason = "calls the driver's functions by address")]
#![allow(
    dead_code,
    non_snake_case,
    non_upper_case_globals,
    clippy::too_many_arguments,
    clippy::unreadable_literal,
    clippy::borrow_as_ptr,
    clippy::as_conversions,
    clippy::fn_to_numeric_cast_any,
    missing_docs,
    reason = "made from a table: the names are the driver's, and not all are called"
)]

use core::{
    ffi::{CStr, c_int, c_void},
    mem::transmute,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{
    fence::Stream,
    libc,
    submit::{Cost, submit},
};

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const INVALID_VALUE: c_int = 1;
pub(crate) const OUT_OF_MEMORY: c_int = 2;
pub(crate) const NOT_INITIALIZED: c_int = 3;
/// The driver does not have the function.
pub(crate) const NOT_FOUND: c_int = 500;
pub(crate) const NOT_READY: c_int = 600;
/// What a revoked claim gets for a launch, and everybody for a checkpoint.
pub(crate) const NOT_PERMITTED: c_int = 800;

/// A row of the table, which is sorted by name and symbol.
#[derive(Debug)]
pub(crate) struct Function {
    /// As the driver's library exports it.
    pub(crate) symbol: &'static str,
    /// As `cuGetProcAddress` is asked for it.
    pub(crate) name: &'static str,
    /// The CUDA version from which on the name means this symbol.
    pub(crate) since: u32,
    /// Whether stream 0 is the calling thread's own.
    pub(crate) per_thread: bool,
    /// Its class, for tests and reports.
    pub(crate) class: &'static str,
    /// What stands in for it.
    pub(crate) wrapper: Option<Wrapper>,
}

/// The address of a wrapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrapper(pub(crate) *const c_void);

// SAFETY: the address of a function, which is nobody's.
unsafe impl Send for Wrapper {}
// SAFETY: as above.
unsafe impl Sync for Wrapper {}

include!(concat!(env!("OUT_DIR"), "/surface.rs"));

/// The driver's own functions, as far as they were looked up.
pub(crate) static REAL: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(null_mut()) }; COUNT];

/// The driver's own function of a row.
#[inline]
fn real(index: usize) -> Option<NonNull<c_void>> {
    NonNull::new(REAL[index].load(Ordering::Relaxed)).or_else(|| find_real(index))
}

#[cold]
fn find_real(index: usize) -> Option<NonNull<c_void>> {
    let driver = libc::driver(false).or_else(|| libc::driver(true))?;
    let address = exported(driver.as_ptr(), FUNCTIONS[index].symbol)?;
    if is_ours(address) { None } else { bind(index, address) }
}

/// Where a jump of the drop-in goes the first time: what the driver does not have fails.
#[cfg(accelpool_drop_in)]
pub(crate) unsafe extern "C" fn jump_to(index: usize) -> *mut c_void {
    extern "C" fn missing() -> c_int {
        NOT_FOUND
    }
    find_real(index).map_or(missing as *mut c_void, NonNull::as_ptr)
}

/// What a library exports under a symbol of the table.
pub(crate) fn exported(library: *mut c_void, symbol: &str) -> Option<NonNull<c_void>> {
    let mut name = [0; 64];
    name.get_mut(..symbol.len())?.copy_from_slice(symbol.as_bytes());
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    libc::lookup(library, name.as_ptr())
}

/// Notes the driver's own function of a row; the first one stays.
pub(crate) fn bind(index: usize, address: NonNull<c_void>) -> Option<NonNull<c_void>> {
    let place = &REAL[index];
    let noted =
        place.compare_exchange(null_mut(), address.as_ptr(), Ordering::AcqRel, Ordering::Acquire);
    match noted {
        Ok(_) => Some(address),
        Err(first) => NonNull::new(first),
    }
}

/// Whether an address is that of a wrapper, as who searches all libraries gets it.
pub(crate) fn is_ours(address: NonNull<c_void>) -> bool {
    let wrapper = Wrapper(address.as_ptr());
    FUNCTIONS.iter().any(|it| it.wrapper == Some(wrapper))
}

/// The rows of a name.
pub(crate) fn rows_of(name: &[u8]) -> core::ops::Range<usize> {
    let start = FUNCTIONS.partition_point(|it| it.name.as_bytes() < name);
    let len = FUNCTIONS[start..].iter().take_while(|it| it.name.as_bytes() == name).count();
    start..start + len
}

/// The row of an exported symbol.
pub(crate) fn row_of(symbol: &[u8]) -> Option<usize> {
    let name = base_name(symbol);
    rows_of(name).find(|&row| FUNCTIONS[row].symbol.as_bytes() == symbol)
}

/// A symbol without `_ptsz` or `_ptds`, and without `_v2` and the like.
fn base_name(symbol: &[u8]) -> &[u8] {
    let name = symbol.strip_suffix(b"_ptsz").or_else(|| symbol.strip_suffix(b"_ptds"));
    let name = name.unwrap_or(symbol);
    match name {
        [base @ .., b'_', b'v', b'2'..=b'9'] => base,
        _ => name,
    }
}

/// The row that `cuGetProcAddress` means by a name, a version and its flags.
pub(crate) fn row_for(name: &[u8], version: u32, per_thread: bool) -> Option<usize> {
    let newest = |per_thread: bool| {
        rows_of(name)
            .filter(|&row| FUNCTIONS[row].per_thread == per_thread)
            .filter(|&row| FUNCTIONS[row].since <= version)
            .max_by_key(|&row| FUNCTIONS[row].since)
    };
    // A function without a variant of its own for threads is the same for both.
    per_thread.then(|| newest(true)).flatten().or_else(|| newest(false))
}
