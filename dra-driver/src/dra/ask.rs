//! Turns a claim as the scheduler allocated it into what the daemon is asked, and the
//! daemon's lease into what the kubelet is told. Pure.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use accelpool_cluster::{AllocationResult, ClaimView, NodeDevice, SURFACE_DRA, SURFACE_LABEL};
use accelpool_model::{ComputePermille, Enforcement, MemoryBytes, ShareClass, Weight};
use accelpool_proto::node::{
    Enforcements, Lease, PrepareClaimRequest, Request, Share, request::Wanted,
};

use super::PreparedDevice;
use crate::labels;

/// Why an allocation means nothing on this node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum AskError {
    #[error("device {device} of pool `{pool}` is not on this node, whose pool is `{own}`")]
    ForeignPool { device: String, pool: String, own: String },
    #[error("the daemon prepared {found} devices where the claim has {expected}")]
    Count { expected: usize, found: usize },
    #[error("the daemon prepared request {found} where the claim has {expected}")]
    Order { expected: String, found: String },
}

/// What the daemon is asked for a claim, whose devices are in the pool `own_pool`.
///
/// # Errors
///
/// A device is in another node's pool.
pub(super) fn request_for(
    claim: &ClaimView,
    own_pool: &str,
    devices: &[NodeDevice],
) -> Result<PrepareClaimRequest, AskError> {
    let requests = claim.results.iter().map(|result| {
        if result.pool != own_pool {
            let (device, pool) = (result.device.clone(), result.pool.clone());
            return Err(AskError::ForeignPool { device, pool, own: own_pool.to_owned() });
        }
        let device = devices.iter().find(|device| device.name.as_str() == result.device);
        Ok(Request {
            name: result.base_request().to_owned(),
            share: share_of(result, device),
            demand: demand_of(result),
            share_id: result.share_id.clone(),
            admin: result.admin_access,
            wanted: Some(Wanted::Device(result.device.clone())),
        })
    });
    let requests = requests.collect::<Result<_, _>>()?;
    Ok(PrepareClaimRequest { claim: claim.uid.clone(), requests, labels: labels_of(claim) })
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

/// The share that was consumed of a device; none if it was all of it, or if nothing was
/// consumed (a partition, a device that is not shared).
fn share_of(result: &AllocationResult, device: Option<&NodeDevice>) -> Option<Share> {
    if result.admin_access {
        return None;
    }
    let (memory, compute) = (result.consumed.memory, result.consumed.compute);
    if memory.is_none() && compute.is_none() {
        return None;
    }
    // A device that is unknown here is refused by the daemon, whatever the share.
    let all_memory =
        device.is_some_and(|device| memory.is_none_or(|memory| memory >= device.memory));
    let all_compute = compute.is_none_or(|compute| compute == ComputePermille::WHOLE);
    if all_memory && all_compute {
        return None;
    }
    Some(Share {
        memory_bytes: memory.map(MemoryBytes::bytes),
        compute_permille: compute.map(|compute| compute.permille().into()),
        weight: result.config.weight.unwrap_or(Weight::DEFAULT).value().into(),
        class: result.config.class.unwrap_or(ShareClass::Normal).as_str().to_owned(),
    })
}

fn demand_of(result: &AllocationResult) -> Option<Enforcements> {
    let (memory, compute) = (result.config.memory_enforcement, result.config.compute_enforcement);
    let word = |demand: Option<Enforcement>| demand.unwrap_or_default().as_str().to_owned();
    (memory.is_some() || compute.is_some())
        .then(|| Enforcements { memory: word(memory), compute: word(compute) })
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
