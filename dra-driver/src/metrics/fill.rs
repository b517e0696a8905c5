//! What the daemon measured, as samples.

use accelpool_cluster::SURFACE_LABEL;
use accelpool_proto::node::{
    Agent, AgentMetrics, AllocationMetrics, DaemonMetrics, DeviceMetrics, DeviceReadings,
    GateMetrics, GetMetricsResponse, VendorMetrics,
};

use super::{
    page::{Labels, Page, rounded},
    series,
};
use crate::labels;

/// States of a device's health, best first.
const HEALTH: [&str; 3] = ["healthy", "degraded", "unhealthy"];

/// Ways in which sharers take turns.
const TURNS: [&str; 3] = ["open", "exclusive", "metered"];

/// Fills `page` from what the daemon answered `age_ms` ago.
pub(super) fn fill(page: &mut Page, metrics: &GetMetricsResponse, age_ms: u64) {
    for device in &metrics.devices {
        let sampled = device.sampled_unix_ms;
        let sample_age =
            sampled.map(|sampled| metrics.unix_ms.saturating_sub(sampled).saturating_add(age_ms));
        fill_device(page, device, sample_age);
    }
    for allocation in &metrics.allocations {
        fill_allocation(page, allocation);
    }
    for agent in &metrics.agents {
        fill_agent(page, agent);
    }
    for vendor in &metrics.vendors {
        fill_vendor(page, vendor);
    }
    if let Some(gate) = &metrics.gate {
        fill_gate(page, gate);
    }
    if let Some(daemon) = &metrics.daemon {
        fill_daemon(page, daemon);
    }
}

/// How a device is, in one word of [`HEALTH`].
pub(crate) fn health(device: &DeviceMetrics) -> &'static str {
    let evicts = device.taints.iter().any(|taint| taint.effect == "NoExecute");
    match (device.present && !evicts, device.taints.is_empty()) {
        (false, _) => "unhealthy",
        (true, false) => "degraded",
        (true, true) => "healthy",
    }
}

fn fill_device(page: &mut Page, device: &DeviceMetrics, sample_age_ms: Option<u64>) {
    let numa = device.numa_node.map(|node| node.to_string()).unwrap_or_default();
    let info = Labels::new([
        ("device", device.device.as_str()),
        ("vendor", &device.vendor),
        ("kind", &device.kind),
        ("model", &device.model),
        ("uuid", &device.uuid),
        ("pci_address", &device.pci_address),
        ("driver_version", &device.driver_version),
        ("numa_node", &numa),
        ("pcie_root", device.pcie_root.as_deref().unwrap_or_default()),
        ("pool", &device.pool),
    ]);
    page.amount(&series::DEVICE, info, 1);
    let own = Labels::new([("device", device.device.as_str()), ("vendor", &device.vendor)]);
    page.flag(&series::DEVICE_UP, own.clone(), device.present);
    let now = health(device);
    for state in HEALTH {
        page.flag(&series::DEVICE_HEALTH, own.with("state", state), state == now);
    }
    for taint in &device.taints {
        let labels = Labels::new([
            ("device", device.device.as_str()),
            ("vendor", &device.vendor),
            ("key", &taint.key),
            ("effect", &taint.effect),
            ("reason", &taint.reason),
        ]);
        page.amount(&series::DEVICE_TAINT, labels, 1);
    }
    page.milli(&series::DEVICE_SAMPLE_AGE, own.clone(), sample_age_ms);
    let memory = |state| own.with("state", state);
    page.amount(&series::DEVICE_MEMORY, memory("total"), device.memory_bytes);
    page.known(&series::DEVICE_MEMORY, memory("used"), device.memory_used_bytes);
    page.nanoseconds(&series::DEVICE_COMPUTE, own.clone(), device.busy_ns);
    if let Some(ratio) = device.compute_ratio {
        page.number(&series::DEVICE_UTILIZATION, own.with("engine", "all"), ratio);
    }
    page.milli(&series::DEVICE_ENERGY, own.clone(), device.energy_mj);
    engines(page, &series::DEVICE_ENGINE, &own, &device.engine_busy_ns);
    if let Some(mode) = &device.turns_mode {
        for known in TURNS {
            page.flag(&series::DEVICE_TURNS, own.with("mode", known), known == mode);
        }
    }
    page.nanoseconds(&series::DEVICE_HAND_OVER, own.clone(), device.hand_over_ns);
    if let Some(readings) = &device.readings {
        fill_readings(page, &own, readings);
    }

    let own = Labels::new([("device", device.device.as_str())]);
    let unattributed = device.memory_unattributed_bytes;
    page.known(&series::UNATTRIBUTED_MEMORY, own.clone(), unattributed);
    let busy = device.busy_unattributed_ns;
    page.nanoseconds(&series::UNATTRIBUTED_COMPUTE, own.clone(), busy);
    page.milli(&series::UNATTRIBUTED_ENERGY, own.clone(), device.energy_unattributed_mj);
    engines(page, &series::UNATTRIBUTED_ENGINE, &own, &device.engine_unattributed_ns);
    page.nanoseconds(&series::RELEASED_COMPUTE, own.clone(), device.busy_released_ns);
    page.milli(&series::RELEASED_ENERGY, own.clone(), device.energy_released_mj);
    engines(page, &series::RELEASED_ENGINE, &own, &device.engine_released_ns);
}

fn fill_readings(page: &mut Page, own: &Labels, readings: &DeviceReadings) {
    page.known(&series::DEVICE_MEMORY, own.with("state", "free"), readings.memory_free_bytes);
    let reserved = readings.memory_reserved_bytes;
    page.known(&series::DEVICE_MEMORY, own.with("state", "reserved"), reserved);
    for (engine, permille) in sorted(&readings.engine_permille) {
        let ratio = f64::from(*permille) / 1e3;
        page.number(&series::DEVICE_UTILIZATION, own.with("engine", engine), ratio);
    }
    page.milli(&series::DEVICE_POWER, own.clone(), readings.power_mw);
    page.milli(&series::DEVICE_POWER_LIMIT, own.clone(), readings.power_limit_mw);
    for (sensor, millidegrees) in sorted(&readings.temperature_mc) {
        let celsius = rounded(millidegrees.unsigned_abs()) / 1e3;
        let celsius = if *millidegrees < 0 { -celsius } else { celsius };
        page.number(&series::DEVICE_TEMPERATURE, own.with("sensor", sensor), celsius);
    }
    for (domain, hertz) in sorted(&readings.clock_hz) {
        page.amount(&series::DEVICE_CLOCK, own.with("domain", domain), *hertz);
    }
    for throttle in &readings.throttles {
        let labels = own.with("reason", &throttle.reason);
        if let Some(active) = throttle.active {
            page.flag(&series::DEVICE_THROTTLED, labels.clone(), active);
        }
        page.nanoseconds(&series::DEVICE_THROTTLE, labels, throttle.accumulated_ns);
    }
    for (class, count) in sorted(&readings.errors) {
        page.amount(&series::DEVICE_ERRORS, own.with("class", class), *count);
    }
    let retirement =
        [("pending", readings.retirement_pending), ("failed", readings.retirement_failed)];
    for (state, is) in retirement {
        if let Some(is) = is {
            page.flag(&series::DEVICE_RETIREMENT, own.with("state", state), is);
        }
    }
    let device = own.get("device").unwrap_or_default();
    let vendor = own.get("vendor").unwrap_or_default();
    for traffic in &readings.traffic {
        let labels = Labels::new([
            ("device", device),
            ("vendor", vendor),
            ("link_type", &traffic.link),
            ("direction", &traffic.direction),
        ]);
        page.amount(&series::LINK_TRAFFIC, labels, traffic.bytes);
    }
}

/// Time by engine.
fn engines(
    page: &mut Page,
    series: &'static series::Series,
    own: &Labels,
    busy_ns: &std::collections::HashMap<String, u64>,
) {
    for (engine, busy_ns) in sorted(busy_ns) {
        page.nanoseconds(series, own.with("engine", engine), Some(*busy_ns));
    }
}

/// Entries in the order of their words: a page that says the same looks the same.
fn sorted<T>(map: &std::collections::HashMap<String, T>) -> Vec<(&String, &T)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_unstable_by_key(|(word, _)| *word);
    entries
}

/// The name and the namespace of an agent.
fn agent_of(agent: Option<&Agent>) -> (&str, &str) {
    agent.map_or(("", ""), |agent| (&agent.name, &agent.namespace))
}

fn fill_allocation(page: &mut Page, allocation: &AllocationMetrics) {
    let (agent, namespace) = agent_of(allocation.agent.as_ref());
    let word = |key: &str| allocation.labels.get(key).map_or("", String::as_str);
    let identity = [
        ("device", allocation.device.as_str()),
        ("claim_uid", &allocation.claim),
        ("request", &allocation.request),
        ("agent", agent),
        ("share_id", allocation.share_id.as_deref().unwrap_or_default()),
        ("namespace", namespace),
    ];
    let path = Some(word(SURFACE_LABEL)).filter(|path| !path.is_empty()).unwrap_or("node");
    let info = Labels::new(identity.into_iter().chain([
        ("claim", word(labels::NAME)),
        ("pod", word(labels::POD)),
        ("pod_uid", word(labels::POD_UID)),
        ("partition", &allocation.partition),
        ("portion", &allocation.portion),
        ("path", path),
        ("memory_enforcement", &allocation.memory_enforcement),
        ("compute_enforcement", &allocation.compute_enforcement),
        ("source", &allocation.source),
    ]));
    page.amount(&series::ALLOCATION, info, 1);
    let own = Labels::new(identity);
    page.known(&series::ALLOCATION_MEMORY, own.clone(), allocation.memory_used_bytes);
    let limit = allocation.memory_limit_bytes;
    page.amount(&series::ALLOCATION_MEMORY_LIMIT, own.clone(), limit);
    page.nanoseconds(&series::ALLOCATION_COMPUTE, own.clone(), allocation.busy_ns);
    engines(page, &series::ALLOCATION_ENGINE, &own, &allocation.engine_busy_ns);
    let requested = f64::from(allocation.compute_permille) / 1e3;
    page.number(&series::ALLOCATION_SHARE, own.with("kind", "requested"), requested);
    let turns = allocation.turns.as_ref();
    let granted = turns.map_or(requested, |turns| f64::from(turns.granted_permille) / 1e3);
    page.number(&series::ALLOCATION_SHARE, own.with("kind", "granted"), granted);
    if let Some(turns) = turns {
        let throttled = Some(turns.throttled_ns);
        page.nanoseconds(&series::ALLOCATION_THROTTLED, own.clone(), throttled);
        page.amount(&series::ALLOCATION_TURNS, own.clone(), turns.turns);
        page.amount(&series::ALLOCATION_DENIED, own.clone(), turns.memory_denied);
        page.amount(&series::ALLOCATION_PEAK, own.clone(), turns.memory_peak_bytes);
    }
    if let Some(measured) = allocation.compute_ratio {
        page.number(&series::ALLOCATION_SHARE, own.with("kind", "measured"), measured);
    }
    page.milli(&series::ALLOCATION_ENERGY, own.clone(), allocation.energy_mj);
    let processes = allocation.processes.map(u64::from);
    page.known(&series::ALLOCATION_PROCESSES, own, processes);
}

fn fill_agent(page: &mut Page, row: &AgentMetrics) {
    let (agent, namespace) = agent_of(row.agent.as_ref());
    let own = Labels::new([("agent", agent), ("namespace", namespace), ("device", &row.device)]);
    page.known(&series::AGENT_MEMORY, own.clone(), row.memory_used_bytes);
    page.amount(&series::AGENT_MEMORY_LIMIT, own.clone(), row.memory_limit_bytes);
    page.nanoseconds(&series::AGENT_COMPUTE, own.clone(), row.busy_ns);
    engines(page, &series::AGENT_ENGINE, &own, &row.engine_busy_ns);
    page.milli(&series::AGENT_ENERGY, own, row.energy_mj);
}

fn fill_vendor(page: &mut Page, vendor: &VendorMetrics) {
    let own = Labels::new([("vendor", vendor.vendor.as_str())]);
    page.flag(&series::WORKER_UP, own.clone(), vendor.running);
    page.known(&series::HANDLES, own.clone(), vendor.handles_open.map(u64::from));
    for restarts in &vendor.restarts_by_reason {
        let labels = own.with("reason", &restarts.word);
        page.amount(&series::WORKER_RESTARTS, labels, restarts.count);
    }
    for call in &vendor.calls {
        if let Some(timing) = &call.timing {
            page.durations(&series::WORKER_CALL, own.with("call", &call.word), timing.clone());
        }
    }
}

fn fill_gate(page: &mut Page, gate: &GateMetrics) {
    let none = Labels::default;
    page.flag(&series::GATE_UP, none(), gate.up);
    for guarded in &gate.guarded {
        page.amount(&series::GATE_GUARDED, none().with("mode", &guarded.word), guarded.count);
    }
    page.amount(&series::GATE_GRANTS, none(), gate.grants.into());
    page.amount(&series::GATE_GRANTS_MAX, none(), gate.grants_max.into());
    for opens in &gate.opens {
        let own = Labels::new([("device", opens.device.as_str())]);
        page.amount(&series::GATE_OPENS, own.with("outcome", "denied"), opens.denied);
        page.amount(&series::GATE_OPENS, own.with("outcome", "audited"), opens.audited);
    }
    page.amount(&series::GATE_REPAIRS, none(), gate.repairs);
    page.amount(&series::GATE_STALE, none(), gate.stale_holders.into());
    page.amount(&series::GATE_STALE_KILLED, none(), gate.stale_holders_killed);
    for verified in &gate.verified {
        let labels = none().with("state", &verified.word);
        page.amount(&series::CLAIMS_VERIFIED, labels, verified.count);
    }
}

fn fill_daemon(page: &mut Page, daemon: &DaemonMetrics) {
    let build = Labels::new([("component", "daemon"), ("version", daemon.version.as_str())]);
    page.amount(&series::BUILD, build, 1);
    let none = Labels::default;
    page.milli(&series::DAEMON_START, none(), Some(daemon.started_unix_ms));
    page.amount(&series::PUBLISH_GENERATION, none(), daemon.revision);
    page.known(&series::DAEMON_MEMORY, none(), daemon.resident_bytes);
    for leases in &daemon.leases {
        let labels = none().with("state", &leases.word);
        page.amount(&series::LEDGER_ENTRIES, labels, leases.count);
    }
    for drift in &daemon.drifts {
        page.amount(&series::LEDGER_DRIFT, none().with("kind", &drift.word), drift.count);
    }
    for (family, timings) in
        [(&series::PREPARE, &daemon.prepares), (&series::RELEASE, &daemon.releases)]
    {
        for timing in timings {
            let labels = none().with("result", &timing.word);
            if let Some(timing) = &timing.timing {
                page.durations(family, labels, timing.clone());
            }
        }
    }
}
