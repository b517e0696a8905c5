//! Wire requests to model types: every field checked, every list limited.

use std::collections::{BTreeMap, BTreeSet};

use accelpool_model::{
    Claim, ClaimId, ComputePermille, Enforcements, MemoryBytes, Request, Selector, Share,
    ShareClass, TaintEffect, Wanted, Weight,
};
use accelpool_planner::{COUNT_MAX, REQUESTS_MAX};
use accelpool_proto::node as wire;
use tonic::{Code, Status};

use crate::{
    error::{INVALID_REQUEST, coded},
    holder,
};

/// Labels of a claim: as many as a person reads, as long as Kubernetes' longest names.
const LABELS_MAX: usize = 32;
const LABEL_KEY_MAX: usize = 317;
const LABEL_VALUE_MAX: usize = 256;
/// Names in a selector: a node has far fewer devices.
const NAMES_MAX: usize = 64;
/// As long as the kernel takes a path.
const CGROUP_PATH_MAX: usize = 4096;
/// A taint's reason, as long as a person reads.
const REASON_MAX: usize = 256;

/// A request that makes no sense as written: where, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is not valid: {reason}")]
pub struct BadRequest {
    path: String,
    reason: String,
}

impl From<BadRequest> for Status {
    fn from(error: BadRequest) -> Self {
        coded(Code::InvalidArgument, INVALID_REQUEST, error.to_string())
    }
}

pub(super) fn bad(path: impl Into<String>) -> impl Fn(&dyn std::fmt::Display) -> BadRequest {
    let path = path.into();
    move |reason| BadRequest { path: path.clone(), reason: reason.to_string() }
}

/// A claim's name.
pub(super) fn claim_id(text: &str) -> Result<ClaimId, BadRequest> {
    text.parse().map_err(|error| bad("claim")(&error))
}

/// Who may use a claim, as a request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Workload(accelpool_model::WorkloadId),
    Cgroup(String),
    Process(u32),
}

/// Whose processes a claim is to be bound to. Cgroups are looked for by the caller.
pub(super) fn subjects(bindings: &[wire::Binding]) -> Result<Vec<Subject>, BadRequest> {
    let (count, max) = (bindings.len(), accelpool_model::Binding::MAX);
    if count > max {
        return Err(bad("bindings")(&format!("has {count} entries, at most {max} are allowed")));
    }
    let subjects = bindings.iter().enumerate().map(|(index, binding)| {
        let at = |field: &str| bad(format!("bindings[{index}].{field}"));
        match &binding.subject {
            Some(wire::binding::Subject::Workload(id)) => {
                Ok(Subject::Workload(id.parse().map_err(|error| at("workload")(&error))?))
            }
            Some(wire::binding::Subject::Cgroup(path)) if path.len() > CGROUP_PATH_MAX => {
                Err(at("cgroup")(&format!("use at most {CGROUP_PATH_MAX} bytes")))
            }
            Some(wire::binding::Subject::Cgroup(path)) => Ok(Subject::Cgroup(path.clone())),
            Some(wire::binding::Subject::Process(process)) => Ok(Subject::Process(*process)),
            None => Err(at("subject")(&"say who: `workload`, `cgroup` or `process`")),
        }
    });
    subjects.collect()
}

/// A whole claim.
pub fn claim_from_wire(request: wire::PrepareClaimRequest) -> Result<Claim, BadRequest> {
    let id = claim_id(&request.claim)?;
    let count = request.requests.len();
    if count == 0 || count > REQUESTS_MAX {
        return Err(bad("requests")(&format!("has {count} entries, use 1 to {REQUESTS_MAX}")));
    }
    let mut names = BTreeSet::new();
    let mut requests = Vec::new();
    for (index, request) in request.requests.into_iter().enumerate() {
        let request = request_from_wire(&format!("requests[{index}]"), request)?;
        // Several shares of one device within one request are told apart by their ids.
        if !names.insert((request.name.clone(), request.share_id.clone(), target(&request))) {
            let reason = format!("{} is asked for twice under one name", request.name);
            return Err(bad(format!("requests[{index}].name"))(&reason));
        }
        requests.push(request);
    }
    Ok(Claim { id, requests, labels: labels(request.labels)? })
}

fn target(request: &Request) -> Option<String> {
    match &request.wanted {
        Wanted::Named(name) => Some(name.clone()),
        Wanted::Any { .. } => None,
    }
}

fn labels(
    labels: std::collections::HashMap<String, String>,
) -> Result<BTreeMap<String, String>, BadRequest> {
    if labels.len() > LABELS_MAX {
        let reason = format!("has {} entries, at most {LABELS_MAX} are allowed", labels.len());
        return Err(bad("labels")(&reason));
    }
    let checked = |(key, value): (String, String)| {
        if key.is_empty() || key.len() > LABEL_KEY_MAX || key.chars().any(char::is_control) {
            let reason = format!("use keys of 1 to {LABEL_KEY_MAX} printable bytes");
            return Err(bad("labels")(&reason));
        }
        if key == holder::LABEL {
            return Err(bad("labels")(&format!("`{key}` is the daemon's own: set `held` instead")));
        }
        if value.len() > LABEL_VALUE_MAX || value.chars().any(char::is_control) {
            let reason = format!("use values of at most {LABEL_VALUE_MAX} printable bytes");
            return Err(bad("labels")(&reason));
        }
        Ok((key, value))
    };
    labels.into_iter().map(checked).collect()
}

fn request_from_wire(path: &str, request: wire::Request) -> Result<Request, BadRequest> {
    let at = |field: &str| bad(format!("{path}.{field}"));
    let wanted = match request.wanted {
        None => return Err(at("wanted")(&"say which device: `device` or `any`")),
        Some(wire::request::Wanted::Device(name)) => {
            // Names are looked up as they are; only what could never be one is refused here.
            if name.is_empty() || name.len() > 63 {
                return Err(at("device")(&"use a device's or partition's name of 1 to 63 bytes"));
            }
            Wanted::Named(name)
        }
        Some(wire::request::Wanted::Any(any)) => any_from_wire(path, any)?,
    };
    let share = request.share.map(|share| share_from_wire(path, &share)).transpose()?;
    if request.admin && (share.is_some() || matches!(wanted, Wanted::Any { .. })) {
        return Err(at("admin")(&"name the device with `device`, and ask for no share of it"));
    }
    let demand = request.demand.unwrap_or_default();
    let enforcement = |field: &str, text: &str| match text {
        "" => Ok(accelpool_model::Enforcement::None),
        text => text.parse().map_err(|error| at(field)(&error)),
    };
    let share_id = request.share_id.map(|id| id.parse()).transpose();
    Ok(Request {
        name: request.name.parse().map_err(|error| at("name")(&error))?,
        wanted,
        share,
        demand: Enforcements {
            memory: enforcement("demand.memory", &demand.memory)?,
            compute: enforcement("demand.compute", &demand.compute)?,
        },
        share_id: share_id.map_err(|error| at("share_id")(&error))?,
        admin: request.admin,
    })
}

fn any_from_wire(path: &str, any: wire::AnyDevice) -> Result<Wanted, BadRequest> {
    let at = |field: &str| bad(format!("{path}.any.{field}"));
    let selector = any.selector.unwrap_or_default();
    if selector.names.len() > NAMES_MAX {
        let reason =
            format!("has {} entries, at most {NAMES_MAX} are allowed", selector.names.len());
        return Err(at("selector.names")(&reason));
    }
    if selector.model.len() > 64 {
        return Err(at("selector.model")(&"use at most 64 bytes"));
    }
    let names = selector.names.iter().map(|name| name.parse());
    let names = names.collect::<Result<_, _>>().map_err(|e| at("selector.names")(&e))?;
    let given = |text: String| (!text.is_empty()).then_some(text);
    let count = any.count.max(1);
    if count > COUNT_MAX {
        return Err(at("count")(&format!("{count} is out of range: use 1 to {COUNT_MAX}")));
    }
    Ok(Wanted::Any {
        selector: Selector {
            names,
            kind: given(selector.kind)
                .map(|text| text.parse())
                .transpose()
                .map_err(|e| at("selector.kind")(&e))?,
            vendor: given(selector.vendor)
                .map(|text| text.parse())
                .transpose()
                .map_err(|e| at("selector.vendor")(&e))?,
            model: given(selector.model),
        },
        profile: given(any.profile)
            .map(|text| text.parse())
            .transpose()
            .map_err(|e| at("profile")(&e))?,
        count,
    })
}

fn share_from_wire(path: &str, share: &wire::Share) -> Result<Share, BadRequest> {
    let at = |field: &str| bad(format!("{path}.share.{field}"));
    if share.memory_bytes == Some(0) {
        return Err(at("memory_bytes")(&"use at least 1, or leave it out for all of it"));
    }
    let compute = share.compute_permille.map(|value| ComputePermille::try_from(u64::from(value)));
    let weight = match share.weight {
        0 => Ok(Weight::DEFAULT),
        weight => Weight::try_from(u64::from(weight)),
    };
    let class = match share.class.as_str() {
        "" => Ok(ShareClass::default()),
        text => text.parse(),
    };
    Ok(Share {
        memory: share.memory_bytes.map(MemoryBytes::new),
        compute: compute.transpose().map_err(|error| at("compute_permille")(&error))?,
        weight: weight.map_err(|error| at("weight")(&error))?,
        class: class.map_err(|error| at("class")(&error))?,
    })
}

/// A taint's effect and reason.
pub(super) fn taint_from_wire(
    request: &wire::TaintDeviceRequest,
) -> Result<(TaintEffect, String), BadRequest> {
    let effect = match request.effect.as_str() {
        "" => Ok(TaintEffect::NoSchedule),
        text => text.parse(),
    };
    let reason = request.reason.trim();
    if reason.is_empty() || reason.len() > REASON_MAX || reason.chars().any(char::is_control) {
        let rule = format!("say why, in 1 to {REASON_MAX} printable bytes");
        return Err(bad("reason")(&rule));
    }
    Ok((effect.map_err(|error| bad("effect")(&error))?, reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> wire::Request {
        wire::Request {
            name: "gpu".into(),
            wanted: Some(wire::request::Wanted::Device("gpu-0000-1b-00-0".into())),
            ..wire::Request::default()
        }
    }

    fn prepare(requests: Vec<wire::Request>) -> wire::PrepareClaimRequest {
        wire::PrepareClaimRequest { claim: "a".into(), requests, ..Default::default() }
    }

    fn share(share: wire::Share) -> wire::PrepareClaimRequest {
        prepare(vec![wire::Request { share: Some(share), ..request() }])
    }

    #[track_caller]
    fn refused(request: wire::PrepareClaimRequest, expected: &str) {
        let error = claim_from_wire(request).expect_err("the request is refused").to_string();
        assert_eq!(error, expected);
        assert!(error.len() < 400, "a message is short whatever it is about");
    }

    #[test]
    fn a_good_request_becomes_a_claim() {
        let claim = claim_from_wire(prepare(vec![request()])).unwrap();
        assert_eq!(claim.id.as_str(), "a");
        assert_eq!(claim.requests[0].wanted, Wanted::Named("gpu-0000-1b-00-0".into()));
    }

    #[test]
    fn numbers_are_refused_with_their_range() {
        let none = wire::Share { memory_bytes: Some(0), ..Default::default() };
        refused(
            share(none),
            "`requests[0].share.memory_bytes` is not valid: use at least 1, or leave it out for \
             all of it",
        );
        let much = wire::Share { compute_permille: Some(1001), ..Default::default() };
        refused(
            share(much),
            "`requests[0].share.compute_permille` is not valid: compute 1001 is out of range: \
             use 1 to 1000",
        );
        let heavy = wire::Share { weight: 1001, ..Default::default() };
        refused(
            share(heavy),
            "`requests[0].share.weight` is not valid: weight 1001 is out of range: use 1 to 1000",
        );
    }

    #[test]
    fn names_are_refused_with_their_rule() {
        let long = wire::PrepareClaimRequest { claim: "x".repeat(1 << 20), ..Default::default() };
        refused(long, "`claim` is not valid: claim is 1048576 bytes long, at most 63 are allowed");
        refused(prepare(vec![]), "`requests` is not valid: has 0 entries, use 1 to 32");
        refused(
            prepare(vec![request(); 33]),
            "`requests` is not valid: has 33 entries, use 1 to 32",
        );
        refused(
            prepare(vec![request(), request()]),
            "`requests[1].name` is not valid: gpu is asked for twice under one name",
        );
        let nothing = wire::Request { wanted: None, ..request() };
        refused(
            prepare(vec![nothing]),
            "`requests[0].wanted` is not valid: say which device: `device` or `any`",
        );
    }

    #[test]
    fn labels_have_limits() {
        let mut request = prepare(vec![request()]);
        request.labels.insert("pod".into(), "x".repeat(1 << 20));
        refused(request, "`labels` is not valid: use values of at most 256 printable bytes");
    }
}
