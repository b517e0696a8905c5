//! What the plugin has done so far, in numbers that only grow.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// The counters, shared by all that count.
        #[derive(Debug, Default)]
        pub struct NriCounters { $(pub(super) $name: Counter),* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct NriSnapshot { $($(#[doc = $doc])* pub $name: u64),* }

        impl NriCounters {
            /// All numbers now.
            #[must_use]
            pub fn snapshot(&self) -> NriSnapshot {
                NriSnapshot { $($name: self.$name.0.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counters! {
    /// Times that the plugin was registered with a runtime.
    registrations,
    /// Containers that were made while it was.
    containers,
    /// Containers without a grant that asked for devices by a vendor's variable.
    attempts,
    /// Containers with a grant that asked for more by a vendor's variable.
    attempts_granted,
    /// Containers that asked before the daemon had ever told which vendors are its business.
    attempts_undecided,
    /// Containers put on the CPUs that are near to their devices.
    alignments,
    /// Containers that the runtime did not put there.
    alignment_failures,
    /// Containers answered for before everything was done for them; it is done afterwards.
    late,
    /// Containers with a variable of a grant that the kubelet does not confirm.
    forgeries,
    /// Pods and containers that were not followed, since there are too many.
    overflows,
}
