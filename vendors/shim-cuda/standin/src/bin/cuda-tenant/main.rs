//! A test tenant: a program of CUDA's driver API that does what lines on its input say.
//!
//! It loads `libcuda.so.1` as real programs do and knows nothing of who answers. Each line is
//! answered by one: `ok ...` or `error CODE`. It ends with its input, or
//! with `quit`. On a real device its kernels are those of `kernels.ptx` (Turing or newer).
#![expect(unsafe_code, reason = "loads a C library and calls it")]

mod cuda;
mod measure;
mod memory;
mod probe;
mod work;

use std::{
    collections::HashMap,
    ffi::{CString, c_int, c_uint, c_void},
    io::{BufRead, Write},
};

use anyhow::{Context as _, bail};

use crate::{
    cuda::{Cuda, Handle, call},
    work::Launch,
};

struct Tenant {
    cuda: Cuda,
    module: Handle,
    kernels: HashMap<String, Handle>,
    launch: Option<Launch>,
    pool: Handle,
    device: c_int,
    /// Where the device writes to show how far it is: `fence`.
    fence: u64,
}

fn main() -> anyhow::Result<()> {
    let mut tenant = Tenant {
        cuda: Cuda::load()?,
        module: 0,
        kernels: HashMap::new(),
        launch: None,
        pool: 0,
        device: 0,
        fence: 0,
    };
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "quit" {
            break;
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let answer = match tenant.run(&words) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error {error:#}"),
        };
        writeln!(out, "{}", answer.trim_end())?;
        out.flush()?;
    }
    Ok(())
}

fn number(words: &[&str], index: usize) -> anyhow::Result<u64> {
    let word = words.get(index).with_context(|| format!("word {index} is missing"))?;
    let (digits, radix) = word.strip_prefix("0x").map_or((*word, 10), |digits| (digits, 16));
    u64::from_str_radix(digits, radix).with_context(|| format!("`{word}` is no number"))
}

fn size(words: &[&str], index: usize) -> anyhow::Result<usize> {
    Ok(usize::try_from(number(words, index)?)?)
}

/// Turns of the kernels' loop in a microsecond, roughly, where nobody has calibrated.
const SCALE: u32 = 400;

impl Tenant {
    fn run(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words.first().copied().unwrap_or_default() {
            "start" => self.start(words),
            "alloc" | "managed" | "free" | "async" | "free-async" | "info" | "pool" | "trim" => {
                self.memory(words)
            }
            "pin" | "unpin" | "register" | "unregister" => self.host_memory(words),
            "create" | "release" | "reserve" | "map" | "unmap" | "retain" => {
                self.virtual_memory(words)
            }
            "race" => self.race(words),
            "launch" | "sync" | "burn" | "pace" | "graph" | "hang" | "trap" | "ex" => {
                self.work(words)
            }
            "calibrate" | "compute" | "cost" | "fence" | "fence-after" | "pointers" | "uuid" => {
                self.probe(words)
            }
            "windows" | "beat" | "poisson" => self.measure(words),
            "pid" => Ok(std::process::id().to_string()),
            other => bail!("`{other}` is no command"),
        }
    }

    /// `start DEVICE`: cuInit, a context and a module.
    fn start(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let cuda = &self.cuda;
        let device = c_int::try_from(number(words, 1).unwrap_or(0))?;
        call!(cuda, "cuInit", "cuInit", (c_uint), (0))?;
        let mut context: Handle = 0;
        call!(
            cuda,
            "cuDevicePrimaryCtxRetain",
            "cuDevicePrimaryCtxRetain",
            (*mut Handle, c_int),
            (&raw mut context, device)
        )?;
        call!(cuda, "cuCtxSetCurrent", "cuCtxSetCurrent", (Handle), (context))?;
        self.device = device;
        self.load(std::env::var("TENANT_SCALE").map_or(Ok(SCALE), |scale| scale.parse())?)?;
        let cuda = &self.cuda;
        // SAFETY: `cuda.h` gives the function this type.
        self.launch = Some(unsafe {
            std::mem::transmute::<*mut c_void, Launch>(
                cuda.function(c"cuLaunchKernel", c"cuLaunchKernel")?,
            )
        });
        Ok(String::new())
    }

    /// Loads the kernels, of which `scale` turns are to take a microsecond.
    fn load(&mut self, scale: u32) -> anyhow::Result<()> {
        let image = include_str!("kernels.ptx").replace("SCALE", &scale.to_string());
        let (image, mut module) = (CString::new(image)?, 0);
        let cuda = &self.cuda;
        call!(
            cuda,
            "cuModuleLoadData",
            "cuModuleLoadData",
            (*mut Handle, *const c_void),
            (&raw mut module, image.as_ptr().cast())
        )?;
        self.module = module;
        self.kernels.clear();
        Ok(())
    }
}
