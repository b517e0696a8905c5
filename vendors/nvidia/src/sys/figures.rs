//! Calls about what a device measures of itself.
//!
//! Most of it is fields, of which one call answers for many.

use std::ffi::{c_int, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlReturn_t,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU, nvmlUtilization_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE, nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
};

use super::{CallError, Gpu, Plain, check, found, get, get_at, struct_version, zeroed};

// SAFETY: structures of numbers alone.
unsafe impl Plain for nvmlMemory_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlMemory_v2_t {}
// SAFETY: as above.
unsafe impl Plain for nvmlUtilization_t {}
// SAFETY: it ends in a union of numbers.
unsafe impl Plain for nvmlFieldValue_t {}

const FIELDS: &str = "nvmlDeviceGetFieldValues";

/// One of `NVML_FI_...`, and which link or domain it is asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Field {
    pub(crate) id: u32,
    pub(crate) scope: u32,
}

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) used: u64,
    pub(crate) free: u64,
    /// Absent where the driver counts it as used.
    pub(crate) reserved: Option<u64>,
}

/// `nvmlClockType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Graphics = 0,
    Multiprocessors = 1,
    Memory = 2,
    Video = 3,
}

/// Engines whose utilization has a call of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Utilizer {
    Encoder,
    Decoder,
    Jpeg,
    OpticalFlow,
}

type Utilization = unsafe extern "C" fn(nvmlDevice_t, *mut c_uint, *mut c_uint) -> nvmlReturn_t;

impl Gpu<'_> {
    pub(crate) fn memory(self) -> Result<Memory, CallError> {
        let raw = self.nvml.raw();
        if raw.nvmlDeviceGetMemoryInfo_v2.is_ok() {
            let version = struct_version::<nvmlMemory_v2_t>(2);
            let asked = nvmlMemory_v2_t { version, ..zeroed() };
            let (call, symbol) = ("nvmlDeviceGetMemoryInfo_v2", &raw.nvmlDeviceGetMemoryInfo_v2);
            // SAFETY: the handle is live; the call writes one structure of the version named.
            match unsafe { get(call, symbol, self.handle, asked) } {
                Err(error) if error.is_unsupported() => {}
                answer => {
                    let nvmlMemory_v2_t { total, used, free, reserved, .. } = answer?;
                    return Ok(Memory { total, used, free, reserved: Some(reserved) });
                }
            }
        }
        let (call, symbol) = ("nvmlDeviceGetMemoryInfo", &raw.nvmlDeviceGetMemoryInfo);
        // SAFETY: the handle is live; the call writes one structure.
        let memory = unsafe { get(call, symbol, self.handle, zeroed::<nvmlMemory_t>()) }?;
        let nvmlMemory_t { total, used, free } = memory;
        Ok(Memory { total, used, free, reserved: None })
    }

    /// The values of fields, in their order: one call for all.
    ///
    /// A field that the driver or the device does not have fails alone.
    pub(crate) fn fields(self, fields: &[Field]) -> Result<Vec<Result<u64, CallError>>, CallError> {
        let function = found(FIELDS, &self.nvml.raw().nvmlDeviceGetFieldValues)?;
        let ask = |field: &Field| nvmlFieldValue_t {
            fieldId: field.id,
            scopeId: field.scope,
            ..zeroed()
        };
        let mut values: Vec<nvmlFieldValue_t> = fields.iter().map(ask).collect();
        let count = c_int::try_from(values.len()).expect("a few hundred fields exist");
        // SAFETY: the handle is live; there is room for as many values as are asked for.
        check(FIELDS, unsafe { function(self.handle, count, values.as_mut_ptr()) })?;
        Ok(values.iter().map(field_value).collect())
    }

    /// How busy its multiprocessors and its memory were lately, in percent.
    pub(crate) fn utilization_rates(self) -> Result<(u32, u32), CallError> {
        let call = "nvmlDeviceGetUtilizationRates";
        let symbol = &self.nvml.raw().nvmlDeviceGetUtilizationRates;
        // SAFETY: the handle is live; the call writes one structure.
        let rates = unsafe { get(call, symbol, self.handle, zeroed::<nvmlUtilization_t>()) }?;
        Ok((rates.gpu, rates.memory))
    }

    /// How busy an engine was lately, in percent.
    pub(crate) fn engine_utilization(self, engine: Utilizer) -> Result<u32, CallError> {
        let raw = self.nvml.raw();
        let (call, symbol): (_, &Result<Utilization, _>) = match engine {
            Utilizer::Encoder => {
                ("nvmlDeviceGetEncoderUtilization", &raw.nvmlDeviceGetEncoderUtilization)
            }
            Utilizer::Decoder => {
                ("nvmlDeviceGetDecoderUtilization", &raw.nvmlDeviceGetDecoderUtilization)
            }
            Utilizer::Jpeg => ("nvmlDeviceGetJpgUtilization", &raw.nvmlDeviceGetJpgUtilization),
            Utilizer::OpticalFlow => {
                ("nvmlDeviceGetOfaUtilization", &raw.nvmlDeviceGetOfaUtilization)
            }
        };
        let function = found(call, symbol)?;
        let (mut percent, mut period_us) = (0, 0);
        // SAFETY: the handle is live; the two numbers outlive the call.
        check(call, unsafe { function(self.handle, &raw mut percent, &raw mut period_us) })?;
        Ok(percent)
    }

    /// A clock as it runs now, in MHz.
    pub(crate) fn clock_mhz(self, clock: Clock) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetClockInfo;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get_at("nvmlDeviceGetClockInfo", symbol, self.handle, clock as u32, 0) }
    }

    /// The temperature of the chip, in degrees Celsius.
    pub(crate) fn temperature(self) -> Result<u32, CallError> {
        let (call, symbol) =
            ("nvmlDeviceGetTemperature", &self.nvml.raw().nvmlDeviceGetTemperature);
        let sensor = nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get_at(call, symbol, self.handle, sensor, 0) }
    }

    pub(crate) fn power_milliwatts(self) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetPowerUsage;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get("nvmlDeviceGetPowerUsage", symbol, self.handle, 0) }
    }

    pub(crate) fn power_limit_milliwatts(self) -> Result<u32, CallError> {
        let symbol = &self.nvml.raw().nvmlDeviceGetEnforcedPowerLimit;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get("nvmlDeviceGetEnforcedPowerLimit", symbol, self.handle, 0) }
    }

    /// Why its clocks are what they are, in bits: `nvmlClocksEventReason...`.
    pub(crate) fn clock_reasons(self) -> Result<u64, CallError> {
        let raw = self.nvml.raw();
        // The call was renamed with driver 535; the old name is still there.
        if raw.nvmlDeviceGetCurrentClocksEventReasons.is_ok() {
            let call = "nvmlDeviceGetCurrentClocksEventReasons";
            let symbol = &raw.nvmlDeviceGetCurrentClocksEventReasons;
            // SAFETY: the handle is live; the call writes one number.
            return unsafe { get(call, symbol, self.handle, 0) };
        }
        let call = "nvmlDeviceGetCurrentClocksThrottleReasons";
        let symbol = &raw.nvmlDeviceGetCurrentClocksThrottleReasons;
        // SAFETY: the handle is live; the call writes one number.
        unsafe { get(call, symbol, self.handle, 0) }
    }
}

/// The number in a field, which comes in several types.
fn field_value(value: &nvmlFieldValue_t) -> Result<u64, CallError> {
    check(FIELDS, value.nvmlReturn)?;
    let nonsense = |detail: String| Err(CallError::Nonsense { call: FIELDS, detail });
    // SAFETY: every member of the union is a number, and all its bytes were set: by `zeroed`,
    // then by the library.
    let (unsigned, signed, long, double) =
        unsafe { (value.value.uiVal, value.value.siVal, value.value.ullVal, value.value.dVal) };
    #[expect(non_upper_case_globals, reason = "the binding's names of C constants")]
    match value.valueType {
        nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => Ok(unsigned.into()),
        nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT if signed >= 0 => {
            Ok(signed.unsigned_abs().into())
        }
        nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG
        | nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => Ok(long),
        nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE => {
            nonsense(format!("field {} has the fraction {double}", value.fieldId))
        }
        other => nonsense(format!("field {} has a value of type {other}", value.fieldId)),
    }
}
