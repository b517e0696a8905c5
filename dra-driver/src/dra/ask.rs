//! Turns a claim as the scheduler allocated it into what the daemon is asked, and the
//! daemon's lease into what the kubelet is told. Pure.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use accelpool_cluster::{
    ADMIN_SUFFIX, AllocationResult, ClaimView, NodeState, SURFACE_DRA, SURFACE_LABEL,
};
use accelpool_model::{Enforcement, MemoryBytes};
use accelpool_proto::node::{
    Allocation, Binding, Enforcements, Lease, PrepareClaimRequest, Request, Share,
    allocation::Portion, binding::Subject, request::Wanted,
};

use super::PreparedDevice;
use crate::labels;

/// Why an allocation means nothing on this node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum AskError {
    #[error("device {device} of pool `{pool}` is not on this node, whose pool is `{own}`")]
    ForeignPool { device: String, pool: String, own: String },
    #[error("{device} is for claims with `adminAccess` alone")]
    AdminOnly { device: String },
    #[error("the daemon prepared {found} devices where the claim has {expected}")]
    Count { expected: usize, found: usize },
    #[error("the daemon prepared request {found} where the claim has {expected}")]
    Order { expected: String, found: String },
}

/// What the daemon is asked for a claim, whose devices are in the pool `own_pool`.
///
/// # Errors
///
/// A device is in another node's pool, or is there only to be looked at.
pub(super) fn request_for(
    claim: &ClaimView,
    own_pool: &str,
    state: &NodeState,
) -> Result<PrepareClaimRequest, AskError> {
    let requests = claim.results.iter().map(|result| {
        if result.pool != own_pool {
            let (device, pool) = (result.device.clone(), result.pool.clone());
            return Err(AskError::ForeignPool { device, pool, own: own_pool.to_owned() });
        }
        if !result.admin_access && state.admin_entry(&result.device).is_some() {
            return Err(AskError::AdminOnly { device: result.device.clone() });
        }
        let wanted = state.wanted(result);
        let own_id = own_id(&wanted.device, &result.device);
        Ok(Request {
            name: result.base_request().to_owned(),
            share: wanted.share.as_ref().map(share),
            demand: demand_of(result),
            share_id: result.share_id.clone().or(own_id),
            admin: result.admin_access,
            wanted: Some(Wanted::Device(wanted.device)),
        })
    });
    let requests = requests.collect::<Result<_, _>>()?;
    // The cgroups of the pods that may use it: only they get past the device gate.
    let workload = |uid: &String| Binding {
        subject: Some(Subject::Workload(uid.clone())),
        ..Binding::default()
    };
    Ok(PrepareClaimRequest {
        claim: claim.uid.clone(),
        requests,
        labels: labels_of(claim),
        bindings: claim.pods.iter().map(|pod| workload(&pod.uid)).collect(),
        held: false,
    })
}

/// The name that an allocation's device has in the slices, as the scheduler knows it.
pub(crate) fn published_name(allocation: &Allocation) -> String {
    match (&allocation.portion, &allocation.share_id) {
        (Some(Portion::Partition(partition)), _) => partition.name.clone(),
        (Some(Portion::Share(_) | Portion::Admin(_)), Some(id)) if is_own(id) => {
            format!("{}-{id}", allocation.device)
        }
        (Some(Portion::Whole(_) | Portion::Share(_) | Portion::Admin(_)) | None, _) => {
            allocation.device.clone()
        }
    }
}

/// What a fixed share's name has behind its device's.
const FIXED_SHARE: &str = "share-";

/// True for the ids that the driver gives to what it publishes beside a device, under that name.
/// The scheduler's own share ids are UUIDs.
fn is_own(id: &str) -> bool {
    id.starts_with(FIXED_SHARE) || id == ADMIN_SUFFIX
}

/// The share id that the scheduler gave; none for what has its own name.
pub(crate) fn scheduled_share_id(allocation: &Allocation) -> Option<String> {
    allocation.share_id.clone().filter(|id| !is_own(id))
}

/// Tells apart what is published beside one device; none for a device by its own name.
fn own_id(device: &str, published: &str) -> Option<String> {
    let id = published.strip_prefix(device)?.strip_prefix('-')?;
    is_own(id).then(|| id.to_owned())
}

/// What the kubelet is told of a lease that was prepared for `claim`.
///
/// # Errors
///
/// The lease does not answer the claim's requests one by one.
pub(super) fn devices_of(
    claim: &ClaimView,
    lease: &Lease,
) -> Result<Vec<PreparedDevice>, AskError> {
    let (expected, found) = (claim.results.len(), lease.allocations.len());
    if expected != found {
        return Err(AskError::Count { expected, found });
    }
    let pairs = claim.results.iter().zip(&lease.allocations);
    let devices = pairs.map(|(result, allocation)| {
        let request = result.base_request();
        if allocation.request != request {
            let (expected, found) = (request.to_owned(), allocation.request.clone());
            return Err(AskError::Order { expected, found });
        }
        Ok(PreparedDevice {
            request: request.to_owned(),
            pool: result.pool.clone(),
            device: result.device.clone(),
            share_id: result.share_id.clone(),
            cdi_id: allocation.cdi_id.clone(),
        })
    });
    devices.collect()
}

fn share(share: &accelpool_model::Share) -> Share {
    Share {
        memory_bytes: share.memory.map(MemoryBytes::bytes),
        compute_permille: share.compute.map(|compute| compute.permille().into()),
        weight: share.weight.value().into(),
        class: share.class.as_str().to_owned(),
    }
}

fn demand_of(result: &AllocationResult) -> Option<Enforcements> {
    let config = &result.config;
    let (memory, compute) = (config.memory_enforcement, config.compute_enforcement);
    let access = config.access_enforcement;
    let word = |demand: Option<Enforcement>| demand.unwrap_or_default().as_str().to_owned();
    (memory.is_some() || compute.is_some() || access.is_some()).then(|| Enforcements {
        memory: word(memory),
        compute: word(compute),
        access: access.map(|_| word(access)).unwrap_or_default(),
    })
}

fn labels_of(claim: &ClaimView) -> HashMap<String, String> {
    let mut words = vec![
        (SURFACE_LABEL, SURFACE_DRA),
        (labels::NAMESPACE, &claim.namespace),
        (labels::NAME, &claim.name),
    ];
    if let Some(pod) = claim.pods.first() {
        words.extend([(labels::POD, pod.name.as_str()), (labels::POD_UID, pod.uid.as_str())]);
    }
    words.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
