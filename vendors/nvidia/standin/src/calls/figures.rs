//! Calls about what a device measures of itself.

use super::{Call, device::version, on_gpu};
use crate::{
    abi::{
        ARGUMENT_VERSION_MISMATCH, Code, FieldValue, Handle, INVALID_ARGUMENT, Memory, MemoryV2,
        NOT_SUPPORTED, Out, SUCCESS, Utilization,
    },
    machine::{Figures, Gpu},
};

/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const RECOVERY_ACTION: u32 = 230;

/// `NVML_VALUE_TYPE_UNSIGNED_INT` and `NVML_VALUE_TYPE_UNSIGNED_LONG_LONG`.
const UNSIGNED_INT: i32 = 1;
const UNSIGNED_LONG_LONG: i32 = 3;

/// A percentage that cannot be.
const LIE: u32 = 4711;

fn figures(call: &Call, gpu: &Gpu) -> Figures {
    call.machine.figures_of(gpu).cloned().unwrap_or_default()
}

/// Puts one figure, or says that it is not supported.
fn put(
    symbol: &'static str,
    device: Handle,
    at: &Out<u32>,
    figure: impl FnOnce(&Figures) -> Option<u32>,
) -> Code {
    on_gpu(symbol, device, |call, gpu| {
        let figure = figure(&figures(call, gpu)).ok_or(NOT_SUPPORTED)?;
        at.put(if call.lies() { LIE } else { figure })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(device: Handle, memory: Out<Memory>) -> Code {
    on_gpu("nvmlDeviceGetMemoryInfo", device, |call, gpu| {
        let Figures { memory_used_mib, memory_reserved_mib, .. } = figures(call, gpu);
        let (total, used) = (gpu.memory_mib << 20, (memory_used_mib + memory_reserved_mib) << 20);
        memory.put(Memory { total, free: total.saturating_sub(used), used })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: Out<MemoryV2>) -> Code {
    on_gpu("nvmlDeviceGetMemoryInfo_v2", device, |call, gpu| {
        let version = version::<MemoryV2>(2);
        if memory.get()?.version != version {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let Figures { memory_used_mib, memory_reserved_mib, .. } = figures(call, gpu);
        let (total, used) = (gpu.memory_mib << 20, memory_used_mib << 20);
        let reserved = memory_reserved_mib << 20;
        let free = total.saturating_sub(used + reserved);
        memory.put(MemoryV2 { version, total, reserved, free, used })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFieldValues(
    device: Handle,
    count: i32,
    values: Out<FieldValue>,
) -> Code {
    on_gpu("nvmlDeviceGetFieldValues", device, |call, gpu| {
        let count = usize::try_from(count).map_err(|_| INVALID_ARGUMENT)?;
        let answers: Vec<FieldValue> =
            values.get_all(count)?.into_iter().map(|asked| answer(call, gpu, asked)).collect();
        values.put_all(&answers)
    })
}

fn answer(call: &Call, gpu: &Gpu, asked: FieldValue) -> FieldValue {
    let FieldValue { field, scope, .. } = asked;
    let key = match scope {
        0 => field.to_string(),
        scope => format!("{field}@{}", scope.cast_signed()),
    };
    let value = match field {
        RECOVERY_ACTION => gpu.recovery_action.map(u64::from),
        _ => figures(call, gpu).fields.get(&key).copied(),
    };
    let Some(value) = value else { return FieldValue { code: NOT_SUPPORTED, ..asked } };
    let value_type = match value {
        _ if call.lies() => 77,
        value if u32::try_from(value).is_ok() => UNSIGNED_INT,
        _ => UNSIGNED_LONG_LONG,
    };
    FieldValue { value_type, code: SUCCESS, value, ..asked }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(device: Handle, at: Out<Utilization>) -> Code {
    on_gpu("nvmlDeviceGetUtilizationRates", device, |call, gpu| {
        if crate::partition::mode(gpu)?.is_some_and(|(now, _)| now) {
            return Err(NOT_SUPPORTED);
        }
        let (gpu, memory) = figures(call, gpu).utilization.ok_or(NOT_SUPPORTED)?;
        let gpu = if call.lies() { LIE } else { gpu };
        at.put(Utilization { gpu, memory })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEncoderUtilization(device: Handle, at: Out<u32>, _: Out<u32>) -> Code {
    put("nvmlDeviceGetEncoderUtilization", device, &at, |figures| figures.encoder)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDecoderUtilization(device: Handle, at: Out<u32>, _: Out<u32>) -> Code {
    put("nvmlDeviceGetDecoderUtilization", device, &at, |figures| figures.decoder)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetJpgUtilization(device: Handle, at: Out<u32>, _: Out<u32>) -> Code {
    put("nvmlDeviceGetJpgUtilization", device, &at, |figures| figures.jpeg)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetOfaUtilization(device: Handle, at: Out<u32>, _: Out<u32>) -> Code {
    put("nvmlDeviceGetOfaUtilization", device, &at, |figures| figures.optical_flow)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetClockInfo(device: Handle, clock: u32, at: Out<u32>) -> Code {
    put("nvmlDeviceGetClockInfo", device, &at, |figures| {
        figures.clocks.get(clock as usize).copied()
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(device: Handle, sensor: u32, at: Out<u32>) -> Code {
    put("nvmlDeviceGetTemperature", device, &at, |figures| {
        figures.temperature.filter(|_| sensor == 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: Handle, at: Out<u32>) -> Code {
    put("nvmlDeviceGetPowerUsage", device, &at, |figures| figures.power)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: Handle, at: Out<u32>) -> Code {
    put("nvmlDeviceGetEnforcedPowerLimit", device, &at, |figures| figures.power_limit)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(device: Handle, at: Out<u64>) -> Code {
    reasons("nvmlDeviceGetCurrentClocksEventReasons", device, &at)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(device: Handle, at: Out<u64>) -> Code {
    reasons("nvmlDeviceGetCurrentClocksThrottleReasons", device, &at)
}

fn reasons(symbol: &'static str, device: Handle, at: &Out<u64>) -> Code {
    on_gpu(symbol, device, |call, gpu| {
        at.put(figures(call, gpu).clock_reasons.ok_or(NOT_SUPPORTED)?)
    })
}
