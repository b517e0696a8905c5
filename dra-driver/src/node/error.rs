//! What a failed call to the daemon means: worth another try, or final.

use accelpool_proto::node::ERROR_CODE_KEY;
use tonic::{Code, Status};

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The call failed. The status is no source: its words are told already, and what it adds
    /// are the words of the protocol.
    #[error("{}", describe(.0))]
    Call(Box<Status>),
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
    /// Somebody else holds what is wanted or is still giving it back, or the hardware failed.
    Busy,
    /// It will be refused again.
    Final,
}

/// Refusals that end by themselves although the daemon cannot promise it (`docs/errors`):
/// the device left the bus; another claim holds it.
const LOST: &str = "AP0102";
const HELD: &str = "AP0103";
/// There is no device of that name.
const UNKNOWN_DEVICE: &str = "AP0101";
/// The claim is on record with other requests.
const CHANGED: &str = "AP0108";
/// The hardware failed to do what was asked.
const FAILED: &str = "AP0114";

impl NodeError {
    /// True if the daemon knows no device of the name that was asked for.
    #[must_use]
    pub fn is_unknown_device(&self) -> bool {
        self.page() == Some(UNKNOWN_DEVICE)
    }

    /// True if the claim is on record with requests that differ from those that were made.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.page() == Some(CHANGED)
    }

    fn page(&self) -> Option<&str> {
        match self {
            Self::Call(status) => error_code(status),
            Self::Empty(_) => None,
        }
    }

    /// Says whether trying again may help.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let Self::Call(status) = self else { return Trouble::Final };
        let page = error_code(status);
        match status.code() {
            Code::Unavailable if page == Some(FAILED) => Trouble::Busy,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Trouble::Away,
            // The daemon codes its own refusals; without a code it is the connection that
            // broke in the middle of a call.
            Code::Unknown | Code::Internal if page.is_none() => Trouble::Away,
            Code::Aborted | Code::ResourceExhausted => Trouble::Busy,
            Code::FailedPrecondition if matches!(page, Some(LOST | HELD)) => Trouble::Busy,
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
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
    match (error_code(status), status.code()) {
        (Some(page), _) => format!("{} ({page})", status.message()),
        (None, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled) => {
            "the daemon accelpoold does not answer".to_owned()
        }
        (None, code) => format!("{} ({code:?})", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use accelpool_model::Chain;
    use tonic::metadata::MetadataValue;

    use super::*;

    #[track_caller]
    fn check(code: Code, page: Option<&'static str>, trouble: Trouble, words: &str) {
        let mut status = Status::new(code, "why");
        if let Some(page) = page {
            status.metadata_mut().insert(ERROR_CODE_KEY, MetadataValue::from_static(page));
        }
        let error = NodeError::from(status);
        assert_eq!((error.trouble(), Chain(&error).to_string().as_str()), (trouble, words));
    }

    #[test]
    fn a_changed_claim_is_known_by_its_page() {
        let mut status = Status::already_exists("why");
        assert!(!NodeError::from(status.clone()).is_changed());
        status.metadata_mut().insert(ERROR_CODE_KEY, MetadataValue::from_static(CHANGED));
        assert!(NodeError::from(status).is_changed());
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let away = "the daemon accelpoold does not answer";
        check(Code::Unavailable, None, Trouble::Away, away);
        check(Code::Unknown, None, Trouble::Away, away);
        check(Code::Unavailable, Some("AP0115"), Trouble::Away, "why (AP0115)");
        check(Code::Unavailable, Some("AP0114"), Trouble::Busy, "why (AP0114)");
        check(Code::Aborted, Some("AP0111"), Trouble::Busy, "why (AP0111)");
        check(Code::ResourceExhausted, Some("AP0104"), Trouble::Busy, "why (AP0104)");
        check(Code::FailedPrecondition, Some("AP0103"), Trouble::Busy, "why (AP0103)");
        check(Code::FailedPrecondition, Some("AP0107"), Trouble::Final, "why (AP0107)");
        check(Code::InvalidArgument, Some("AP0100"), Trouble::Final, "why (AP0100)");
        check(Code::Unimplemented, None, Trouble::Final, "why (Unimplemented)");
    }
}
