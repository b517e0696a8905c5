//! What a tenant finds out about a driver and its device.

use std::{
    ffi::{CString, c_int, c_uint, c_void},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

use crate::{
    Tenant,
    cuda::{Handle, c_text, call, check},
    number,
    work::Launch,
};

/// Base name, and the name of the ABI that version 12000 of it means.
const POINTERS: [(&str, &str); 14] = [
    ("cuLaunchKernel\0", "cuLaunchKernel\0"),
    ("cuLaunchKernelEx\0", "cuLaunchKernelEx\0"),
    ("cuLaunchCooperativeKernel\0", "cuLaunchCooperativeKernel\0"),
    ("cuGraphLaunch\0", "cuGraphLaunch\0"),
    ("cuMemAlloc\0", "cuMemAlloc_v2\0"),
    ("cuMemFree\0", "cuMemFree_v2\0"),
    ("cuMemGetInfo\0", "cuMemGetInfo_v2\0"),
    ("cuMemcpyHtoDAsync\0", "cuMemcpyHtoDAsync_v2\0"),
    ("cuMemcpyDtoHAsync\0", "cuMemcpyDtoHAsync_v2\0"),
    ("cuMemAllocAsync\0", "cuMemAllocAsync\0"),
    ("cuStreamSynchronize\0", "cuStreamSynchronize\0"),
    ("cuEventRecord\0", "cuEventRecord\0"),
    ("cuStreamWriteValue32\0", "cuStreamWriteValue32_v2\0"),
    ("cuStreamBeginCapture\0", "cuStreamBeginCapture_v2\0"),
];

/// Launches between two waits: a queue holds about a thousand.
const BATCH: u64 = 512;

const PAGE: usize = 4096;

/// `CU_MEMHOSTREGISTER_DEVICEMAP`.
const DEVICE_MAP: c_uint = 2;

impl Tenant {
    pub(crate) fn probe(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words[0] {
            "uuid" => self.uuid(),
            // Has a kernel that claims a microsecond last that long; answers with the scale.
            "calibrate" => self.calibrate(),
            // `compute COUNT`: squares on the device, compared with those of the processor.
            "compute" => self.compute(number(words, 1)?),
            // `cost launch|ex|graph NODES COUNT`: nanoseconds each, and of the thread's own time.
            "cost" => self.cost(words),
            // `fence PATH`: the file's first page is what the device writes to.
            "fence" => self.register(words.get(1).context("no path")?),
            // `fence-after US VALUE`: written once a kernel of that length is done.
            "fence-after" => self.fence_after(number(words, 1)?, number(words, 2)?),
            _ => self.pointers(),
        }
    }

    fn uuid(&self) -> anyhow::Result<String> {
        let (cuda, mut bytes) = (&self.cuda, [0_u8; 16]);
        call!(
            cuda,
            "cuDeviceGetUuid",
            "cuDeviceGetUuid_v2",
            (*mut u8, c_int),
            (bytes.as_mut_ptr(), self.device)
        )?;
        let hex = format!("{:032x}", u128::from_be_bytes(bytes));
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Ok(format!("GPU-{}", parts.join("-")))
    }

    fn calibrate(&mut self) -> anyhow::Result<String> {
        /// Long beside a launch, and long enough for clocks to rise; by a scale of 400.
        const LONG_US: u64 = 50_000;
        let mut scale = 400_u32;
        for _ in 0..3 {
            self.load(scale)?;
            self.launch("grid_us", 1)?;
            self.sync()?;
            let start = Instant::now();
            self.launch("grid_us", LONG_US)?;
            self.sync()?;
            let took = u64::try_from(start.elapsed().as_micros())?.max(1);
            scale = u32::try_from(u64::from(scale) * LONG_US / took)?.max(1);
        }
        self.load(scale)?;
        Ok(scale.to_string())
    }

    fn compute(&mut self, count: u64) -> anyhow::Result<String> {
        const THREADS: u32 = 256;
        let count = u32::try_from(count)?;
        let bytes = count as usize * 4;
        let (kernel, mut at) = (self.kernel("squares")?, 0_u64);
        let launch = self.launch.context("the tenant was not started")?;
        let cuda = &self.cuda;
        call!(cuda, "cuMemAlloc", "cuMemAlloc_v2", (*mut u64, usize), (&raw mut at, bytes))?;
        let mut arguments: [*const c_void; 2] = [(&raw const at).cast(), (&raw const count).cast()];
        let (blocks, null) = (count.div_ceil(THREADS), std::ptr::null_mut());
        let arguments = arguments.as_mut_ptr();
        check(launch(kernel, blocks, 1, 1, THREADS, 1, 1, 0, 0, arguments, null))?;
        let mut found = vec![0_u32; count as usize];
        call!(
            cuda,
            "cuMemcpyDtoH",
            "cuMemcpyDtoH_v2",
            (*mut c_void, u64, usize),
            (found.as_mut_ptr().cast(), at, bytes)
        )?;
        call!(cuda, "cuMemFree", "cuMemFree_v2", (u64), (at))?;
        let expected = |i: u32| i.wrapping_mul(i).wrapping_add(7);
        let wrong = (0..count).zip(&found).filter(|(i, is)| **is != expected(*i)).count();
        Ok(format!("{wrong} wrong"))
    }

    fn cost(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let (kind, nodes, count) =
            (*words.get(1).unwrap_or(&""), number(words, 2)?, number(words, 3)?);
        let graph = (kind == "graph").then(|| self.captured("empty", 1, nodes)).transpose()?;
        let kernel = self.kernel("empty")?;
        let launch: Launch = self.launch.context("the tenant was not started")?;
        let null = std::ptr::null_mut();
        let mut spent = Duration::ZERO;
        let mut busy = TimeSpec::from_duration(Duration::ZERO);
        let mut left = count;
        while left > 0 {
            let some = left.min(BATCH / nodes.max(1)).max(1);
            let start = Instant::now();
            let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
            for _ in 0..some {
                match graph {
                    Some((exec, stream)) => self.launch_graph(exec, stream)?,
                    None if kind == "ex" => self.launch_ex_of("empty", 1)?,
                    None => check(launch(kernel, 1, 1, 1, 1, 1, 1, 0, 0, null, null.cast()))?,
                }
            }
            busy = busy + clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - own;
            spent += start.elapsed();
            self.sync()?;
            left -= some;
        }
        let each = |spent: Duration| spent.as_nanos() / u128::from(count.max(1));
        Ok(format!("{} {}", each(spent), each(busy.into())))
    }

    fn register(&mut self, path: &str) -> anyhow::Result<String> {
        let text = CString::new(path)?;
        // SAFETY: the path ends with NUL; the descriptor is kept for the life of the process.
        let file = unsafe { libc::open(text.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        let (access, null) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
        // SAFETY: a new mapping at a place of the kernel's choice; nobody here has a reference
        // into it, and it is never unmapped.
        let page = unsafe { libc::mmap(null, PAGE, access, libc::MAP_SHARED, file, 0) };
        if file < 0 || page == libc::MAP_FAILED {
            bail!("`{path}` cannot be mapped: {}", std::io::Error::last_os_error());
        }
        let cuda = &self.cuda;
        call!(
            cuda,
            "cuMemHostRegister",
            "cuMemHostRegister_v2",
            (*mut c_void, usize, c_uint),
            (page, PAGE, DEVICE_MAP)
        )?;
        call!(
            cuda,
            "cuMemHostGetDevicePointer",
            "cuMemHostGetDevicePointer_v2",
            (*mut u64, *mut c_void, c_uint),
            (&raw mut self.fence, page, 0)
        )?;
        Ok(String::new())
    }

    fn fence_after(&mut self, us: u64, value: u64) -> anyhow::Result<String> {
        self.launch("grid_us", us)?;
        let cuda = &self.cuda;
        call!(
            cuda,
            "cuStreamWriteValue32",
            "cuStreamWriteValue32_v2",
            (Handle, u64, u32, c_uint),
            (0, self.fence, u32::try_from(value)?, 0)
        )?;
        Ok(String::new())
    }

    /// Whether `cuGetProcAddress` and the loader give the same pointers.
    fn pointers(&self) -> anyhow::Result<String> {
        let mut differ = Vec::new();
        for (base, abi) in POINTERS {
            let (base, abi) = (c_text(base), c_text(abi));
            let found = self.cuda.function(base, abi)?;
            if !self.cuda.symbol(abi).is_ok_and(|loaded| loaded == found) {
                differ.push(abi.to_string_lossy().into_owned());
            }
        }
        Ok(format!("{} of {} {}", POINTERS.len() - differ.len(), POINTERS.len(), differ.join(",")))
    }
}
