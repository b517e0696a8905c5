//! Kubernetes' API server, as the driver needs it: slices out, claims in.
//!
//! The only crate that knows `kube`. It keeps no ledger: what it publishes is derived from
//! the daemon's state each time, and what it reads of a claim is handed on at once.

#![forbid(unsafe_code)]

mod claim;
mod cluster;
mod counters;
mod device_status;
mod event;
mod node_state;
mod pace;
mod pod;
mod publisher;
mod quantity;
mod share_config;
mod slices;
mod wanted;

/// The API's own types, of which [`Page`] is made.
pub use k8s_openapi::api::resource::v1::{CounterSet, Device};

pub use crate::{
    claim::{
        AllocationResult, ClaimView, ConfigOrigin, Consumed, ConsumedError, PodReference,
        ReadClaimError,
    },
    cluster::{ApiServer, CallError, Cluster, ClusterConfig, ConnectError},
    counters::{Counters, CountersSnapshot},
    device_status::{ClaimReference, Condition, DeviceStatus, DeviceStatusError},
    event::{Event, EventRecorder, Regarding, Severity},
    node_state::{
        ExistingPartition, HeldPortion, Holding, NodeDevice, NodeState, Offer, SURFACE_DRA,
        SURFACE_LABEL,
    },
    pod::{ListPodsError, PodIdentity, ReadPodError},
    publisher::{PublishStatus, Publisher},
    quantity::BadQuantity,
    share_config::{CONFIG_API_VERSION, SHARE_CONFIG_KIND, ShareConfig, ShareConfigError},
    slices::{Features, Layout, Page, Pages, pages},
    wanted::Wanted,
};

/// What the name of a device's entry for claims with `adminAccess` has behind the device's.
pub const ADMIN_SUFFIX: &str = slices::admin::SUFFIX;

/// The driver's name in Kubernetes.
pub const DRIVER_NAME: &str = "accelpool.dev";
