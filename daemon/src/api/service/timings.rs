//! How long calls that change something took, by how they ended.

use crate::{node::NodeError, timing::Timings};

/// How long calls that change something took, by outcome.
#[derive(Debug, Default)]
pub(super) struct CallTimings {
    pub(super) prepares: Timings,
    pub(super) releases: Timings,
}

/// How a change ended, in one word of a fixed set.
pub(super) fn outcome<T>(result: &Result<T, NodeError>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(NodeError::Failed(_) | NodeError::Ledger) => "failed",
        Err(
            NodeError::Refused(_)
            | NodeError::UnknownDevice(_)
            | NodeError::UnknownTaint { .. }
            | NodeError::UnknownClaim(_)
            | NodeError::UnknownCgroup(_)
            | NodeError::UnknownVendor(_)
            | NodeError::NotObserved { .. }
            | NodeError::Paused { .. }
            | NodeError::Settling(_)
            | NodeError::Draining,
        ) => "refused",
    }
}
