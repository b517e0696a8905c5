//! What a tenant has the device do.

use std::{
    ffi::{CString, c_uint, c_void},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    Tenant,
    cuda::{Code, Handle, call, check},
    number,
};

pub(crate) type Launch = extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *const c_void,
    *mut c_void,
) -> Code;

impl Tenant {
    pub(crate) fn kernel(&mut self, name: &str) -> anyhow::Result<Handle> {
        if let Some(known) = self.kernels.get(name) {
            return Ok(*known);
        }
        let cuda = &self.cuda;
        let (text, mut kernel) = (CString::new(name)?, 0);
        call!(
            cuda,
            "cuModuleGetFunction",
            "cuModuleGetFunction",
            (*mut Handle, Handle, *const i8),
            (&raw mut kernel, self.module, text.as_ptr())
        )?;
        self.kernels.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    pub(crate) fn launch(&mut self, name: &str, blocks: u64) -> anyhow::Result<()> {
        let kernel = self.kernel(name)?;
        let launch = self.launch.context("the tenant was not started")?;
        let (blocks, null) = (c_uint::try_from(blocks)?, std::ptr::null_mut());
        check(launch(kernel, blocks, 1, 1, 1, 1, 1, 0, 0, null, null.cast()))
    }

    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        let cuda = &self.cuda;
        call!(cuda, "cuCtxSynchronize", "cuCtxSynchronize", (), ())
    }

    pub(crate) fn work(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words[0] {
            // `launch US COUNT`, and wait for nothing.
            "launch" => {
                for _ in 0..number(words, 2).unwrap_or(1) {
                    self.launch("grid_us", number(words, 1)?)?;
                }
            }
            "ex" => self.launch_ex(number(words, 1)?)?,
            "sync" => self.sync()?,
            // `burn US MS`: keeps the device busy with such kernels; answers how many.
            "burn" => return self.burn(number(words, 1)?, number(words, 2)?),
            // `pace US COUNT GAP_US`: one at a time, each waited for; answers their latencies.
            "pace" => return self.pace(number(words, 1)?, number(words, 2)?, number(words, 3)?),
            "graph" => return self.graph(number(words, 1)?, number(words, 2)?, number(words, 3)?),
            "hang" => self.launch("hang", 1)?,
            _ => {
                self.launch("traps", 1)?;
                self.sync()?;
            }
        }
        Ok(String::new())
    }

    /// Two batches of a millisecond are under way, as in a program that looks at its results
    /// one step behind: the device never waits for it.
    fn burn(&mut self, us: u64, ms: u64) -> anyhow::Result<String> {
        let mut events = [0; 2];
        for event in &mut events {
            call!(self.cuda, "cuEventCreate", "cuEventCreate", (*mut Handle, c_uint), (event, 2))?;
        }
        let until = Instant::now() + Duration::from_millis(ms);
        let batch = (1000 / us.max(1)).max(1);
        let mut count = 0;
        while Instant::now() < until {
            for _ in 0..batch {
                self.launch("grid_us", us)?;
            }
            count += batch;
            let cuda = &self.cuda;
            let (this, last) = (events[0], events[1]);
            call!(cuda, "cuEventRecord", "cuEventRecord", (Handle, Handle), (this, 0))?;
            call!(cuda, "cuEventSynchronize", "cuEventSynchronize", (Handle), (last))?;
            events.swap(0, 1);
        }
        self.sync()?;
        for event in events {
            call!(self.cuda, "cuEventDestroy", "cuEventDestroy_v2", (Handle), (event))?;
        }
        Ok(count.to_string())
    }

    fn pace(&mut self, us: u64, count: u64, gap_us: u64) -> anyhow::Result<String> {
        let mut took = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            self.launch("grid_us", us)?;
            self.sync()?;
            took.push(start.elapsed().as_micros());
            std::thread::sleep(Duration::from_micros(gap_us));
        }
        took.sort_unstable();
        let at = |permille: usize| took.get((took.len() * permille / 1000).min(took.len() - 1));
        let part = |permille| at(permille).copied().unwrap_or(0);
        Ok(format!("{} {} {}", part(500), part(990), part(1000)))
    }

    fn launch_ex(&mut self, us: u64) -> anyhow::Result<()> {
        self.launch_ex_of("grid_us", us)
    }

    pub(crate) fn launch_ex_of(&mut self, name: &str, us: u64) -> anyhow::Result<()> {
        let kernel = self.kernel(name)?;
        let cuda = &self.cuda;
        // CUlaunchConfig: grid and block of 32 bits, shared bytes, stream, attributes.
        let mut config = [0_u64; 7];
        config[0] = us | 1 << 32;
        config[1] = 1 | 1 << 32;
        config[2] = 1 | 1 << 32;
        let (config, null) = (config.as_ptr(), std::ptr::null());
        call!(
            cuda,
            "cuLaunchKernelEx",
            "cuLaunchKernelEx",
            (*const u64, Handle, *const c_void, *const c_void),
            (config, kernel, null, null)
        )
    }

    /// `graph US NODES COUNT`: captures so many kernels and launches that so often.
    fn graph(&mut self, us: u64, nodes: u64, count: u64) -> anyhow::Result<String> {
        let (exec, stream) = self.captured("grid_us", us, nodes)?;
        for _ in 0..count {
            self.launch_graph(exec, stream)?;
        }
        self.sync()?;
        Ok(String::new())
    }

    pub(crate) fn launch_graph(&self, exec: Handle, stream: Handle) -> anyhow::Result<()> {
        let cuda = &self.cuda;
        call!(cuda, "cuGraphLaunch", "cuGraphLaunch", (Handle, Handle), (exec, stream))
    }

    /// A graph of so many kernels, and the stream that it was captured on.
    pub(crate) fn captured(
        &mut self,
        name: &str,
        us: u64,
        nodes: u64,
    ) -> anyhow::Result<(Handle, Handle)> {
        let kernel = self.kernel(name)?;
        let launch = self.launch.context("the tenant was not started")?;
        let cuda = &self.cuda;
        let (mut stream, mut graph, mut exec) = (0, 0, 0);
        let (blocks, null) = (c_uint::try_from(us)?, std::ptr::null_mut());
        call!(
            cuda,
            "cuStreamCreate",
            "cuStreamCreate",
            (*mut Handle, c_uint),
            (&raw mut stream, 1)
        )?;
        call!(
            cuda,
            "cuStreamBeginCapture",
            "cuStreamBeginCapture_v2",
            (Handle, c_uint),
            (stream, 0)
        )?;
        for _ in 0..nodes {
            check(launch(kernel, blocks, 1, 1, 1, 1, 1, 0, stream, null, null.cast()))?;
        }
        call!(
            cuda,
            "cuStreamEndCapture",
            "cuStreamEndCapture",
            (Handle, *mut Handle),
            (stream, &raw mut graph)
        )?;
        call!(
            cuda,
            "cuGraphInstantiateWithFlags",
            "cuGraphInstantiateWithFlags",
            (*mut Handle, Handle, u64),
            (&raw mut exec, graph, 0)
        )?;
        Ok((exec, stream))
    }
}
