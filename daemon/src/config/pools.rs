//! Pools: as written, and as valid.

use std::collections::BTreeSet;

use accelpool_model::{
    ComputeMode, ComputeRule, DeviceName, Exposure, GateMode, OnStaleHolder, OnViolation, Pool,
    PoolName, Selector, Settings, Sharing, UnknownComputeMode,
};

use super::{ConfigError, raw::RawPool, shorten, value};

pub(super) fn check_pools(raw: Vec<RawPool>) -> Result<Vec<Pool>, ConfigError> {
    if raw.is_empty() {
        return Ok(vec![Pool {
            name: "default".parse().expect("it is a DNS label"),
            selector: Selector::default(),
            exposure: Exposure::default(),
            sharing: Sharing::default(),
            gate: GateMode::default(),
            on_stale_holder: OnStaleHolder::default(),
            compute: ComputeRule::default(),
            host_memory: None,
            on_violation: OnViolation::default(),
            switch_mode: false,
            mps: false,
            settings: Settings::default(),
            align_cpus: false,
        }]);
    }
    let mut names: BTreeSet<PoolName> = BTreeSet::new();
    let mut pools = Vec::new();
    for (index, pool) in raw.into_iter().enumerate() {
        let pool = check_pool(index, pool)?;
        if !names.insert(pool.name.clone()) {
            let name = pool.name.to_string();
            return Err(ConfigError::Duplicate { key: "pool.name", name });
        }
        pools.push(pool);
    }
    Ok(pools)
}

fn check_pool(index: usize, raw: RawPool) -> Result<Pool, ConfigError> {
    let key = |field: &str| format!("pool[{index}].{field}");
    let names: Vec<DeviceName> = raw
        .devices
        .iter()
        .map(|name| name.parse().map_err(|error| value(key("devices"), &error)))
        .collect::<Result<_, _>>()?;
    let parsed = |field: &str, error: &dyn std::fmt::Display| value(key(field), error);
    let gate: GateMode = word(raw.gate.as_deref()).map_err(|e| parsed("gate", &e))?;
    let on_stale_holder: OnStaleHolder =
        word(raw.on_stale_holder.as_deref()).map_err(|error| parsed("on_stale_holder", &error))?;
    // Where an open without a grant passes, a process that made one has done nothing wrong.
    if on_stale_holder == OnStaleHolder::Kill && gate != GateMode::Enforce {
        return Err(parsed("on_stale_holder", &"`kill` goes with `gate = \"enforce\"` alone"));
    }
    if raw.time_slice.is_some() {
        let why = "not supported: NVML has no entry point for the driver's time slices; shares of \
                   a device take turns (`turns` of the vendor)";
        return Err(parsed("time_slice", &why));
    }
    let sharing: Sharing = word(raw.sharing.as_deref()).map_err(|e| parsed("sharing", &e))?;
    let settings = Settings {
        compute_mode: compute_mode(&raw, sharing).map_err(|e| parsed("compute_mode", &e))?,
        persistence: raw.persistence,
        accounting: raw.accounting,
    };
    Ok(Pool {
        gate,
        on_stale_holder,
        compute: word(raw.compute.as_deref()).map_err(|error| parsed("compute", &error))?,
        host_memory: raw
            .host_memory
            .map(|text| text.parse())
            .transpose()
            .map_err(|error| parsed("host_memory", &error))?,
        on_violation: word(raw.on_violation.as_deref())
            .map_err(|error| parsed("on_violation", &error))?,
        name: raw.name.parse().map_err(|error| parsed("name", &error))?,
        selector: Selector {
            names,
            kind: raw.kind.map(|t| t.parse()).transpose().map_err(|e| parsed("kind", &e))?,
            vendor: raw.vendor.map(|t| t.parse()).transpose().map_err(|e| parsed("vendor", &e))?,
            model: raw.model.map(|text| shorten(&text)),
        },
        exposure: raw
            .expose
            .map(|text| text.parse())
            .transpose()
            .map_err(|error| parsed("expose", &error))?
            .unwrap_or_default(),
        sharing,
        switch_mode: raw.switch_mode,
        mps: raw.mps,
        settings,
        align_cpus: raw.align_cpus,
    })
}

/// The compute mode that is wanted, if it lets the pool do what it promises.
fn compute_mode(raw: &RawPool, sharing: Sharing) -> Result<Option<ComputeMode>, String> {
    let Some(text) = raw.compute_mode.as_deref() else { return Ok(None) };
    let mode: ComputeMode = text.parse().map_err(|error: UnknownComputeMode| error.to_string())?;
    match mode {
        ComputeMode::Default => Ok(Some(mode)),
        ComputeMode::ExclusiveProcess if sharing == Sharing::Exclusive || raw.mps => Ok(Some(mode)),
        ComputeMode::ExclusiveProcess => Err("`exclusive-process` lets one process compute, and \
            goes with `sharing = \"exclusive\"` or `mps = true`"
            .to_owned()),
        ComputeMode::Prohibited => Err("`prohibited` lets nobody use what the pool offers; taint \
            the devices, or leave them out of every pool"
            .to_owned()),
    }
}

/// A word of a fixed set; the default where none is written.
fn word<T: std::str::FromStr + Default>(text: Option<&str>) -> Result<T, T::Err> {
    text.map_or_else(|| Ok(T::default()), str::parse)
}
