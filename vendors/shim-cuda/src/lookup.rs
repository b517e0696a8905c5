//! Who looks a driver's function up gets our wrapper, if there is one for just that symbol.
//!
//! Matched against the closed list of the table, never by a prefix. What the driver itself
//! does not give is not given by us, and a newer version than was asked for is never put in.
#![expect(unsafe_code, reason = "reads and writes through its callers' pointers")]

use core::{
    ffi::{CStr, c_char, c_void},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{libc, nvml, surface};

/// Functions of the driver that were given out and are in no table.
pub(crate) static UNCLASSIFIED: AtomicU64 = AtomicU64::new(0);

/// Functions whose address is not that of the symbol which the table expects.
pub(crate) static NOT_EXPECTED: AtomicU64 = AtomicU64::new(0);

/// Longer names are none of the driver's.
const NAME_BYTES_MAX: usize = 64;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

/// What `dlsym` answers instead of the real one; null for "ask the real one".
///
/// Called for each look-up in the process: takes no lock, allocates nothing.
///
/// # Safety
///
/// As `dlsym`: a name ends with NUL.
pub(crate) unsafe extern "C" fn answer(handle: *mut c_void, name: *const c_char) -> *const c_void {
    // Also finds the real ones, which the hook jumps to.
    if !libc::find_real() || name.is_null() {
        return ptr::null();
    }
    // SAFETY: a NUL is at the end, so that the second is read only if the first is none.
    let starts_right = unsafe {
        let first = name.cast::<u8>();
        matches!(*first, b'c' | b'n') && matches!(*first.add(1), b'u' | b'v')
    };
    // Everywhere and "next" mean our exports or not, as the loader's own order has it.
    let is_plain = handle != libc::RTLD_DEFAULT && handle.addr() != usize::MAX;
    if !starts_right || !is_plain {
        return ptr::null();
    }
    // SAFETY: as the caller says.
    let symbol = unsafe { CStr::from_ptr(name) }.to_bytes();
    if symbol.len() > NAME_BYTES_MAX {
        return ptr::null();
    }
    if let Some(wrapper) = nvml::wrapper(symbol) {
        let Some(real) = libc::lookup(handle, name) else { return ptr::null() };
        return if nvml::bind(symbol, real) { wrapper } else { ptr::null() };
    }
    let Some(row) = surface::row_of(symbol) else { return ptr::null() };
    let Some(wrapper) = surface::FUNCTIONS[row].wrapper else { return ptr::null() };
    match libc::lookup(handle, name) {
        Some(real) if !surface::is_ours(real) && surface::bind(row, real).is_some() => wrapper.0,
        Some(_) | None => ptr::null(),
    }
}

/// Puts our wrapper in the place of what `cuGetProcAddress` has found, if there is one.
///
/// # Safety
///
/// As that function, after it has succeeded.
pub(crate) unsafe fn replace(
    name: *const c_char,
    found: *mut *mut c_void,
    version: i32,
    flags: u64,
) {
    if name.is_null() || found.is_null() {
        return;
    }
    // SAFETY: the driver has read the name and written the address.
    let (name, Some(address)) =
        (unsafe { CStr::from_ptr(name) }.to_bytes(), NonNull::new(unsafe { *found }))
    else {
        return;
    };
    if surface::is_ours(address) {
        // A driver whose own table goes through the loader's names has found us by itself.
        return;
    }
    let rows = surface::rows_of(name);
    if rows.is_empty() {
        // The first probe of the runtime has no name at all.
        if !name.is_empty() {
            UNCLASSIFIED.fetch_add(1, Ordering::Relaxed);
        }
        return;
    }
    let version = u32::try_from(version).unwrap_or_default();
    let expected = surface::row_for(name, version, flags & PER_THREAD != 0);
    let Some(row) = actual(rows, expected, address) else { return };
    if let Some(wrapper) = surface::FUNCTIONS[row].wrapper
        && surface::bind(row, address).is_some()
    {
        // SAFETY: as above.
        unsafe { *found = wrapper.0.cast_mut() };
    }
}

/// Which row of a name the driver's address is: the one whose symbol has the address. One that
/// no symbol has is what name, version and flags say, and is counted.
fn actual(
    mut rows: core::ops::Range<usize>,
    expected: Option<usize>,
    address: NonNull<c_void>,
) -> Option<usize> {
    let has_address = |&row: &usize| {
        let driver = libc::driver(false)?;
        let exported = surface::exported(driver.as_ptr(), surface::FUNCTIONS[row].symbol)?;
        (exported == address).then_some(())
    };
    if let Some(row) = expected
        && has_address(&row).is_some()
    {
        return Some(row);
    }
    NOT_EXPECTED.fetch_add(1, Ordering::Relaxed);
    rows.find(|row| has_address(row).is_some()).or(expected)
}
