//! Attributes: what selectors and constraints may ask of a device.
//!
//! Every device carries the same set under the driver's own domain, since a selector that
//! reads a missing attribute stops the scheduling of its pod. Where something is not known,
//! the attribute says so: `none`, -1, 0.0.0. The standard attributes of Kubernetes are left
//! out where unknown, as other drivers do.

use std::collections::BTreeMap;

use accelpool_model::{Enforcement, Enforcements, ProfileName};
use k8s_openapi::api::resource::v1::DeviceAttribute;

use super::{capacity::FixedShare, semver::semver};
use crate::NodeDevice;

/// The API's limit on a string attribute, in bytes.
const STRING_LEN_MAX: usize = 64;
/// The word for what there is not.
const NONE: &str = "none";

/// What a published device is: all of a device, or which part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// All of it; `shared` if claims may also take a part of it each.
    Device { shared: bool },
    /// A share of a size that was fixed when it was published.
    Share(FixedShare),
    /// A partition.
    Partition(ProfileName),
    /// For claims that only look at it.
    Admin,
}

impl Form {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Device { .. } => "device",
            Self::Share(_) => "share",
            Self::Partition(_) => "partition",
            Self::Admin => "admin",
        }
    }

    fn profile(&self) -> String {
        match self {
            Self::Device { .. } | Self::Admin => NONE.to_owned(),
            Self::Share(FixedShare { of, .. }) => format!("1-of-{of}"),
            Self::Partition(profile) => profile.to_string(),
        }
    }

    /// The least that a claim on it is given: a device that is also shared promises no more
    /// than a share of it gets.
    fn enforcements(&self, device: &NodeDevice) -> Enforcements {
        match self {
            Self::Device { shared: true } | Self::Share(_) => device.share_enforcement,
            Self::Device { shared: false } | Self::Partition(_) => Enforcements::HARDWARE,
            Self::Admin => Enforcements::default(),
        }
    }
}

/// The attributes of `device` or the part of it that `form` says.
pub(super) fn attributes(device: &NodeDevice, form: &Form) -> BTreeMap<String, DeviceAttribute> {
    let Enforcements { memory, compute } = form.enforcements(device);
    let name = device.name.as_str();
    let numa_node = device.numa_node.map(i64::from);
    // A device outside any fabric is a clique of its own: it matches no other.
    let clique = device.fabric_clique.as_deref().filter(|clique| !clique.is_empty());
    let own = [
        ("vendor", text(device.vendor.as_str())),
        ("kind", text(device.kind.as_str())),
        ("form", text(form.as_str())),
        ("model", text(or_none(&device.model))),
        ("architecture", text(or_none(&device.architecture))),
        ("uuid", text(&device.uuid)),
        ("parent", text(name)),
        ("profile", text(&form.profile())),
        ("driverVersion", version(&device.driver_version)),
        ("computeCapability", version(&device.compute_capability)),
        ("runtimeVersion", version(&device.runtime_version)),
        ("numaNode", number(numa_node.unwrap_or(-1))),
        ("fabricClique", text(clique.unwrap_or(name))),
        ("memoryEnforcement", text(Enforcement::as_str(memory))),
        ("computeEnforcement", text(Enforcement::as_str(compute))),
    ];
    let standard = [
        ("pcieRoot", device.pcie_root.as_deref().map(text)),
        ("pciBusID", device.pci.map(|pci| text(&pci.to_string()))),
        ("numaNode", numa_node.map(number)),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    let standard = standard
        .into_iter()
        .filter_map(|(name, value)| Some((format!("resource.kubernetes.io/{name}"), value?)));
    own.chain(standard).collect()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

fn text(text: &str) -> DeviceAttribute {
    let end = text.floor_char_boundary(STRING_LEN_MAX);
    DeviceAttribute { string: Some(text[..end].to_owned()), ..DeviceAttribute::default() }
}

fn number(number: i64) -> DeviceAttribute {
    DeviceAttribute { int: Some(number), ..DeviceAttribute::default() }
}

fn version(text: &str) -> DeviceAttribute {
    DeviceAttribute { version: Some(semver(text)), ..DeviceAttribute::default() }
}
