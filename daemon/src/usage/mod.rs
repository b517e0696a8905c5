//! Who used what: reads the vendors at a pace, finds out whose each process is, and keeps
//! the totals.
//!
//! ```text
//! vendor worker -> processes -> cgroups -> pods and claims -> attribute (pure) -> totals
//! ```
//!
//! Nothing here decides anything, and nothing waits for it: a vendor that hangs makes its
//! devices' figures old, which they say.

pub mod cgroup;
pub mod drm;
pub mod history;
pub mod meter;
pub mod process;
mod sampler;
mod tenants;

use accelpool_model::Claim;

pub use self::{
    meter::Meter,
    sampler::{Settings, run},
};

/// The label by which whoever makes a claim says who is billed.
pub const AGENT_LABEL: &str = "accelpool.dev/agent";
/// The labels that `accelpool-dra` puts on a claim: see `dra-driver/src/labels.rs`.
const NAMESPACE_LABEL: &str = "accelpool.dev/namespace";
const NAME_LABEL: &str = "accelpool.dev/name";
const POD_LABEL: &str = "accelpool.dev/pod";
const POD_UID_LABEL: &str = "accelpool.dev/pod-uid";

/// Who usage is billed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Agent {
    /// Its name, for people.
    pub name: String,
    /// Its namespace; empty for what has none.
    pub namespace: String,
}

impl Agent {
    /// Whom a claim is billed to: who it says, else its pod, else itself.
    #[must_use]
    pub fn of(claim: &Claim) -> Self {
        let label = |key: &str| claim.labels.get(key).filter(|value| !value.is_empty());
        let name = [AGENT_LABEL, POD_LABEL, NAME_LABEL].into_iter().find_map(label);
        Self {
            name: name.cloned().unwrap_or_else(|| claim.id.to_string()),
            namespace: label(NAMESPACE_LABEL).cloned().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
