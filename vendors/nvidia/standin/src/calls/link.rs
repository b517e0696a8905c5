//! Calls about NVLink.

use super::{call, on_gpu};
use crate::abi::{Code, Handle, INVALID_ARGUMENT, Out, PciInfo};

/// `NVML_NVLINK_DEVICE_TYPE_GPU` and `..._SWITCH`.
const GPU: u32 = 0;
const SWITCH: u32 = 2;

/// `NVML_P2P_CAPS_INDEX_NVLINK`.
const NVLINK: u32 = 2;

/// `NVML_P2P_STATUS_OK` and `NVML_P2P_STATUS_NOT_SUPPORTED`.
const P2P_OK: u32 = 0;
const P2P_NOT_SUPPORTED: u32 = 5;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkState(device: Handle, link: u32, state: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetNvLinkState", device, |_, gpu| {
        state.put((!gpu.link(link).ok_or(INVALID_ARGUMENT)?.down).into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkVersion(device: Handle, link: u32, version: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetNvLinkVersion", device, |_, gpu| {
        version.put(gpu.link(link).ok_or(INVALID_ARGUMENT)?.version)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: Handle,
    link: u32,
    kind: Out<u32>,
) -> Code {
    on_gpu("nvmlDeviceGetNvLinkRemoteDeviceType", device, |_, gpu| {
        let end = &gpu.link(link).ok_or(INVALID_ARGUMENT)?.end;
        kind.put(if end.starts_with("switch") { SWITCH } else { GPU })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: Handle,
    link: u32,
    pci: Out<PciInfo>,
) -> Code {
    on_gpu("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, |call, gpu| {
        let end = &gpu.link(link).ok_or(INVALID_ARGUMENT)?.end;
        // A switch outside of the machine is at no address of its own.
        let end = end.strip_prefix("switch").map_or(end.as_str(), str::trim_start);
        let end = if end.is_empty() { "0000:00:00.0" } else { end }.to_uppercase();
        pci.put(PciInfo {
            bus_id_legacy: call.field(&end),
            domain: 0,
            bus: 0,
            device: 0,
            device_id: 0,
            subsystem_id: 0,
            bus_id: call.field(&format!("0000{end}")),
        })
    })
}

/// Two devices reach each other if the same kind of link is up at both.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetP2PStatus(
    first: Handle,
    second: Handle,
    index: u32,
    status: Out<u32>,
) -> Code {
    call("nvmlDeviceGetP2PStatus", |call| {
        if index != NVLINK {
            let of = |device| call.gpu(device).map(|gpu| gpu.peer_status);
            let worse = of(first)?.max(of(second)?);
            return status.put(if call.lies() { u32::MAX } else { worse });
        }
        let up = |device| {
            call.gpu(device).map(|gpu| {
                // A device that has not joined the fabric reaches nobody through a switch.
                let joined = gpu.fabric.as_ref().is_none_or(|fabric| fabric.state == 3);
                joined && gpu.links.iter().any(|links| !links.down)
            })
        };
        status.put(if up(first)? && up(second)? { P2P_OK } else { P2P_NOT_SUPPORTED })
    })
}
