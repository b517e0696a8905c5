//! The C library's functions that the shim needs, all of which glibc 2.17 has.
//!
//! Few are linked, without versions; those that glibc has moved or given new versions since are looked up in
//! the loaded library when they are first needed.
#![expect(unsafe_code, reason = "calls C functions")]

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::transmute,
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::elf;

pub(crate) const RTLD_DEFAULT: *mut c_void = ptr::null_mut();
const RTLD_NEXT: usize = usize::MAX;
const RTLD_NOW: c_int = 2;
const RTLD_NOLOAD: c_int = 4;

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    /// What `pthread_atfork` is in a library.
    #[cfg(accelpool_library)]
    fn __register_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
        library: *mut c_void,
    ) -> c_int;
}

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type Dlopen = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut u64, *const c_void, ThreadStart, *mut c_void) -> c_int;
type Detach = unsafe extern "C" fn(u64) -> c_int;
type MakeKey = unsafe extern "C" fn(*mut u32, unsafe extern "C" fn(*mut c_void)) -> c_int;
type SetKey = unsafe extern "C" fn(u32, *const c_void) -> c_int;

/// What a new thread runs.
pub(crate) type ThreadStart = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// The `dlsym` and `dlvsym` that come after ours; the hooks jump there.
pub(crate) static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
pub(crate) static REAL_DLVSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Finds both, if that has not been done; `false` where there are none.
pub(crate) fn find_real() -> bool {
    if !REAL_DLSYM.load(Ordering::Acquire).is_null() {
        return true;
    }
    // The C library's own is found in its file's table: to look it up by name would find us.
    let Some(own) = elf::libc_function(c"dlsym") else { return false };
    // SAFETY: a C library's `dlsym` has this type.
    let own = unsafe { transmute::<NonNull<c_void>, Dlsym>(own) };
    // Another library that stands in for `dlsym` behind us is asked before the C library's.
    let next = ptr::without_provenance_mut(RTLD_NEXT);
    // SAFETY: the names end with NUL. Called from here, so that "next" is what comes after us.
    let found = unsafe { [own(next, c"dlsym".as_ptr()), own(next, c"dlvsym".as_ptr())] };
    let [plain, versioned] = found.map(NonNull::new);
    REAL_DLVSYM.store(versioned.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Release);
    let plain = plain.map_or(own as *mut c_void, NonNull::as_ptr);
    REAL_DLSYM.store(plain, Ordering::Release);
    true
}

/// Looks a name up as the caller's library would, but for the names that we stand in for.
pub(crate) fn lookup(handle: *mut c_void, name: *const c_char) -> Option<NonNull<c_void>> {
    if !find_real() {
        return None;
    }
    let real = NonNull::new(REAL_DLSYM.load(Ordering::Acquire))?;
    // SAFETY: only ever set to a `dlsym`; the name ends with NUL, as its caller's contract is.
    let real = unsafe { transmute::<NonNull<c_void>, Dlsym>(real) };
    // SAFETY: as above.
    NonNull::new(unsafe { real(handle, name) })
}

/// A function of the C library that may be absent, as threads are from old single-threaded
/// programs.
fn libc(name: &CStr) -> Option<NonNull<c_void>> {
    lookup(RTLD_DEFAULT, name.as_ptr())
}

/// The handle of a library that is loaded already; with `load`, of one that is loaded now.
pub(crate) fn open(name: &CStr, load: bool) -> Option<NonNull<c_void>> {
    let open = libc(c"dlopen")?;
    // SAFETY: a C library's `dlopen` has this type.
    let open = unsafe { transmute::<NonNull<c_void>, Dlopen>(open) };
    let flags = if load { RTLD_NOW } else { RTLD_NOW | RTLD_NOLOAD };
    // SAFETY: the name ends with NUL.
    NonNull::new(unsafe { open(name.as_ptr(), flags) })
}

/// The driver's library, if it is loaded already; with `load`, it is loaded now.
#[cfg(not(accelpool_drop_in))]
pub(crate) fn driver(load: bool) -> Option<NonNull<c_void>> {
    open(c"libcuda.so.1", load)
}

/// The driver's library, which lies elsewhere: by its name we are found ourselves.
#[cfg(accelpool_drop_in)]
pub(crate) fn driver(load: bool) -> Option<NonNull<c_void>> {
    let named = environment(c"ACCELPOOL_CUDA_DRIVER");
    let driver = open(named.unwrap_or(crate::DRIVER_PATH), load)?;
    // A path that leads back here would have each call come back without end.
    let first = lookup(driver.as_ptr(), c"cuInit".as_ptr())?;
    (!crate::surface::is_ours(first)).then_some(driver)
}

/// The value of an environment variable. Nobody may change the environment meanwhile, as for
/// every `getenv`.
pub(crate) fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the name ends with NUL.
    let value = NonNull::new(unsafe { getenv(name.as_ptr()) }.cast_mut())?;
    // SAFETY: `getenv` gives a string that ends with NUL.
    Some(unsafe { CStr::from_ptr(value.as_ptr()) })
}

/// Runs `child` in every child of a fork.
pub(crate) fn at_fork(child: unsafe extern "C" fn()) {
    #[cfg(accelpool_library)]
    // SAFETY: functions for as long as the process runs; the library is never unloaded
    // (it is linked so), hence no name of it is given.
    unsafe {
        __register_atfork(None, None, Some(child), ptr::null_mut());
    }
    #[cfg(not(accelpool_library))]
    let _ = child;
}

/// Starts a thread that nobody waits for; `false` where that cannot be.
pub(crate) fn start_thread(start: ThreadStart) -> bool {
    let (Some(create), Some(detach)) = (libc(c"pthread_create"), libc(c"pthread_detach")) else {
        return false;
    };
    // SAFETY: a C library's functions of these names have these types.
    let (create, detach) = unsafe {
        (transmute::<NonNull<c_void>, Create>(create), transmute::<NonNull<c_void>, Detach>(detach))
    };
    let mut thread = 0;
    // SAFETY: no attributes, and a start that needs no argument.
    let made = unsafe { create(&raw mut thread, ptr::null(), start, ptr::null_mut()) } == 0;
    if made {
        // SAFETY: the thread was just made, and nothing joins it.
        unsafe { detach(thread) };
    }
    made
}

/// Makes `exit` run when a thread that called [`ThreadEnd::arm`] ends.
#[derive(Clone, Copy)]
pub(crate) struct ThreadEnd {
    key: u32,
    set: SetKey,
}

impl ThreadEnd {
    pub(crate) fn new(exit: unsafe extern "C" fn(*mut c_void)) -> Option<Self> {
        let make = libc(c"pthread_key_create")?;
        let set = libc(c"pthread_setspecific")?;
        // SAFETY: a C library's functions of these names have these types.
        let (make, set) = unsafe {
            (transmute::<NonNull<c_void>, MakeKey>(make), transmute::<NonNull<c_void>, SetKey>(set))
        };
        let mut key = 0;
        // SAFETY: the key is written; `exit` is there for as long as the process runs.
        (unsafe { make(&raw mut key, exit) } == 0).then_some(Self { key, set })
    }

    /// `value` must not be 0: then nothing would run.
    pub(crate) fn arm(self, value: usize) {
        // SAFETY: the key was made, and the value is no address to anybody.
        unsafe { (self.set)(self.key, ptr::without_provenance(value)) };
    }
}
