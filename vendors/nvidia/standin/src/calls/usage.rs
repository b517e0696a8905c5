//! Calls about the processes on a device.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{device::version, on_gpu, put_list};
use crate::{
    abi::{
        ARGUMENT_VERSION_MISMATCH, AccountingStats, Code, Handle, NOT_FOUND, NOT_SUPPORTED, Out,
        ProcessInfo, UtilizationInfo, UtilizationInfos, UtilizationSample,
    },
    machine::{Accounting, Gpu, ProcessKind, Utilization},
    settings,
};

fn processes(
    symbol: &'static str,
    device: Handle,
    kind: ProcessKind,
    count: &Out<u32>,
    at: &Out<ProcessInfo>,
) -> Code {
    on_gpu(symbol, device, |call, gpu| {
        let of_kind = gpu.processes.iter().filter(|process| process.kind == kind);
        let entries: Vec<ProcessInfo> = of_kind
            .map(|process| ProcessInfo {
                pid: process.pid,
                used_memory: process.memory_mib.map_or(u64::MAX, |mib| mib << 20),
                gpu_instance: process.gpu_instance.unwrap_or(u32::MAX),
                compute_instance: process.compute_instance.unwrap_or(u32::MAX),
            })
            .collect();
        put_list(call, &entries, count, at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: Out<u32>,
    at: Out<ProcessInfo>,
) -> Code {
    let symbol = "nvmlDeviceGetComputeRunningProcesses_v3";
    processes(symbol, device, ProcessKind::Compute, &count, &at)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: Handle,
    count: Out<u32>,
    at: Out<ProcessInfo>,
) -> Code {
    let symbol = "nvmlDeviceGetComputeRunningProcesses_v2";
    processes(symbol, device, ProcessKind::Compute, &count, &at)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Handle,
    count: Out<u32>,
    at: Out<ProcessInfo>,
) -> Code {
    let symbol = "nvmlDeviceGetGraphicsRunningProcesses_v3";
    processes(symbol, device, ProcessKind::Graphics, &count, &at)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: Handle,
    count: Out<u32>,
    at: Out<ProcessInfo>,
) -> Code {
    let symbol = "nvmlDeviceGetMPSComputeRunningProcesses_v3";
    processes(symbol, device, ProcessKind::Mps, &count, &at)
}

/// Each process has one sample, stamped now.
fn measured(gpu: &Gpu) -> Result<(u64, &[Utilization]), Code> {
    if crate::partition::mode(gpu)?.is_some_and(|(now, _)| now) {
        return Err(NOT_SUPPORTED);
    }
    if gpu.utilization.is_empty() {
        return Err(NOT_FOUND);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((u64::try_from(now.as_micros()).unwrap_or(u64::MAX), &gpu.utilization))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetProcessUtilization(
    device: Handle,
    at: Out<UtilizationSample>,
    count: Out<u32>,
    _since: u64,
) -> Code {
    on_gpu("nvmlDeviceGetProcessUtilization", device, |call, gpu| {
        let (timestamp, processes) = measured(gpu)?;
        let of = |it: &Utilization| UtilizationSample {
            pid: it.pid,
            timestamp,
            sm: it.percent,
            memory: it.memory,
            encoder: it.encoder,
            decoder: it.decoder,
        };
        put_list(call, &processes.iter().map(of).collect::<Vec<_>>(), &count, &at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetProcessesUtilizationInfo(
    device: Handle,
    at: Out<UtilizationInfos>,
) -> Code {
    on_gpu("nvmlDeviceGetProcessesUtilizationInfo", device, |call, gpu| {
        let mut infos = at.get()?;
        if infos.version != version::<UtilizationInfos>(1) {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let (timestamp, processes) = measured(gpu)?;
        let of = |it: &Utilization| UtilizationInfo {
            timestamp,
            pid: it.pid,
            sm: it.percent,
            memory: it.memory,
            encoder: it.encoder,
            decoder: it.decoder,
            jpeg: it.jpeg,
            optical_flow: it.optical_flow,
        };
        let entries: Vec<UtilizationInfo> = processes.iter().map(of).collect();
        let mut count = infos.count;
        let put = put_list(call, &entries, &Out::at(&raw mut count), &Out::at(infos.entries));
        infos.count = count;
        at.put(infos)?;
        put
    })
}

/// What the driver remembers of processes, while it is set to.
fn kept(gpu: &Gpu) -> Result<&[Accounting], Code> {
    if !settings::of(gpu)?.accounting {
        return Err(NOT_SUPPORTED);
    }
    Ok(gpu.accounting.as_deref().unwrap_or_default())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAccountingPids(device: Handle, count: Out<u32>, at: Out<u32>) -> Code {
    on_gpu("nvmlDeviceGetAccountingPids", device, |call, gpu| {
        let kept = kept(gpu)?;
        put_list(call, &kept.iter().map(|it| it.pid).collect::<Vec<_>>(), &count, &at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAccountingStats(
    device: Handle,
    pid: u32,
    stats: Out<AccountingStats>,
) -> Code {
    on_gpu("nvmlDeviceGetAccountingStats", device, |_, gpu| {
        let kept = kept(gpu)?.iter().find(|it| it.pid == pid).ok_or(NOT_FOUND)?;
        stats.put(AccountingStats {
            gpu_utilization: kept.percent,
            memory_utilization: 0,
            memory_max: 0,
            time: kept.lived_ms,
            start: kept.start_us,
            running: kept.running.into(),
            reserved: [0; 5],
        })
    })
}
