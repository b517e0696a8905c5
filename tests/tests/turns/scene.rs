//! A daemon, a stand-in for the GPU behind one of its simulated devices, and tenants: programs of
//! the driver API that load the installed shim as containers do.

use std::{fs, path::Path, process::Command};

use accelpool_cuda_engine::{
    Engine,
    machine::{DeviceProfile, Machine},
    suite::{Tenant, standin},
};
use accelpool_proto::node::{self as wire, PrepareClaimRequest};
use accelpool_tests::{
    Client, Daemon, Home,
    requests::{claim, share},
    wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub(crate) const DEVICE: &str = "gpu-0000-1b-00-0";
pub(crate) const SECOND_DEVICE: &str = "gpu-0000-43-00-0";
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) struct Scene {
    pub(crate) home: Home,
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    pub(crate) engine: Engine,
    folder: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with_pool("", &[DEVICE])
    }

    /// One whose pool of all devices says `pool` as well, with these behind the driver.
    pub(crate) fn with_pool(pool: &str, devices: &[&str]) -> Self {
        Self::of(Home::with_turns_in("dgx-h100", pool), devices)
    }

    /// One of a home that is configured already.
    pub(crate) fn of(home: Home, devices: &[&str]) -> Self {
        let daemon = home.start();
        let client = daemon.client();
        let listed = client.devices().unwrap();
        let profile = |name: &&str| {
            let device = listed.iter().find(|device| device.name == **name).unwrap();
            DeviceProfile::new(&device.uuid)
        };
        let machine = Machine { devices: devices.iter().map(profile).collect() };
        let folder = tempfile::tempdir().unwrap();
        fs::copy(standin(), folder.path().join("libcuda.so.1")).unwrap();
        let engine = Engine::start(machine, &folder.path().join("engine.sock")).unwrap();
        Self { home, daemon, client, engine, folder }
    }

    /// Prepares a share of the device.
    pub(crate) fn share(&self, name: &str, gib: u64, permille: u32) -> wire::Lease {
        self.client.prepare(ask(name, gib, permille)).unwrap()
    }

    /// A tenant with the claim's folder and the installed shim, as CDI mounts them.
    pub(crate) fn tenant(&self, claim: &str) -> Tenant {
        self.tenant_on(claim, 0)
    }

    /// One that works on the device with this number.
    pub(crate) fn tenant_on(&self, claim: &str, ordinal: usize) -> Tenant {
        let mut tenant = self.tenant_unstarted(claim);
        tenant.must(&format!("start {ordinal}"));
        tenant
    }

    /// One that has not come to the driver yet.
    pub(crate) fn tenant_unstarted(&self, claim: &str) -> Tenant {
        let turns = self.client.turns().unwrap();
        let mut command = Command::new(accelpool_tests::tenant());
        command
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("LD_PRELOAD", &turns.shim)
            .env("ACCELPOOL_TURNS", Path::new(&turns.folder).join(claim))
            .env("ACCELPOOL_CUDA_STANDIN", self.engine.socket());
        Tenant::spawn(command)
    }

    /// What is told of a claim.
    pub(crate) fn turns_of(&self, claim: &str) -> Option<wire::ClaimTurns> {
        let devices = self.client.turns().unwrap().devices;
        let device = devices.into_iter().find(|device| device.device == DEVICE)?;
        device.claims.into_iter().find(|turns| turns.claim == claim)
    }

    /// Waits until what is told of a claim is so.
    pub(crate) fn until(
        &self,
        what: &str,
        claim: &str,
        is_so: impl Fn(&wire::ClaimTurns) -> bool,
    ) -> wire::ClaimTurns {
        wait_for(what, || self.turns_of(claim).filter(&is_so))
    }

    /// The daemon dies and another one comes.
    pub(crate) fn restart(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        kill(pid, Signal::SIGKILL).unwrap();
        self.daemon.wait();
        self.daemon = self.home.start();
        self.client = self.daemon.client();
    }
}

pub(crate) fn ask(name: &str, gib: u64, permille: u32) -> PrepareClaimRequest {
    claim(name, vec![share("gpu", DEVICE, gib * GIB, permille)])
}
