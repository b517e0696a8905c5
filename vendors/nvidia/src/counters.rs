//! What a device tells of itself.
//!
//! One call answers for all fields; what is no field has a call each. What a driver or a device
//! does not have is absent. Values that cannot be (a utilization of 300 %) are absent too: a
//! gap in a curve is told from a spike, a lie is not.

use std::{collections::BTreeMap, time::Duration};

use accelpool_model::{
    ClockDomain, DeviceCounters, DeviceUuid, Direction, Engine, ErrorKind, LinkKind, MemoryBytes,
    MemoryCounters, Sensor, Throttle, ThrottleReason,
};
use accelpool_vendor_api::VendorError;
use nvml_wrapper_sys::bindings::field_id as id;

use crate::sys::{CallError, Clock, Field, Gpu, Utilizer};

/// Links whose fields are asked for; boards of today have 18 (`NVML_NVLINK_MAX_LINKS` grew to
/// 36 for parts that are no board of their own).
const LINKS_MAX: u32 = 18;

/// Asks for the sum over all links.
const ALL_LINKS: u32 = u32::MAX;

/// Nanoseconds during which each reason held, and the reason's bit among those of the moment:
/// `nvmlClocksEventReason...`.
const REASONS: [(ThrottleReason, Option<u32>, Option<u64>); 8] = [
    (ThrottleReason::PowerCap, Some(id::NVML_FI_DEV_PERF_POLICY_POWER), Some(0x4)),
    (
        ThrottleReason::Thermal,
        Some(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN),
        Some(0x20),
    ),
    (
        ThrottleReason::HardwareThermal,
        Some(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN),
        Some(0x40),
    ),
    (
        ThrottleReason::PowerBrake,
        Some(id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN),
        Some(0x80),
    ),
    (ThrottleReason::HardwareSlowdown, None, Some(0x8)),
    (ThrottleReason::SyncBoost, Some(id::NVML_FI_DEV_PERF_POLICY_SYNC_BOOST), Some(0x10)),
    (ThrottleReason::BoardLimit, Some(id::NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT), None),
    (ThrottleReason::Reliability, Some(id::NVML_FI_DEV_PERF_POLICY_RELIABILITY), None),
];

/// Errors that have a field for the whole device. ECC errors are those of its life.
const ERRORS: [(ErrorKind, u32); 10] = [
    (ErrorKind::EccCorrected, id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL),
    (ErrorKind::EccUncorrected, id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL),
    (ErrorKind::PagesRetiredCorrected, id::NVML_FI_DEV_RETIRED_SBE),
    (ErrorKind::PagesRetiredUncorrected, id::NVML_FI_DEV_RETIRED_DBE),
    (ErrorKind::RowsRemappedCorrected, id::NVML_FI_DEV_REMAPPED_COR),
    (ErrorKind::RowsRemappedUncorrected, id::NVML_FI_DEV_REMAPPED_UNC),
    (ErrorKind::PcieReplay, id::NVML_FI_DEV_PCIE_REPLAY_COUNTER),
    (ErrorKind::LinkCrc, id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL),
    (ErrorKind::LinkReplay, id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL),
    (ErrorKind::LinkRecovery, id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL),
];

/// Errors that newer links count each on its own.
const LINK_ERRORS: [(ErrorKind, u32); 3] = [
    (ErrorKind::LinkCrc, id::NVML_FI_DEV_NVLINK_ERROR_DL_CRC),
    (ErrorKind::LinkReplay, id::NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY),
    (ErrorKind::LinkRecovery, id::NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY),
];

/// Bytes over links in each direction: KiB over all links, or bytes of each on newer ones.
const TRAFFIC: [(Direction, u32, u32, u32); 2] = [
    (
        Direction::Transmitted,
        id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
        id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        id::NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES,
    ),
    (
        Direction::Received,
        id::NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
        id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        id::NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES,
    ),
];

/// Fields of the whole device that stand in no table above.
const SINGLE: [u32; 7] = [
    id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    id::NVML_FI_DEV_MEMORY_TEMP,
    id::NVML_FI_DEV_RETIRED_PENDING,
    id::NVML_FI_DEV_REMAPPED_PENDING,
    id::NVML_FI_DEV_REMAPPED_FAILURE,
    id::NVML_FI_DEV_POWER_INSTANT,
    id::NVML_FI_DEV_POWER_CURRENT_LIMIT,
];

pub(crate) fn counters(gpu: Gpu<'_>, device: &DeviceUuid) -> Result<DeviceCounters, VendorError> {
    read(gpu).map_err(|error| error.about(device))
}

fn read(gpu: Gpu<'_>) -> Result<DeviceCounters, CallError> {
    let fields = Fields::read(gpu)?;
    let mut counters = DeviceCounters {
        memory: known(gpu.memory())?.map(|it| MemoryCounters {
            total: MemoryBytes::new(it.total),
            used: MemoryBytes::new(it.used.min(it.total)),
            free: MemoryBytes::new(it.free.min(it.total)),
            reserved: it.reserved.map(|reserved| MemoryBytes::new(reserved.min(it.total))),
        }),
        energy_millijoules: fields.of(id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
        retirement_pending: fields
            .any(&[id::NVML_FI_DEV_RETIRED_PENDING, id::NVML_FI_DEV_REMAPPED_PENDING]),
        retirement_failed: fields.any(&[id::NVML_FI_DEV_REMAPPED_FAILURE]),
        clocks: clocks(gpu)?,
        engines: engines(gpu)?,
        throttles: throttles(gpu, &fields)?,
        errors: errors(&fields),
        traffic: traffic(&fields),
        ..DeviceCounters::default()
    };
    counters.power_milliwatts = match fields.of(id::NVML_FI_DEV_POWER_INSTANT) {
        Some(power) => Some(power),
        None => known(gpu.power_milliwatts())?.map(u64::from),
    };
    counters.power_limit_milliwatts = match fields.of(id::NVML_FI_DEV_POWER_CURRENT_LIMIT) {
        Some(limit) => Some(limit),
        None => known(gpu.power_limit_milliwatts())?.map(u64::from),
    };
    let core = known(gpu.temperature())?.map(u64::from);
    let memory = fields.of(id::NVML_FI_DEV_MEMORY_TEMP);
    for (sensor, degrees) in [(Sensor::Core, core), (Sensor::Memory, memory)] {
        // Zero is what a sensor that is not there reads.
        if let Some(degrees) = degrees.filter(|degrees| (1..=1000).contains(degrees)) {
            counters.temperatures.insert(sensor, degrees.cast_signed() * 1000);
        }
    }
    Ok(counters)
}

/// What a call says; nothing where driver or device do not know.
///
/// Only a device that is lost, or a library that is of no use, ends it all.
fn known<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_lost() || error.is_unusable() => Err(error),
        Err(_) => Ok(None),
    }
}

/// The values of fields that the device has.
struct Fields(BTreeMap<Field, u64>);

impl Fields {
    fn read(gpu: Gpu<'_>) -> Result<Self, CallError> {
        let whole = SINGLE
            .into_iter()
            .chain(REASONS.iter().filter_map(|(_, field, _)| *field))
            .chain(ERRORS.iter().map(|(_, field)| *field))
            .chain(TRAFFIC.iter().map(|(_, pcie, ..)| *pcie))
            .map(|id| Field { id, scope: 0 });
        let all_links = TRAFFIC.iter().map(|(_, _, all, _)| Field { id: *all, scope: ALL_LINKS });
        let of_link = LINK_ERRORS
            .iter()
            .map(|(_, field)| *field)
            .chain(TRAFFIC.iter().map(|(.., each)| *each))
            .flat_map(|id| (0..LINKS_MAX).map(move |scope| Field { id, scope }));
        let fields: Vec<Field> = whole.chain(all_links).chain(of_link).collect();
        let Some(values) = known(gpu.fields(&fields))? else { return Ok(Self(BTreeMap::new())) };
        let mut has = BTreeMap::new();
        for (field, value) in fields.into_iter().zip(values) {
            if let Some(value) = known(value)? {
                has.insert(field, value);
            }
        }
        Ok(Self(has))
    }

    /// A field of the whole device.
    fn of(&self, id: u32) -> Option<u64> {
        self.0.get(&Field { id, scope: 0 }).copied()
    }

    /// Whether any of these is set; nothing where the device has none.
    fn any(&self, ids: &[u32]) -> Option<bool> {
        let values = ids.iter().filter_map(|id| self.of(*id));
        values.map(|value| value != 0).reduce(|a, b| a || b)
    }

    /// The sum over the links that have the field.
    fn of_links(&self, id: u32) -> Option<u64> {
        let values = (0..LINKS_MAX).filter_map(|scope| self.0.get(&Field { id, scope }));
        values.copied().reduce(u64::saturating_add)
    }
}

fn clocks(gpu: Gpu<'_>) -> Result<BTreeMap<ClockDomain, u64>, CallError> {
    let domains = [
        (ClockDomain::Graphics, Clock::Graphics),
        (ClockDomain::Compute, Clock::Multiprocessors),
        (ClockDomain::Memory, Clock::Memory),
        (ClockDomain::Video, Clock::Video),
    ];
    let mut clocks = BTreeMap::new();
    for (domain, clock) in domains {
        if let Some(mhz) = known(gpu.clock_mhz(clock))? {
            clocks.insert(domain, u64::from(mhz) * 1_000_000);
        }
    }
    Ok(clocks)
}

fn engines(gpu: Gpu<'_>) -> Result<BTreeMap<Engine, u16>, CallError> {
    let rates = known(gpu.utilization_rates())?;
    let mut percents = vec![
        (Engine::Compute, rates.map(|(compute, _)| compute)),
        (Engine::MemoryInterface, rates.map(|(_, memory)| memory)),
    ];
    for (engine, utilizer) in [
        (Engine::Encoder, Utilizer::Encoder),
        (Engine::Decoder, Utilizer::Decoder),
        (Engine::Jpeg, Utilizer::Jpeg),
        (Engine::OpticalFlow, Utilizer::OpticalFlow),
    ] {
        percents.push((engine, known(gpu.engine_utilization(utilizer))?));
    }
    let possible = percents.into_iter().filter_map(|(engine, percent)| {
        let percent = u16::try_from(percent?).ok().filter(|percent| *percent <= 100)?;
        Some((engine, percent * 10))
    });
    Ok(possible.collect())
}

fn throttles(
    gpu: Gpu<'_>,
    fields: &Fields,
) -> Result<BTreeMap<ThrottleReason, Throttle>, CallError> {
    let bits = known(gpu.clock_reasons())?;
    let told = |(reason, field, bit): &(ThrottleReason, Option<u32>, Option<u64>)| {
        let active = bits.zip(*bit).map(|(bits, bit)| bits & bit != 0);
        let accumulated = field.and_then(|field| fields.of(field)).map(Duration::from_nanos);
        let known = active.is_some() || accumulated.is_some();
        known.then_some((*reason, Throttle { active, accumulated }))
    };
    Ok(REASONS.iter().filter_map(told).collect())
}

fn errors(fields: &Fields) -> BTreeMap<ErrorKind, u64> {
    let whole = ERRORS.iter().filter_map(|(kind, field)| Some((*kind, fields.of(*field)?)));
    let mut errors: BTreeMap<ErrorKind, u64> = whole.collect();
    for (kind, field) in LINK_ERRORS {
        // Where links count on their own, the total of older drivers stays zero.
        if let Some(count) = fields.of_links(field) {
            let known = errors.entry(kind).or_default();
            *known = count.max(*known);
        }
    }
    errors
}

fn traffic(fields: &Fields) -> BTreeMap<(LinkKind, Direction), u64> {
    let mut traffic = BTreeMap::new();
    for (direction, pcie, all, each) in TRAFFIC {
        if let Some(bytes) = fields.of(pcie) {
            traffic.insert((LinkKind::Pcie, direction), bytes);
        }
        let kibibytes = fields.0.get(&Field { id: all, scope: ALL_LINKS });
        let bytes = kibibytes.map(|kibibytes| kibibytes.saturating_mul(1024));
        if let Some(bytes) = fields.of_links(each).or(bytes) {
            traffic.insert((LinkKind::NvLink, direction), bytes);
        }
    }
    traffic
}
