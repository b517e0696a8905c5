//! Errors on their way out: the chain in one line, and the code of the page that helps.

pub use accelpool_model::Chain;
use accelpool_planner::PrepareError;
use tonic::{Code, Status, codegen::http, metadata::MetadataValue};

use crate::node::NodeError;

/// The page of a request that makes no sense as written.
pub const INVALID_REQUEST: &str = "AP0100";
/// The page of a caller who may not do what it asks.
pub const PERMISSION_DENIED: &str = "AP0116";

/// The code of the page in `docs/errors` that tells what to do.
#[must_use]
pub fn code(error: &NodeError) -> &'static str {
    match error {
        NodeError::Refused(error) => prepare_code(error),
        NodeError::Failed(error) if error.is_mps() => "AP0132",
        NodeError::Failed(error) if error.is_paused() => "AP0131",
        NodeError::Failed(_) => "AP0114",
        NodeError::UnknownDevice(_) => "AP0101",
        NodeError::UnknownTaint { .. } => "AP0118",
        NodeError::UnknownClaim(_) => "AP0117",
        NodeError::UnknownVendor(_) => "AP0119",
        NodeError::UnknownCgroup(_) => "AP0121",
        NodeError::NotObserved { .. } => "AP0120",
        NodeError::Paused { .. } => "AP0131",
        NodeError::Settling(_) => "AP0111",
        NodeError::Draining => "AP0115",
        NodeError::Ledger => "AP0004",
    }
}

fn prepare_code(error: &PrepareError) -> &'static str {
    match error {
        PrepareError::UnknownDevice(_) => "AP0101",
        PrepareError::LostDevice(_) => "AP0102",
        PrepareError::ModeOn { .. } | PrepareError::ModeOff { .. } => "AP0130",
        PrepareError::Held { .. } => "AP0103",
        PrepareError::MemoryTaken { .. }
        | PrepareError::ComputeTaken { .. }
        | PrepareError::PartitionsTaken { .. } => "AP0104",
        PrepareError::MemoryOutOfRange { .. }
        | PrepareError::ShareOfPartition(_)
        | PrepareError::SecondMpsShare(_) => "AP0105",
        PrepareError::NoPool(_) | PrepareError::NotAllowed { .. } => "AP0106",
        PrepareError::WeakerEnforcement { .. } => "AP0107",
        PrepareError::Changed(_) => "AP0108",
        PrepareError::NoneFree { .. } => "AP0109",
        PrepareError::CutByHand { .. } => "AP0110",
        PrepareError::Busy(..) => "AP0111",
        PrepareError::TooManyLeases(_) | PrepareError::TooManyBindings(_) => "AP0112",
        PrepareError::NotPrepared(_) => "AP0117",
        PrepareError::UnknownProfile { .. } | PrepareError::NoSuchProfile(_) => "AP0113",
    }
}

/// The one place that maps errors to gRPC codes. `Aborted` and `Unavailable` mean that the
/// same call may succeed in a moment; the rest stays as it is until somebody acts.
fn wire_code(error: &NodeError) -> Code {
    match error {
        NodeError::Refused(error) => match error {
            PrepareError::UnknownDevice(_)
            | PrepareError::NotPrepared(_)
            | PrepareError::UnknownProfile { .. }
            | PrepareError::NoSuchProfile(_) => Code::NotFound,
            PrepareError::MemoryOutOfRange { .. }
            | PrepareError::SecondMpsShare(_)
            | PrepareError::ShareOfPartition(_) => Code::InvalidArgument,
            PrepareError::MemoryTaken { .. }
            | PrepareError::ComputeTaken { .. }
            | PrepareError::PartitionsTaken { .. }
            | PrepareError::NoneFree { .. }
            | PrepareError::TooManyBindings(_)
            | PrepareError::TooManyLeases(_) => Code::ResourceExhausted,
            PrepareError::LostDevice(_)
            | PrepareError::NoPool(_)
            | PrepareError::NotAllowed { .. }
            | PrepareError::ModeOn { .. }
            | PrepareError::ModeOff { .. }
            | PrepareError::Held { .. }
            | PrepareError::CutByHand { .. }
            | PrepareError::WeakerEnforcement { .. } => Code::FailedPrecondition,
            PrepareError::Changed(_) => Code::AlreadyExists,
            PrepareError::Busy(..) => Code::Aborted,
        },
        NodeError::Settling(_) => Code::Aborted,
        NodeError::Failed(_)
        | NodeError::Paused { .. }
        | NodeError::NotObserved { .. }
        | NodeError::Draining
        | NodeError::Ledger => Code::Unavailable,
        NodeError::UnknownDevice(_)
        | NodeError::UnknownTaint { .. }
        | NodeError::UnknownClaim(_)
        | NodeError::UnknownCgroup(_)
        | NodeError::UnknownVendor(_) => Code::NotFound,
    }
}

/// The status that a caller of the node API gets.
#[must_use]
pub fn status(error: &NodeError) -> Status {
    coded(wire_code(error), code(error), Chain(error).to_string())
}

/// A status with the code of its page as a trailer.
pub fn coded(wire: Code, page: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(wire, message);
    let key = accelpool_proto::node::ERROR_CODE_KEY;
    status.metadata_mut().insert(key, MetadataValue::from_static(page));
    status
}

/// Gives refusals that never reached a method the page of a bad request: the gRPC library
/// refuses what is too long or no message, and knows no pages.
pub fn name_page<B>(mut response: http::Response<B>) -> http::Response<B> {
    const UNREADABLE: [Code; 2] = [Code::OutOfRange, Code::Internal];
    let headers = response.headers_mut();
    let code = headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    let key = accelpool_proto::node::ERROR_CODE_KEY;
    if code.is_some_and(|code| UNREADABLE.contains(&code)) && !headers.contains_key(key) {
        headers.insert(key, http::HeaderValue::from_static(INVALID_REQUEST));
    }
    response
}

/// A pause that holds, but would not outlive the daemon.
pub(crate) fn pause_failed(worker: &crate::worker::Worker, error: &std::io::Error) -> Status {
    Status::internal(format!("the pause of vendor {} was not recorded: {error}", worker.vendor()))
}
