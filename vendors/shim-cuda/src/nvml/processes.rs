//! Who uses a device, as NVML lists it: the processes of the claim, by its ledger page.
//!
//! NVML knows all processes of the device, under the numbers of the host. A tenant is told of its
//! own alone, as each of them numbers itself, with what it is charged. NVML is asked first, so that
//! a device which it does not have, or a library that was not initialized, fails as it does.
#![expect(unsafe_code, reason = "stands in for C functions")]

use core::{
    ffi::{CStr, c_int, c_void},
    mem::transmute,
    ptr::{NonNull, null_mut},
    sync::atomic::AtomicPtr,
};

use super::{FUNCTION_NOT_FOUND, SUCCESS, claimed, real};
use crate::{device, process::Claim};

/// `NVML_ERROR_INVALID_ARGUMENT`.
const INVALID_ARGUMENT: c_int = 2;
/// `NVML_ERROR_INSUFFICIENT_SIZE`.
const INSUFFICIENT_SIZE: c_int = 7;

/// In no instance of MIG.
const NO_INSTANCE: u32 = u32::MAX;

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
pub(crate) struct InfoV1 {
    pid: u32,
    used_bytes: u64,
}

/// `nvmlProcessInfo_v2_t`, which is that of the third version, too.
#[repr(C)]
pub(crate) struct InfoV2 {
    pid: u32,
    used_bytes: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

trait Info {
    fn new(pid: u32, used_bytes: u64) -> Self;
}

impl Info for InfoV1 {
    fn new(pid: u32, used_bytes: u64) -> Self {
        Self { pid, used_bytes }
    }
}

impl Info for InfoV2 {
    fn new(pid: u32, used_bytes: u64) -> Self {
        Self { pid, used_bytes, gpu_instance: NO_INSTANCE, compute_instance: NO_INSTANCE }
    }
}

/// Writes the processes with something on a device to `there`; gives how many there are.
///
/// # Safety
///
/// `there` has room for as many as `room` says.
unsafe fn write<T: Info>(claim: &'static Claim, index: usize, there: *mut T, room: usize) -> usize {
    let own = || {
        // While no daemon has given a ledger page, the process knows of itself alone.
        let is_here = |it: &&device::Device| {
            it.index() == index && it.claim().is_some_and(|it| it.number() == claim.number())
        };
        let held = device::all().find(is_here).and_then(device::Device::account);
        held.map(|it| (accelpool_shim::sys::process_id(), it.held()))
    };
    let alone = if claim.ledger().is_none() { own() } else { None };
    let mut found = 0;
    for (pid, bytes) in claim.holders(index).chain(alone).filter(|(_, bytes)| *bytes != 0) {
        if found < room {
            // SAFETY: there is room, as the caller says.
            unsafe { there.add(found).write(T::new(pid, bytes)) };
        }
        found += 1;
    }
    found
}

/// NVML's list of one kind. The claim's processes compute: `of_claim` is false for other kinds.
///
/// # Safety
///
/// As of NVML's function: `count` says how much room there is at `there`.
unsafe fn list<T: Info>(
    (place, name): (&AtomicPtr<c_void>, &CStr),
    of_claim: bool,
    device: *mut c_void,
    count: *mut u32,
    there: *mut T,
) -> c_int {
    type Get<T> = unsafe extern "C" fn(*mut c_void, *mut u32, *mut T) -> c_int;
    let Some(get) = real(place, name) else { return FUNCTION_NOT_FOUND };
    // SAFETY: NVML's function has this type.
    let get = unsafe { transmute::<NonNull<c_void>, Get<T>>(get) };
    let mut none = 0;
    // SAFETY: there is no room, and none is said to be.
    let outcome = unsafe { get(device, &raw mut none, null_mut()) };
    if outcome != SUCCESS && outcome != INSUFFICIENT_SIZE {
        return outcome;
    }
    // SAFETY: NVML has taken the device.
    let Some((claim, index)) = (unsafe { claimed(device) }) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { get(device, count, there) };
    };
    // SAFETY: null, or the caller's.
    let Some(count) = (unsafe { count.as_mut() }) else { return INVALID_ARGUMENT };
    let room = if there.is_null() { 0 } else { *count as usize };
    // SAFETY: as the caller says.
    let found = if of_claim { unsafe { write(claim, index, there, room) } } else { 0 };
    *count = u32::try_from(found).unwrap_or(u32::MAX);
    if found > room { INSUFFICIENT_SIZE } else { SUCCESS }
}

/// For each of NVML's functions: the wrapper, and where NVML's own is kept.
macro_rules! lists {
    ($($name:ident as $place:ident: $info:ty, $of_claim:literal;)+) => {
        $(
            static $place: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

            /// Stands in for NVML's function of this name, with its contract.
            #[expect(non_snake_case, reason = "the name is NVML's")]
            #[cfg_attr(all(accelpool_library, not(accelpool_drop_in)), unsafe(no_mangle))]
            pub(crate) unsafe extern "C" fn $name(
                device: *mut c_void,
                count: *mut u32,
                there: *mut $info,
            ) -> c_int {
                const NAME: &[u8] = concat!(stringify!($name), "\0").as_bytes();
                let Ok(name) = CStr::from_bytes_with_nul(NAME) else { return FUNCTION_NOT_FOUND };
                // SAFETY: the arguments are the caller's.
                unsafe { list((&$place, name), $of_claim, device, count, there) }
            }
        )+

        /// The wrapper of a list.
        pub(super) fn wrapper(symbol: &[u8]) -> Option<*const c_void> {
            match symbol {
                $(name if name == stringify!($name).as_bytes() => Some($name as *const c_void),)+
                _ => None,
            }
        }

        /// Where NVML's own function is kept.
        pub(super) fn place(symbol: &[u8]) -> Option<&'static AtomicPtr<c_void>> {
            match symbol {
                $(name if name == stringify!($name).as_bytes() => Some(&$place),)+
                _ => None,
            }
        }
    };
}

lists! {
    nvmlDeviceGetComputeRunningProcesses as COMPUTE: InfoV1, true;
    nvmlDeviceGetComputeRunningProcesses_v2 as COMPUTE_V2: InfoV2, true;
    nvmlDeviceGetComputeRunningProcesses_v3 as COMPUTE_V3: InfoV2, true;
    nvmlDeviceGetGraphicsRunningProcesses as GRAPHICS: InfoV1, false;
    nvmlDeviceGetGraphicsRunningProcesses_v2 as GRAPHICS_V2: InfoV2, false;
    nvmlDeviceGetGraphicsRunningProcesses_v3 as GRAPHICS_V3: InfoV2, false;
    nvmlDeviceGetMPSComputeRunningProcesses as MPS: InfoV1, false;
    nvmlDeviceGetMPSComputeRunningProcesses_v2 as MPS_V2: InfoV2, false;
    nvmlDeviceGetMPSComputeRunningProcesses_v3 as MPS_V3: InfoV2, false;
}
