//! Where the machine's file is, and the machine in it.
//!
//! The file is named by `ACCELPOOL_NVML_STANDIN`, or else lies beside this library as
//! `nvml-standin.json`, so that several copies in one process describe several machines.

use std::{
    ffi::{CStr, OsString, c_char, c_int, c_void},
    fs,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    abi::{Code, UNKNOWN},
    machine::Machine,
};

const VARIABLE: &str = "ACCELPOOL_NVML_STANDIN";
const BESIDE: &str = "nvml-standin.json";

/// Tells one content of the file from another.
type Stamp = (u64, i64, i64, u64);

static LAST: Mutex<Option<(Stamp, Arc<Machine>)>> = Mutex::new(None);

/// The machine as the file describes it now.
pub(crate) fn machine() -> Result<Arc<Machine>, Code> {
    let path = file()?;
    let found = fs::metadata(&path).map_err(|_| UNKNOWN)?;
    let stamp = (found.ino(), found.mtime(), found.mtime_nsec(), found.len());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, machine)) = &*last
        && *known == stamp
    {
        return Ok(Arc::clone(machine));
    }
    let text = fs::read_to_string(&path).map_err(|_| UNKNOWN)?;
    let machine: Machine = serde_json::from_str(&text).map_err(|error| {
        eprintln!("`{}` describes no machine: {error}", path.display());
        UNKNOWN
    })?;
    let machine = Arc::new(machine);
    *last = Some((stamp, Arc::clone(&machine)));
    Ok(machine)
}

/// The machine's file.
pub(crate) fn file() -> Result<PathBuf, Code> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Ok(path.into());
    }
    let library = library().ok_or(UNKNOWN)?;
    Ok(library.parent().ok_or(UNKNOWN)?.join(BESIDE))
}

/// `Dl_info` of `dlfcn.h`.
#[repr(C)]
struct LibraryOfAddress {
    path: *const c_char,
    base: *mut c_void,
    symbol: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, found: *mut LibraryOfAddress) -> c_int;
}

/// The file that this code was loaded from.
fn library() -> Option<PathBuf> {
    let null = std::ptr::null_mut();
    let mut found =
        LibraryOfAddress { path: null, base: null.cast(), symbol: null, address: null.cast() };
    let here: fn() -> Option<PathBuf> = library;
    // SAFETY: any address may be asked about; `found` outlives the call.
    let known = unsafe { dladdr(here as *const c_void, &raw mut found) };
    if known == 0 || found.path.is_null() {
        return None;
    }
    // SAFETY: the loader keeps the path, which ends with NUL, as long as the library is loaded.
    let path = unsafe { CStr::from_ptr(found.path) };
    Some(Path::new(&OsString::from_vec(path.to_bytes().to_vec())).to_owned())
}
