//! What NVML says of one device and its processes at a moment.
//!
//! The library is loaded in a process of its own, which is killed when it does not answer.

use std::{
    env,
    io::Read as _,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use accelpool_model::DeviceUuid;
use accelpool_vendor_api::Vendor as _;
use anyhow::{Context as _, bail};
use clap::Args;
use nix::sys::{prctl, signal::Signal};
use serde::{Deserialize, Serialize};

use crate::place::Place;

/// NVML answers in milliseconds, once its driver is awake.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,
    /// The device's identity.
    #[arg(long)]
    device: String,
    /// How long to watch who keeps it busy.
    #[arg(long, default_value_t = 0)]
    over_ms: u64,
}

/// A process that uses the device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Using {
    pub(crate) pid: u32,
    pub(crate) memory_bytes: u64,
    /// Microseconds of the time watched; none if the library does not measure it.
    pub(crate) busy_us: Option<u64>,
}

/// One look at a device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Look {
    pub(crate) processes: Vec<Using>,
    /// Clocks, temperature, power, what slows it down: for a table.
    pub(crate) figures: Vec<(String, String)>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (vendor, device) = (options.place.vendor(), options.device.parse::<DeviceUuid>()?);
    vendor.discover()?;
    let mut samples = vendor.sample(&device)?;
    if options.over_ms > 0 {
        thread::sleep(Duration::from_millis(options.over_ms));
        samples = vendor.sample(&device)?;
    }
    let using = |sample: &accelpool_model::Sample| Using {
        pid: sample.pid,
        memory_bytes: sample.memory.bytes(),
        busy_us: sample.compute_busy.and_then(|busy| busy.as_micros().try_into().ok()),
    };
    let counters = vendor.counters(&device)?;
    let mut figures = Vec::new();
    for (clock, hertz) in &counters.clocks {
        figures.push((format!("{clock} MHz"), (hertz / 1_000_000).to_string()));
    }
    for (sensor, millis) in &counters.temperatures {
        figures.push((format!("{sensor} C"), (millis / 1000).to_string()));
    }
    if let Some(power) = counters.power_milliwatts {
        figures.push(("W".to_owned(), (power / 1000).to_string()));
    }
    let active = counters.throttles.iter().filter(|(_, it)| it.active == Some(true));
    let active: Vec<&str> = active.map(|(reason, _)| reason.as_str()).collect();
    figures.push(("slowed by".to_owned(), active.join(" ")));
    let look = Look { processes: samples.iter().map(using).collect(), figures };
    println!("{}", serde_json::to_string(&look)?);
    Ok(ExitCode::SUCCESS)
}

struct Sampling(Child);

impl Drop for Sampling {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks at a device, and for how long its processes keep it busy.
pub(crate) fn take(place: &Place, device: &str, over: Duration) -> anyhow::Result<Look> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("sample").args(place.arguments()).arg("--device").arg(device);
    command.arg("--over-ms").arg(over.as_millis().to_string());
    let mut child = Sampling(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let until = Instant::now() + PATIENCE + over;
    let status = loop {
        match child.0.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > until => bail!("NVML does not answer in {PATIENCE:?}"),
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::new();
    child.0.stdout.take().context("it has an output")?.read_to_string(&mut text)?;
    if !status.success() {
        bail!("NVML cannot be asked: {status}");
    }
    // A library may print too.
    let line = text.lines().next_back().unwrap_or_default();
    Ok(serde_json::from_str(line)?)
}
