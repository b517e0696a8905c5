//! How long drift lasts under a real daemon: a grant that somebody took from the kernel, until it
//! is back, and a device program that somebody put beside the gate, until the claim says so.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use accelpool_benches::{
    Report, Timing,
    node::{Daemon, Home, share},
};
use accelpool_gate::{Access, DeviceNumber, Gate, GateConfig, Guard, Guards, Mode};
use accelpool_proto::node::{
    Binding, Lease, ListClaimsRequest, PrepareClaimRequest, binding::Subject,
};
use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use crate::Place;

/// What issue and documents promise.
const BUDGET: Duration = Duration::from_secs(1);

/// Far longer than any drift lasts; a bench that waits as long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn measure(report: &mut Report, place: &Place) -> Result<()> {
    let runtime = Runtime::new()?;
    let (root, pins) = (place.path("drift"), place.config().pins.with_file_name("drift"));
    let pod = root.join("podbench");
    fs::create_dir_all(&pod).context("failed to make cgroups")?;
    let home = Home::new("dgx-h100");
    home.configure(&format!(
        "\n[gate]\nroot = {:?}\npins = {:?}\n\n[[pool]]\nname = \"all\"\ngate = \"enforce\"\n",
        root.display().to_string(),
        pins.display().to_string()
    ));
    let daemon = home.start();
    let lease = runtime.block_on(prepare(&daemon))?;
    let _tenant = Tenant::start(&pod, &variables(&home)?)?;
    let state = || runtime.block_on(state(&daemon));
    until("a verified claim", || Ok(state()? == "verified"))?;

    let gate = Gate::open(&GateConfig { root: root.clone(), pins: pins.clone() })?;
    let cgroup = gate.cgroup(&pod)?;
    let held = |gate: &Gate| -> Result<Vec<DeviceNumber>> {
        let rules = gate.rules()?;
        Ok(rules.grants().filter(|it| it.cgroup == cgroup).map(|it| it.device).collect())
    };
    let granted = held(&gate)?;
    let device = *granted.first().with_context(|| format!("{} has no grant", lease.claim))?;
    let mut repaired = Vec::new();
    for _ in 0..report.runs(20) {
        gate.revoke(cgroup, device)?;
        repaired.push(until("the grant", || Ok(held(&gate)?.contains(&device)))?);
    }
    worst(report, "a grant that was taken: back after", repaired);

    let foreign = GateConfig { root: pod, pins: pins.with_file_name("foreign") };
    let mut raised = Vec::new();
    for _ in 0..report.runs(10) {
        let foreign = Gate::open(&foreign)?;
        foreign.guard(&Guards::new([Guard { devices: device.into(), mode: Mode::Enforce }])?)?;
        raised.push(until("a claim that says so", || Ok(state()? == "drifted"))?);
        foreign.remove()?;
        until("a verified claim", || Ok(state()? == "verified"))?;
    }
    worst(report, "a program that refuses a grant: told after", raised);
    gate.grant(cgroup, device, Access::READ_WRITE)?;
    drop(daemon);
    Ok(gate.remove()?)
}

fn worst(report: &mut Report, name: &str, times: Vec<Duration>) {
    let worst = times.iter().max().copied().unwrap_or_default();
    report.note(&format!("{name}, median"), Timing::of(times).median.as_secs_f64() * 1e3, "ms");
    report.time_line(&format!("{name}, worst"), worst, BUDGET);
}

/// A share for the pod.
async fn prepare(daemon: &Daemon) -> Result<Lease> {
    let subject = Some(Subject::Workload("bench".to_owned()));
    let bindings = vec![Binding { subject, ..Binding::default() }];
    let request = share("drift", "gpu-0000-1b-00-0", 1 << 30, 100);
    let request = PrepareClaimRequest { bindings, ..request };
    let response = daemon.client().prepare_claim(request).await?.into_inner();
    response.lease.context("it is told")
}

/// The environment that the claim's CDI spec gives a container.
fn variables(home: &Home) -> Result<Vec<String>> {
    let spec = fs::read(home.path().join("cdi/accelpool.dev-claim_drift.json"))?;
    let spec: serde_json::Value = serde_json::from_slice(&spec)?;
    let variables = spec["devices"][0]["containerEdits"]["env"].as_array().context("a list")?;
    Ok(variables.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect())
}

async fn state(daemon: &Daemon) -> Result<String> {
    let claims = daemon.client().list_claims(ListClaimsRequest::default()).await?.into_inner();
    let lease = claims.leases.into_iter().next().context("there is a claim")?;
    Ok(lease.verification.unwrap_or_default().state)
}

/// How long it takes until it is so.
fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(began.elapsed())
}

/// A process in the pod's cgroup that was given the claim.
struct Tenant(Child);

impl Tenant {
    fn start(cgroup: &Path, variables: &[String]) -> Result<Self> {
        let script = format!("echo 0 >{}/cgroup.procs; exec sleep 1000", cgroup.display());
        let mut shell = Command::new("env");
        shell.args(variables).args(["sh", "-c", &script]).stdin(Stdio::null());
        Ok(Self(shell.spawn().context("a shell can be run")?))
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
