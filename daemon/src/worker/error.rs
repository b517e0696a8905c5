//! Why a worker call gave no answer.

use std::{io, time::Duration};

use accelpool_model::VendorName;
use tonic::{Code, Status};

/// Why a worker call gave no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum WorkerError {
    #[error("vendor {vendor}: failed to start the worker")]
    Start { vendor: VendorName, source: io::Error },
    #[error("vendor {vendor}: the worker is restarted, again in {wait:?}")]
    Waiting { vendor: VendorName, wait: Duration },
    #[error("vendor {vendor}: {call} took longer than {deadline:?}, its worker was killed")]
    Deadline { vendor: VendorName, call: &'static str, deadline: Duration },
    #[error("vendor {vendor}: the worker died during {call}")]
    Died { vendor: VendorName, call: &'static str, source: Box<Status> },
    #[error(
        "vendor {vendor}: its library is kept closed for maintenance, which `accelpool resume` ends"
    )]
    Paused { vendor: VendorName },
    #[error("vendor {vendor}: {message}")]
    Refused { vendor: VendorName, code: Code, message: String },
    #[error("vendor {vendor}: {call} answered nonsense: {detail}")]
    Nonsense { vendor: VendorName, call: &'static str, detail: String },
}

impl WorkerError {
    /// What went wrong, in one word of a fixed set.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Waiting { .. } => "waiting",
            Self::Deadline { .. } => "deadline",
            Self::Paused { .. } => "paused",
            Self::Died { .. } => "died",
            Self::Refused { .. } => "refused",
            Self::Nonsense { .. } => "nonsense",
        }
    }

    /// True if the vendor has no such thing for that device and driver.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Unimplemented, .. })
    }

    /// True if the vendor said that the device is not there.
    #[must_use]
    pub fn is_unknown_device(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NotFound, .. })
    }
}
