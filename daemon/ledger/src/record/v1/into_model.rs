//! Record to model. Every text is parsed again: a record is not trusted for being ours.

use std::str::FromStr;

use accelpool_model as model;

use super::{
    Allocation, Binding, Cgroup, Claim, Enforcements, HeldShare, Lease, LeaseState, Look, Owed,
    OwedPartition, Partition, Placement, Portion, Request, Share, Start, Taint, Taints, Wanted,
    WantedAny,
};
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

impl Start {
    pub(in crate::record) fn into_model(self) -> Result<Option<model::BootId>> {
        parse(self.boot)
    }
}

impl Taints {
    pub(in crate::record) fn into_model(self) -> Result<(model::DeviceUuid, Vec<model::Taint>)> {
        if self.taints.is_empty() {
            return Err("the list of taints is empty".into());
        }
        let taint = |Taint { key, effect, reason, since_ms, incarnation }: Taint| {
            let effect = effect.parse()?;
            Ok(model::Taint { key, effect, reason, since_ms, incarnation })
        };
        Ok((self.device.parse()?, collect(self.taints, taint)?))
    }
}

impl Owed {
    pub(in crate::record) fn into_model(
        self,
    ) -> Result<(model::DeviceUuid, Vec<model::OwedPartition>)> {
        if self.partitions.is_empty() {
            return Err("the list of partitions is empty".into());
        }
        let uuid: model::DeviceUuid = self.device.parse()?;
        let partition = |OwedPartition { name, device, profile, start, boot }: OwedPartition| {
            let step = model::PartitionStep {
                name: name.parse()?,
                device: device.parse()?,
                uuid: uuid.clone(),
                profile: profile.parse()?,
                start,
            };
            Ok(model::OwedPartition { step, boot: boot.parse()? })
        };
        let owed = collect(self.partitions, partition)?;
        Ok((uuid, owed))
    }
}

impl Lease {
    pub(in crate::record) fn into_model(self) -> Result<model::Lease> {
        let Self { claim, allocations, state, since_ms, boot, bindings } = self;
        Ok(model::Lease {
            claim: claim.into_model()?,
            allocations: collect(allocations, Allocation::into_model)?,
            state: match state {
                LeaseState::Preparing => model::LeaseState::Preparing,
                LeaseState::Prepared => model::LeaseState::Prepared,
                LeaseState::Releasing => model::LeaseState::Releasing,
            },
            since_ms,
            boot: boot.parse()?,
            bindings: collect(bindings, Binding::into_model)?,
        })
    }
}

impl Binding {
    fn into_model(self) -> Result<model::Binding> {
        Ok(match self {
            Self::Workload(workload) => model::Binding::Workload(workload.parse()?),
            Self::Cgroup(Cgroup { path, id }) => {
                model::Binding::Cgroup { path, id: id.map(model::CgroupId) }
            }
        })
    }
}

impl Claim {
    fn into_model(self) -> Result<model::Claim> {
        let Self { id, requests, labels } = self;
        let requests = collect(requests, Request::into_model)?;
        Ok(model::Claim { id: id.parse()?, requests, labels })
    }
}

impl Request {
    fn into_model(self) -> Result<model::Request> {
        let Self { name, wanted, share, demand, share_id, admin } = self;
        Ok(model::Request {
            name: name.parse()?,
            wanted: wanted.into_model()?,
            share: share.map(Share::into_model).transpose()?,
            demand: demand.into_model()?,
            share_id: parse(share_id)?,
            admin,
        })
    }
}

impl Wanted {
    fn into_model(self) -> Result<model::Wanted> {
        match self {
            Self::Named(name) => Ok(model::Wanted::Named(name)),
            Self::Any(WantedAny { names, kind, vendor, model, profile, count }) => {
                let selector = model::Selector {
                    names: collect(names, |name| Ok(name.parse()?))?,
                    kind: parse(kind)?,
                    vendor: parse(vendor)?,
                    model,
                };
                Ok(model::Wanted::Any { selector, profile: parse(profile)?, count })
            }
        }
    }
}

impl Share {
    fn into_model(self) -> Result<model::Share> {
        let Self { memory_bytes, compute_permille, weight, class } = self;
        Ok(model::Share {
            memory: memory_bytes.map(model::MemoryBytes::new),
            compute: compute_permille.map(model::ComputePermille::try_from).transpose()?,
            weight: weight.try_into()?,
            class: class.parse()?,
        })
    }
}

impl Enforcements {
    fn into_model(self) -> Result<model::Enforcements> {
        let Self { memory, compute } = self;
        Ok(model::Enforcements { memory: memory.parse()?, compute: compute.parse()? })
    }
}

impl Allocation {
    fn into_model(self) -> Result<model::Allocation> {
        let Self { request, device, uuid, portion, share_id, enforcement } = self;
        Ok(model::Allocation {
            request: request.parse()?,
            device: device.parse()?,
            uuid: uuid.parse()?,
            portion: portion.into_model()?,
            share_id: parse(share_id)?,
            enforcement: enforcement.into_model()?,
        })
    }
}

impl Portion {
    fn into_model(self) -> Result<model::Portion> {
        Ok(match self {
            Self::Whole => model::Portion::Whole,
            Self::Admin(Look { partition }) => {
                model::Portion::Admin { partition: parse(partition)? }
            }
            Self::Partition(Partition { name, profile, start, size, placement, adopted }) => {
                model::Portion::Partition {
                    name: name.parse()?,
                    profile: profile.parse()?,
                    start,
                    size,
                    placement: placement.map(Placement::into_model).transpose()?,
                    adopted,
                }
            }
            Self::Share(HeldShare { memory_bytes, compute_permille, weight, class }) => {
                model::Portion::Share {
                    memory: model::MemoryBytes::new(memory_bytes),
                    compute: compute_permille.try_into()?,
                    weight: weight.try_into()?,
                    class: class.parse()?,
                }
            }
        })
    }
}

impl Placement {
    fn into_model(self) -> Result<model::Placement> {
        let Self { start, size } = self;
        model::Placement::new(start, size)
            .ok_or_else(|| format!("slices {start} + {size} are no placement").into())
    }
}

fn parse<T>(text: Option<String>) -> Result<Option<T>>
where
    T: FromStr<Err: Into<EngineError>>,
{
    text.map(|text| text.parse()).transpose().map_err(Into::into)
}

fn collect<T, U>(items: Vec<T>, convert: impl FnMut(T) -> Result<U>) -> Result<Vec<U>> {
    items.into_iter().map(convert).collect()
}
