//! The table of everything that is served: names, units, labels and what they mean.
//!
//! `docs/metrics.md` is written from it, and a page can hold nothing else. A name that was
//! released is never given another meaning, and no label is taken away.

/// What a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value of the moment.
    Gauge,
    /// A count that only grows; its name ends in `_total`.
    Counter,
    /// Durations in buckets.
    Histogram,
    /// Words about something, in labels; its name ends in `_info` and its value is 1.
    Info,
}

/// A family of series.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    /// Its name without what its kind adds at the end, its unit included.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The base unit that the name ends in, if any.
    pub unit: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
    /// Its labels besides `node`; one in parentheses is there only where it is known.
    pub labels: &'static [&'static str],
}

impl Series {
    /// The name that is queried: that of the samples, for a histogram without their suffixes.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.kind {
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
            Kind::Counter => format!("{}_total", self.name),
            Kind::Info => format!("{}_info", self.name),
        }
    }
}

macro_rules! table {
    ($($id:ident: $kind:ident $name:literal $([$unit:literal])? ($($label:literal),*) $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Series = Series {
                name: $name,
                kind: Kind::$kind,
                unit: table!(@unit $($unit)?),
                help: $help,
                labels: &[$($label),*],
            };
        )*
        /// Everything, in the order of the page.
        pub static ALL: &[&Series] = &[$(&$id),*];
    };
    (@unit) => { None };
    (@unit $unit:literal) => { Some($unit) };
}

table! {
    UP: Gauge "accelpool_up" () "1 if the daemon answered for this page, 0 if it holds what was heard last";
    DATA_AGE: Gauge "accelpool_data_age_seconds" ["seconds"] () "Time since the daemon answered last";
    BUILD: Info "accelpool_build" ("component", "version") "Versions of the programs that run";

    DEVICE: Info "accelpool_device" ("device", "vendor", "kind", "model", "uuid", "pci_address", "(driver_version)", "(numa_node)", "(pcie_root)", "(pool)") "What a device is";
    DEVICE_UP: Gauge "accelpool_device_up" ("device", "vendor") "1 if the device is on the bus";
    DEVICE_HEALTH: Gauge "accelpool_device_health" ("device", "vendor", "state") "1 for the state that the device is in, 0 for the others: healthy, degraded (a taint keeps new work off or warns), unhealthy (a taint evicts, or it is gone)";
    DEVICE_TAINT: Gauge "accelpool_device_taint" ("device", "vendor", "key", "effect", "reason") "1 for each taint on the device";
    DEVICE_SAMPLE_AGE: Gauge "accelpool_device_sample_age_seconds" ["seconds"] ("device", "vendor") "Time since the device was read last; its figures are as old";
    DEVICE_MEMORY: Gauge "accelpool_device_memory_bytes" ["bytes"] ("device", "vendor", "state") "Memory of the device: total, used, free, reserved";
    DEVICE_COMPUTE: Counter "accelpool_device_compute_seconds" ["seconds"] ("device", "vendor") "Compute time that was used: allocations, released and unattributed together";
    DEVICE_ENGINE: Counter "accelpool_device_engine_seconds" ["seconds"] ("device", "vendor", "engine") "Time of engines beside the compute engine, where processes are told apart: allocations, released and unattributed together";
    DEVICE_UTILIZATION: Gauge "accelpool_device_utilization_ratio" ("device", "vendor", "engine") "The part of its time that an engine was busy lately, as the device tells it; all: as the processes add up";
    DEVICE_POWER: Gauge "accelpool_device_power_watts" ["watts"] ("device", "vendor") "What the device draws";
    DEVICE_POWER_LIMIT: Gauge "accelpool_device_power_limit_watts" ["watts"] ("device", "vendor") "What the device may draw";
    DEVICE_ENERGY: Counter "accelpool_device_energy_joules" ["joules"] ("device", "vendor") "Energy that was used: allocations, released and unattributed together";
    DEVICE_TEMPERATURE: Gauge "accelpool_device_temperature_celsius" ["celsius"] ("device", "vendor", "sensor") "Temperature";
    DEVICE_CLOCK: Gauge "accelpool_device_clock_hertz" ["hertz"] ("device", "vendor", "domain") "Clock";
    DEVICE_TURNS: Gauge "accelpool_device_turns" ("device", "vendor", "mode") "1 for the way in which sharers take turns now: open, exclusive, metered";
    DEVICE_HAND_OVER: Gauge "accelpool_device_hand_over_seconds" ["seconds"] ("device", "vendor") "The measured cost of handing the device from one sharer to the next";
    DEVICE_THROTTLED: Gauge "accelpool_device_throttled" ("device", "vendor", "reason") "1 if the device is slower than it could be for this reason";
    DEVICE_THROTTLE: Counter "accelpool_device_throttle_seconds" ["seconds"] ("device", "vendor", "reason") "For how long it was";
    DEVICE_ERRORS: Counter "accelpool_device_errors" ("device", "vendor", "class") "Errors of the device, by class";
    DEVICE_RETIREMENT: Gauge "accelpool_device_memory_retirement" ("device", "vendor", "state") "1 if faulty memory waits for a reset to be taken out of use (pending), or could not be (failed)";
    LINK_TRAFFIC: Counter "accelpool_link_bytes" ["bytes"] ("device", "vendor", "link_type", "direction") "Bytes over the device's links";

    ALLOCATION: Info "accelpool_allocation" ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)", "(claim)", "(pod)", "(pod_uid)", "(partition)", "portion", "path", "memory_enforcement", "compute_enforcement", "(source)") "Who holds what: words to join with the other allocation series, and how their figures were made (source: process, fdinfo, kfd, device or turns)";
    ALLOCATION_MEMORY: Gauge "accelpool_allocation_memory_used_bytes" ["bytes"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Device memory in use";
    ALLOCATION_MEMORY_LIMIT: Gauge "accelpool_allocation_memory_limit_bytes" ["bytes"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Device memory that may be used";
    ALLOCATION_COMPUTE: Counter "accelpool_allocation_compute_seconds" ["seconds"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Compute time that was used; its rate is the part of the device";
    ALLOCATION_ENGINE: Counter "accelpool_allocation_engine_seconds" ["seconds"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)", "engine") "Time of engines beside the compute engine that was used";
    ALLOCATION_SHARE: Gauge "accelpool_allocation_compute_share_ratio" ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)", "kind") "The part of the device's compute: requested, granted (what it is owed while all want the device), and measured over about ten seconds";
    ALLOCATION_THROTTLED: Counter "accelpool_allocation_throttled_seconds" ["seconds"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Time for which it wanted the device and was kept waiting for its turn";
    ALLOCATION_TURNS: Counter "accelpool_allocation_turns" ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Turns it was given";
    ALLOCATION_DENIED: Counter "accelpool_allocation_memory_denied" ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Allocations of memory that its quota refused";
    ALLOCATION_PEAK: Gauge "accelpool_allocation_memory_peak_bytes" ["bytes"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "The most device memory that it has held";
    ALLOCATION_ENERGY: Counter "accelpool_allocation_energy_joules" ["joules"] ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Energy, divided by compute time; an idle device's is that of who has it alone";
    ALLOCATION_PROCESSES: Gauge "accelpool_allocation_processes" ("device", "claim_uid", "request", "agent", "(share_id)", "(namespace)") "Processes that use the device";

    AGENT_MEMORY: Gauge "accelpool_agent_memory_used_bytes" ["bytes"] ("agent", "(namespace)", "device") "Device memory in use by all that the agent holds of the device";
    AGENT_MEMORY_LIMIT: Gauge "accelpool_agent_memory_limit_bytes" ["bytes"] ("agent", "(namespace)", "device") "Device memory that the agent may use";
    AGENT_COMPUTE: Counter "accelpool_agent_compute_seconds" ["seconds"] ("agent", "(namespace)", "device") "Compute time that the agent used";
    AGENT_ENGINE: Counter "accelpool_agent_engine_seconds" ["seconds"] ("agent", "(namespace)", "device", "engine") "Time of engines beside the compute engine that the agent used";
    AGENT_ENERGY: Counter "accelpool_agent_energy_joules" ["joules"] ("agent", "(namespace)", "device") "Energy, divided by compute time";

    UNATTRIBUTED_MEMORY: Gauge "accelpool_unattributed_memory_bytes" ["bytes"] ("device") "Device memory in use that fits no lease";
    UNATTRIBUTED_COMPUTE: Counter "accelpool_unattributed_compute_seconds" ["seconds"] ("device") "Compute time that fits no lease";
    UNATTRIBUTED_ENGINE: Counter "accelpool_unattributed_engine_seconds" ["seconds"] ("device", "engine") "Time of engines beside the compute engine that fits no lease";
    UNATTRIBUTED_ENERGY: Counter "accelpool_unattributed_energy_joules" ["joules"] ("device") "Energy that fits no lease";
    RELEASED_COMPUTE: Counter "accelpool_released_compute_seconds" ["seconds"] ("device") "Compute time of leases that have ended";
    RELEASED_ENGINE: Counter "accelpool_released_engine_seconds" ["seconds"] ("device", "engine") "Time of engines beside the compute engine of leases that have ended";
    RELEASED_ENERGY: Counter "accelpool_released_energy_joules" ["joules"] ("device") "Energy of leases that have ended";

    LEDGER_ENTRIES: Gauge "accelpool_ledger_entries" ("state") "Leases by state";
    LEDGER_DRIFT: Counter "accelpool_ledger_drift" ("kind") "How often something on the host had drifted from the ledger and was repaired";
    PREPARE: Histogram "accelpool_prepare_duration_seconds" ["seconds"] ("result") "Time to prepare a claim in the daemon: done, refused, failed";
    RELEASE: Histogram "accelpool_release_duration_seconds" ["seconds"] ("result") "Time to release a claim in the daemon";
    PUBLISH_GENERATION: Gauge "accelpool_publish_generation" () "Grows with each change of inventory or leases";
    WORKER_UP: Gauge "accelpool_worker_up" ("vendor") "1 while the vendor's worker runs";
    WORKER_RESTARTS: Counter "accelpool_worker_restarts" ("vendor", "reason") "How often the vendor's worker was given up: deadline, died, start";
    WORKER_CALL: Histogram "accelpool_worker_call_duration_seconds" ["seconds"] ("vendor", "call") "Time that the vendor's library took";
    HANDLES: Gauge "accelpool_handles_open" ("vendor") "Device nodes that the vendor's worker has open: what stands in the way of a driver's reload";

    GATE_UP: Gauge "accelpool_gate_up" () "1 if the device gate stands; absent where every pool has it off";
    GATE_GUARDED: Gauge "accelpool_gate_guarded" ("mode") "Ranges of device numbers that are guarded: audit, enforce";
    GATE_GRANTS: Gauge "accelpool_gate_grants" () "Pairs of cgroup and device that the kernel admits";
    GATE_GRANTS_MAX: Gauge "accelpool_gate_grants_max" () "How many there can be";
    GATE_OPENS: Counter "accelpool_gate_opens" ("(device)", "outcome") "Opens without a grant: denied, or audited, which passed because of the mode alone";
    GATE_REPAIRS: Counter "accelpool_gate_repairs" () "How often something of the gate was found changed by others and put right";
    GATE_STALE: Gauge "accelpool_gate_stale_holders" () "Processes that have a device open without a right to";
    GATE_STALE_KILLED: Counter "accelpool_gate_stale_holders_killed" () "How many were killed for that";
    CLAIMS_VERIFIED: Gauge "accelpool_claims_verified" ("state") "Claims whose containers were compared with the ledger: verified, drifted, unused, unknown";

    DAEMON_START: Gauge "accelpool_daemon_start_time_seconds" ["seconds"] () "When the daemon started, since the Unix epoch";
    DAEMON_MEMORY: Gauge "accelpool_daemon_resident_memory_bytes" ["bytes"] () "Memory of the daemon, without its workers";
    DRIVER_READY: Gauge "accelpool_driver_ready" () "1 if the driver waits for nothing: what /readyz says";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for series in ALL {
            let name = series.name;
            assert!(names.insert(series.full_name()), "{name} is there twice");
            assert!(name.starts_with("accelpool_"), "{name}");
            assert!(series.unit.is_none_or(|unit| name.ends_with(&format!("_{unit}"))), "{name}");
            assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}");
            assert!(!series.help.ends_with('.') && !series.help.contains('\n'), "{name}");
            let labels: BTreeSet<_> = series.labels.iter().collect();
            assert_eq!(labels.len(), series.labels.len(), "{name} has a label twice");
            for label in series.labels {
                let label = label.trim_matches(['(', ')']);
                assert!(!["pid", "node", "le", "instance", "job"].contains(&label), "{name}");
            }
        }
    }
}
