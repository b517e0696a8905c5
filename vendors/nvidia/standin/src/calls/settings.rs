//! Calls about how the driver is set for a device. What was set outlives a process.

use super::on_gpu;
use crate::{
    abi::{Code, Handle, INVALID_ARGUMENT, NOT_SUPPORTED, Out},
    machine::Gpu,
    partition::Instances,
    settings::{self, Settings},
};

fn get(
    symbol: &'static str,
    device: Handle,
    at: &Out<u32>,
    read: impl FnOnce(&Settings) -> Option<u32>,
) -> Code {
    on_gpu(symbol, device, |call, gpu| {
        let found = read(&settings::of(gpu)?).ok_or(NOT_SUPPORTED)?;
        at.put(if call.lies() { 4711 } else { found })
    })
}

fn set(
    symbol: &'static str,
    device: Handle,
    change: impl FnOnce(&mut Settings) -> Result<(), Code>,
) -> Code {
    on_gpu(symbol, device, |_, gpu: &Gpu| {
        let lock = Instances::open()?;
        let mut settings = settings::of(gpu)?;
        change(&mut settings)?;
        if gpu.stubborn { Ok(()) } else { settings::put(&lock, gpu, settings) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeMode(device: Handle, mode: Out<u32>) -> Code {
    get("nvmlDeviceGetComputeMode", device, &mode, |it| Some(it.compute_mode))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetComputeMode(device: Handle, mode: u32) -> Code {
    set("nvmlDeviceSetComputeMode", device, |it| {
        if mode > 3 {
            return Err(INVALID_ARGUMENT);
        }
        it.compute_mode = mode;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPersistenceMode(device: Handle, mode: Out<u32>) -> Code {
    get("nvmlDeviceGetPersistenceMode", device, &mode, |it| it.persistence.map(u32::from))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetPersistenceMode(device: Handle, mode: u32) -> Code {
    set("nvmlDeviceSetPersistenceMode", device, |it| {
        *it.persistence.as_mut().ok_or(NOT_SUPPORTED)? = mode == 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAccountingMode(device: Handle, mode: Out<u32>) -> Code {
    get("nvmlDeviceGetAccountingMode", device, &mode, |it| Some(it.accounting.into()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetAccountingMode(device: Handle, mode: u32) -> Code {
    set("nvmlDeviceSetAccountingMode", device, |it| {
        it.accounting = mode == 1;
        Ok(())
    })
}
