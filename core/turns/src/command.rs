//! What goes into the policy and what comes out.

use crate::{ClaimKey, DeviceKey};

/// What was seen of a claim's processes, all together. Each value comes from a page that the
/// tenant writes: none is trusted beyond what [`crate::Turns`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// A thread is on its way through a gate.
    pub entering: bool,
    /// Work was submitted that is not known to be complete.
    pub outstanding: bool,
    /// A thread waits at a gate.
    pub waiting: bool,
    /// How much was ever submitted, so that work between two looks shows.
    pub submitted: u64,
    /// How much is ever known to be complete.
    pub completed: u64,
}

impl Seen {
    /// True if nothing of it is on a device or on its way there.
    #[must_use]
    pub const fn is_drained(self) -> bool {
        !self.entering && !self.outstanding
    }

    /// True if it neither uses a device nor wants to.
    #[must_use]
    pub const fn is_idle(self) -> bool {
        self.is_drained() && !self.waiting
    }
}

/// What the caller must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open the gates of the claim, on all of its devices.
    Grant {
        /// The claim.
        claim: ClaimKey,
        /// How it may use the devices.
        access: Access,
        /// When its gates close by themselves; none: when told.
        deadline_ns: Option<u64>,
    },
    /// Change the deadline of a grant: no gate moves.
    Extend {
        /// The claim.
        claim: ClaimKey,
        /// The new deadline; none: when told.
        deadline_ns: Option<u64>,
    },
    /// Close the gates of the claim, then say with [`crate::Turns::observe`] how it drains.
    Close {
        /// The claim.
        claim: ClaimKey,
    },
    /// Bound the claim's unfinished work; none takes the bound away.
    Window {
        /// The claim.
        claim: ClaimKey,
        /// Estimated work, in microseconds.
        bound_us: Option<u32>,
    },
    /// Tell the claim's waiting threads when their turn is expected.
    Expect {
        /// The claim.
        claim: ClaimKey,
        /// When.
        at_ns: u64,
    },
    /// The device is shared in another way now: for reports.
    Mode {
        /// The device.
        device: DeviceKey,
        /// The way.
        mode: Mode,
    },
    /// The claim did not drain in time and the next was granted beside it: for reports.
    Stuck {
        /// The claim.
        claim: ClaimKey,
    },
    /// The parked claim is drained: its memory may be moved.
    Parked {
        /// The claim.
        claim: ClaimKey,
    },
}

/// How a granted claim may use its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Beside others, as the hardware slices.
    Open,
    /// Alone.
    Exclusive,
}

/// How a device is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Every gate is open: at most one claim is busy, or the hardware's slices are fair.
    #[default]
    Open,
    /// One claim at a time.
    Exclusive,
    /// One claim, up to its cap.
    Metered,
}

impl Mode {
    /// The mode in lower case, as it stands on wires.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Exclusive => "exclusive",
            Self::Metered => "metered",
        }
    }
}
