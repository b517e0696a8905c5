//! Calls about what a device is.

use std::ffi::{c_char, c_ulong};

use super::{call, mig, on_gpu};
use crate::{
    abi::{
        ARGUMENT_VERSION_MISMATCH, Code, FabricInfo, FabricInfoV3, Handle, INSUFFICIENT_SIZE,
        INVALID_ARGUMENT, NOT_SUPPORTED, Out, PciInfo, SUCCESS,
    },
    machine::RowRemap,
};

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: Handle, uuid: Out<c_char>, len: u32) -> Code {
    const SYMBOL: &str = "nvmlDeviceGetUUID";
    if let Some(part) = mig::mig_device(device) {
        return call(SYMBOL, |call| call.put_text(&uuid, len, &part.uuid(call)?));
    }
    on_gpu(SYMBOL, device, |call, gpu| call.put_text(&uuid, len, &gpu.uuid))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: Handle, name: Out<c_char>, len: u32) -> Code {
    on_gpu("nvmlDeviceGetName", device, |call, gpu| call.put_text(&name, len, &gpu.name))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v3(device: Handle, pci: Out<PciInfo>) -> Code {
    on_gpu("nvmlDeviceGetPciInfo_v3", device, |call, gpu| {
        pci.put(PciInfo {
            bus_id_legacy: call.field(&gpu.pci.to_uppercase()),
            domain: 0,
            bus: 0,
            device: 0,
            device_id: 0x2330_10de,
            subsystem_id: 0,
            bus_id: call.field(&format!("0000{}", gpu.pci.to_uppercase())),
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(device: Handle, minor: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetMinorNumber", device, |_, gpu| minor.put(gpu.minor))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetArchitecture(device: Handle, architecture: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetArchitecture", device, |_, gpu| architecture.put(gpu.architecture))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: Handle,
    len: u32,
    nodes: Out<c_ulong>,
    _scope: u32,
) -> Code {
    on_gpu("nvmlDeviceGetMemoryAffinity", device, |_, gpu| {
        let node = gpu.numa_node.ok_or(NOT_SUPPORTED)?;
        let mut words = vec![0; len as usize];
        let word = words.get_mut((node / c_ulong::BITS) as usize);
        *word.ok_or(INSUFFICIENT_SIZE)? = 1 << (node % c_ulong::BITS);
        nodes.put_all(&words)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Handle,
    major: Out<i32>,
    minor: Out<i32>,
) -> Code {
    on_gpu("nvmlDeviceGetCudaComputeCapability", device, |call, gpu| {
        let (of_major, of_minor) = gpu.compute_capability.ok_or(NOT_SUPPORTED)?;
        major.put(if call.lies() { i32::MIN } else { of_major })?;
        minor.put(of_minor)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuFabricInfo(device: Handle, fabric: Out<FabricInfo>) -> Code {
    on_gpu("nvmlDeviceGetGpuFabricInfo", device, |_, gpu| {
        let known = gpu.fabric.as_ref().ok_or(NOT_SUPPORTED)?;
        let (cluster, clique, state) = (cluster(&known.cluster)?, known.clique, known.state);
        fabric.put(FabricInfo { cluster, status: SUCCESS, clique, state })
    })
}

/// Version 3 is told first; the machine makes it a driver of version 2 by the error
/// `nvmlDeviceGetGpuFabricInfoV@3`.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuFabricInfoV(device: Handle, fabric: Out<FabricInfoV3>) -> Code {
    on_gpu("nvmlDeviceGetGpuFabricInfoV", device, |call, gpu| {
        let asked = fabric.get()?;
        let third = asked.version == version::<FabricInfoV3>(3);
        if let Some(code) =
            call.machine.errors.get("nvmlDeviceGetGpuFabricInfoV@3").filter(|_| third)
        {
            return Err(*code);
        }
        // Version 2 ends before the summary, and with its padding before four bytes of it.
        let size = u32::try_from(size_of::<FabricInfoV3>() - 4).unwrap_or(0);
        if !third && asked.version != size | 2 << 24 {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let known = gpu.fabric.as_ref().ok_or(NOT_SUPPORTED)?;
        fabric.put(FabricInfoV3 {
            cluster: cluster(&known.cluster)?,
            status: SUCCESS,
            clique: known.clique,
            state: known.state,
            health_mask: known.health,
            ..asked
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRemappedRows(
    device: Handle,
    correctable: Out<u32>,
    uncorrectable: Out<u32>,
    pending: Out<u32>,
    failed: Out<u32>,
) -> Code {
    on_gpu("nvmlDeviceGetRemappedRows", device, |_, gpu| {
        correctable.put(0)?;
        uncorrectable.put(0)?;
        pending.put((gpu.row_remap == Some(RowRemap::Pending)).into())?;
        failed.put((gpu.row_remap == Some(RowRemap::Failed)).into())
    })
}

/// `NVML_STRUCT_VERSION`.
pub(super) fn version<T>(version: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | version << 24
}

fn cluster(digits: &str) -> Result<[u8; 16], Code> {
    let number = u128::from_str_radix(digits, 16).map_err(|_| INVALID_ARGUMENT)?;
    Ok(number.to_be_bytes())
}
