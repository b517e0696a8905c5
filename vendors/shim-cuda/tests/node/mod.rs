//! A device of the engine, a claim on it, and tenants that load the shim before the stand-in.
//!
//! The claim's daemon is a few lines of this file on the real pages and the real socket: it
//! registers, and does with gate and heartbeat what a test says.
#![allow(dead_code, reason = "each suite uses a part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod keeper;
pub(crate) mod programs;
pub(crate) mod whole;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use accelpool_cuda_engine::{
    Engine,
    machine::{DeviceProfile, Machine},
    suite::standin,
};
use tempfile::TempDir;

pub(crate) use self::keeper::Keeper;
pub(crate) use accelpool_cuda_engine::suite::Tenant;

/// What is reached only by a defect; everything else comes as soon as it comes.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) engine: Engine,
    pub(crate) machine: Machine,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Machine::default())
    }

    pub(crate) fn with(machine: Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(standin(), dir.path().join("libcuda.so.1")).unwrap();
        let engine = Engine::start(machine.clone(), &dir.path().join("engine.sock")).unwrap();
        Self { dir, engine, machine }
    }

    /// A claim on all devices, with so many bytes on each and so many for a context.
    pub(crate) fn claim(&self, name: &str, quota: u64, reserve: u64) -> Keeper {
        let uuids: Vec<_> = self.machine.devices.iter().map(DeviceProfile::uuid_bytes).collect();
        Keeper::new(&self.dir.path().join(name), &uuids, quota, reserve)
    }

    /// A command that runs with the shim, in the claim.
    pub(crate) fn command(&self, program: &Path, keeper: &Keeper) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.dir.path());
        command.env("ACCELPOOL_CUDA_STANDIN", self.engine.socket());
        command.env("LD_PRELOAD", accelpool_shim_cuda::BUILT_AT);
        command.env("ACCELPOOL_TURNS", keeper.folder());
        command
    }

    /// A command that finds the drop-in in the place of the driver, in the claim.
    pub(crate) fn drop_in(&self, program: &Path, keeper: &Keeper) -> Command {
        let folder = Path::new(accelpool_shim_cuda::DROP_IN_BUILT_AT).parent().unwrap();
        let mut command = self.command(program, keeper);
        command.env_remove("LD_PRELOAD");
        // The driver's folder too, for what else lies there.
        let path = format!("{}:{}", folder.display(), self.dir.path().display());
        command.env("LD_LIBRARY_PATH", path);
        command.env("ACCELPOOL_CUDA_DRIVER", self.dir.path().join("libcuda.so.1"));
        command
    }

    pub(crate) fn tenant(&self, keeper: &Keeper) -> Tenant {
        self.tenant_with(keeper, &[])
    }

    pub(crate) fn tenant_with(&self, keeper: &Keeper, variables: &[(&str, &str)]) -> Tenant {
        let mut command = self.command(tenant_program(), keeper);
        command.envs(variables.iter().copied());
        Tenant::spawn(command)
    }

    pub(crate) fn started(&self, keeper: &Keeper) -> Tenant {
        let mut tenant = self.tenant(keeper);
        tenant.must("start 0");
        tenant
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The tenant of the stand-in's own suites, a program of the driver API that knows no shim.
pub(crate) fn tenant_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "-p", "accelpool-cuda-standin", "--bin", "cuda-tenant"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "cargo builds the tenant");
        let test = env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("cuda-tenant")
    })
}
