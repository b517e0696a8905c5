//! Who used what, from the driver's samples and accounting mode to what people are shown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use accelpool_proto::node::{AllocationMetrics, DeviceMetrics, GetMetricsResponse};
use accelpool_tests::{
    requests::{claim, named},
    tenants::{Proc, of_pod},
    wait_for,
};
use serde_json::json;

use crate::machine::{Machine, NEVER, WHOLE};

const ENGINES: [&str; 5] = ["decoder", "encoder", "jpeg", "memory-interface", "optical-flow"];

fn device(metrics: &GetMetricsResponse) -> &DeviceMetrics {
    metrics.devices.iter().find(|device| device.device == WHOLE).unwrap()
}

fn allocation(metrics: &GetMetricsResponse) -> &AllocationMetrics {
    metrics.allocations.iter().find(|it| it.claim == "one").unwrap()
}

#[test]
fn engines_of_processes_are_billed_and_add_up() {
    let (machine, proc) = (Machine::new(NEVER), Proc::new());
    machine.home.sample_every(100, proc.path());
    proc.add(101, 1);
    proc.add(102, 9); // a pod that holds nothing
    machine.change(|described| {
        described["devices"][0]["processes"] =
            json!([{ "pid": 101, "memory_mib": 100 }, { "pid": 102, "memory_mib": 100 }]);
        described["devices"][0]["utilization"] = json!([
            { "pid": 101, "percent": 20, "memory": 10, "encoder": 40, "decoder": 5, "jpeg": 1 },
            { "pid": 102, "percent": 20, "memory": 10, "encoder": 20, "optical_flow": 3 }
        ]);
    });
    let daemon = machine.home.start();
    let client = daemon.client();
    client.prepare(of_pod(claim("one", vec![named("gpu", WHOLE)]), 1)).unwrap();
    let metrics = wait_for("time of the encoder", || {
        let metrics = client.metrics().unwrap();
        let known = |name: &str| device(&metrics).engine_busy_ns.get(name).copied().unwrap_or(0);
        let others = &device(&metrics).engine_unattributed_ns;
        let is_there = known("encoder") > 0
            && allocation(&metrics).engine_busy_ns.contains_key("encoder")
            && others.get("encoder").is_some_and(|it| *it > 0);
        is_there.then_some(metrics)
    });
    let whole = device(&metrics);
    let mut names: Vec<&str> = whole.engine_busy_ns.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ENGINES);
    for name in ENGINES {
        let of = |engines: &std::collections::HashMap<String, u64>| {
            engines.get(name).copied().unwrap_or_default()
        };
        let parts = of(&allocation(&metrics).engine_busy_ns)
            + of(&whole.engine_unattributed_ns)
            + of(&whole.engine_released_ns);
        assert_eq!(parts, of(&whole.engine_busy_ns), "{name}: {metrics:?}");
    }
    // Measured, and nothing: not the same as absent.
    assert_eq!(allocation(&metrics).engine_busy_ns["optical-flow"], 0);
}

#[test]
fn accounting_mode_bills_a_process_that_nobody_saw_to_the_claim_that_had_the_device() {
    let (machine, proc) = (Machine::new(NEVER), Proc::new());
    machine.home.sample_every(100, proc.path());
    machine.change(|described| {
        described["devices"][0]["accounting"] = json!([]);
        // The device's own utilization would stand in where no process is known.
        described["devices"][0]["figures"] = json!(null);
    });
    let daemon = machine.home.start();
    let client = daemon.client();
    client.prepare(of_pod(claim("one", vec![named("gpu", WHOLE)]), 1)).unwrap();
    wait_for("a first reading with the claim", || {
        let metrics = client.metrics().unwrap();
        metrics.allocations.iter().any(|it| it.memory_used_bytes.is_some()).then_some(())
    });
    // It came and went between two samples: in no list of processes, in no sample, not in procfs.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let start = now.checked_sub(Duration::from_mins(1)).unwrap();
    let start = u64::try_from(start.as_micros()).unwrap();
    machine.change(|described| {
        described["devices"][0]["accounting"] = json!([
            { "pid": 4_000_001, "percent": 100, "start_us": start, "lived_ms": 3_600_000,
              "running": false }
        ]);
    });
    wait_for("its time to be billed", || {
        let metrics = client.metrics().unwrap();
        (allocation(&metrics).busy_ns.unwrap_or(0) > 200_000_000).then_some(())
    });
    let metrics = client.metrics().unwrap();
    let parts = [device(&metrics).busy_unattributed_ns, device(&metrics).busy_released_ns];
    assert_eq!(parts, [Some(0), Some(0)], "{metrics:?}");
    wait_for("`accelpool usage` to show it", || {
        let usage = machine.accelpool(&["usage"]);
        let mut rows = usage["agents"].as_array().unwrap().iter();
        let row = rows.find(|row| row["agent"]["name"] == "pod-1")?;
        (row["busy_ms"].as_u64()? > 200).then_some(())
    });
}

#[test]
fn a_library_that_hangs_while_it_is_sampled_holds_up_no_scrape() {
    let (machine, proc) = (Machine::new(NEVER), Proc::new());
    machine.home.sample_every(100, proc.path());
    let daemon = machine.home.start();
    let client = daemon.client();
    wait_for("a reading", || {
        device(&client.metrics().unwrap()).memory_used_bytes.is_some().then_some(())
    });
    machine.change(|described| described["hang"] = ["nvmlDeviceGetFieldValues"].into());
    // The reading in hand may still end; from then on the figures grow old, and come all the same.
    let mut asked = 0;
    wait_for("figures that grow old", || {
        let metrics = client.metrics().unwrap();
        asked += 1;
        let age = metrics.unix_ms - device(&metrics).sampled_unix_ms.unwrap();
        (age > 1_500).then_some(())
    });
    // Each answer came while a reading of up to ten seconds hung: many of them in this time.
    assert!(asked > 20, "{asked} answers");
    assert!(device(&client.metrics().unwrap()).memory_used_bytes.is_some(), "old, not absent");
    assert_eq!(client.devices().unwrap().len(), 3);
}
