//! What NVML says of memory: the quota, as the CUDA driver's own functions do. Of processes: the
//! claim's own.
//!
//! Monitors and frameworks ask it beside CUDA. Everything else of NVML passes.
#![expect(unsafe_code, reason = "stands in for C functions")]

mod processes;

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::transmute,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, Ordering},
};

use accelpool_shim::quota::Account;

use crate::{
    device, libc,
    process::{self, Claim},
    thread::thread,
};

const LIBRARY: &CStr = c"libnvidia-ml.so.1";
const SUCCESS: c_int = 0;
/// `NVML_ERROR_FUNCTION_NOT_FOUND`.
const FUNCTION_NOT_FOUND: c_int = 13;

/// A UUID as text: `GPU-` or `MIG-`, and 36 characters.
const UUID_TEXT_BYTES: usize = 96;

static MEMORY: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static MEMORY_V2: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static UUID: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// `nvmlMemory_t`.
#[repr(C)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub(crate) struct MemoryV2 {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// The wrapper of a function of NVML.
pub(crate) fn wrapper(symbol: &[u8]) -> Option<*const c_void> {
    match symbol {
        b"nvmlDeviceGetMemoryInfo" => Some(nvmlDeviceGetMemoryInfo as *const c_void),
        b"nvmlDeviceGetMemoryInfo_v2" => Some(nvmlDeviceGetMemoryInfo_v2 as *const c_void),
        _ => processes::wrapper(symbol),
    }
}

/// Notes NVML's own function behind a wrapper; `false` for what is ours itself.
pub(crate) fn bind(symbol: &[u8], real: NonNull<c_void>) -> bool {
    let is_ours = wrapper(symbol) == Some(real.as_ptr().cast_const());
    if !is_ours {
        let place = match symbol {
            b"nvmlDeviceGetMemoryInfo" => Some(&MEMORY),
            b"nvmlDeviceGetMemoryInfo_v2" => Some(&MEMORY_V2),
            _ => processes::place(symbol),
        };
        if let Some(place) = place {
            place.store(real.as_ptr(), Ordering::Release);
        }
    }
    !is_ours
}

fn real(place: &AtomicPtr<c_void>, name: &CStr) -> Option<NonNull<c_void>> {
    NonNull::new(place.load(Ordering::Acquire)).or_else(|| {
        let found = libc::lookup(libc::open(LIBRARY, false)?.as_ptr(), name.as_ptr())?;
        place.store(found.as_ptr(), Ordering::Release);
        Some(found)
    })
}

/// The claim that has a device, and the device's index there.
///
/// # Safety
///
/// The device must be one that NVML has given.
unsafe fn claimed(nvml_device: *mut c_void) -> Option<(&'static Claim, usize)> {
    type GetUuid = unsafe extern "C" fn(*mut c_void, *mut c_char, u32) -> c_int;
    let get = real(&UUID, c"nvmlDeviceGetUUID")?;
    let mut text = [0_u8; UUID_TEXT_BYTES];
    let len = u32::try_from(text.len()).ok()?;
    // SAFETY: NVML's function has this type; it writes at most the length with a NUL.
    let outcome = unsafe {
        transmute::<NonNull<c_void>, GetUuid>(get)(nvml_device, text.as_mut_ptr().cast(), len)
    };
    if outcome != SUCCESS {
        return None;
    }
    process::attach(thread());
    let uuid = parse_uuid(CStr::from_bytes_until_nul(&text).ok()?.to_bytes())?;
    device::by_uuid(uuid)
}

/// What the claim holds of a device and may hold.
///
/// # Safety
///
/// As of [`claimed`].
unsafe fn usage(nvml_device: *mut c_void) -> Option<(u64, u64)> {
    // SAFETY: as the caller says.
    let (claim, index) = unsafe { claimed(nvml_device) }?;
    let quota = claim.control()?.limits.get(index)?.quota_bytes.load(Ordering::Relaxed);
    Some((claim.account(index).map_or(0, |it: Account<'_>| it.used()), quota))
}

/// Sixteen bytes out of `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut digits = text.get(4..)?.iter().filter(|&&byte| byte != b'-');
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        let mut digit = || char::from(*digits.next()?).to_digit(16);
        *byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
    }
    digits.next().is_none().then_some(uuid)
}

/// Stands in for NVML's function of this name, with its contract.
#[expect(non_snake_case, reason = "the name is NVML's")]
#[cfg_attr(all(accelpool_library, not(accelpool_drop_in)), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: *mut c_void,
    memory: *mut Memory,
) -> c_int {
    type Get = unsafe extern "C" fn(*mut c_void, *mut Memory) -> c_int;
    let Some(get) = real(&MEMORY, c"nvmlDeviceGetMemoryInfo") else { return FUNCTION_NOT_FOUND };
    // SAFETY: NVML's function has this type; the arguments are the caller's.
    let outcome = unsafe { transmute::<NonNull<c_void>, Get>(get)(device, memory) };
    if outcome == SUCCESS {
        // SAFETY: NVML has taken the device and written the structure.
        unsafe {
            if let (Some((used, quota)), Some(memory)) = (usage(device), memory.as_mut()) {
                memory.total = memory.total.min(quota);
                memory.used = used.min(memory.total);
                memory.free = memory.free.min(memory.total - memory.used);
            }
        }
    }
    outcome
}

/// Stands in for NVML's function of this name, with its contract.
#[expect(non_snake_case, reason = "the name is NVML's")]
#[cfg_attr(all(accelpool_library, not(accelpool_drop_in)), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: *mut c_void,
    memory: *mut MemoryV2,
) -> c_int {
    type Get = unsafe extern "C" fn(*mut c_void, *mut MemoryV2) -> c_int;
    let Some(get) = real(&MEMORY_V2, c"nvmlDeviceGetMemoryInfo_v2") else {
        return FUNCTION_NOT_FOUND;
    };
    // SAFETY: NVML's function has this type; the arguments are the caller's.
    let outcome = unsafe { transmute::<NonNull<c_void>, Get>(get)(device, memory) };
    if outcome == SUCCESS {
        // SAFETY: NVML has taken the device and written the structure.
        unsafe {
            if let (Some((used, quota)), Some(memory)) = (usage(device), memory.as_mut()) {
                memory.total = memory.total.min(quota);
                memory.used = used.min(memory.total);
                memory.free = memory.free.min(memory.total - memory.used);
                memory.reserved = 0;
            }
        }
    }
    outcome
}
