//! The words that a lease carries about its owner. The daemon keeps them and reads none.
//!
//! `accelpool_cluster::SURFACE_LABEL` says which way a claim came; these say the rest.

/// The surface of claims that stand for extended resources.
pub const SURFACE_DEVICE_PLUGIN: &str = "device-plugin";
/// The namespace of the `ResourceClaim`.
pub const NAMESPACE: &str = "accelpool.dev/namespace";
/// The name of the `ResourceClaim`.
pub const NAME: &str = "accelpool.dev/name";
/// The name of the pod that the claim was first prepared for.
pub const POD: &str = "accelpool.dev/pod";
/// The UID of that pod.
pub const POD_UID: &str = "accelpool.dev/pod-uid";
/// Who is billed, if that is not the pod: see `accelpool_daemon::usage::AGENT_LABEL`.
pub const AGENT: &str = "accelpool.dev/agent";
/// The extended resource.
pub const RESOURCE: &str = "accelpool.dev/resource";
/// The id that the kubelet knows the device of an extended resource by.
pub const DEVICE_ID: &str = "accelpool.dev/device-id";
