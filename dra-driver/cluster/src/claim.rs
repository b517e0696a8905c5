//! Reading a `ResourceClaim`: what the scheduler granted of this driver's devices, to whom,
//! and with which configuration.
//!
//! A view, read afresh each time and never kept: the lease is the daemon's. Results and
//! configuration of other drivers in the same claim are left out.

use accelpool_model::{ComputePermille, MemoryBytes, QuantityError};
use kube::core::{Request, params::GetParams};

use crate::{
    cluster::{CallError, Cluster, is_dns_subdomain, within_deadline},
    quantity::{BadQuantity, parse_quantity},
    share_config::{ShareConfig, ShareConfigError},
};

mod wire;

/// A claim as this driver sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity: a new claim of the same name has another one.
    pub uid: String,
    /// This driver's part of the allocation, in the scheduler's order.
    pub results: Vec<AllocationResult>,
    /// The pods it is reserved for.
    pub pods: Vec<PodReference>,
}

/// One device of an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocationResult {
    /// The request, or `request/subrequest` where the claim gave alternatives.
    pub request: String,
    /// The driver: always this one.
    pub driver: String,
    /// The pool, as published.
    pub pool: String,
    /// The device, as published: a device, a partition or a fixed share.
    pub device: String,
    /// Tells apart several shares of one device.
    pub share_id: Option<String>,
    /// True if the claim looks at a device that others may hold.
    pub admin_access: bool,
    /// What the scheduler took of a device that several claims may share.
    pub consumed: Consumed,
    /// What class and claim say about it, the claim last.
    pub config: ShareConfig,
}

/// What a claim consumes of a shared device. Nothing is said of a device held alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Consumed {
    pub memory: Option<MemoryBytes>,
    pub compute: Option<ComputePermille>,
}

/// A pod that may use a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PodReference {
    pub name: String,
    pub uid: String,
}

/// Where a configuration was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigOrigin {
    /// In the `DeviceClass`.
    Class,
    /// In the claim.
    Claim,
}

/// Why a claim cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ReadClaimError {
    #[error("`{0}` names no claim")]
    Name(String),
    #[error("claim {namespace}/{name} does not exist")]
    NotFound { namespace: String, name: String },
    #[error("claim {namespace}/{name} was replaced: it is {found} now and was {expected}")]
    Replaced { namespace: String, name: String, expected: String, found: String },
    #[error("claim {namespace}/{name} is not allocated")]
    NotAllocated { namespace: String, name: String },
    #[error("{} configuration {index} is not valid", origin.owner())]
    Config { origin: ConfigOrigin, index: usize, source: ShareConfigError },
    #[error("allocation result {index} consumes a capacity that is not valid")]
    Consumed { index: usize, source: ConsumedError },
    #[error("failed to read claim {namespace}/{name}")]
    Call { namespace: String, name: String, source: CallError },
    #[error("claim {namespace}/{name} cannot be understood")]
    Malformed { namespace: String, name: String, source: serde_json::Error },
}

/// Why a consumed capacity is not one.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ConsumedError {
    #[error("`memory` is not valid")]
    Memory(#[source] BadQuantity),
    #[error("`compute` is not valid")]
    Compute(#[source] BadQuantity),
    #[error("`compute` is out of range")]
    ComputeRange(#[source] QuantityError),
}

impl ConfigOrigin {
    const fn owner(self) -> &'static str {
        match self {
            Self::Class => "the device class's",
            Self::Claim => "the claim's",
        }
    }
}

impl ReadClaimError {
    /// True if the claim may well be readable a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Call { source, .. } => source.is_transient(),
            Self::Name(_)
            | Self::NotFound { .. }
            | Self::Replaced { .. }
            | Self::NotAllocated { .. }
            | Self::Config { .. }
            | Self::Consumed { .. }
            | Self::Malformed { .. } => false,
        }
    }
}

impl AllocationResult {
    /// The request without its subrequest: what the kubelet compares with.
    #[must_use]
    pub fn base_request(&self) -> &str {
        base_of(&self.request)
    }
}

fn base_of(request: &str) -> &str {
    request.split_once('/').map_or(request, |(base, _)| base)
}

impl Cluster {
    /// Reads the claim `namespace/name`, which must still be the one with `uid`.
    pub async fn claim(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<ClaimView, ReadClaimError> {
        if !is_dns_subdomain(namespace, 63) || !is_dns_subdomain(name, 253) {
            let shown = format!("{namespace}/{name}").escape_debug().take(80).collect();
            return Err(ReadClaimError::Name(shown));
        }
        let place = || (namespace.to_owned(), name.to_owned());
        let path = format!("/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims");
        let request = Request::new(path)
            .get(name, &GetParams::default())
            .map_err(|_| ReadClaimError::Name(name.to_owned()))?;
        let text = within_deadline(self.client.request_text(request)).await;
        let text = text.map_err(|source| {
            let (namespace, name) = place();
            match source.code() {
                Some(404) => ReadClaimError::NotFound { namespace, name },
                _ => ReadClaimError::Call { namespace, name, source },
            }
        })?;
        let claim: wire::Claim = serde_json::from_str(&text).map_err(|source| {
            let (namespace, name) = place();
            ReadClaimError::Malformed { namespace, name, source }
        })?;
        let view = view(claim, &self.driver)?;
        if view.uid != uid {
            let (namespace, name) = place();
            let expected = uid.chars().take(64).collect();
            return Err(ReadClaimError::Replaced { namespace, name, expected, found: view.uid });
        }
        Ok(view)
    }
}

fn view(claim: wire::Claim, driver: &str) -> Result<ClaimView, ReadClaimError> {
    let wire::Claim { metadata, status } = claim;
    let wire::Metadata { namespace, name, uid } = metadata;
    let Some(wire::Status { allocation: Some(allocation), reserved_for }) = status else {
        return Err(ReadClaimError::NotAllocated { namespace, name });
    };
    let configs = decode_configs(&allocation.devices.config, driver)?;
    let ours = allocation.devices.results.into_iter().enumerate();
    let ours = ours.filter(|(_, result)| result.driver == driver);
    let results = ours.map(|(index, result)| {
        let consumed = consumed(&result.consumed_capacity, driver)
            .map_err(|source| ReadClaimError::Consumed { index, source })?;
        Ok(AllocationResult {
            config: config_of(&result.request, &configs),
            request: result.request,
            driver: result.driver,
            pool: result.pool,
            device: result.device,
            share_id: result.share_id,
            admin_access: result.admin_access.unwrap_or(false),
            consumed,
        })
    });
    let results = results.collect::<Result<_, ReadClaimError>>()?;
    let pods = reserved_for
        .into_iter()
        .filter(|user| user.api_group.is_empty() && user.resource == "pods")
        .map(|user| PodReference { name: user.name, uid: user.uid })
        .collect();
    Ok(ClaimView { namespace, name, uid, results, pods })
}

/// A configuration and the requests it is for; none means all.
struct Config {
    requests: Vec<String>,
    config: ShareConfig,
}

/// Decodes this driver's entries and sorts those of the class before those of the claim.
fn decode_configs(entries: &[wire::Config], driver: &str) -> Result<Vec<Config>, ReadClaimError> {
    let mut decoded = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let origin = match entry.source {
            wire::ConfigSource::FromClass => ConfigOrigin::Class,
            wire::ConfigSource::FromClaim => ConfigOrigin::Claim,
        };
        // An entry without `opaque` is of a kind that is newer than this driver: it may
        // belong to another driver, and the API server has let it pass.
        let Some(opaque) = entry.opaque.as_ref().filter(|opaque| opaque.driver == driver) else {
            continue;
        };
        let config = ShareConfig::decode(opaque.parameters.get())
            .map_err(|source| ReadClaimError::Config { origin, index, source })?;
        decoded.push((origin, Config { requests: entry.requests.clone(), config }));
    }
    decoded.sort_by_key(|(origin, _)| *origin);
    Ok(decoded.into_iter().map(|(_, config)| config).collect())
}

fn config_of(request: &str, configs: &[Config]) -> ShareConfig {
    let base = base_of(request);
    let meant = |config: &&Config| {
        let Config { requests, .. } = config;
        requests.is_empty() || requests.iter().any(|name| name == request || name == base)
    };
    let none = ShareConfig::default();
    configs.iter().filter(meant).fold(none, |sum, config| sum.overlaid(config.config))
}

fn consumed(capacity: &wire::Capacity, driver: &str) -> Result<Consumed, ConsumedError> {
    let amount =
        |name: &str| capacity.get(name).or_else(|| capacity.get(&format!("{driver}/{name}")));
    let memory = amount("memory").map(|text| parse_quantity(text)).transpose();
    let compute = amount("compute").map(|text| parse_quantity(text)).transpose();
    let compute = compute.map_err(ConsumedError::Compute)?.map(ComputePermille::try_from);
    Ok(Consumed {
        memory: memory.map_err(ConsumedError::Memory)?.map(MemoryBytes::new),
        compute: compute.transpose().map_err(ConsumedError::ComputeRange)?,
    })
}

#[cfg(test)]
mod tests;
