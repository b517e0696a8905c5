//! Model to record. Nothing can fail here: every model value has a record.

use accelpool_model as model;

use super::{
    Allocation, Binding, Cgroup, Claim, Enforcements, HeldShare, Lease, LeaseState, Look, Owed,
    OwedPartition, Partition, Placement, Portion, Request, Share, Start, Taint, Taints, Wanted,
    WantedAny,
};

impl From<&Option<model::BootId>> for Start {
    fn from(boot: &Option<model::BootId>) -> Self {
        Self { boot: text(boot.as_ref()) }
    }
}

impl Taints {
    pub(in crate::record) fn new(device: &model::DeviceUuid, taints: &[model::Taint]) -> Self {
        let taint = |taint: &model::Taint| Taint {
            key: taint.key.clone(),
            effect: taint.effect.to_string(),
            reason: taint.reason.clone(),
            since_ms: taint.since_ms,
            incarnation: taint.incarnation.clone(),
        };
        Self { device: device.to_string(), taints: taints.iter().map(taint).collect() }
    }
}

impl Owed {
    pub(in crate::record) fn new(
        device: &model::DeviceUuid,
        owed: &[model::OwedPartition],
    ) -> Self {
        let partition = |owed: &model::OwedPartition| OwedPartition {
            name: owed.step.name.to_string(),
            device: owed.step.device.to_string(),
            profile: owed.step.profile.to_string(),
            start: owed.step.start,
            boot: owed.boot.to_string(),
        };
        Self { device: device.to_string(), partitions: owed.iter().map(partition).collect() }
    }
}

impl From<&model::Lease> for Lease {
    fn from(lease: &model::Lease) -> Self {
        let model::Lease { claim, allocations, state, since_ms, boot, bindings } = lease;
        Self {
            claim: claim.into(),
            allocations: allocations.iter().map(Into::into).collect(),
            state: match state {
                model::LeaseState::Preparing => LeaseState::Preparing,
                model::LeaseState::Prepared => LeaseState::Prepared,
                model::LeaseState::Releasing => LeaseState::Releasing,
            },
            since_ms: *since_ms,
            boot: boot.to_string(),
            bindings: bindings.iter().map(Into::into).collect(),
        }
    }
}

impl From<&model::Binding> for Binding {
    fn from(binding: &model::Binding) -> Self {
        match binding {
            model::Binding::Workload(workload) => Self::Workload(workload.to_string()),
            model::Binding::Cgroup { path, id } => {
                Self::Cgroup(Cgroup { path: path.clone(), id: id.map(|id| id.0) })
            }
        }
    }
}

impl From<&model::Claim> for Claim {
    fn from(claim: &model::Claim) -> Self {
        let model::Claim { id, requests, labels } = claim;
        Self {
            id: id.to_string(),
            requests: requests.iter().map(Into::into).collect(),
            labels: labels.clone(),
        }
    }
}

impl From<&model::Request> for Request {
    fn from(request: &model::Request) -> Self {
        let model::Request { name, wanted, share, demand, share_id, admin } = request;
        Self {
            name: name.to_string(),
            wanted: wanted.into(),
            share: share.as_ref().map(Into::into),
            demand: (*demand).into(),
            share_id: text(share_id.as_ref()),
            admin: *admin,
        }
    }
}

impl From<&model::Wanted> for Wanted {
    fn from(wanted: &model::Wanted) -> Self {
        match wanted {
            model::Wanted::Named(name) => Self::Named(name.clone()),
            model::Wanted::Any { selector, profile, count } => {
                let model::Selector { names, kind, vendor, model } = selector;
                Self::Any(WantedAny {
                    names: names.iter().map(ToString::to_string).collect(),
                    kind: text(kind.as_ref()),
                    vendor: text(vendor.as_ref()),
                    model: model.clone(),
                    profile: text(profile.as_ref()),
                    count: *count,
                })
            }
        }
    }
}

impl From<&model::Share> for Share {
    fn from(share: &model::Share) -> Self {
        let model::Share { memory, compute, weight, class } = share;
        Self {
            memory_bytes: memory.map(model::MemoryBytes::bytes),
            compute_permille: compute.map(|compute| compute.permille().into()),
            weight: weight.value().into(),
            class: class.to_string(),
        }
    }
}

impl From<model::Enforcements> for Enforcements {
    fn from(enforcements: model::Enforcements) -> Self {
        let model::Enforcements { memory, compute } = enforcements;
        Self { memory: memory.to_string(), compute: compute.to_string() }
    }
}

impl From<&model::Allocation> for Allocation {
    fn from(allocation: &model::Allocation) -> Self {
        let model::Allocation { request, device, uuid, portion, share_id, enforcement } =
            allocation;
        Self {
            request: request.to_string(),
            device: device.to_string(),
            uuid: uuid.to_string(),
            portion: portion.into(),
            share_id: text(share_id.as_ref()),
            enforcement: (*enforcement).into(),
        }
    }
}

impl From<&model::Portion> for Portion {
    fn from(portion: &model::Portion) -> Self {
        match portion {
            model::Portion::Whole => Self::Whole,
            model::Portion::Admin { partition } => {
                Self::Admin(Look { partition: text(partition.as_ref()) })
            }
            model::Portion::Partition { name, profile, start, size, placement, adopted } => {
                Self::Partition(Partition {
                    name: name.to_string(),
                    profile: profile.to_string(),
                    start: *start,
                    size: *size,
                    placement: placement.map(|placement| Placement {
                        start: placement.start(),
                        size: placement.size(),
                    }),
                    adopted: *adopted,
                })
            }
            model::Portion::Share { memory, compute, weight, class } => Self::Share(HeldShare {
                memory_bytes: memory.bytes(),
                compute_permille: compute.permille().into(),
                weight: weight.value().into(),
                class: class.to_string(),
            }),
        }
    }
}

fn text(name: Option<&impl ToString>) -> Option<String> {
    name.map(ToString::to_string)
}
