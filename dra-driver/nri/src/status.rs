//! How a call ended, if not well: gRPC's codes, as ttrpc carries them.

use accelpool_proto::ttrpc;

/// The codes that this protocol's participants tell apart. What else there is, is `Unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "gRPC's own names")]
pub enum Code {
    Unknown,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
    Internal,
}

impl Code {
    /// As on the wire.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::ResourceExhausted => 8,
            Self::Unimplemented => 12,
            Self::Internal => 13,
        }
    }

    fn from_number(number: i32) -> Self {
        match number {
            3 => Self::InvalidArgument,
            8 => Self::ResourceExhausted,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            _ => Self::Unknown,
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code:?})")]
#[expect(missing_docs, reason = "the names say it")]
pub struct Status {
    pub code: Code,
    pub message: String,
}

impl Status {
    /// A refusal with its reason.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// None if the call went well.
    pub(crate) fn from_wire(status: ttrpc::Status) -> Option<Self> {
        (status.code != 0).then(|| Self::new(Code::from_number(status.code), status.message))
    }

    pub(crate) fn into_wire(self) -> ttrpc::Status {
        ttrpc::Status { code: self.code.number(), message: self.message }
    }
}
