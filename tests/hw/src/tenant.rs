//! Programs of the bundle, which lie beside this one, and how a tenant of CUDA is run.

use std::{env, path::Path, path::PathBuf, process::Command};

use accelpool_cuda_engine::suite::Tenant;
use anyhow::{Context as _, bail};

/// A tenant that loads `libcuda`.
pub(crate) fn start(libcuda: &Path) -> anyhow::Result<Tenant> {
    Tenant::try_spawn(with_libcuda(&mut Command::new(beside("cuda-tenant")?), libcuda))
}

/// Has it load that library; a bare name is for the loader to find.
pub(crate) fn with_libcuda<'a>(command: &'a mut Command, libcuda: &Path) -> &'a mut Command {
    if let Some(folder) = libcuda.parent().filter(|folder| folder.is_absolute()) {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command
}

/// A program of the bundle.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let me = env::current_exe()?;
    let path = me.parent().context("this program lies in no folder")?.join(name);
    if !path.exists() {
        bail!("`{}` is missing: copy the whole folder", path.display());
    }
    Ok(path)
}
