//! What this crate has done so far, in numbers that only grow.
//!
//! Knows no metrics library: whoever serves metrics reads [`Counters::snapshot`].

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// The counters, shared by all that use one connection.
        #[derive(Debug, Default)]
        pub struct Counters { $(pub(crate) $name: Counter),* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct CountersSnapshot { $($(#[doc = $doc])* pub $name: u64),* }

        impl Counters {
            /// All numbers now.
            #[must_use]
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.get()),* }
            }
        }
    };
}

counters! {
    /// Slices created.
    slices_created,
    /// Slices replaced by newer content.
    slices_updated,
    /// Slices deleted.
    slices_deleted,
    /// Writes that another writer came before.
    write_conflicts,
    /// Publishing attempts that failed and were tried again.
    publish_failures,
    /// Times that the API server was asked which fields it keeps.
    probes,
    /// Times that the watch on the slices began anew.
    watch_restarts,
    /// Times that the API server left out fields of a slice.
    dropped_fields,
    /// Slices that somebody else deleted or changed.
    slices_disturbed,
    /// Events sent.
    events_sent,
    /// Events not sent: repeated, too many or refused.
    events_dropped,
}
