//! An engine, and tenants that are processes of their own and load the stand-in as `libcuda.so.1`.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::{fs, process::Command};

use accelpool_cuda_engine::{
    Engine,
    machine::Machine,
    suite::{Tenant, standin},
};
use tempfile::TempDir;

pub(crate) struct Node {
    dir: TempDir,
    pub(crate) engine: Engine,
}

impl Node {
    pub(crate) fn new(machine: Machine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(standin(), dir.path().join("libcuda.so.1")).unwrap();
        let engine = Engine::start(machine, &dir.path().join("engine.sock")).unwrap();
        Self { dir, engine }
    }

    pub(crate) fn tenant(&self) -> Tenant {
        self.tenant_with(&[])
    }

    pub(crate) fn tenant_with(&self, variables: &[(&str, &str)]) -> Tenant {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-tenant"));
        command.env("LD_LIBRARY_PATH", self.dir.path());
        command.env("ACCELPOOL_CUDA_STANDIN", self.engine.socket());
        command.envs(variables.iter().copied());
        let mut tenant = Tenant::spawn(command);
        assert_eq!(tenant.ask("start 0"), "ok");
        tenant
    }
}
