//! NVML behind safe functions: the only file tree of this crate with unsafe code.
//!
//! `nvml-wrapper-sys` finds each symbol on its own, so that one that a driver lacks fails its
//! own call alone. The calls are made here and not through `nvml_wrapper::Nvml`, because that
//! reads strings up to a NUL that a broken library may not write and sizes its buffers by
//! counts that it may make up. Here every buffer has a fixed end, and every count a limit.
#![expect(unsafe_code, reason = "calls a C library; every block says why it may")]

mod event;
mod figures;
mod gpu;
mod mig;
mod settings;

use std::{ffi::c_char, ffi::c_uint, path::Path};

use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper_sys::bindings::{NvmlLib, nvmlDevice_t, nvmlReturn_t};

pub(crate) use self::{
    event::{Event, EventSet, SystemEvents},
    figures::{Clock, Field, Utilizer},
    gpu::{Accounting, Gpu, LinkEnd, PeerUse, Process, Utilization},
    mig::{ComputeInstance, GpuInstance, GpuInstancePlace, MigDevice, Profile, ProfileKind},
};

/// `NVML_INIT_FLAG_NO_GPUS`: a driver that drives no GPU is no failure.
const INIT_NO_GPUS: c_uint = 1;

/// No machine has more; a library that says so says nothing to rely on.
const DEVICES_MAX: u32 = 256;

/// The largest string buffer in `nvml.h` (`NVML_DEVICE_NAME_V2_BUFFER_SIZE` and
/// `NVML_DEVICE_UUID_V2_BUFFER_SIZE` are 96, a version has 80).
const STRING_LEN: c_uint = 128;

/// Why a call into the library failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The library said no.
    #[error("{call} says: {error}")]
    Refused { call: &'static str, error: NvmlError },
    /// The library said something that cannot be.
    #[error("{call} answers nonsense: {detail}")]
    Nonsense { call: &'static str, detail: String },
}

/// The library, loaded and initialized. Dropping it closes every file that it has open.
#[derive(Debug)]
pub(crate) struct Nvml {
    library: Raw,
}

/// Wraps the table of symbols, which does not say of itself what it is.
struct Raw(NvmlLib);

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NVML")
    }
}

/// Why the library could not be loaded or initialized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("failed to load the library: {0}")]
    Load(String),
    #[error(transparent)]
    Initialize(#[from] CallError),
}

impl Nvml {
    /// Loads the library at `path`, or of that name, and initializes it.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: loading runs the library's constructors. It is the driver's own library,
        // which the operator installed; there is no other way to load one.
        let library = unsafe { NvmlLib::new(path) };
        let library = library.map_err(|error| LoadError::Load(error.to_string()))?;
        let nvml = Initialized(Some(library));
        nvml.initialize()?;
        Ok(nvml.into_nvml())
    }

    /// The kernel driver's version, as the driver writes it.
    pub(crate) fn driver_version(&self) -> Result<String, CallError> {
        const CALL: &str = "nvmlSystemGetDriverVersion";
        let function = found(CALL, &self.raw().nvmlSystemGetDriverVersion)?;
        text(CALL, |buffer, len| {
            // SAFETY: `buffer` has `len` bytes and outlives the call.
            unsafe { function(buffer, len) }
        })
    }

    /// The newest CUDA that the driver serves: major times 1000, minor times 10.
    pub(crate) fn cuda_version(&self) -> Result<u32, CallError> {
        const CALL: &str = "nvmlSystemGetCudaDriverVersion_v2";
        let function = found(CALL, &self.raw().nvmlSystemGetCudaDriverVersion_v2)?;
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        check(CALL, unsafe { function(&raw mut version) })?;
        let nonsense = |_| CallError::Nonsense { call: CALL, detail: version.to_string() };
        u32::try_from(version).map_err(nonsense)
    }

    pub(crate) fn device_count(&self) -> Result<u32, CallError> {
        const CALL: &str = "nvmlDeviceGetCount_v2";
        let function = found(CALL, &self.raw().nvmlDeviceGetCount_v2)?;
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        check(CALL, unsafe { function(&raw mut count) })?;
        limit(CALL, count, DEVICES_MAX)
    }

    /// The device at `index`, which is no identity: it may name another one at the next load.
    pub(crate) fn device_by_index(&self, index: u32) -> Result<Gpu<'_>, CallError> {
        const CALL: &str = "nvmlDeviceGetHandleByIndex_v2";
        let function = found(CALL, &self.raw().nvmlDeviceGetHandleByIndex_v2)?;
        let mut handle: nvmlDevice_t = std::ptr::null_mut();
        // SAFETY: `handle` outlives the call.
        check(CALL, unsafe { function(index, &raw mut handle) })?;
        Gpu::new(CALL, self, handle)
    }

    fn raw(&self) -> &NvmlLib {
        &self.library.0
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        shut_down(self.raw());
    }
}

/// A library that is loaded and may be initialized already.
struct Initialized(Option<NvmlLib>);

impl Initialized {
    fn initialize(&self) -> Result<(), CallError> {
        let Some(library) = &self.0 else { return Ok(()) };
        if let Ok(function) = &library.nvmlInitWithFlags {
            // SAFETY: the call takes a number and no pointer.
            return check("nvmlInitWithFlags", unsafe { function(INIT_NO_GPUS) });
        }
        let function = found("nvmlInit_v2", &library.nvmlInit_v2)?;
        // SAFETY: the call takes nothing.
        check("nvmlInit_v2", unsafe { function() })
    }

    fn into_nvml(mut self) -> Nvml {
        let library = self.0.take().expect("it is taken once, here");
        Nvml { library: Raw(library) }
    }
}

fn shut_down(library: &NvmlLib) {
    if let Ok(function) = &library.nvmlShutdown {
        // SAFETY: every handle borrows from the `Nvml` that is being dropped, and every event
        // set keeps it alive, so none is left to be used after this.
        let _ = unsafe { function() };
    }
}

/// An entry point, or the error of a library that lacks it.
fn found<'a, F, E>(call: &'static str, symbol: &'a Result<F, E>) -> Result<&'a F, CallError> {
    symbol.as_ref().map_err(|_| CallError::Refused { call, error: NvmlError::FunctionNotFound })
}

fn check(call: &'static str, code: nvmlReturn_t) -> Result<(), CallError> {
    nvml_try(code).map_err(|error| CallError::Refused { call, error })
}

/// Refuses a count that no machine has.
fn limit(call: &'static str, count: u32, max: u32) -> Result<u32, CallError> {
    if count <= max {
        return Ok(count);
    }
    let detail = format!("there are {count}, at most {max} can be");
    Err(CallError::Nonsense { call, detail })
}

/// A call that writes one `T` about a handle.
///
/// # Safety
///
/// `handle` is live, and the entry point writes at most one `T` through its pointer.
unsafe fn get<H, T, E>(
    call: &'static str,
    symbol: &Result<unsafe extern "C" fn(H, *mut T) -> nvmlReturn_t, E>,
    handle: H,
    mut value: T,
) -> Result<T, CallError> {
    let function = found(call, symbol)?;
    // SAFETY: `value` outlives the call; the rest is promised by the caller.
    check(call, unsafe { function(handle, &raw mut value) })?;
    Ok(value)
}

/// Like [`get`], for entry points that also take a number.
///
/// # Safety
///
/// As for [`get`].
unsafe fn get_at<H, T, E>(
    call: &'static str,
    symbol: &Result<unsafe extern "C" fn(H, c_uint, *mut T) -> nvmlReturn_t, E>,
    handle: H,
    index: u32,
    mut value: T,
) -> Result<T, CallError> {
    let function = found(call, symbol)?;
    // SAFETY: `value` outlives the call; the rest is promised by the caller.
    check(call, unsafe { function(handle, index, &raw mut value) })?;
    Ok(value)
}

/// Runs a call that fills a buffer with text, and takes the text out of it.
fn text(
    call: &'static str,
    fill: impl FnOnce(*mut c_char, c_uint) -> nvmlReturn_t,
) -> Result<String, CallError> {
    let mut buffer = [0; STRING_LEN as usize];
    check(call, fill(buffer.as_mut_ptr(), STRING_LEN))?;
    read_text(call, &buffer)
}

/// The text in a buffer: up to its NUL, which must be there.
fn read_text(call: &'static str, buffer: &[c_char]) -> Result<String, CallError> {
    let bytes: Vec<u8> = buffer.iter().map(|byte| byte.cast_unsigned()).collect();
    let nonsense = |detail: &str| CallError::Nonsense { call, detail: detail.to_owned() };
    let end = bytes.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| nonsense("a text without end"))?;
    let text = str::from_utf8(&bytes[..end]).map_err(|_| nonsense("a text that is not UTF-8"))?;
    Ok(text.to_owned())
}

/// Reads a list whose length only the library knows, up to `max` entries.
///
/// `read` gets room for as many entries as it is told, and answers with the code and the count.
fn list<T: Copy>(
    call: &'static str,
    room: u32,
    max: u32,
    empty: T,
    mut read: impl FnMut(&mut [T], &mut c_uint) -> nvmlReturn_t,
) -> Result<Vec<T>, CallError> {
    /// Processes come and go while they are counted; beyond this the library is not to be
    /// believed.
    const TRIES: u32 = 4;
    let mut room = room;
    for _ in 0..TRIES {
        let mut entries = vec![empty; room as usize];
        let mut count = room;
        match check(call, read(&mut entries, &mut count)) {
            Ok(()) => {
                entries.truncate(limit(call, count, room)? as usize);
                return Ok(entries);
            }
            Err(CallError::Refused { error: NvmlError::InsufficientSize(_), .. }) => {
                // Some room to spare for those who come meanwhile.
                room = limit(call, count, max)?.saturating_add(room).min(max);
            }
            Err(error) => return Err(error),
        }
    }
    Err(CallError::Nonsense { call, detail: "the list never fits".to_owned() })
}

/// A plain structure of numbers that the library fills.
///
/// # Safety
///
/// All bytes zero must be a valid value.
unsafe trait Plain: Copy {}

fn zeroed<T: Plain>() -> T {
    // SAFETY: `Plain` promises that all bytes zero are a valid value.
    unsafe { std::mem::zeroed() }
}

/// The first word of a versioned structure: `NVML_STRUCT_VERSION` of `nvml.h`.
fn struct_version<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX) | version << 24
}

#[cfg(test)]
mod tests;
