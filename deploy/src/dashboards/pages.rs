//! The four dashboards: the cluster, a node, a device, an agent.

use super::{
    Dashboard, Look,
    Look::{Lines, Number, Stack, Table},
    Panel, Unit,
    Unit::{Bytes, BytesPerSecond, Celsius, Count, Ratio, Seconds, Watts},
    Variable,
};

const NODE: Variable = Variable { label: "node", of: "accelpool_up" };
const DEVICE: Variable = Variable { label: "device", of: "accelpool_device_up" };
const AGENT: Variable = Variable { label: "agent", of: "accelpool_allocation_info" };

/// Every dashboard.
#[must_use]
pub fn all() -> Vec<Dashboard> {
    vec![cluster(), node(), device(), agent()]
}

/// A quantile of a histogram, as Prometheus has it: with fixed buckets, or native.
fn quantile(quantile: &str, name: &str, selector: &str) -> String {
    format!(
        "histogram_quantile({quantile}, sum by (le) (rate({name}_bucket{{{selector}}}[$__rate_interval]))) \
         or histogram_quantile({quantile}, sum(rate({name}{{{selector}}}[$__rate_interval])))"
    )
}

fn cluster() -> Dashboard {
    let panels = vec![
        Panel::new("Nodes", Number, Count, "count(accelpool_up)", ""),
        Panel::new("Nodes without an answer", Number, Count, "count(accelpool_up) - sum(accelpool_up)", "")
            .help("Their driver serves what it heard last, since the daemon does not answer."),
        Panel::new("Devices", Number, Count, "count(accelpool_device_up)", ""),
        Panel::new(
            "Devices that are sound",
            Number,
            Ratio,
            "sum(accelpool_device_health{state=\"healthy\"}) / count(accelpool_device_up)",
            "",
        ),
        Panel::new(
            "In use",
            Number,
            Ratio,
            "sum(rate(accelpool_device_compute_seconds_total[$__rate_interval])) / count(accelpool_device_up)",
            "",
        )
        .help("Compute time that is used, of all that there is."),
        Panel::new(
            "Prepared without failure",
            Number,
            Ratio,
            "1 - avg(accelpool:prepare_errors:ratio_rate1h)",
            "",
        )
        .help("Claims that were prepared in the last hour, of those that could be. Objective: 99.5 %."),
        Panel::new(
            "Who uses how many devices",
            Stack,
            Count,
            "topk(20, sum by (namespace, agent) (rate(accelpool_agent_compute_seconds_total[$__rate_interval])))",
            "{{namespace}}/{{agent}}",
        )
        .help("Compute seconds a second: one is a whole device. The twenty that use most."),
        Panel::new(
            "Use by node",
            Stack,
            Count,
            "sum by (node) (rate(accelpool_device_compute_seconds_total[$__rate_interval]))",
            "{{node}}",
        ),
        Panel::new(
            "Memory by namespace",
            Stack,
            Bytes,
            "sum by (namespace) (accelpool_agent_memory_used_bytes)",
            "{{namespace}}",
        ),
        Panel::new(
            "Power by node",
            Stack,
            Watts,
            "sum by (node) (accelpool_device_power_watts)",
            "{{node}}",
        ),
        Panel::new(
            "Devices with a taint",
            Table,
            Count,
            "sum by (node, device, key, effect) (accelpool_device_taint)",
            "",
        )
        .or_nothing(),
        Panel::new(
            "Memory held by who computes nothing",
            Table,
            Bytes,
            "sum by (namespace, agent, device) (accelpool_agent_memory_used_bytes) > 0 unless \
             sum by (namespace, agent, device) (rate(accelpool_agent_compute_seconds_total[30m])) > 0",
            "",
        )
        .or_nothing()
        .help("For half an hour."),
    ];
    Dashboard { name: "cluster", title: "cluster", variables: &[], panels }
}

fn node() -> Dashboard {
    let mut panels = vec![
        Panel::new("Daemon answers", Number, Count, "min(accelpool_up{node=~\"$node\"})", ""),
        Panel::new("Driver is ready", Number, Count, "min(accelpool_driver_ready{node=~\"$node\"})", ""),
        Panel::new(
            "Oldest figure",
            Number,
            Seconds,
            "max(accelpool_device_sample_age_seconds{node=~\"$node\"})",
            "",
        )
        .help("While a vendor's library hangs, its devices' figures stay and grow old."),
        Panel::new(
            "Claims on record",
            Number,
            Count,
            "sum by (state) (accelpool_ledger_entries{node=~\"$node\"})",
            "{{state}}",
        ),
        Panel::new("The gate stands", Number, Count, "min(accelpool_gate_up{node=~\"$node\"})", "")
            .or_nothing()
            .help("Nothing where every pool has the device gate off."),
        Panel::new(
            "Handles of vendors' libraries",
            Number,
            Count,
            "sum by (vendor) (accelpool_handles_open{node=~\"$node\"})",
            "{{vendor}}",
        )
        .help("What stands in the way of a driver's reload: accelpool quiesce closes them."),
        Panel::new(
            "Compute by device",
            Lines,
            Ratio,
            "sum by (device) (rate(accelpool_device_compute_seconds_total{node=~\"$node\"}[$__rate_interval]))",
            "{{device}}",
        ),
        Panel::new(
            "Compute by agent",
            Stack,
            Count,
            "sum by (namespace, agent) (rate(accelpool_agent_compute_seconds_total{node=~\"$node\"}[$__rate_interval]))",
            "{{namespace}}/{{agent}}",
        )
        .and(
            "sum(rate(accelpool_unattributed_compute_seconds_total{node=~\"$node\"}[$__rate_interval]))",
            "(unattributed)",
        ),
        Panel::new(
            "Memory by agent",
            Stack,
            Bytes,
            "sum by (namespace, agent) (accelpool_agent_memory_used_bytes{node=~\"$node\"})",
            "{{namespace}}/{{agent}}",
        )
        .and("sum(accelpool_unattributed_memory_bytes{node=~\"$node\"})", "(unattributed)"),
    ];
    panels.extend(programs());
    Dashboard { name: "node", title: "node", variables: &[NODE], panels }
}

/// How the programs of a node fare.
fn programs() -> Vec<Panel> {
    vec![
        Panel::new(
            "The kubelet's calls",
            Lines,
            Count,
            "sum by (call, result) (accelpool:kubelet_calls:rate5m{node=~\"$node\"})",
            "{{call}} {{result}}",
        ),
        Panel::new(
            "Time to prepare a claim, as the kubelet sees it",
            Lines,
            Seconds,
            &quantile("0.5", "accelpool_kubelet_call_duration_seconds", "node=~\"$node\",call=\"prepare\""),
            "half",
        )
        .and(
            &quantile("0.99", "accelpool_kubelet_call_duration_seconds", "node=~\"$node\",call=\"prepare\""),
            "99 %",
        ),
        Panel::new(
            "Time to prepare a claim, in the daemon",
            Lines,
            Seconds,
            &quantile("0.5", "accelpool_prepare_duration_seconds", "node=~\"$node\""),
            "half",
        )
        .and(&quantile("0.99", "accelpool_prepare_duration_seconds", "node=~\"$node\""), "99 %"),
        Panel::new(
            "Calls of the vendors' libraries, 99 %",
            Lines,
            Seconds,
            "histogram_quantile(0.99, sum by (vendor, call, le) (rate(accelpool_worker_call_duration_seconds_bucket{node=~\"$node\"}[$__rate_interval]))) \
             or histogram_quantile(0.99, sum by (vendor, call) (rate(accelpool_worker_call_duration_seconds{node=~\"$node\"}[$__rate_interval])))",
            "{{vendor}} {{call}}",
        ),
        Panel::new(
            "Memory of the daemon",
            Lines,
            Bytes,
            "accelpool_daemon_resident_memory_bytes{node=~\"$node\"}",
            "{{node}}",
        ),
        Panel::new(
            "Workers given up",
            Lines,
            Count,
            "sum by (vendor, reason) (increase(accelpool_worker_restarts_total{node=~\"$node\"}[$__rate_interval]))",
            "{{vendor}} {{reason}}",
        )
        .or_nothing(),
        Panel::new(
            "Opens without a grant",
            Lines,
            Count,
            "sum by (device, outcome) (increase(accelpool_gate_opens_total{node=~\"$node\"}[$__rate_interval]))",
            "{{device}} {{outcome}}",
        )
        .or_nothing(),
        Panel::new(
            "Claims compared with the ledger",
            Lines,
            Count,
            "sum by (state) (accelpool_claims_verified{node=~\"$node\"})",
            "{{state}}",
        )
        .or_nothing(),
    ]
}

/// What stands for `OF` in the queries about devices.
const CHOSEN: &str = "node=~\"$node\",device=~\"$device\"";

fn of(query: &str) -> String {
    query.replace("OF", CHOSEN)
}

fn of_device(
    title: &'static str,
    look: Look,
    unit: Unit,
    query: &str,
    legend: &'static str,
) -> Panel {
    Panel::new(title, look, unit, &of(query), legend)
}

fn device() -> Dashboard {
    let mut panels = vec![
        of_device("On the bus", Number, Count, "min(accelpool_device_up{OF})", ""),
        of_device("Sound", Number, Count, "min(accelpool_device_health{OF,state=\"healthy\"})", ""),
        of_device("Holders", Number, Count, "count(accelpool_allocation_info{OF})", ""),
        of_device(
            "Memory free",
            Number,
            Bytes,
            "sum(accelpool_device_memory_bytes{OF,state=\"total\"}) - sum(accelpool_device_memory_bytes{OF,state=\"used\"})",
            "",
        ),
        of_device(
            "Compute by holder",
            Stack,
            Ratio,
            "sum by (device, agent) (rate(accelpool_allocation_compute_seconds_total{OF}[$__rate_interval]))",
            "{{device}} {{agent}}",
        )
        .and(
            &of("sum by (device) (rate(accelpool_unattributed_compute_seconds_total{OF}[$__rate_interval]))"),
            "{{device}} (unattributed)",
        )
        .help("Together they are the device: nothing is dropped, and nothing is copied."),
        of_device(
            "Memory by holder",
            Stack,
            Bytes,
            "sum by (device, agent) (accelpool_allocation_memory_used_bytes{OF})",
            "{{device}} {{agent}}",
        )
        .and(&of("sum by (device) (accelpool_unattributed_memory_bytes{OF})"), "{{device}} (unattributed)"),
        of_device(
            "Engines",
            Lines,
            Ratio,
            "accelpool_device_utilization_ratio{OF}",
            "{{device}} {{engine}}",
        ),
        of_device(
            "Shares: granted and measured",
            Lines,
            Ratio,
            "max by (device, agent, kind) (accelpool_allocation_compute_share_ratio{OF,kind=~\"granted|measured\"})",
            "{{device}} {{agent}} {{kind}}",
        ),
        of_device(
            "Turns a second",
            Lines,
            Count,
            "sum by (device, agent) (rate(accelpool_allocation_turns_total{OF}[$__rate_interval]))",
            "{{device}} {{agent}}",
        )
        .or_nothing()
        .help("Of devices whose holders take turns."),
        of_device(
            "Waiting for a turn",
            Lines,
            Ratio,
            "sum by (device, agent) (rate(accelpool_allocation_throttled_seconds_total{OF}[$__rate_interval]))",
            "{{device}} {{agent}}",
        )
        .or_nothing()
        .help("The part of its time for which a holder wanted the device and was kept waiting."),
        of_device(
            "Who holds what",
            Table,
            Count,
            "accelpool_allocation_info{OF}",
            "",
        ),
    ];
    panels.extend(hardware());
    Dashboard { name: "device", title: "device", variables: &[NODE, DEVICE], panels }
}

/// How devices fare.
fn hardware() -> Vec<Panel> {
    vec![
        of_device("Power", Lines, Watts, "accelpool_device_power_watts{OF}", "{{device}}")
            .and(&of("accelpool_device_power_limit_watts{OF}"), "{{device}} limit"),
        of_device(
            "Temperature",
            Lines,
            Celsius,
            "accelpool_device_temperature_celsius{OF}",
            "{{device}} {{sensor}}",
        ),
        of_device(
            "Slowed down, by reason",
            Lines,
            Count,
            "accelpool_device_throttled{OF} == 1",
            "{{device}} {{reason}}",
        )
        .or_nothing(),
        of_device(
            "Errors in an hour",
            Lines,
            Count,
            "increase(accelpool_device_errors_total{OF}[1h])",
            "{{device}} {{class}}",
        )
        .or_nothing(),
        of_device(
            "Over the links",
            Lines,
            BytesPerSecond,
            "rate(accelpool_link_bytes_total{OF}[$__rate_interval])",
            "{{device}} {{link_type}} {{direction}}",
        )
        .or_nothing(),
    ]
}

fn agent() -> Dashboard {
    let panels = vec![
        Panel::new(
            "Devices in use",
            Number,
            Count,
            "sum(rate(accelpool_agent_compute_seconds_total{agent=~\"$agent\"}[$__rate_interval]))",
            "",
        )
        .help("Compute seconds a second: one is a whole device."),
        Panel::new(
            "Memory",
            Number,
            Bytes,
            "sum(accelpool_agent_memory_used_bytes{agent=~\"$agent\"})",
            "",
        ),
        Panel::new(
            "Of its memory limit",
            Number,
            Ratio,
            "sum(accelpool_agent_memory_used_bytes{agent=~\"$agent\"}) / sum(accelpool_agent_memory_limit_bytes{agent=~\"$agent\"})",
            "",
        ),
        Panel::new(
            "Energy in the time shown, in watt-hours",
            Number,
            Count,
            "sum(increase(accelpool_agent_energy_joules_total{agent=~\"$agent\"}[$__range])) / 3600",
            "",
        ),
        Panel::new(
            "Allocations that were refused",
            Number,
            Count,
            "sum(increase(accelpool_allocation_memory_denied_total{agent=~\"$agent\"}[$__range]))",
            "",
        )
        .or_nothing()
        .help("By its memory quota."),
        Panel::new(
            "Compute by device",
            Stack,
            Ratio,
            "sum by (node, device) (rate(accelpool_agent_compute_seconds_total{agent=~\"$agent\"}[$__rate_interval]))",
            "{{node}} {{device}}",
        ),
        Panel::new(
            "Memory by device",
            Lines,
            Bytes,
            "sum by (node, device) (accelpool_agent_memory_used_bytes{agent=~\"$agent\"})",
            "{{node}} {{device}}",
        )
        .and(
            "sum by (node, device) (accelpool_agent_memory_limit_bytes{agent=~\"$agent\"})",
            "{{node}} {{device}} limit",
        ),
        Panel::new(
            "Share of the device",
            Lines,
            Ratio,
            "max by (node, device, kind) (accelpool_allocation_compute_share_ratio{agent=~\"$agent\"})",
            "{{node}} {{device}} {{kind}}",
        )
        .help("Requested, granted (what it is owed while all want the device), and measured."),
        Panel::new(
            "Other engines",
            Lines,
            Ratio,
            "sum by (node, device, engine) (rate(accelpool_agent_engine_seconds_total{agent=~\"$agent\"}[$__rate_interval]))",
            "{{device}} {{engine}}",
        )
        .or_nothing(),
        Panel::new(
            "Waiting for a turn",
            Lines,
            Ratio,
            "sum by (node, device) (rate(accelpool_allocation_throttled_seconds_total{agent=~\"$agent\"}[$__rate_interval]))",
            "{{node}} {{device}}",
        )
        .or_nothing(),
        Panel::new(
            "Power",
            Stack,
            Watts,
            "sum by (node, device) (rate(accelpool_agent_energy_joules_total{agent=~\"$agent\"}[$__rate_interval]))",
            "{{node}} {{device}}",
        )
        .help("Energy is divided by compute time."),
        Panel::new(
            "What it holds",
            Table,
            Count,
            "accelpool_allocation_info{agent=~\"$agent\"}",
            "",
        ),
    ];
    Dashboard { name: "agent", title: "agent", variables: &[AGENT], panels }
}
