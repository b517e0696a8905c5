//! The library, found and called as programs do: by `cuGetProcAddress` or by the loader's names.

use std::ffi::{CStr, CString, c_int, c_uint, c_void};

use anyhow::bail;

pub(crate) type Code = c_uint;
pub(crate) type Handle = usize;
type GetProcAddress = extern "C" fn(*const i8, *mut *mut c_void, c_int, u64, *mut c_int) -> Code;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`, if the tenant is told to use that.
const PER_THREAD: u64 = 2;
const VERSION: c_int = 12_000;

/// What is called of the library; each a C function of the type beside its use.
pub(crate) struct Cuda {
    library: *mut c_void,
    get: Option<GetProcAddress>,
    flags: u64,
}

impl Cuda {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let name =
            CString::new(std::env::var("TENANT_LIBCUDA").unwrap_or("libcuda.so.1".to_owned()))?;
        // SAFETY: a library's constructors run, as in any program that loads it.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            bail!("no `{}`", name.to_string_lossy());
        }
        let mut cuda = Self { library, get: None, flags: 0 };
        if std::env::var("TENANT_LOOKUP").is_ok_and(|how| how == "dlsym") {
            return Ok(cuda);
        }
        if std::env::var("TENANT_STREAM").is_ok_and(|which| which == "per-thread") {
            cuda.flags = PER_THREAD;
        }
        let get = cuda.symbol(c"cuGetProcAddress_v2")?;
        // SAFETY: `cuda.h` gives the function this type.
        cuda.get = Some(unsafe { std::mem::transmute::<*mut c_void, GetProcAddress>(get) });
        Ok(cuda)
    }

    pub(crate) fn symbol(&self, name: &CStr) -> anyhow::Result<*mut c_void> {
        // SAFETY: the library is loaded and stays so; the name ends with NUL.
        let found = unsafe { libc::dlsym(self.library, name.as_ptr()) };
        if found.is_null() {
            bail!("no function {name:?}");
        }
        Ok(found)
    }

    /// A function by its base name and by the name of the ABI that is meant.
    pub(crate) fn function(&self, base: &CStr, abi: &CStr) -> anyhow::Result<*mut c_void> {
        let Some(get) = self.get else { return self.symbol(abi) };
        let (mut found, mut status) = (std::ptr::null_mut(), 0);
        let code = get(base.as_ptr(), &raw mut found, VERSION, self.flags, &raw mut status);
        if code != 0 || found.is_null() {
            bail!("cuGetProcAddress({base:?}) gave {code}, status {status}");
        }
        Ok(found)
    }
}

/// Calls a function of the library: `call!(cuda, "base" as "abi", (types) (arguments))`.
macro_rules! call {
    ($cuda:expr, $base:literal, $abi:literal, ($($type:ty),*), ($($argument:expr),*)) => {{
        type Function = extern "C" fn($($type),*) -> $crate::cuda::Code;
        let base = const { $crate::cuda::c_text(concat!($base, "\0")) };
        let abi = const { $crate::cuda::c_text(concat!($abi, "\0")) };
        let function = $cuda.function(base, abi)?;
        // SAFETY: `cuda.h` gives the function this type.
        let function = unsafe { std::mem::transmute::<*mut std::ffi::c_void, Function>(function) };
        $crate::cuda::check(function($($argument),*))
    }};
}

pub(crate) const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a name without its NUL"),
    }
}

/// A `CUresult` that is not success.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Code);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Refused {}

pub(crate) fn check(code: Code) -> anyhow::Result<()> {
    if code == 0 { Ok(()) } else { Err(Refused(code).into()) }
}

pub(crate) use call;
