//! Whom a request means, as the gate must know it; what the gate finds wrong with itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use accelpool_model::{Binding, ClaimId, Enforcement, GateMode, Lease, Target};
use accelpool_proto::node::{
    self as wire, Finding, GateMetrics, GateOpens, ListHoldersResponse, VerifyClaimsResponse,
    request::Wanted,
};
use tonic::{Code, Status};

use super::{Service, diagnose::finding, metrics::counts};
use crate::{
    api::{
        request::{self, Subject},
        response,
    },
    audit::Asker,
    error,
    gate::{CgroupError, GateStatus, Hierarchy, Keeper, dmem},
    node::{NodeError, State},
};

/// The bindings that `subjects` stand for: the cgroups are there.
async fn find(subjects: Vec<Subject>) -> Result<Vec<Binding>, NodeError> {
    let found = blocking(move || {
        let bindings = subjects.into_iter().map(|subject| match subject {
            Subject::Workload(id) => Ok(Binding::Workload(id)),
            Subject::Cgroup(path) => match Hierarchy::find()?.cgroup(&path) {
                Ok(_) | Err(CgroupError::NoCgroup(_)) => Ok(Binding::Cgroup { path, id: None }),
                Err(error) => Err(error),
            },
            Subject::Process(process) => {
                let path = Hierarchy::path_of_process(process)?;
                let (_, id) = Hierarchy::find()?.cgroup(&path)?;
                Ok(Binding::Cgroup { path, id: Some(id) })
            }
        });
        bindings.collect::<Result<Vec<_>, _>>()
    });
    found.await.map_err(|error| NodeError::UnknownCgroup(Arc::new(error)))
}

/// The refusal of the first request that demands more than the gate gives.
fn check_access(state: &State, requests: &[wire::Request]) -> Result<(), Status> {
    let gated = response::gated_devices(state);
    for (index, request) in requests.iter().enumerate() {
        let text = request.demand.as_ref().map(|demand| demand.access.as_str());
        let Some(text) = text.filter(|text| !text.is_empty()) else { continue };
        let demanded: Enforcement = text.parse().map_err(|error| {
            let words = format!("requests[{index}].demand.access: {error}");
            error::coded(Code::InvalidArgument, error::INVALID_REQUEST, words)
        })?;
        let (what, is_gated) = match &request.wanted {
            Some(Wanted::Device(name)) => {
                let target = state.inventory.resolve(name);
                // What is not there is refused in other words.
                let Some(Target::Device(device) | Target::Partition { device, .. }) = target else {
                    continue;
                };
                (format!("device {device}"), gated.contains(&device))
            }
            // It is not known yet which one it will be.
            Some(Wanted::Any(_)) | None => {
                let all = state.inventory.devices().all(|device| gated.contains(&device.name));
                ("any device".to_owned(), all)
            }
        };
        let granted = if is_gated { Enforcement::Kernel } else { Enforcement::None };
        if demanded > granted {
            let words = format!(
                "access to {what} can be held by `{granted}`, `{demanded}` is demanded: the device \
                 gate must be up, and its pool's mode `enforce`"
            );
            return Err(error::coded(Code::FailedPrecondition, "AP0107", words));
        }
    }
    Ok(())
}

impl Service {
    /// The bindings that `subjects` stand for. A cgroup that is not there is on record, as every
    /// refusal of a claim.
    pub(super) async fn bindings_of(
        &self,
        claim: &ClaimId,
        subjects: Vec<Subject>,
        by: &Asker,
    ) -> Result<Vec<Binding>, Status> {
        match find(subjects).await {
            Ok(bindings) => Ok(bindings),
            Err(error) => {
                let node = self.node.asked_by(by.clone());
                Err(error::status(&node.refuse_binding(claim.clone(), error).await))
            }
        }
    }

    /// Refuses requests that demand more of the gate than it gives their devices now.
    pub(super) async fn check_access(&self, requests: &[wire::Request]) -> Result<(), Status> {
        let demands =
            |it: &wire::Request| it.demand.as_ref().is_some_and(|it| !it.access.is_empty());
        if !requests.iter().any(demands) {
            return Ok(());
        }
        check_access(&self.state().await?, requests)
    }

    /// Who has `device` open, or any.
    pub(super) async fn holders(&self, device: &str) -> Result<ListHoldersResponse, Status> {
        if !device.is_empty() {
            self.device(device).await?;
        }
        let keeper = self.gate.clone();
        let found = blocking(move || keeper.holders()).await;
        Ok(response::holders(found, device))
    }

    /// What the containers of `claim` can do, or of all.
    pub(super) async fn verify(&self, claim: &str) -> Result<VerifyClaimsResponse, Status> {
        let claim = (!claim.is_empty()).then(|| request::claim_id(claim)).transpose()?;
        if let Some(claim) = &claim
            && !self.state().await?.leases.contains_key(claim)
        {
            return Err(error::status(&NodeError::UnknownClaim(claim.clone())));
        }
        let found = self.gate.verify(claim).await;
        let claims = found.into_iter().map(response::verification_of_claim).collect();
        Ok(VerifyClaimsResponse { claims })
    }
}

/// What a container's runtime should write into the cgroups of containers with these shares.
pub(super) fn unified(shares: &dmem::Shares) -> HashMap<String, String> {
    let Ok(hierarchy) = Hierarchy::find() else { return HashMap::new() };
    let limits = dmem::limits(hierarchy.mount(), shares);
    if limits.is_empty() {
        return HashMap::new();
    }
    [(dmem::FILE.to_owned(), dmem::text(&limits))].into()
}

/// What is counted of the gate; nothing where no pool wants one.
pub(super) async fn metrics(
    keeper: &Keeper,
    leases: &BTreeMap<ClaimId, Lease>,
) -> Option<GateMetrics> {
    let asked = keeper.clone();
    // The kernel's maps are read, which may wait for others that change them.
    let (status, view) = blocking(move || (asked.status(), asked.view())).await;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    if status.state == "off" {
        return None;
    }
    let mut opens: BTreeMap<String, GateOpens> = BTreeMap::new();
    for (device, _, found) in status.counts {
        let sum = opens.entry(device.clone()).or_default();
        sum.device = device;
        sum.denied = sum.denied.saturating_add(found.denied);
        sum.audited = sum.audited.saturating_add(found.audited);
    }
    let guarded = [GateMode::Audit, GateMode::Enforce].map(|mode| {
        let ranges = status.guarded.iter().filter(|(_, found, _)| *found == mode);
        (mode.as_str(), u64::try_from(ranges.count()).unwrap_or(u64::MAX))
    });
    let verified = ["verified", "drifted", "unused", "unknown"].map(|word| {
        let claims = leases
            .keys()
            .filter(|claim| view.verification(claim).is_some_and(|found| found.state == word));
        (word, u64::try_from(claims.count()).unwrap_or(u64::MAX))
    });
    Some(GateMetrics {
        up: status.state == "up",
        grants: number(status.grants),
        grants_max: accelpool_gate::Gate::GRANTS_MAX,
        guarded: counts(guarded),
        opens: opens.into_values().collect(),
        repairs: status.repairs,
        stale_holders: number(status.stale_holders),
        stale_holders_killed: status.stale_holders_killed,
        verified: counts(verified),
    })
}

/// What is wrong with the gate, or that nothing is.
pub(super) fn findings(status: &GateStatus) -> Vec<Finding> {
    let words = |mode: accelpool_model::GateMode| {
        let ranges = status.guarded.iter().filter(|(_, found, _)| *found == mode);
        let ranges: Vec<&str> = ranges.map(|(numbers, _, _)| numbers.as_str()).collect();
        if ranges.is_empty() { String::new() } else { format!("; {mode}: {}", ranges.join(", ")) }
    };
    let mut findings = Vec::new();
    findings.push(match status.state {
        "up" => {
            let modes =
                [accelpool_model::GateMode::Enforce, accelpool_model::GateMode::Audit].map(words);
            let message = format!("the device gate holds `{}`{}", status.root, modes.concat());
            finding("ok", "gate", message, "")
        }
        "off" => finding("ok", "gate", "the device gate is off in every pool".into(), ""),
        "waiting" => finding(
            "warning",
            "gate",
            format!("the device gate waits: {}", status.reason),
            "start the kubelet, or set `gate.root` to the cgroup that tenants run in",
        ),
        _ => finding(
            "warning",
            "gate",
            format!("there is no device gate, so nothing keeps tenants off devices that they were not granted: {}", status.reason),
            "see AP0014; `gate = \"off\"` in every pool does without",
        ),
    });
    for defect in &status.defects {
        let remedy = "see the daemon's log; restart it if that stays so";
        findings.push(finding("error", "gate", defect.clone(), remedy));
    }
    if status.repairs > 0 {
        let message =
            format!("the device gate was changed by others and put right {} times", status.repairs);
        let remedy = "find who changes BPF programs, maps or pins on this machine";
        findings.push(finding("warning", "gate-repairs", message, remedy));
    }
    if status.stale_holders > 0 {
        let message =
            format!("{} processes keep devices open without a right to", status.stale_holders);
        let remedy = "`accelpool holders` names them; end them, or set `on_stale_holder`";
        findings.push(finding("warning", "holders", message, remedy));
    }
    if status.drifted_claims > 0 {
        let message =
            format!("containers of {} claims differ from the ledger", status.drifted_claims);
        let remedy = "`accelpool verify` says how; start these containers anew";
        findings.push(finding("warning", "verify", message, remedy));
    }
    findings
}

/// Runs work on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &'static str) -> GateStatus {
        GateStatus {
            state,
            reason: "no BPF".to_owned(),
            root: "/kubepods".to_owned(),
            guarded: vec![("c 195:0".to_owned(), GateMode::Enforce, Vec::new())],
            exempt: Vec::new(),
            grants: 0,
            counts: Vec::new(),
            repairs: 0,
            defects: Vec::new(),
            recent: Vec::new(),
            stale_holders: 0,
            stale_holders_killed: 0,
            drifted_claims: 0,
        }
    }

    /// The findings on a gate, as `severity check: message`.
    #[track_caller]
    fn check(status: &GateStatus, expected: &[&str]) {
        let findings = findings(status).into_iter();
        let found: Vec<String> = findings
            .map(|it| {
                assert_eq!(it.severity != "ok", !it.remedy.is_empty(), "{it:?}");
                format!("{} {}: {}", it.severity, it.check, it.message)
            })
            .collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn doctor_says_how_the_gate_stands() {
        check(&status("up"), &["ok gate: the device gate holds `/kubepods`; enforce: c 195:0"]);
        check(&status("off"), &["ok gate: the device gate is off"]);
        check(&status("waiting"), &["warning gate: the device gate waits: no BPF"]);
        check(&status("impossible"), &["warning gate: there is no device gate, so nothing keeps"]);
    }

    #[test]
    fn doctor_names_what_is_wrong_with_it() {
        let wrong = GateStatus {
            repairs: 3,
            defects: vec!["the gate has no room".to_owned()],
            stale_holders: 2,
            drifted_claims: 1,
            ..status("up")
        };
        check(
            &wrong,
            &[
                "ok gate: the device gate holds",
                "error gate: the gate has no room",
                "warning gate-repairs: the device gate was changed by others and put right 3",
                "warning holders: 2 processes keep devices open",
                "warning verify: containers of 1 claims differ",
            ],
        );
    }
}
