//! What a failed call to the daemon means: worth another try, or final.

use accelpool_proto::node::ERROR_CODE_KEY;
use tonic::{Code, Status};

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The call failed.
    #[error("{}", describe(.0))]
    Call(#[from] Box<Status>),
    /// The answer lacks what it must have.
    #[error("the daemon's answer lacks {0}")]
    Empty(&'static str),
}

impl From<Status> for NodeError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Whether a failure may pass by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The daemon does not answer: it starts again, or it never ran.
    Away,
    /// Somebody else holds what is wanted, or is still giving it back.
    Busy,
    /// It will be refused again.
    Final,
}

impl NodeError {
    /// Says whether trying again may help.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let Self::Call(status) = self else { return Trouble::Final };
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Trouble::Away,
            // The daemon codes its own refusals; without a code it is the connection that
            // broke in the middle of a call.
            Code::Unknown | Code::Internal if error_code(status).is_none() => Trouble::Away,
            Code::Aborted | Code::ResourceExhausted => Trouble::Busy,
            // A neighbour's lease, or a device that left the bus and may return.
            Code::FailedPrecondition => Trouble::Busy,
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Trouble::Final,
        }
    }
}

fn error_code(status: &Status) -> Option<&str> {
    status.metadata().get(ERROR_CODE_KEY)?.to_str().ok()
}

/// The daemon's own words, with the code that has a page.
fn describe(status: &Status) -> String {
    match error_code(status) {
        Some(code) => format!("{} ({code})", status.message()),
        None => match status.code() {
            Code::Unavailable => "the daemon accelpoold does not answer".to_owned(),
            code => format!("{} ({code:?})", status.message()),
        },
    }
}
